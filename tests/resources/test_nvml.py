"""What is known of GPUs: by NVML, which a fake stands in for, and by a Jetson's own programs and files."""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from echovlm_edge.runtime.doctor.checks import target_for
from echovlm_edge.runtime.doctor.facts import facts
from echovlm_edge.runtime.profiling.measurement.energy import energy_of, open_meter
from echovlm_edge.runtime.profiling.measurement.machine import this_machine
from echovlm_edge.runtime.profiling.measurement.memory import gpu_memory
from echovlm_edge.runtime.resources import jetson
from echovlm_edge.runtime.resources.nvml import Gpu, compute_capability, nvidia_gpus, open_nvml
from tests.support.fake_nvml import ORIN, RTX, FakeNvml
from tests.support.waiting import wait_for


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a fake in the place of pynvml."""

    def put(*gpus: dict[str, Any], driver: bool = True) -> FakeNvml:
        fake = FakeNvml(*gpus, driver=driver)
        monkeypatch.setitem(sys.modules, "pynvml", fake)  # type: ignore[arg-type] # what of it is used
        return fake

    return put


def test_a_gpu_is_described_to_the_doctor_and_the_profile(install: Any, tmp_path: Path) -> None:
    fake = install(RTX)
    gpu = Gpu("NVIDIA RTX 4000 Ada", "580.1", 20 * 10**9, "8.9", 300, 2175, 70.0, 130.0)
    assert nvidia_gpus() == facts(tmp_path).gpus == (gpu,)
    assert this_machine(tmp_path).gpu == gpu.name and compute_capability() == (8, 9)
    assert fake.opened == 0, "what was opened is closed"


def test_a_jetson_reports_little(install: Any, tmp_path: Path) -> None:
    install(ORIN)
    assert nvidia_gpus() == (Gpu("Orin (nvgpu)", "580.1", 0, ""),)
    assert gpu_memory() is None and target_for(facts(tmp_path)) == "cuda"


def test_where_nvml_says_no_capability_cudas_driver_does(install: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def attribute(value: Any, number: int, device: Any) -> int:
        value._obj.value = {75: 8, 76: 7}[number]
        return 0

    driver = SimpleNamespace(cuInit=lambda flags: 0, cuDeviceGet=lambda *arguments: 0, cuDeviceGetAttribute=attribute)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    install(ORIN)
    assert compute_capability() == (8, 7)


@pytest.mark.parametrize("gpus", [(), (RTX,)], ids=["no GPU", "no driver"])
def test_a_machine_without_one(install: Any, gpus: tuple[dict[str, Any], ...], tmp_path: Path) -> None:
    fake = install(*gpus, driver=not gpus)
    assert nvidia_gpus() == () and open_nvml() is None and gpu_memory() is None
    assert this_machine(tmp_path).gpu is None and open_meter(tmp_path) is None
    assert fake.opened == 0


def test_a_machine_without_cudas_driver_has_no_compute_capability(
    install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    install(driver=False)
    monkeypatch.setattr(ctypes, "CDLL", absent)
    assert compute_capability() is None


def test_without_the_library_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)  # type: ignore[arg-type] # its import fails
    assert nvidia_gpus() == ()


def test_memory_in_use_is_read_again_each_time(install: Any) -> None:
    gpu = dict(RTX)
    install(gpu)
    used = gpu_memory()
    assert used is not None and used() == 3 * 10**9
    gpu["used"] = 4 * 10**9
    assert used() == 4 * 10**9


def test_energy_is_counted_for_each_gpu_that_counts_it(install: Any, tmp_path: Path) -> None:
    first, second = dict(RTX), dict(RTX, energy=2000)
    install(first, ORIN, second)
    meter = open_meter(tmp_path)
    assert meter is not None and meter.source == "NVML"
    before = meter.joules()
    first["energy"], second["energy"] = 3000, 6000
    assert energy_of(meter, before, 1, 1.0).joules == {"GPU 0": 2.0, "GPU 2": 4.0}
    meter.close()


def test_a_gpu_that_counts_no_energy_leaves_it_to_the_cpu(install: Any, tmp_path: Path) -> None:
    fake = install(ORIN)
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    for name, text in {"name": "package-0", "max_energy_range_uj": "999", "energy_uj": "1"}.items():
        (zone / name).write_text(f"{text}\n")
    meter = open_meter(tmp_path)
    assert meter is not None and meter.source == "RAPL" and fake.opened == 0


def test_tegrastats_is_read_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = "RAM 2000/62800MB (lfb 1x4MB) CPU [1%@729] VDD_GPU_SOC 2400mW/2400mW VDD_CPU_CV 400mW/500mW VIN_SYS_5V0 3020mW/3000mW"
    assert jetson.rails(line) == {"VDD_GPU_SOC": 2400, "VDD_CPU_CV": 400, "VIN_SYS_5V0": 3020}
    assert jetson.rails("POM_5V_IN 2356/2300 POM_5V_GPU 80/90") == {"POM_5V_IN": 2356, "POM_5V_GPU": 80}
    program = tmp_path / "tegrastats"
    program.write_text(f'#!/bin/sh\nwhile true; do echo "{line}"; sleep 0.05; done\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    started = time.monotonic()
    meter = open_meter()
    assert isinstance(meter, jetson.Tegrastats)
    wait_for(lambda: meter.joules().get("VDD_GPU_SOC", 0.0) > 2.4 * 0.2)
    joules = meter.joules()
    meter.close()
    assert joules["VDD_GPU_SOC"] < 2.4 * (time.monotonic() - started)
    assert not [thread for thread in threading.enumerate() if thread.name == "tegrastats"]


def test_a_jetsons_power_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvpmodel"
    program.write_text('#!/bin/sh\necho "NV Power Mode: MODE_30W"; echo 2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert jetson.power_mode() == "MODE_30W"
    assert jetson.jetpack(tmp_path) is None and jetson.power_modes(tmp_path) == {}
