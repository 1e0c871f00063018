"""A GPU through CUDA's driver API (cuda-python): memory, streams, graphs.

It uses the driver API and not the runtime library: the driver brings it on every machine, so nothing has to match a CUDA release.
TensorRT and this module share the device's primary context.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends.gpu.device import Graph, Planes
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.resources.system_files import memory_info


class DeviceFailed(RuntimeError):
    """A CUDA call failed and the user cannot fix it: this process can no longer use the device."""


@dataclass(frozen=True)
class CudaMemory:
    """A block of device memory."""

    address: int


@dataclass(frozen=True)
class CudaStaging:
    """A block of page-locked host memory; it lives as long as any view of `bytes`."""

    bytes: NDArray[np.uint8] = field(repr=False)


class CudaDevice:
    """The first GPU that CUDA_VISIBLE_DEVICES leaves to this process.

    Raises:
        NotPossibleHere: cuda-python or the driver is missing, or there is no GPU.
    """

    def __init__(self) -> None:
        """Take the device's primary context."""
        self.cuda = _driver()
        try:
            self.call("cuInit", 0)
            handle = self.call("cuDeviceGet", 0)
            self._context = self.call("cuDevicePrimaryCtxRetain", handle)
        except Exception as error:  # each release says in its own way that the driver's library is missing
            reason = str(error).splitlines()[0].rstrip(".")
            raise NotPossibleHere(
                f"CUDA finds no GPU here ({reason}): install NVIDIA's driver, let CUDA_VISIBLE_DEVICES show a GPU, "
                "give a systemd unit deploy/echovlm-serve.service.d/gpu.conf, or build the bundle for this machine with --target cpu."
            ) from None
        self.enter()
        self.name = self.call("cuDeviceGetName", 100, handle).split(b"\0")[0].decode()
        attribute = self.cuda.CUdevice_attribute
        self._integrated, major, minor = (
            self.call("cuDeviceGetAttribute", getattr(attribute, f"CU_DEVICE_ATTRIBUTE_{name}"), handle)
            for name in ("INTEGRATED", "COMPUTE_CAPABILITY_MAJOR", "COMPUTE_CAPABILITY_MINOR")
        )
        self.compute_capability = 10 * major + minor

    def enter(self) -> None:
        """Make this the calling thread's device."""
        self.call("cuCtxSetCurrent", self._context)

    def free_bytes(self) -> int:
        """Return the free memory. An integrated GPU shares the host's memory, whose file cache counts as free."""
        free, _ = self.call("cuMemGetInfo")
        return max(free, memory_info().get("MemAvailable", 0)) if self._integrated else int(free)

    def allocate(self, size: int) -> CudaMemory:
        """Allocate device memory, as `Device.allocate` says."""
        memory = CudaMemory(int(self._get("cuMemAlloc", size, size)))
        weakref.finalize(memory, self.release, "cuMemFree", memory.address)
        return memory

    def stage(self, size: int) -> CudaStaging:
        """Allocate page-locked host memory, as `Device.stage` says."""
        address = int(self._get("cuMemHostAlloc", size, size, 0))
        block = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(block, self.release, "cuMemFreeHost", address)
        return CudaStaging(np.ctypeslib.as_array(block))

    def new_stream(self, urgent: bool = False) -> CudaStream:
        """Make a stream that does not synchronize with other streams, of the highest priority if `urgent`."""
        # Not the default stream, because it synchronizes with all others, and TensorRT advises against it.
        lowest, highest = self.call("cuCtxGetStreamPriorityRange")
        flags = self.cuda.CUstream_flags.CU_STREAM_NON_BLOCKING.value
        handle = self.call("cuStreamCreateWithPriority", flags, highest if urgent else lowest)
        stream = CudaStream(self, handle)
        weakref.finalize(stream, self.release, "cuStreamDestroy", handle)
        return stream

    def _get(self, function: str, size: int, *arguments: Any) -> Any:
        status, *results = getattr(self.cuda, function)(*arguments)
        if status == self.cuda.CUresult.CUDA_ERROR_OUT_OF_MEMORY:
            raise NotPossibleHere(
                f"{self.name} has {self.free_bytes() / 1e9:.2f} GB of memory left, {size / 1e9:.2f} GB are needed: close "
                "other programs on the GPU, or give a smaller --max-sequence."
            )
        self._check(function, status)
        return results[0]

    def call(self, function: str, *arguments: Any) -> Any:
        """Call a function of the driver; returns its results.

        Raises:
            DeviceFailed: the function failed.
        """
        status, *results = getattr(self.cuda, function)(*arguments)
        self._check(function, status)
        return results[0] if len(results) == 1 else results

    def _check(self, function: str, status: Any) -> None:
        if status != self.cuda.CUresult.CUDA_SUCCESS:
            _, name = self.cuda.cuGetErrorName(status)
            raise DeviceFailed(f"{function}: {name.decode() if name else status}")

    def release(self, function: str, handle: Any) -> None:
        """Free a handle, in the thread that drops the last reference; errors are ignored, as nothing can be done about them."""
        self.cuda.cuCtxSetCurrent(self._context)
        # The thread may be capturing a graph, of which this call must not become part.
        exchange, relaxed = self.cuda.cuThreadExchangeStreamCaptureMode, self.cuda.CUstreamCaptureMode
        _, before = exchange(relaxed.CU_STREAM_CAPTURE_MODE_RELAXED)
        getattr(self.cuda, function)(handle)
        exchange(before)


