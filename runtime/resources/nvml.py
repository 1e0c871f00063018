"""NVIDIA's GPUs by NVML, the driver's management library (nvidia-ml-py): name, memory, clocks, power and energy.

What NVML does not report on a Jetson is in `jetson`. NVML numbers all GPUs of the machine, whatever CUDA_VISIBLE_DEVICES says.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")
# nvmlClocksEventReasons: software's power cap, hardware's slowdown, software's and hardware's for heat, the power brake.
HELD_BACK = 0x4 | 0x8 | 0x20 | 0x40 | 0x80
CUDA_MAJOR, CUDA_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU as its driver describes it.

    Attributes:
        name: the product.
        driver: its version.
        memory: bytes; 0 where it is the system's, as on a Jetson.
        capability: the compute capability, `8.9`.
        clock: of its multiprocessors now, MHz; None where it is not reported, the next ones too.
        clock_max: their highest, MHz.
        power_limit: watts.
        power_default: the limit that it came with, watts.
    """

    name: str
    driver: str
    memory: int
    capability: str
    clock: int | None = None
    clock_max: int | None = None
    power_limit: float | None = None
    power_default: float | None = None


class Nvml:
    """The open library. It is a counter of energy too: `profiling.energy.Meter`."""

    source = "NVML"

    def __init__(self, library: Any) -> None:
        """Open it; `library` is the module pynvml, whose NVMLError is raised where there is no driver."""
        library.nvmlInit()
        self._library = library
        self._handles = [library.nvmlDeviceGetHandleByIndex(index) for index in range(library.nvmlDeviceGetCount())]

    def gpus(self) -> tuple[Gpu, ...]:
        """Describe every GPU."""
        return tuple(map(self._describe, self._handles))

    def used_memory(self) -> int | None:
        """Return the bytes in use on the first GPU, whoever uses them; None where there is no GPU or its memory is the system's."""
        memory = self._ask(self._library.nvmlDeviceGetMemoryInfo, self._handles[0]) if self._handles else None
        return None if memory is None else int(memory.used)

    def joules(self) -> dict[str, float]:
        """Return each GPU's joules since the driver was loaded; those before Volta do not count them and are left out."""
        counted = {
            index: self._ask(self._library.nvmlDeviceGetTotalEnergyConsumption, handle)
            for index, handle in enumerate(self._handles)
        }
        return {f"GPU {index}": joules / 1e3 for index, joules in counted.items() if joules is not None}

    def celsius(self) -> float | None:
        """Return the first GPU's temperature; None where it is not reported, the next ones too."""
        degrees = self._first(self._library.nvmlDeviceGetTemperature, self._library.NVML_TEMPERATURE_GPU)
        return None if degrees is None else float(degrees)

    def clock(self) -> int | None:
        """Return the clock of the first GPU's multiprocessors now, MHz."""
        return self._first(self._library.nvmlDeviceGetClockInfo, self._library.NVML_CLOCK_SM)

    def throttled(self) -> bool | None:
        """Return whether the first GPU's clocks are held back now, for heat or power."""
        reasons = self._first(self._library.nvmlDeviceGetCurrentClocksThrottleReasons)
        return None if reasons is None else bool(reasons & HELD_BACK)

    def close(self) -> None:
        """Close the library."""
        self._library.nvmlShutdown()

    def _describe(self, handle: Any) -> Gpu:
        ask, library = self._ask, self._library
        memory = ask(library.nvmlDeviceGetMemoryInfo, handle)
        capability = ask(library.nvmlDeviceGetCudaComputeCapability, handle) or ()
        limits = (
            ask(library.nvmlDeviceGetPowerManagementLimit, handle),
            ask(library.nvmlDeviceGetPowerManagementDefaultLimit, handle),
        )
        return Gpu(
            library.nvmlDeviceGetName(handle),
            ask(library.nvmlSystemGetDriverVersion) or "",
            0 if memory is None else int(memory.total),
            ".".join(map(str, capability)),
            ask(library.nvmlDeviceGetClockInfo, handle, library.NVML_CLOCK_SM),
            ask(library.nvmlDeviceGetMaxClockInfo, handle, library.NVML_CLOCK_SM),
            *(None if milliwatts is None else milliwatts / 1e3 for milliwatts in limits),
        )

    def _first(self, function: Callable[..., T], *arguments: Any) -> T | None:
        return self._ask(function, self._handles[0], *arguments) if self._handles else None

    def _ask(self, function: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return function(*arguments)
        except self._library.NVMLError:  # not reported for this GPU
            return None


def open_nvml() -> Nvml | None:
    """Open NVML; returns None where nvidia-ml-py or the driver is missing, or there is no GPU."""
    try:
        import pynvml
    except ImportError:
        return None
    try:
        nvml = Nvml(pynvml)
    except pynvml.NVMLError:
        return None
    if nvml.gpus():
        return nvml
    nvml.close()
    return None


def nvidia_gpus() -> tuple[Gpu, ...]:
    """Describe every NVIDIA GPU of this machine; empty where NVML finds none."""
    nvml = open_nvml()
    if nvml is None:
        return ()
    try:
        return nvml.gpus()
    finally:
        nvml.close()


def compute_capability() -> tuple[int, int] | None:
    """Return the compute capability of this machine's first GPU; None where there is none.

    From NVML, or where it does not report one, as on older Jetsons, from CUDA's driver.
    """
    first = next(iter(nvidia_gpus()), None)
    if first and first.capability:
        major, minor = map(int, first.capability.split("."))
        return major, minor
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, values = ctypes.c_int(), [ctypes.c_int(), ctypes.c_int()]
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute, value in zip((CUDA_MAJOR, CUDA_MINOR), values, strict=True):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
    return values[0].value, values[1].value
