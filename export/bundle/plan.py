"""Plan a bundle before it is built: the disk and the server's memory that it will take, and whether this machine has them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from echovlm_edge.export.devices import Device
from echovlm_edge.runtime.backends.bundle_memory import BundleShape, When, Where, activation_bytes, total
from echovlm_edge.runtime.bundle.manifest import Footprint, Limits
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes, words
from echovlm_edge.runtime.resources.machine_memory import MachineMemory, machine_memory
from echovlm_edge.runtime.serving.supervision.memory_fit import Fit, judge
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.server_memory import LIBRARIES, TOKENIZER_TIMES, account

FILES_BESIDE = 16 << 20  # tokenizer, chat template and graphs


@dataclass(frozen=True)
class Machine:
    """This computer's memory, and the bytes free where the bundle will be."""

    memory: MachineMemory
    disk_free: int

    @classmethod
    def here(cls, output: Path) -> Machine:
        """Read this computer's memory, and the free space of the file system that `output` will be on."""
        folder = output.absolute()
        while not folder.exists():
            folder = folder.parent
        return cls(machine_memory(), shutil.disk_usage(folder).free)


def footprint(shape: BundleShape, limits: Limits) -> Footprint:
    """Compute what a bundle of this shape takes, for its bundle.json."""
    weights, one = shape.weights + shape.embedding, shape.cache_bytes(limits.max_sequence)
    return Footprint(
        disk=weights + FILES_BESIDE,
        weights=weights,
        kv_cache=one,
        kv_cache_batch=one * limits.max_batch,
        working=LIBRARIES + TOKENIZER_TIMES * shape.tokenizer + activation_bytes(shape, limits.max_sequence),
    )


def print_plan(
    title: str,
    files: Mapping[str, int],
    shape: BundleShape,
    settings: ServeSettings,
    machine: Machine,
    console: Console,
    device: Device | None = None,
) -> None:
    """Print the tables of `--plan`: files on disk, and the memory of a server with these options.

    Args:
        title: of the first table.
        files: bytes of each.
        shape: of the bundle.
        settings: of the server.
        machine: this computer.
        console: is printed to.
        device: the machine that will serve it, if that is another one for sure.
    """
    disk = sum(files.values()) + FILES_BESIDE
    table = new_table(title, names("on disk"), figures("size"))
    for file, size in files.items():
        table.add_row(file, readable_bytes(size))
    table.add_row("together, with tokenizer and graphs", readable_bytes(disk), style="bold")
    table.add_row("free on this machine", readable_bytes(machine.disk_free))
    print_table(console, table)
    print_table(console, _memory_table(shape, settings, None if device else machine.memory))
    if device:
        elsewhere = (
            f"{device.name} serves it, not this machine. It has {device.memory_gb:g} GB, some {device.usable_gb:.1f} GB of them for the "
            "server; echovlm-doctor there says whether that fits."
        )
        console.print(elsewhere, highlight=False, soft_wrap=True)
    else:
        verdict = judge(shape, settings, machine.memory)
        style = None if verdict.fit is Fit.FITS else "yellow"
        console.print(str(verdict), style=style, highlight=False, soft_wrap=True)
    if disk > machine.disk_free:
        missing = f"It needs {readable_bytes(disk)} of disk, this machine has {readable_bytes(machine.disk_free)}."
        console.print(missing, style="yellow", highlight=False, soft_wrap=True)


def _memory_table(shape: BundleShape, settings: ServeSettings, memory: MachineMemory | None) -> Table:
    table = new_table(
        f"A server of it, --max-sequence {shape.max_sequence}, other options by default",
        names("in memory, at most"),
        figures("size"),
        words("taken"),
        names("bounded by"),
    )
    items = account(shape, settings)
    for item in sorted(items, key=lambda item: list(When).index(item.when)):
        where = "" if item.where is Where.HOST else f" ({item.where.value})"
        table.add_row(item.what + where, readable_bytes(item.bytes), item.when.value, item.bound)
    used, worst = (total(items, Where.HOST, When.START, When.USED, *more) for more in ((), (When.PEAK,)))
    table.add_row("together, full", readable_bytes(used), style="bold")
    table.add_row("together, at the peaks", readable_bytes(worst), style="bold")
    if memory:
        table.add_row("free on this machine", readable_bytes(memory.available))
    return table
