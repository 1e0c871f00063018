"""What a load's readings come to, sensors of files and of a GPU, and power modes that a stand-in of nvpmodel sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.doctor.acceptance.checks.load import Reading, Written, figures_of, samples_of
from echovlm_edge.runtime.doctor.acceptance.steps import steps
from echovlm_edge.runtime.profiling.schema import Run
from echovlm_edge.runtime.resources.heat import Heat, read_heat
from echovlm_edge.runtime.resources.jetson import in_power_mode, power_mode
from echovlm_edge.runtime.resources.nvml import Nvml
from tests.support.fake_nvml import RTX, FakeNvml

MODES = {0: "MAXN", 2: "MODE_15W"}


def test_a_load_of_readings() -> None:
    written = Written()
    written.add(1.0, Run(8.0, 1.0, {}, (2.0, 2.0), 0, 0, 6, 0))  # six tokens at 2, 4 and 6 s
    assert written.tokens == [(2.0, 2.0), (4.0, 2.0), (6.0, 2.0)] and written.reports == 1
    readings = [
        Reading(0.0, Heat(40.0, 2000.0, 5), 100.0),
        Reading(4.0, Heat(60.0, 1800.0, 5), 160.0),
        Reading(6.0, Heat(55.0, 1900.0, 9), 180.0),
    ]
    samples = samples_of(readings, written.tokens)
    assert [(one.tokens_per_second, one.watts, one.throttled) for one in samples] == [(1, 15, False), (1, 10, True)]
    figures = {figure.name: figure.value for figure in figures_of(readings, samples, written.reports)}
    assert figures == {
        "load.tokens_per_second": 1.0,
        "load.last_third_of_first": 1.0,
        "load.reports": 1,
        "load.joules_a_report": 80.0,
        "load.celsius_most": 60.0,
        "load.mhz_least": 1800.0,
        "load.watts": pytest.approx(80 / 6),
        "load.throttled_share": 0.5,
    }


def test_what_is_not_reported_is_left_out() -> None:
    readings = [Reading(float(second), Heat(), None) for second in range(3)]
    names = {figure.name for figure in figures_of(readings, samples_of(readings, []), 0)}
    assert names == {"load.tokens_per_second", "load.reports"}


def test_sensors(tmp_path: Path) -> None:
    assert read_heat(None, tmp_path) == Heat()
    for name, text in {
        "sys/class/thermal/thermal_zone0/temp": "48500\n",
        "sys/class/thermal/thermal_zone1/temp": "-256000\n",
        "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
        "sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq": "2200000\n",
        "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count": "3\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert read_heat(None, tmp_path) == Heat(48.5, 2200.0, 3)
    gpu = Nvml(FakeNvml(RTX | {"celsius": 71, "reasons": 0x20}))
    assert read_heat(gpu, tmp_path) == Heat(71.0, 300, 3, True)
    idle = Nvml(FakeNvml(RTX | {"celsius": 30, "reasons": 0x1}))  # idle is no throttling
    assert read_heat(idle, tmp_path) == Heat(48.5, 300, 3, False)
    assert read_heat(Nvml(FakeNvml({"name": "old"})), tmp_path) == Heat(48.5, 2200.0, 3)


@pytest.fixture
def nvpmodel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in, which keeps the mode in a file; mode 3 needs a restart, and is not set."""
    state, program = tmp_path / "mode", tmp_path / "nvpmodel"
    state.write_text("2 MODE_15W")
    program.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -q ]; then read number name < {state}; echo "NV Power Mode: $name"; echo "$number"; fi\n'
        f'case "$1 $2" in "-m 0") echo "0 MAXN" > {state};; "-m 2") echo "2 MODE_15W" > {state};; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return state


def test_a_power_mode_is_changed_and_changed_back(nvpmodel: Path) -> None:
    with in_power_mode(0, MODES):
        assert power_mode() == "MAXN"
    assert power_mode() == "MODE_15W"
    with pytest.raises(ZeroDivisionError), in_power_mode(0, MODES):
        raise ZeroDivisionError
    assert power_mode() == "MODE_15W"
    with pytest.raises(NotPossibleHere, match="sudo nvpmodel -m 3"), in_power_mode(3, MODES | {3: "MAXN_SUPER"}):
        raise AssertionError("it is not set")
    assert power_mode() == "MODE_15W"


def test_steps_of_power_modes() -> None:
    plain = [step.name for step in steps(10, None)]
    assert len(plain) == 14 and "power modes" not in plain
    assert [step.name for step in steps(10, {})] == [*plain[:7], "power modes", *plain[7:]]
    modes = steps(10, MODES)
    assert [step.name for step in modes[7:9]] == ["MAXN/W1", "MAXN/W7"] and len(modes) == 14 + 6
    assert "MODE_15W/Q-196-c8.joules" in modes[-2].figures