@dataclass(frozen=True, eq=False)
class CudaStream:
    """A `Stream`; `handle` is CUDA's, for other libraries that queue work on it."""

    device: CudaDevice
    handle: Any

    def clear(self, address: int, size: int) -> None:
        """Queue zeroing of device memory."""
        self.device.call("cuMemsetD8Async", address, 0, size, self.handle)

    def upload(self, source: NDArray[np.uint8], address: int) -> None:
        """Queue a copy to the device."""
        self.device.call("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self.handle)

    def download(self, address: int, target: NDArray[np.uint8]) -> None:
        """Queue a copy from the device."""
        self.device.call("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self.handle)

    def copy(self, source: Planes, target: Planes, width: int, rows: int, planes: int) -> None:
        """Queue a copy of planes of rows, as `Stream.copy` does."""
        call = self.device.cuda.CUDA_MEMCPY3D()
        for end, place in (("src", source), ("dst", target)):
            kind = "HOST" if place.on_host else "DEVICE"
            setattr(call, f"{end}MemoryType", getattr(self.device.cuda.CUmemorytype, f"CU_MEMORYTYPE_{kind}"))
            setattr(call, f"{end}Host" if place.on_host else f"{end}Device", place.address)
            setattr(call, f"{end}Pitch", place.pitch)
            setattr(call, f"{end}Height", place.height)
        call.WidthInBytes, call.Height, call.Depth = width, rows, planes
        self.device.call("cuMemcpy3DAsync", call, self.handle)

    def record(self, queue: Callable[[], None]) -> Graph:
        """Capture what `queue` queues in a graph."""
        # Other threads may allocate and synchronize during the capture: only this thread's calls must be capturable.
        mode = self.device.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.device.call("cuStreamBeginCapture", self.handle, mode)
        try:
            queue()
        finally:  # the stream takes no other work before the recording has ended
            _, graph = self.device.cuda.cuStreamEndCapture(self.handle)
        if not int(graph):
            raise DeviceFailed("CUDA could not record the decoder's step")
        executable = self.device.call("cuGraphInstantiate", graph, 0)
        self.device.call("cuGraphDestroy", graph)
        recorded = _CudaGraph(self, executable)
        weakref.finalize(recorded, self.device.release, "cuGraphExecDestroy", executable)
        return recorded

    def synchronize(self) -> None:
        """Wait until all queued work is done."""
        self.device.call("cuStreamSynchronize", self.handle)


@dataclass(frozen=True)
class _CudaGraph:
    stream: CudaStream
    executable: Any

    def launch(self) -> None:
        """Queue the recorded work."""
        self.stream.device.call("cuGraphLaunch", self.executable, self.stream.handle)


def _driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError:
        raise NotPossibleHere(
            "Bundles for a GPU are served through the Python package cuda-python, which is not installed: pip install cuda-python."
        ) from None
    return driver
