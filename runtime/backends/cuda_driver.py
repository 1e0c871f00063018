"""The GPU by CUDA's driver interface (cuda-python): memory, one stream, graphs.

The driver's interface and not the runtime library's: it is the driver's own on every machine, so nothing has to match a CUDA
release. TensorRT and this module meet in the device's primary context.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends.device import Graph
from echovlm_edge.runtime.errors import NotPossibleHere

MEMORY_INFO = Path("/proc/meminfo")


class DeviceFailed(RuntimeError):
    """A CUDA call that cannot be mended by the user: the device is lost to this process."""


@dataclass(frozen=True)
class CudaMemory:
    """A block of device memory."""

    address: int


@dataclass(frozen=True)
class CudaStaging:
    """A block of page-locked host memory; it lives as long as any view of `bytes`."""

    bytes: NDArray[np.uint8]


class CudaDevice:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves to this process.

    Raises:
        NotPossibleHere: cuda-python or the driver is missing, or there is no GPU.
    """

    def __init__(self) -> None:
        """Take the device's primary context and make a stream in it."""
        self._cuda = _driver()
        try:
            self._call("cuInit", 0)
            handle = self._call("cuDeviceGet", 0)
            self._context = self._call("cuDevicePrimaryCtxRetain", handle)
        except Exception as error:  # each release says in its own way that the driver's library is missing
            reason = str(error).splitlines()[0].rstrip(".")
            raise NotPossibleHere(
                f"CUDA finds no GPU here ({reason}): install NVIDIA's driver, let CUDA_VISIBLE_DEVICES show a GPU, or build the "
                "bundle for this machine with --target cpu."
            ) from None
        self.enter()
        self.name = self._call("cuDeviceGetName", 100, handle).split(b"\0")[0].decode()
        attribute = self._cuda.CUdevice_attribute
        self._integrated, major, minor = (
            self._call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)
            for name in ("INTEGRATED", "COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR")
        )
        self.compute_capability = 10 * major + minor
        # TensorRT asks for another stream than the default one, which would wait for every other.
        self.stream = self._call("cuStreamCreate", self._cuda.CUstream_flags.CU_STREAM_NON_BLOCKING.value)

    def enter(self) -> None:
        """See `Device.enter`."""
        self._call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """See `Device.free_bytes`. An integrated GPU shares the host's memory, whose file cache gives way."""
        free, _ = self._call("cuMemGetInfo")
        return max(free, _available_host_memory()) if self._integrated else int(free)

    def allocate(self, size: int) -> CudaMemory:
        """See `Device.allocate`."""
        memory = CudaMemory(int(self._get("cuMemAlloc", size, size)))
        weakref.finalize(memory, self._release, "cuMemFree", memory.address)
        return memory

    def stage(self, size: int) -> CudaStaging:
        """See `Device.stage`."""
        address = int(self._get("cuMemHostAlloc", size, size, 0))
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self._release, "cuMemFreeHost", address)
        return CudaStaging(np.ctypeslib.as_array(block))

    def clear(self, address: int, size: int) -> None:
        """See `Device.clear`."""
        self._call("cuMemsetD8Async", address, 0, size, self.stream)

    def upload(self, source: NDArray[np.uint8], address: int) -> None:
        """See `Device.upload`."""
        self._call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.stream)

    def download(self, address: int, target: NDArray[np.uint8]) -> None:
        """See `Device.download`."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.stream)

    def record(self, queue: Callable[[], None]) -> Graph:
        """See `Device.record`."""
        mode = self._cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._call("cuStreamBeginCapture", self.stream, mode)
        try:
            queue()
        finally:  # the stream takes no other work before the recording has ended
            _, graph = self._cuda.cuStreamEndCapture(self.stream)
        if not int(graph):
            raise DeviceFailed("CUDA could not record the decoder's step")
        executable = self._call("cuGraphInstantiate", graph, 0)
        self._call("cuGraphDestroy", graph)
        recorded = _CudaGraph(self, executable)
        weakref.finalize(recorded, self._release, "cuGraphExecDestroy", executable)
        return recorded

    def launch(self, executable: Any) -> None:
        """Queue a recorded graph."""
        self._call("cuGraphLaunch", executable, self.stream)

    def synchronize(self) -> None:
        """See `Device.synchronize`."""
        self._call("cuStreamSynchronize", self.stream)

    def _get(self, function: str, size: int, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, function)(*arguments)
        if status == self._cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise NotPossibleHere(
                f"{self.name} has {self.free_bytes() / 1e9:.2f} GB of memory left, {size / 1e9:.2f} GB were asked for: close "
                "other programs on the GPU, or give a smaller --max-sequence."
            )
        self._check(function, status)
        return results[0]

    def _call(self, function: str, *arguments: Any) -> Any:
        status, *results = getattr(self._cuda, function)(*arguments)
        self._check(function, status)
        return results[0] if len(results) == 1 else results

    def _check(self, function: str, status: Any) -> None:
        if status != self._cuda.CUresult.CUDA_SUCCESS:
            _, name = self._cuda.cuGetErrorName(status)
            raise DeviceFailed(f"{function}: {name.decode() if name else status}")

    def _release(self, function: str, handle: Any) -> None:
        """Free something, from whatever thread drops it last; nothing can be done where that fails."""
        self._cuda.cuCtxSetCurrent(self._context)
        getattr(self._cuda, function)(handle)


@dataclass(frozen=True)
class _CudaGraph:
    device: CudaDevice
    executable: Any

    def launch(self) -> None:
        """See `Graph.launch`."""
        self.device.launch(self.executable)


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise NotPossibleHere(
            "TensorRT bundles are served through the Python package cuda-python, which is not installed: "
            "pip install 'echovlm-edge[tensorrt]'."
        ) from None
    return driver


def _available_host_memory() -> int:
    for line in MEMORY_INFO.read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
