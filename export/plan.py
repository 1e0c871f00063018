"""What a bundle will take before it is built, and whether this machine has it: disk, memory to run, KV cache."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from echovlm_edge.export.config import EchoVLMConfig
from echovlm_edge.runtime.bundle import Footprint, Limits

# Of a server beside weights and KV cache, measured: Python, gRPC and ONNX Runtime 50 MB, a tokenizer of 150,000 words 210.
LIBRARIES = 300 << 20
PREFILL_TOKENS = 512  # in one pass
FRAME_PATCHES = 1564  # of a 640 x 480 frame
FILES_BESIDE = 16 << 20  # tokenizer, chat template and graphs


@dataclass(frozen=True)
class Machine:
    """What this computer has: bytes of memory, and bytes free where the bundle shall be."""

    memory: int
    disk_free: int

    @classmethod
    def here(cls, output: Path) -> Machine:
        """This computer, and the file system that `output` will be on."""
        folder = output.absolute()
        while not folder.exists():
            folder = folder.parent
        return cls(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), shutil.disk_usage(folder).free)


def kv_cache_bytes(config: EchoVLMConfig, max_sequence: int, item_size: int) -> int:
    """Keys and values of one sequence, in all layers."""
    decoder = config.decoder
    return 2 * decoder.num_hidden_layers * decoder.num_key_value_heads * decoder.head_dim * max_sequence * item_size


def footprint(config: EchoVLMConfig, weights: Mapping[str, int], limits: Limits, cache_item_size: int) -> Footprint:
    """What a bundle takes whose files of weights have these sizes in bytes."""
    one = kv_cache_bytes(config, limits.max_sequence, cache_item_size)
    return Footprint(
        disk=sum(weights.values()) + FILES_BESIDE,
        weights=sum(weights.values()),
        kv_cache=one,
        kv_cache_batch=one * limits.max_batch,
        working=LIBRARIES + _activations(config),
    )


def _activations(config: EchoVLMConfig) -> int:
    """Float32 values that the parts hold at their largest, each in its own arena (an estimate from the shapes).

    A prefill pass: a few of the decoder's width, DualPathMoE's inner values twice. A frame: all heads' attention scores, and
    a few of the vision encoder's width.
    """
    decoder, vision = config.decoder, config.vision
    prefill = PREFILL_TOKENS * (8 * decoder.hidden_size + 2 * sum(decoder.group_widths)) + 2 * decoder.vocab_size
    frame = FRAME_PATCHES * (vision.num_heads * FRAME_PATCHES + 6 * vision.embed_dim + 2 * vision.mlp_dim)
    return 4 * (prefill + frame)


def misfits(footprint: Footprint, machine: Machine) -> list[str]:
    """What this machine lacks, a sentence each; none if the bundle fits."""
    wants = {
        "memory to run": (footprint.to_run, machine.memory),
        "disk": (footprint.disk, machine.disk_free),
    }
    return [
        f"It needs {needed / 1e9:.1f} GB of {name}, this machine has {there / 1e9:.1f}."
        for name, (needed, there) in wants.items()
        if needed > there
    ]


def print_plan(
    title: str, weights: Mapping[str, int], plan: Footprint, limits: Limits, cache_dtype: str, machine: Machine
) -> None:
    """The table of `--plan`."""
    table = Table(box=box.SIMPLE, title=title)
    table.add_column("", no_wrap=True)
    table.add_column("GB on disk", justify="right")
    table.add_column("GB in memory", justify="right")
    for name, size in weights.items():
        table.add_row(name, f"{size / 1e9:.2f}", f"{size / 1e9:.2f}")
    caches = f"KV cache, {cache_dtype}, {limits.max_batch} x {limits.max_sequence} tokens"
    table.add_row(caches, "", f"{plan.kv_cache_batch / 1e9:.2f}")
    table.add_row("libraries and activations", "", f"{plan.working / 1e9:.2f}")
    table.add_row("together", f"{plan.disk / 1e9:.2f}", f"{plan.to_run / 1e9:.2f}", style="bold")
    table.add_row("this machine has", f"{machine.disk_free / 1e9:.2f}", f"{machine.memory / 1e9:.2f}")
    console = Console()
    console.print(table)
    missing = misfits(plan, machine)
    for sentence in missing or ["It fits this machine."]:
        console.print(sentence, style="yellow" if missing else None, highlight=False)
