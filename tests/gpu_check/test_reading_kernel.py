"""The kernel that only reads: NVIDIA's assembler takes it, its loads are under way together, and its launch is what it takes."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_check.bandwidth import BLOCKS, THREADS, UNROLLED, measured_bandwidth, reading_kernel
from echovlm_edge.runtime.backends.gpu import cuda_driver
from echovlm_edge.runtime.backends.gpu.cuda_driver import CudaDevice
from tests.support.numpy_cuda import NumpyDriver
from tests.support.numpy_device import EagerStream, NumpyDevice

SIZE = 1 << 20


@pytest.mark.parametrize("sm", [80, 90, 120])
def test_it_loads_all_before_it_uses_any(sm: int, tmp_path: Path) -> None:
    tools = Path(pytest.importorskip("triton").__file__).parent / "backends" / "nvidia" / "bin"
    assembler = "ptxas-blackwell" if sm >= 100 else "ptxas"
    (tmp_path / "read.ptx").write_text(reading_kernel())
    subprocess.run([tools / assembler, f"-arch=sm_{sm}", tmp_path / "read.ptx", "-o", tmp_path / "cubin"], check=True)
    dumped = subprocess.run(
        [tools / "cuobjdump", "--dump-sass", tmp_path / "cubin"], capture_output=True, text=True, check=True
    )
    found = re.findall(r"LDG\.E\.128|LOP3", dumped.stdout)
    assert found[:UNROLLED] == ["LDG.E.128"] * UNROLLED and found.count("LDG.E.128") == UNROLLED


def test_it_is_launched_on_what_was_written(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = NumpyDriver(NumpyDevice(stream=EagerStream))
    monkeypatch.setattr(cuda_driver, "_driver", lambda: driver)
    device = CudaDevice()
    addresses: list[int] = []
    allocate = device.allocate

    def remembered(size: int) -> object:
        memory = allocate(size)
        addresses.append(memory.address)
        return memory

    monkeypatch.setattr(device, "allocate", remembered)
    found = measured_bandwidth(device, SIZE)
    assert found.read_gbps > 0 and found.copy_gbps > 0
    assert set(driver.launched) == {(b"read_all", (addresses[0], SIZE // 16, addresses[1]))}
    assert THREADS * BLOCKS * UNROLLED * 16 <= 1 << 26, "a few rounds of a gigabyte at least"
