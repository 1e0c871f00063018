"""A numpy device for the TensorRT backend that is as asynchronous, strict and exact as a GPU.

Its memory is real addresses, filled with NaN when it is allocated, and checked on every access. What is queued is done only by
`synchronize`, so that whoever writes over page-locked memory too early, or reads too early, gets wrong numbers. A stream with work
of one thread on it refuses any other thread. An engine is an ONNX graph that ONNX Runtime runs over the addresses that it is given.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends.gpu.device import Binding, EngineLimits, Planes
from echovlm_edge.runtime.bundle.manifest import Part, numpy_dtype
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

POISON = 0xFF  # NaN in every floating type
POISONED = 64 << 20  # bytes of a block; what is larger becomes memory as it is used


def poisoned(size: int) -> NDArray[np.uint8]:
    """A new block whose contents nobody should read."""
    block = np.empty(size, np.uint8)
    block[:POISONED] = POISON
    return block


@dataclass(eq=False)
class NumpyMemory:
    block: NDArray[np.uint8]

    @property
    def address(self) -> int:
        start = self.block.ctypes.data
        return start + -start % 256


@dataclass(eq=False)
class NumpyStaging:
    bytes: NDArray[np.uint8]


@dataclass
class NumpyDevice:
    """A `Device` with `memory` bytes."""

    memory: int = 1 << 30
    name: str = "a device of numpy"
    stream: type[NumpyStream] = field(default_factory=lambda: NumpyStream)
    streams: list[NumpyStream] = field(default_factory=list)
    blocks: dict[int, int] = field(default_factory=dict)  # address to size
    launches: int = 0
    downloaded: int = 0  # bytes

    def enter(self) -> None:
        pass

    def free_bytes(self) -> int:
        return self.memory - sum(list(self.blocks.values()))

    def allocate(self, size: int) -> NumpyMemory:
        self._not_recording()
        if size > self.free_bytes():
            raise NotPossibleHere(f"{self.name} is full")
        memory = NumpyMemory(poisoned(size + 256))
        address = memory.address
        self.blocks[address] = size
        weakref.finalize(memory, self.blocks.pop, address)
        return memory

    def stage(self, size: int) -> NumpyStaging:
        self._not_recording()
        return NumpyStaging(poisoned(size))

    def new_stream(self, urgent: bool = False) -> NumpyStream:
        self.streams.append(self.stream(self))
        return self.streams[-1]

    def at(self, address: int, size: int) -> NDArray[np.uint8]:
        """The device's bytes, which must lie in one live block."""
        start = max((start for start in list(self.blocks) if start <= address), default=0)
        assert address + size <= start + self.blocks.get(start, 0), "an illegal memory access"
        return at_host(address, size)

    def is_recording(self) -> bool:
        """Whether any thread is capturing."""
        return any(stream.recording is not None for stream in self.streams)

    def _not_recording(self) -> None:
        """Like CUDA's mode THREAD_LOCAL: calls that cannot be captured fail only in the thread that captures."""
        mine = [
            stream for stream in self.streams if stream.recording is not None and stream.owner == threading.get_ident()
        ]
        assert not mine, "this call cannot be recorded"


@dataclass(eq=False)
class NumpyStream:
    """A `Stream` that belongs to one thread from the first queued work to the end of `synchronize`."""

    device: NumpyDevice
    queued: list[Callable[[], None]] = field(default_factory=list)
    recording: list[Callable[[], None]] | None = None
    owner: int | None = None

    def clear(self, address: int, size: int) -> None:
        self.queue(lambda: self.device.at(address, size).fill(0))

    def upload(self, source: NDArray[np.uint8], address: int) -> None:
        self.queue(lambda: np.copyto(self.device.at(address, source.nbytes), source))

    def download(self, address: int, target: NDArray[np.uint8]) -> None:
        def copy() -> None:
            np.copyto(target, self.device.at(address, target.nbytes))
            self.device.downloaded += target.nbytes

        self.queue(copy)

    def copy(self, source: Planes, target: Planes, width: int, rows: int, planes: int) -> None:
        def copy() -> None:
            for plane in range(planes):
                for row in range(rows):
                    places = [
                        (at_host if end.on_host else self.device.at)(
                            end.address + (plane * end.height + row) * end.pitch, width
                        )
                        for end in (target, source)
                    ]
                    np.copyto(*places)

        self.queue(copy)

    def record(self, queue: Callable[[], None]) -> NumpyGraph:
        self.begin_recording()
        try:
            queue()
        finally:
            recorded = self.end_recording()
        return NumpyGraph(self, recorded)

    def begin_recording(self) -> None:
        self._use()
        assert self.recording is None, "a recording cannot be recorded"
        self.recording = []

    def end_recording(self) -> tuple[Callable[[], None], ...]:
        self._use()
        assert self.recording is not None
        recorded, self.recording = self.recording, None
        return tuple(recorded)

    def launch(self, work: tuple[Callable[[], None], ...]) -> None:
        self._use()
        self.device.launches += 1
        self.queued.extend(work)

    def synchronize(self) -> None:
        self._use()
        assert self.recording is None, "this call cannot be recorded"
        queued, self.queued = self.queued, []
        for work in queued:
            work()
        self.owner = None

    def queue(self, work: Callable[[], None]) -> None:
        self._use()
        (self.queued if self.recording is None else self.recording).append(work)

    def _use(self) -> None:
        me = threading.get_ident()
        assert self.owner in (None, me), "two threads use one stream"
        self.owner = me


