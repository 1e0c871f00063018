"""Say in one sentence whether a server's memory fits a machine; if not, which option to lower and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum

from echovlm_edge.runtime.backends.bundle_memory import BundleShape, When, Where, total
from echovlm_edge.runtime.resources.machine_memory import MachineMemory
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.supervision.server_memory import account, sequence_length, served_slots

# How far each option can be lowered and in which steps. Lowering a cheap one at most makes calls slower; lowering an expensive one
# means that fewer calls run at once or that the context is smaller.
CHEAP = {
    "prefix_mb": (0, 64),
    "prefix_host_mb": (0, 64),
    "parked_mb": (0, 64),
    "image_mb": (0, 16),
    "reply_mb": (0, 4),
    "study_mb": (64, 64),
    "upload_mb": (0, 64),
    "decode_mb": (1024, 256),
    "request_mb": (64, 64),
    "max_message_mb": (8, 1),
}
EXPENSIVE = {"queue": (0, 1), "decode_processes": (1, 1), "slots": (1, 1), "max_sequence": (1024, 256)}
LOWERABLE = CHEAP | EXPENSIVE
SUGGESTED = 2  # single options in a sentence

Size = Callable[[ServeSettings], int]


class Fit(Enum):
    """How a server fits, the worst first."""

    NEVER = "never"  # too small even for the weights and what is allocated at start
    SHORT = "short"  # too small once all slots and caches are full
    CROWDED = "crowded"  # too small only when everything is at its peak
    FITS = "fits"


@dataclass(frozen=True)
class Verdict:
    """How a server fits, in a sentence; `fix` says what to lower, and is empty if it fits."""

    fit: Fit
    sentence: str
    fix: str = ""

    def __str__(self) -> str:
        """Both as one sentence."""
        return f"{self.sentence}: {self.fix}." if self.fix else f"{self.sentence}."


def judge(shape: BundleShape, settings: ServeSettings, memory: MachineMemory, gpu: int | None = None) -> Verdict:
    """Check whether a server with these options fits; `gpu` is a graphics card's own memory in bytes, None if unknown.

    Raises:
        InvalidInput: `max_sequence` or `slots` is above what the bundle allows.
    """
    items = account(shape, settings)
    if gpu and total(items, Where.GPU, When.START, When.USED) > gpu:
        return _verdict(Fit.SHORT, shape, settings, Where.GPU, gpu, (When.START, When.USED))
    if not memory.most:
        return Verdict(Fit.FITS, "This system does not say how much memory it has")
    for fit, room, times in (
        (Fit.NEVER, memory.most, (When.START,)),
        (Fit.SHORT, memory.available, (When.START, When.USED)),
        (Fit.CROWDED, memory.available, (When.START, When.USED, When.PEAK)),
    ):
        if total(items, Where.HOST, *times) > room:
            return _verdict(fit, shape, settings, Where.HOST, room, times)
    used, worst = (total(items, Where.HOST, When.START, When.USED, *more) for more in ((), (When.PEAK,)))
    return Verdict(
        Fit.FITS,
        f"The server needs {_gb(used)}, {_gb(worst)} at a peak, and this machine has {_gb(memory.available)} free",
    )


def _verdict(
    fit: Fit, shape: BundleShape, settings: ServeSettings, where: Where, room: int, times: tuple[When, ...]
) -> Verdict:
    def size(changed: ServeSettings) -> int:
        return total(account(shape, changed), where, *times)

    needed = _gb(size(settings))
    needs = {
        Fit.NEVER: f"The server needs {needed} at start",
        Fit.SHORT: f"The server needs {needed}",
        Fit.CROWDED: f"At a peak the server needs {needed}",
    }[fit]
    owner = "this machine has" if where is Where.HOST else "the GPU has"
    free = "" if fit is Fit.NEVER or where is Where.GPU else " free"
    return Verdict(fit, f"{needs} and {owner} {_gb(room)}{free}", _fix(_Lowering(shape, settings, size, room)))


@dataclass(frozen=True)
class _Lowering:
    """Finds which options to lower so that `size` comes down to `room` bytes."""

    shape: BundleShape
    settings: ServeSettings
    size: Size
    room: int

    def one(self, name: str) -> dict[str, int]:
        """Find the largest value of one option that is enough; empty if no value is."""
        for value in self._values(name):
            if self.size(self.settings.model_copy(update={name: value})) <= self.room:
                return {name: value}
        return {}

    def kept(self, lowered: Mapping[str, int]) -> float:
        """Return the share of its value that a lowered option keeps."""
        return min(value / self._value(name) for name, value in lowered.items())

    def several(self) -> dict[str, int]:
        """Lower options one after the other, all but the last to their minimum; empty if even all of them are not enough."""
        changes: dict[str, int] = {}
        for name in (*sorted(CHEAP, key=self._saved, reverse=True), *EXPENSIVE):
            rest = replace(self, settings=self.settings.model_copy(update=changes))
            if last := rest.one(name):
                return changes | last
            if rest._saved(name) > 0:
                changes[name] = min(rest._values(name))
        return {}

    def _saved(self, name: str) -> int:
        """Return the bytes saved if an option is lowered to its minimum."""
        lowest = min(self._values(name), default=self._value(name))
        return self.size(self.settings) - self.size(self.settings.model_copy(update={name: lowest}))

    def _values(self, name: str) -> range:
        """List the lower values of an option, the largest first."""
        lowest, step = LOWERABLE[name]
        return range((self._value(name) - 1) // step * step, lowest - 1, -step)

    def _value(self, name: str) -> int:
        if name == "max_sequence":
            return sequence_length(self.shape, self.settings)
        if name == "slots":
            return served_slots(self.shape, self.settings)
        return int(getattr(self.settings, name))


def _fix(lowering: _Lowering) -> str:
    """Suggest single options if one is enough, those that keep most of their value; otherwise several together."""
    alone = sorted(filter(None, map(lowering.one, LOWERABLE)), key=lowering.kept, reverse=True)
    if alone:
        return "lower " + " or ".join(_said(lowered) for lowered in alone[:SUGGESTED])
    if several := lowering.several():
        return f"lower {_said(several)}"
    return "no option saves enough; build the bundle with fewer bits, or use a machine with more memory"


def _said(lowered: Mapping[str, int]) -> str:
    *most, last = (f"--{name.replace('_', '-')} to {value}" for name, value in lowered.items())
    return f"{', '.join(most)} and {last}" if most else last


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
