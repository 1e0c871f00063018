"""What the module pynvml has of what is called, over GPUs made of values: no driver is needed."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """Each GPU is a dict of `name`, `memory`, `used`, `capability`, `clock`, `clock_max`, `limit`, `default_limit`, `energy`,
    `celsius`, `reasons`.

    Memory is in bytes, clocks are in MHz, limits in milliwatts, energy in millijoules; what a GPU lacks is not supported there.
    """

    NVML_CLOCK_SM = 1
    NVML_TEMPERATURE_GPU = 0

    class NVMLError(Exception):
        """What every function raises that does not succeed."""

    def __init__(self, *gpus: dict[str, Any], driver: bool = True) -> None:
        self.gpus: Sequence[dict[str, Any]] = gpus
        self.driver, self.opened = driver, 0

    def nvmlInit(self) -> None:
        if not self.driver:
            raise self.NVMLError("NVML Shared Library Not Found")
        self.opened += 1

    def nvmlShutdown(self) -> None:
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> dict[str, Any]:
        return self.gpus[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.1"

    def nvmlDeviceGetName(self, gpu: dict[str, Any]) -> str:
        return str(gpu["name"])

    def nvmlDeviceGetMemoryInfo(self, gpu: dict[str, Any]) -> SimpleNamespace:
        return SimpleNamespace(total=self._get(gpu, "memory"), used=self._get(gpu, "used"))

    def nvmlDeviceGetCudaComputeCapability(self, gpu: dict[str, Any]) -> list[int]:
        return [int(number) for number in self._get(gpu, "capability")]

    def nvmlDeviceGetClockInfo(self, gpu: dict[str, Any], clock: int) -> int:
        return int(self._get(gpu, {self.NVML_CLOCK_SM: "clock"}[clock]))

    def nvmlDeviceGetMaxClockInfo(self, gpu: dict[str, Any], clock: int) -> int:
        return int(self._get(gpu, {self.NVML_CLOCK_SM: "clock_max"}[clock]))

    def nvmlDeviceGetTemperature(self, gpu: dict[str, Any], sensor: int) -> int:
        return int(self._get(gpu, {self.NVML_TEMPERATURE_GPU: "celsius"}[sensor]))

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, gpu: dict[str, Any]) -> int:
        return int(self._get(gpu, "reasons"))

    def nvmlDeviceGetPowerManagementLimit(self, gpu: dict[str, Any]) -> int:
        return int(self._get(gpu, "limit"))

    def nvmlDeviceGetPowerManagementDefaultLimit(self, gpu: dict[str, Any]) -> int:
        return int(self._get(gpu, "default_limit"))

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu: dict[str, Any]) -> int:
        return int(self._get(gpu, "energy"))

    def _get(self, gpu: dict[str, Any], name: str) -> Any:
        if name not in gpu:
            raise self.NVMLError("Not Supported")
        return gpu[name]


RTX: dict[str, Any] = {
    "name": "NVIDIA RTX 4000 Ada",
    "memory": 20 * 10**9,
    "used": 3 * 10**9,
    "capability": (8, 9),
    "clock": 300,
    "clock_max": 2175,
    "limit": 70_000,
    "default_limit": 130_000,
    "energy": 1000,
}
ORIN: dict[str, Any] = {"name": "Orin (nvgpu)"}  # reports little: its memory is the system's, its rails are tegrastats'