class EagerStream(NumpyStream):
    """A stream whose work is done as soon as it is queued, as for an engine that does not wait for it."""

    def queue(self, work: Callable[[], None]) -> None:
        super().queue(work)
        if self.recording is None:
            self.synchronize()


@dataclass(frozen=True)
class NumpyGraph:
    stream: NumpyStream
    work: tuple[Callable[[], None], ...]

    def launch(self) -> None:
        self.stream.launch(self.work)


class OnnxEngine:
    """See `PartEngine`: the part's graph as an engine whose tensors have the types that `part` states.

    `before_run` is called in the middle of queueing a run.
    """

    def __init__(
        self, device: NumpyDevice, graph: Path, part: Part, before_run: Callable[[], None] = lambda: None
    ) -> None:
        self.device, self.before_run = device, before_run
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors only: an engine says nothing of its own
        if library := library_path():
            options.register_custom_ops_library(str(library))  # DualPathMoE, where the plugin would be
        self.session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.specs = {tensor.name: tensor for tensor in (*part.inputs, *part.outputs)}
        self.types = {tensor.name: numpy_type(tensor.type) for tensor in self.session.get_inputs()}
        self.outputs = [tensor.name for tensor in self.session.get_outputs()]
        self.layers = [node.name for node in onnx.load(graph, load_external_data=False).graph.node]

    @property
    def limits(self) -> EngineLimits:
        return EngineLimits(tokens=8, recorded=True)

    def profiled_runs(self) -> None:
        return None

    def new_context(self, stream: NumpyStream, recorded: bool) -> OnnxContext:
        return OnnxContext(self, stream)


@dataclass
class OnnxContext:
    engine: OnnxEngine
    stream: NumpyStream
    runs: int = 0
    report: Callable[[str, float], None] | None = None

    def queue(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        assert set(inputs) == set(self.engine.types) and set(outputs) == set(self.engine.outputs)
        self.runs += 1
        self.engine.before_run()
        inputs, outputs = dict(inputs), dict(outputs)
        self.stream.queue(lambda: self._run(inputs, outputs))

    def profile(self, report: Callable[[str, float], None]) -> None:
        self.report = report

    def recordable(self) -> bool:
        return self.runs > 2  # as TensorRT-RTX, whose kernels are compiled meanwhile

    def _run(self, inputs: dict[str, Binding], outputs: dict[str, Binding]) -> None:
        feeds = {
            name: self._tensor(name, binding.address, binding.shape).astype(self.engine.types[name])
            for name, binding in inputs.items()
        }
        for name, array in zip(self.engine.outputs, self.engine.session.run(None, feeds), strict=True):
            self._tensor(name, outputs[name].address, array.shape)[...] = array
        for layer in self.engine.layers if self.report else ():
            self.report(layer, 0.5)  # type: ignore[misc]

    def _tensor(self, name: str, address: int, shape: tuple[int, ...]) -> NDArray[np.generic]:
        dtype = numpy_dtype(self.engine.specs[name].dtype)
        stated = self.engine.specs[name].shape
        assert len(shape) == len(stated) and all(
            isinstance(want, str) or want == size for want, size in zip(stated, shape, strict=True)
        ), f"{name} has shape {shape}, the engine takes {stated}"
        return self.engine.device.at(address, int(np.prod(shape)) * dtype.itemsize).view(dtype).reshape(shape)


def at_host(address: int, size: int) -> NDArray[np.uint8]:
    """Return the bytes at an address of this process."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


def numpy_type(onnx_type: str) -> type[np.generic]:
    names = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32, "bool": np.bool_}
    return names[onnx_type.removeprefix("tensor(").removesuffix(")")]
