"""What a check works with: its folder, and the sizes of what it runs, on a GPU or in a rehearsal without one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from echovlm_edge.runtime.bundle.manifest import MANIFEST, Bundle
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.profiling.workloads import SMALL, W1, W7, Workload

ROOT = Path(__file__).parents[2]
GOLDEN, DEMO = ROOT / "tests" / "golden" / "checkpoint", ROOT / "demo" / "checkpoint"
BUNDLES = "bundles"


class LeftOut(UserError):
    """A stage cannot run on this machine; the sentence says why."""


@dataclass(frozen=True)
class Sizes:
    """How much each stage does.

    Attributes:
        bandwidth_bytes: that are copied, and read.
        token_steps: written tokens of each sequence that are compared.
        studies: seeds of the simulated studies that the demo's bundles report on.
        batch: sequences that are decoded together.
        demo: precisions of the demo's bundles whose tokens are compared, and whether DualPathMoE is spelled out in them.
        layers: of the published model's decoder, and of the shorter one for torch.compile.
        workloads: whose first tokens are measured.
        runs: of each workload, and of each of PyTorch's passes.
        sequences: decoded together, one after another.
        cached: tokens of each.
        decode_seconds, decode_steps: the least that a measurement of steps takes.
        chunk: tokens of the prompt whose operators are timed.
    """

    bandwidth_bytes: int
    token_steps: int
    studies: tuple[int, ...]
    batch: int
    demo: tuple[tuple[str, bool], ...]
    layers: tuple[int, int]
    workloads: tuple[Workload, ...]
    runs: int
    sequences: tuple[int, ...]
    cached: int
    decode_seconds: float
    decode_steps: int
    chunk: int


FULL = Sizes(
    bandwidth_bytes=2 << 30,
    token_steps=48,
    studies=(27, 28, 29),
    batch=8,
    demo=(("int4", False), ("fp16", False), ("int4", True)),
    layers=(28, 4),
    workloads=(W1, W7, *(workload for workload in SMALL if not workload.seen)),
    runs=5,
    sequences=(1, 4, 8),
    cached=512,
    decode_seconds=2.0,
    decode_steps=32,
    chunk=512,
)
REHEARSAL = replace(
    FULL,
    bandwidth_bytes=1 << 20,
    token_steps=6,
    studies=(27,),
    demo=(("int4", True),),
    layers=(2, 1),
    workloads=(Workload("W1", 1, 60, 1, 84, 84),),
    runs=1,
    sequences=(1, 4),
    cached=40,
    decode_seconds=0.0,
    decode_steps=3,
    chunk=32,
)


@dataclass(frozen=True)
class Setting:
    """The folder for bundles and logs, and whether there is only a stand-in for the GPU."""

    folder: Path
    rehearsal: bool = False

    @property
    def sizes(self) -> Sizes:
        """Return how much each stage does."""
        return REHEARSAL if self.rehearsal else FULL

    @property
    def context(self) -> int:
        """Return the tokens of a slot in which steps are measured."""
        return 2 * self.sizes.cached

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the published model's config, or a small one of its proportions."""
        from benchmarks.make_checkpoint import config_like_published, published_config

        if not self.rehearsal:
            return published_config(self.sizes.layers[0])
        return config_like_published(256, self.sizes.layers[0], vision_width=80, vision_depth=1)

    def bundle(self, checkpoint: Path, precision: str, spell_out: bool = False) -> Bundle:
        """Open the bundle of a small checkpoint for `cuda`; it is built if an earlier stage has not built it.

        DualPathMoE is our operator where the kernels take the model's widths and this install has them, unless it is to be spelled out.
        """
        name = "golden" if checkpoint == GOLDEN else "demo"
        path = self.folder / BUNDLES / f"{name}-{precision}{'-spelled-out' if spell_out else ''}"
        if not (path / MANIFEST).is_file():
            from echovlm_edge.export.build_engines import BuildOptions, build

            options = BuildOptions(checkpoint, path, "cuda", precision, name=name, spell_out=spell_out)
            build(options, Console(quiet=True))
        return Bundle(path)
