"""Tiny bundles in tests/data/kept, each as a version of this package built it; run as a program to keep one of today's version.

python -m tests.support.kept_bundles NAME
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.make_checkpoint import config_like_published, make_checkpoint
from echovlm_edge.export.build_engines import build
from echovlm_edge.export.build_options import BuildOptions

KEPT = Path(__file__).parents[1] / "data" / "kept"


def keep(name: str) -> Path:
    """Build a bundle from a checkpoint of one layer, 0.7 MB, into the folder of kept ones."""
    config = config_like_published(
        width=64,
        layers=1,
        vision_width=40,
        vision_depth=1,
        hidden_size=64,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=64,
        shared_expert_intermediate_size=64,
        moe_intermediate_size=64,
        rope_scaling={"mrope_section": [8, 12, 12], "type": "default"},
        vision_config={"depth": 1, "embed_dim": 40, "hidden_size": 64, "num_heads": 1, "mlp_ratio": 1},
    )
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make_checkpoint(Path(folder) / "kept", config, seed=5)
        output = Path(folder) / "bundle"
        build(BuildOptions(checkpoint, output, block_size=32, max_sequence=512), Console(stderr=True))
        return Path(shutil.copytree(output, KEPT / name))


if __name__ == "__main__":
    print(keep(sys.argv[1]))
