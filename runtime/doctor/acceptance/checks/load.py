"""Step `load`: minutes of reports, eight at a time, with tokens/s, temperature, clocks, throttling and power over time."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, count, pairwise

from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.doctor.acceptance.schema import Check, Figure, Outcome, Sample, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting
from echovlm_edge.runtime.profiling.measurement.energy import UNKNOWN, open_meter
from echovlm_edge.runtime.profiling.measurement.measurer import Remote
from echovlm_edge.runtime.profiling.measurement.requests import FILLER, frame
from echovlm_edge.runtime.profiling.schema import Run
from echovlm_edge.runtime.profiling.workloads import NAMED
from echovlm_edge.runtime.resources.heat import Heat, read_heat
from echovlm_edge.runtime.resources.nvml import open_nvml

WORKLOAD = NAMED["W1-196"]
CLIENTS = 8
SAMPLES = 120  # about so many in all
SHORTEST = 0.5  # seconds between two
FIGURES = tuple(
    f"load.{name}"
    for name in (
        *("tokens_per_second", "last_third_of_first", "reports", "joules_a_report"),
        *("celsius_most", "mhz_least", "watts", "throttled_share"),
    )
)


@dataclass(frozen=True)
class Reading:
    """What the machine reported at a moment, in seconds since the load began; joules since some moment before."""

    seconds: float
    heat: Heat
    joules: float | None


@dataclass
class Written:
    """What the clients were answered: when tokens came, in seconds since the load began, and how many at a time."""

    tokens: list[tuple[float, float]] = field(default_factory=list)
    reports: int = 0
    refused: list[str] = field(default_factory=list)

    def add(self, begun: float, run: Run) -> None:
        """Add a report that began so many seconds after the load; what came at once shares its tokens."""
        arrivals = list(accumulate(run.gaps, initial=begun + (run.first_token or run.seconds)))
        self.tokens += [(arrival, run.generated_tokens / len(arrivals)) for arrival in arrivals]
        self.reports += 1


def load(setting: Setting) -> Outcome:
    """Ask for reports about one frame each, for so many minutes."""
    seconds, written, numbers, lock = 60 * setting.minutes, Written(), count(1), threading.Lock()
    with setting.server("load", "--debug-ignore-stop") as served, Connection(served.address) as connection:
        target, started = Remote(connection, served.address), time.monotonic()

        def client(_: int) -> None:
            while (begun := time.monotonic() - started) < seconds:
                with lock:
                    number = next(numbers)
                try:
                    picture = frame(number, WORKLOAD.width, WORKLOAD.height)
                    run = target.ask(FILLER, [picture], WORKLOAD.new_tokens).run
                except UserError as error:
                    with lock:
                        written.refused.append(str(error))
                    return
                with lock:
                    written.add(begun, run)

        watch = Watch(setting, seconds, started, written)
        with watch, ThreadPoolExecutor(CLIENTS) as clients:
            list(clients.map(client, range(CLIENTS)))
    samples = samples_of(watch.readings, written.tokens)
    problem = written.refused[0] if written.refused else ""
    checks = [
        Check(f"{written.reports} reports of {CLIENTS} clients, each answered", _state(not problem), problem),
        *_unknown(samples),
    ]
    return Outcome(tuple(checks), figures_of(watch.readings, samples, written.reports), samples=samples)


class Watch:
    """Reads the machine's sensors in a thread of its own while it is entered, and says how far the load is."""

    def __init__(self, setting: Setting, seconds: float, started: float, written: Written) -> None:
        """Watch a load of so many seconds that `started` on the monotonic clock."""
        self.readings: list[Reading] = []
        self._setting, self._seconds, self._started, self._written = setting, seconds, started, written
        self._meter, self._nvml = open_meter(), open_nvml()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def __enter__(self) -> Watch:
        self._read()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._read()
        for opened in (self._meter, self._nvml):
            if opened:
                opened.close()

    def _run(self) -> None:
        while not self._done.wait(max(SHORTEST, self._seconds / SAMPLES)):
            self._read()
            last = self.readings[-1]
            warm = "" if last.heat.celsius is None else f", {last.heat.celsius:.0f} °C"
            self._setting.say(
                f"load: {last.seconds:.0f} of {self._seconds:.0f} s, {self._written.reports} reports{warm}"
            )

    def _read(self) -> None:
        joules = self._meter.joules() if self._meter else {}
        now = time.monotonic() - self._started
        self.readings.append(Reading(now, read_heat(self._nvml), sum(joules.values()) if joules else None))


def samples_of(readings: Sequence[Reading], tokens: Sequence[tuple[float, float]]) -> tuple[Sample, ...]:
    """Make a sample of each pair of readings, and of the tokens that came between them."""
    samples = []
    for before, after in pairwise(readings):
        seconds = after.seconds - before.seconds
        came = sum(many for moment, many in tokens if before.seconds < moment <= after.seconds)
        watts = None
        if before.joules is not None and after.joules is not None:
            watts = (after.joules - before.joules) / seconds
        throttled = after.heat.throttled
        if before.heat.throttles is not None and after.heat.throttles is not None:
            throttled = bool(throttled) or after.heat.throttles > before.heat.throttles
        heat = after.heat
        samples.append(Sample(after.seconds, came / seconds, heat.celsius, heat.mhz, watts, throttled))
    return tuple(samples)


def figures_of(readings: Sequence[Reading], samples: Sequence[Sample], reports: int) -> tuple[Figure, ...]:
    """Sum up a load; what the machine does not report is left out."""
    spans = [after.seconds - before.seconds for before, after in pairwise(readings)]
    speeds = [sample.tokens_per_second for sample in samples]
    third = max(len(samples) // 3, 1)
    first, last = (_mean(speeds[part], spans[part]) for part in (slice(third), slice(-third, None)))
    joules = [reading.joules for reading in readings if reading.joules is not None]
    spent = joules[-1] - joules[0] if len(joules) > 1 else None
    values = {
        "tokens_per_second": _mean(speeds, spans),
        "last_third_of_first": last / first if first else None,
        "reports": float(reports),
        "joules_a_report": spent / reports if spent is not None and reports else None,
        "celsius_most": max((one.celsius for one in samples if one.celsius is not None), default=None),
        "mhz_least": min((one.mhz for one in samples if one.mhz is not None), default=None),
        "watts": spent / sum(spans) if spent is not None else None,
        "throttled_share": _share([one.throttled for one in samples if one.throttled is not None]),
    }
    return tuple(Figure(f"load.{name}", value) for name, value in values.items() if value is not None)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return sum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None


def _unknown(samples: Sequence[Sample]) -> list[Check]:
    reasons = {
        "celsius": ("The temperature", "No sensor in /sys/class/thermal and no GPU reports it."),
        "mhz": ("The clocks", "Neither cpufreq nor a GPU reports them."),
        "throttled": ("Throttling", "Neither the CPU's counters nor a GPU reports it."),
        "watts": ("Power and joules", f"{UNKNOWN[0].upper()}{UNKNOWN[1:]}."),
    }
    return [
        Check(what, State.SKIPPED, reason)
        for name, (what, reason) in reasons.items()
        if all(getattr(sample, name) is None for sample in samples)
    ]


def _state(passed: bool) -> State:
    return State.PASSED if passed else State.FAILED
