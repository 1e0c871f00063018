"""CUDA's driver API and TensorRT's Python API on the numpy device, so that all of our code above them runs in tests.

Like theirs: calls return a status, work only in a thread that has made the context current, and address memory by number;
a TensorRT context refuses shapes outside its profile. An engine's file is an ONNX graph.
"""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from echovlm_edge.runtime.backends.gpu.device import Planes
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from tests.support.numpy_device import NumpyDevice, NumpyStream, at_host, numpy_type

CHUNK = 64  # the longest prompt chunk that engines are built for, unless they say otherwise
DRAFTED = 8  # tokens of each sequence in a step


class CUresult(enum.Enum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_NO_DEVICE = 100
    CUDA_ERROR_INVALID_CONTEXT = 201
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


DONE = CUresult.CUDA_SUCCESS


class Memcpy3D(SimpleNamespace):
    """CUDA's description of a copy of planes."""


@dataclass
class NumpyDriver:
    """The functions of `cuda.bindings.driver` that our code calls."""

    device: NumpyDevice
    present: bool = True
    integrated: bool = False
    blocks: dict[int, Any] = field(default_factory=dict)
    graphs: dict[int, tuple[Callable[[], None], ...]] = field(default_factory=dict)
    destroyed_streams: set[int] = field(default_factory=set)
    current: threading.local = field(default_factory=threading.local)
    CUresult = CUresult
    CUDA_MEMCPY3D = Memcpy3D
    CUmemorytype = SimpleNamespace(CU_MEMORYTYPE_HOST="host", CU_MEMORYTYPE_DEVICE="device")
    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_INTEGRATED="integrated",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
    )
    launched: list[tuple[bytes, tuple[int, ...]]] = field(default_factory=list)  # kernels' names and parameters
    CUstream_flags = SimpleNamespace(CU_STREAM_NON_BLOCKING=SimpleNamespace(value=1))
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1, CU_STREAM_CAPTURE_MODE_RELAXED=2)

    def cuInit(self, flags: int) -> tuple[CUresult]:
        return (DONE if self.present else CUresult.CUDA_ERROR_NO_DEVICE,)

    def cuDriverGetVersion(self) -> tuple[CUresult, int]:
        return DONE, 13000

    def cuGetErrorName(self, status: CUresult) -> tuple[CUresult, bytes]:
        return DONE, status.name.encode()

    def cuDeviceGet(self, ordinal: int) -> tuple[CUresult, int]:
        return DONE, ordinal

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[CUresult, str]:
        return DONE, "context"

    def cuCtxSetCurrent(self, context: str) -> tuple[CUresult]:
        self.current.context = context
        return (DONE,)

    def cuDeviceGetName(self, length: int, device: int) -> tuple[CUresult, bytes]:
        return DONE, b"numpy".ljust(length, b"\0")

    def cuDeviceGetAttribute(self, attribute: str, device: int) -> tuple[CUresult, int]:
        return DONE, {"integrated": int(self.integrated), "major": 8, "minor": 7}[attribute]

    def cuCtxGetStreamPriorityRange(self) -> tuple[CUresult, int, int]:
        return self._in_context(), 0, -5  # the lowest and the highest

    def cuStreamCreateWithPriority(self, flags: int, priority: int) -> tuple[CUresult, int]:
        self.device.new_stream(urgent=priority < 0)
        return self._in_context(), len(self.device.streams)

    def cuStreamDestroy(self, stream: int) -> tuple[CUresult]:
        self.destroyed_streams.add(stream)
        return (self._in_context(),)

    def cuMemGetInfo(self) -> tuple[CUresult, int, int]:
        return self._in_context(), self.device.free_bytes(), self.device.memory

    def cuMemAlloc(self, size: int) -> tuple[CUresult, int]:
        try:
            memory = self.device.allocate(size)
        except NotPossibleHere:
            return CUresult.CUDA_ERROR_OUT_OF_MEMORY, 0
        self.blocks[memory.address] = memory
        return self._in_context(), memory.address

    def cuThreadExchangeStreamCaptureMode(self, mode: int) -> tuple[CUresult, int]:
        before, self.current.mode = getattr(self.current, "mode", 0), mode
        return DONE, before

    def cuMemFree(self, address: int) -> tuple[CUresult]:
        if self._refused():
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        del self.blocks[address]
        return (self._in_context(),)

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[CUresult, int]:
        block = self.device.stage(size).bytes
        self.blocks[block.ctypes.data] = block
        return self._in_context(), block.ctypes.data

    def cuMemFreeHost(self, address: int) -> tuple[CUresult]:
        if self._refused():
            return (CUresult.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        self.blocks[address].fill(0xFF)
        del self.blocks[address]
        return (self._in_context(),)

    def cuMemsetD8Async(self, address: int, value: int, size: int, stream: int) -> tuple[CUresult]:
        assert value == 0
        self._stream(stream).clear(address, size)
        return (self._in_context(),)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        self._stream(stream).upload(at_host(source, size), target)
        return (self._in_context(),)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        self._stream(stream).download(source, at_host(target, size))
        return (self._in_context(),)

    def cuMemcpyDtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[CUresult]:
        self._stream(stream).queue(lambda: np.copyto(self.device.at(target, size), self.device.at(source, size)))
        return (self._in_context(),)

    def cuModuleLoadData(self, image: bytes) -> tuple[CUresult, bytes]:
        return self._in_context(), image

    def cuModuleGetFunction(self, module: bytes, name: bytes) -> tuple[CUresult, bytes]:
        assert b".entry " + name in module
        return self._in_context(), name

    def cuLaunchKernel(self, function: bytes, *arguments: Any) -> tuple[CUresult]:
        """Remember the launch; no kernel runs here."""
        *_, stream, (parameters, types), extra = arguments
        assert len(parameters) == len(types) and not extra
        self._stream(stream).queue(lambda: self.launched.append((function, parameters)))
        return (self._in_context(),)

    def cuMemcpy3DAsync(self, copy: Memcpy3D, stream: int) -> tuple[CUresult]:
        ends = [
            Planes(
                copy.__dict__[f"{end}Host" if copy.__dict__[f"{end}MemoryType"] == "host" else f"{end}Device"],
                copy.__dict__[f"{end}Pitch"],
                copy.__dict__[f"{end}Height"],
                copy.__dict__[f"{end}MemoryType"] == "host",
            )
            for end in ("src", "dst")
        ]
        self._stream(stream).copy(ends[0], ends[1], copy.WidthInBytes, copy.Height, copy.Depth)
        return (self._in_context(),)

    def cuStreamSynchronize(self, stream: int) -> tuple[CUresult]:
        self._stream(stream).synchronize()
        return (self._in_context(),)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> tuple[CUresult]:
        assert mode == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self._stream(stream).begin_recording()
        return (self._in_context(),)

    def cuStreamEndCapture(self, stream: int) -> tuple[CUresult, int]:
        recorded = self._stream(stream).end_recording()
        if not recorded:
            return CUresult.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED, 0
        self.graphs[len(self.graphs) + 1] = recorded
        return DONE, len(self.graphs)

    def cuGraphInstantiate(self, graph: int, flags: int) -> tuple[CUresult, int]:
        return self._in_context(), graph

    def cuGraphDestroy(self, graph: int) -> tuple[CUresult]:
        return (DONE,)

    def cuGraphExecDestroy(self, graph: int) -> tuple[CUresult]:
        self.graphs[graph] = ()
        return (DONE,)

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[CUresult]:
        self._stream(stream).launch(self.graphs[graph])
        return (self._in_context(),)

    def _refused(self) -> bool:
        """A call that cannot be captured invalidates this thread's capture, unless its mode is RELAXED."""
        mine = [stream for stream in self.device.streams if stream.recording and stream.owner == threading.get_ident()]
        if not mine or getattr(self.current, "mode", 0) == self.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED:
            return False
        for stream in mine:
            stream.recording = []
        return True

    def _stream(self, handle: int) -> NumpyStream:
        assert handle not in self.destroyed_streams
        return stream_of(self.device, handle)

    def _in_context(self) -> CUresult:
        return DONE if getattr(self.current, "context", None) else CUresult.CUDA_ERROR_INVALID_CONTEXT


def stream_of(device: NumpyDevice, handle: int) -> NumpyStream:
    """Return the stream with this handle, counted from 1, as 0 is the default stream."""
    assert handle > 0
    return device.streams[handle - 1]


@dataclass
class NumpyTensorRT:
    """The functions of `tensorrt` and `tensorrt_rtx` that our code calls."""

    device: NumpyDevice
    capacity: int
    __version__: str = "1.7.1.116"
    batch: int = 4  # sequences of a step
    chunk: int = CHUNK  # the longest prompt chunk
    working_bytes: int = 1000
    plugins: dict[str, object] = field(default_factory=dict)  # libraries that load without an error
    ExecutionContextAllocationStrategy = SimpleNamespace(ON_PROFILE_CHANGE="for the profile")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(EAGER="eager")

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = "error", "internal error", "warning"

        def log(self, severity: str, message: str) -> None:
            raise NotImplementedError

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(get_creator=lambda *name: None, load_library=self.plugins.get)

    def Runtime(self, logger: Any) -> NumpyRuntime:
        return NumpyRuntime(self, logger)


WHY_NOT = "the engine is for compute capability 12.0.\nmore"  # of a file that is no engine


@dataclass
class NumpyRuntime:
    module: NumpyTensorRT
    logger: Any

    def deserialize_cuda_engine(self, serialized: memoryview) -> NumpyEngine | None:
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: an engine says nothing of its own
        try:
            session = ort.InferenceSession(bytes(serialized), options, providers=["CPUExecutionProvider"])
        except Exception:
            self.logger.log("warning", "this is not the reason")
            self.logger.log("error", WHY_NOT)
            return None
        return NumpyEngine(self.module, session)


class NumpyEngine:
    """The decoder has the profiles decode and prefill, the other parts one."""

    def __init__(self, module: NumpyTensorRT, session: ort.InferenceSession) -> None:
        self.module, self.session = module, session
        self.tensors = {tensor.name: tensor for tensor in (*session.get_inputs(), *session.get_outputs())}
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = 2 if "past" in self.tensors else 1

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        trt = {"float": "FLOAT", "float16": "HALF", "int64": "INT64", "int32": "INT32", "bool": "BOOL"}
        return SimpleNamespace(name=trt[self.tensors[name].type.removeprefix("tensor(").removesuffix(")")])

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return self.module.working_bytes

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        def size(dimension: int | str, largest: bool) -> int:
            if isinstance(dimension, int):
                return dimension
            batch, sequence = (self.module.batch, DRAFTED) if profile == 0 else (1, self.module.chunk)
            rows = batch * DRAFTED if profile == 0 else 1
            most = {"batch": batch, "rows": rows, "sequence": sequence, "context": self.module.capacity}
            return most.get(dimension, 4096) if largest else 1

        shape = self.tensors[name].shape
        return [tuple(size(dimension, largest) for dimension in shape) for largest in (False, True, True)]

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace()
        config.set_execution_context_allocation_strategy = lambda strategy: setattr(config, "strategy", strategy)
        return config

    def create_execution_context(self, config: Any) -> NumpyContext:
        assert config.strategy == "for the profile"
        return NumpyContext(self)


class NumpyContext:
    def __init__(self, engine: NumpyEngine) -> None:
        self.engine, self.profile = engine, 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:
        self.profile, self.shapes = profile, {}
        return profile < self.engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self.engine.get_tensor_profile_shape(name, self.profile)
        self.shapes[name] = shape
        return all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors and address % 256 == 0

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def execute_async_v3(self, stream: int) -> bool:
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        inputs, outputs = self.engine.session.get_inputs(), self.engine.session.get_outputs()
        if set(shapes) != {tensor.name for tensor in inputs} or set(addresses) != set(self.engine.tensors):
            return False

        def run() -> None:
            feeds = {tensor.name: self._array(tensor, addresses[tensor.name], shapes[tensor.name]) for tensor in inputs}
            for tensor, array in zip(outputs, self.engine.session.run(None, feeds), strict=True):
                self._array(tensor, addresses[tensor.name], array.shape)[...] = array

        stream_of(self.engine.module.device, stream).queue(run)
        return True

    def _array(self, tensor: Any, address: int, shape: tuple[int, ...]) -> NDArray[Any]:
        dtype = np.dtype(numpy_type(tensor.type))
        block = self.engine.module.device.at(address, int(np.prod(shape)) * dtype.itemsize)
        return block.view(dtype).reshape(shape)
