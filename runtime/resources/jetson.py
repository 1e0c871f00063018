"""A Jetson's own facts, which NVML lacks: its release and power mode, and the power of its rails by tegrastats."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.system_files import text

SECONDS = 10  # for nvpmodel to answer
TEGRASTATS_MS = 100
_RAIL = re.compile(r"\b(V\w+|POM_\w+) (\d+)(?:mW)?/(\d+)(?:mW)?")


def jetpack(root: Path = Path("/")) -> str | None:
    """Return the Linux-for-Tegra release from /etc/nv_tegra_release: `# R36 (release), REVISION: 4.3` is `L4T 36.4.3`."""
    match = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text(root / "etc/nv_tegra_release"))
    return f"L4T {match[1]}.{match[2]}" if match else None


def power_modes(root: Path = Path("/")) -> dict[int, str]:
    """Return the power modes, by number, from /etc/nvpmodel.conf: `< POWER_MODEL ID=0 NAME=MAXN >`."""
    found = re.findall(r"<\s*POWER_MODEL ID=(\d+) NAME=(\S+)\s*>", text(root / "etc/nvpmodel.conf"))
    return {int(number): name for number, name in found}


def power_mode() -> str | None:
    """Return the current power mode, as nvpmodel reports it."""
    if shutil.which("nvpmodel") is None:
        return None
    try:
        answer = subprocess.run(["nvpmodel", "-q"], capture_output=True, text=True, timeout=SECONDS, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"NV Power Mode: (\S+)", answer)
    return match[1] if match else None


@contextmanager
def in_power_mode(number: int, modes: Mapping[int, str]) -> Iterator[None]:
    """Change the power mode until the context exits, then change it back; it is root's to change.

    Args:
        number: of the mode.
        modes: as `power_modes` returns them.

    Raises:
        NotPossibleHere: nvpmodel did not change it.
    """
    before = power_mode()
    _set_power_mode(number, modes)
    try:
        yield
    finally:
        for other, name in modes.items():
            if name == before:
                _set_power_mode(other, modes)


def _set_power_mode(number: int, modes: Mapping[int, str]) -> None:
    if power_mode() == modes[number]:
        return
    with suppress(OSError, subprocess.TimeoutExpired):
        # Some modes ask for a restart of the machine: with no answer they are not set.
        subprocess.run(
            ["nvpmodel", "-m", str(number)], stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    if power_mode() != modes[number]:
        raise NotPossibleHere(
            f"The power mode cannot be changed to {modes[number]}: run this as root, or where the mode needs a restart, "
            f"sudo nvpmodel -m {number} and run it again."
        )


class Tegrastats:
    """The rails' energy: milliwatts ten times a second, added up. A `profiling.energy.Meter`."""

    source = "tegrastats"

    def __init__(self, program: str) -> None:
        """Start the program."""
        self._process = subprocess.Popen(
            [program, "--interval", str(TEGRASTATS_MS)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._joules: dict[str, float] = {}
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
        self._thread.start()

    def joules(self) -> dict[str, float]:
        """Return the joules of each rail since the start."""
        with self._lock:
            return dict(self._joules)

    def close(self) -> None:
        """Stop the program."""
        self._process.terminate()
        self._process.wait()
        self._thread.join()

    def _read(self) -> None:
        assert self._process.stdout
        before = time.monotonic()
        for line in self._process.stdout:
            now = time.monotonic()
            with self._lock:
                for rail, milliwatts in rails(line).items():
                    self._joules[rail] = self._joules.get(rail, 0.0) + milliwatts / 1e3 * (now - before)
            before = now


def open_tegrastats() -> Tegrastats | None:
    """Start tegrastats; returns None where this machine has no such program."""
    program = shutil.which("tegrastats")
    return Tegrastats(program) if program else None


def rails(line: str) -> dict[str, int]:
    """Parse a line of tegrastats to milliwatts by rail: `VDD_GPU_SOC 2400mW/2400mW` is now and on average."""
    return {name: int(now) for name, now, _ in _RAIL.findall(line)}
