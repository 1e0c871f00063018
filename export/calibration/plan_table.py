"""Print what a calibration will take, for `echovlm-build --plan`."""

from __future__ import annotations

from rich.console import Console

from echovlm_edge.export.build_options import FEEDBACK_WIDTH, BuildOptions
from echovlm_edge.export.calibration.account import operations_per_second
from echovlm_edge.export.calibration.room import free_disk, planned_account, threads
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table, readable_bytes
from echovlm_edge.runtime.resources.machine_memory import machine_memory


def print_calibration_plan(options: BuildOptions, checkpoint: Checkpoint, console: Console) -> None:
    """Print memory, disk and time of the calibration that the options ask for, with the tokens that they allow."""
    wish = options.calibration
    assert wish is not None
    needed, speed = planned_account(options, checkpoint, wish.tokens), operations_per_second(threads())
    wide = "error feedback" if wish.full_feedback else "a search weighted by their importance"
    title = f"Calibration with up to {wish.tokens:,} tokens; layers of more than {FEEDBACK_WIDTH} inputs by {wide}"
    table = new_table(title, names("what"), figures("takes"), figures("free on this machine"))
    table.add_row("memory, at its peak", readable_bytes(needed.memory), readable_bytes(machine_memory().available))
    table.add_row(
        "disk, until the bundle is there", readable_bytes(needed.disk), readable_bytes(free_disk(options.output))
    )
    table.add_row("time, about", _duration(needed.operations / speed), "")
    print_table(console, table)


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{minutes / 60:.0f} h" if minutes > 180 else f"{minutes:.0f} min" if minutes >= 1 else "under a minute"
