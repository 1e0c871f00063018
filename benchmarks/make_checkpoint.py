"""Writes a random checkpoint in the published layout: any shape, well scaled, sharded, from a seed.

python benchmarks/make_checkpoint.py --output checkpoints/medium --width 1024 --layers 8
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from echovlm_edge.export.checkpoint import INDEX, expected_tensors
from echovlm_edge.export.config import ARCHITECTURE, EchoVLMConfig

TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.json", "preprocessor_config.json", "generation_config.json"),
)
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "checkpoint"
SHARD_BYTES = 1 << 30


def config_like_published(
    width: int = 1024,
    layers: int = 8,
    vocab_size: int = 1024,
    vision_width: int = 320,
    vision_depth: int = 8,
    **changes: Any,
) -> dict[str, Any]:
    """A config.json with the published model's proportions at another width; `changes` override its keys."""
    head_dim = 128 if width % 128 == 0 and width >= 1024 else 64
    section = [head_dim // 8, 3 * head_dim // 16, 3 * head_dim // 16]
    block = 128
    scaled = {name: max(block, round(width * ratio / block) * block) for name, ratio in _RATIOS.items()}
    special = json.loads((GOLDEN / "config.json").read_text(encoding="utf-8"))
    tokens = {key: value for key, value in special.items() if key.endswith("token_id")}
    return {
        "architectures": [ARCHITECTURE],
        "hidden_act": "silu",
        "hidden_size": width,
        **scaled,
        "model_type": "qwen2_vl",
        "norm_topk_prob": False,
        "num_attention_heads": width // head_dim,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": layers,
        "num_key_value_heads": max(1, width // head_dim // 4),
        "rms_norm_eps": 1e-6,
        "rope_scaling": {"mrope_section": section, "rope_type": "default", "type": "default"},
        "rope_theta": 1e6,
        "tie_word_embeddings": False,
        "vocab_size": vocab_size,
        "vision_config": {
            "depth": vision_depth,
            "embed_dim": vision_width,
            "hidden_size": width,
            "num_heads": vision_width // 80,
        },
        **tokens,
        **changes,
    }


_RATIOS = {  # of the published model's inner widths to its width
    "intermediate_size": 18944 / 3584,
    "shared_expert_intermediate_size": 5632 / 3584,
    "moe_intermediate_size": 1408 / 3584,
}


def make_checkpoint(
    folder: Path, config: Mapping[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, tokenizer: Path = GOLDEN
) -> Path:
    """Write the checkpoint.

    Args:
        folder: made where it is missing.
        config: a parsed config.json.
        seed: of the random values; each tensor's come from the seed and its place, whatever the others are.
        dtype: of the tensors.
        tokenizer: a checkpoint folder whose tokenizer, chat template and preprocessor config are copied.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config), indent=2), encoding="utf-8")
    for name in TOKENIZER_FILES:
        if (tokenizer / name).is_file():
            shutil.copy(tokenizer / name, folder / name)
    shapes = expected_tensors(EchoVLMConfig.from_json(config, "config"))
    shards = list(_shards(shapes, dtype.itemsize))
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save_file({name: random_tensor(name, shapes[name], seed).to(dtype) for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}, indent=1), encoding="utf-8")
    return folder


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values that keep activations sane: rows of unit gain, norms near one, small biases."""
    generator = torch.Generator().manual_seed(seed * 1_000_003 + sum(map(ord, name)) * 7919 + len(name))
    noise = torch.randn(shape, generator=generator)
    if "norm" in name or "ln_q" in name:
        return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise
    if len(shape) == 1:
        return 0.1 * noise
    gain = 1.0 if "embed" in name or "lm_head" in name or "gate.weight" in name else 0.7
    return noise * gain / math.sqrt(math.prod(shape[1:])) * (math.sqrt(shape[1]) if "embed_tokens" in name else 1)


def _shards(shapes: Mapping[str, tuple[int, ...]], item_size: int) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, shape in shapes.items():
        size += math.prod(shape) * item_size
        names.append(name)
        if size >= SHARD_BYTES:
            yield names
            names, size = [], 0
    if names:
        yield names


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Write a random EchoVLM checkpoint in the published layout.")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    config = config_like_published(options.width, options.layers)
    make_checkpoint(options.output, config, options.seed)
    print(f"{options.output}: width {options.width}, {options.layers} layers")
    return 0


if __name__ == "__main__":
    sys.exit(main())
