"""The interfaces that the GPU backend needs: a device's memory and streams, and an engine that runs a part on one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends.operator_times import NodeTime
from echovlm_edge.runtime.bundle.manifest import numpy_dtype

Shape = tuple[int, ...]


class Memory(Protocol):
    """A block of device memory, freed with its last reference."""

    @property
    def address(self) -> int:
        """Its address on the device, which never changes."""
        ...


class Staging(Protocol):
    """A block of page-locked host memory, from and to which the device copies asynchronously."""

    @property
    def bytes(self) -> NDArray[np.uint8]:
        """The block."""
        ...


class Graph(Protocol):
    """Work that was recorded once and can be queued again as a whole."""

    def launch(self) -> None:
        """Queue the recorded work."""
        ...


@dataclass(frozen=True)
class Planes:
    """Where the rows of a copy lie: the first at `address`, each `pitch` bytes after the one before.

    Attributes:
        address: of the first byte.
        pitch: bytes from one row to the next.
        height: rows from one plane to the next.
        on_host: whether this is page-locked host memory; else the device's.
    """

    address: int
    pitch: int
    height: int
    on_host: bool = False


class Stream(Protocol):
    """A queue of work for a device, which runs in order and is certain to be done only after `synchronize`.

    One thread at a time may use it: what another thread queued in between would run in the wrong order, or be recorded.
    """

    def clear(self, address: int, size: int) -> None:
        """Queue zeroing `size` bytes of the device."""
        ...

    def upload(self, source: NDArray[np.uint8], address: int) -> None:
        """Queue a copy of `source`, which is part of a `Staging`, to the device."""
        ...

    def download(self, address: int, target: NDArray[np.uint8]) -> None:
        """Queue a copy from the device into `target`, which is part of a `Staging`."""
        ...

    def copy(self, source: Planes, target: Planes, width: int, rows: int, planes: int) -> None:
        """Queue a copy of `planes` planes of `rows` rows of `width` bytes, between any two memories that do not overlap."""
        ...

    def record(self, queue: Callable[[], None]) -> Graph:
        """Call `queue` and record, instead of run, what it queues on this stream. Other streams are not affected."""
        ...

    def synchronize(self) -> None:
        """Wait until all work on this stream is done."""
        ...


class Device(Protocol):
    """One GPU. Every thread may use it, each with a separate stream."""

    @property
    def name(self) -> str:
        """The device's product name."""
        ...

    def enter(self) -> None:
        """Make this the calling thread's device; a thread must call this before anything else."""
        ...

    def free_bytes(self) -> int:
        """Return how many bytes can still be allocated."""
        ...

    def allocate(self, size: int) -> Memory:
        """Allocate `size` bytes of device memory, uninitialized.

        Raises:
            NotPossibleHere: the device has less memory left.
        """
        ...

    def stage(self, size: int) -> Staging:
        """Allocate `size` bytes of page-locked host memory.

        Raises:
            NotPossibleHere: the host has less memory left.
        """
        ...

    def new_stream(self, urgent: bool = False) -> Stream:
        """Make a stream that waits for no other; work on an `urgent` one goes before other work that has not begun."""
        ...


@dataclass(frozen=True)
class Binding:
    """A tensor's address on the device, its shape, and where the host has a page-locked copy, if it has one."""

    address: int
    shape: Shape
    host_address: int | None = None


class Context(Protocol):
    """An execution context of a part's engine, with its own working memory, on one stream."""

    def queue(self, inputs: Mapping[str, Binding], outputs: Mapping[str, Binding]) -> None:
        """Queue a run over `inputs`; each output is written to its place.

        Raises:
            NotPossibleHere: the engine was not built for such shapes.
        """
        ...

    def recordable(self) -> bool:
        """Whether the last `queue` can be captured in a CUDA graph."""
        ...

    def profile(self, report: Callable[[str, float], None]) -> None:
        """Report each layer's name and milliseconds after every run from now on; such runs are not captured."""
        ...


def step_sizes(slots: int) -> list[int]:
    """Return the numbers of sequences for which a step is recorded: powers of two, and all slots."""
    return [*(2**power for power in range(slots.bit_length()) if 2**power < slots), slots]


@dataclass(frozen=True)
class EngineLimits:
    """What a decoder's engine runs in one call.

    Attributes:
        tokens: the most tokens of each of several sequences.
        recorded: whether its runs of one shape can become a graph, which is then queued as a whole.
    """

    tokens: int
    recorded: bool


class PartEngine(Protocol):
    """A part's loaded engine, with its weights on the device. Its tensors' types are those of bundle.json."""

    @property
    def limits(self) -> EngineLimits:
        """What its decoder's runs may be."""
        ...

    def profiled_runs(self) -> list[list[NodeTime]] | None:
        """Return every run's operator times where the engine keeps them itself, else None: its contexts report them."""
        ...

    def new_context(self, stream: Any, recorded: bool) -> Context:
        """Make a context on a stream of the engine's device; `recorded` if its runs, all of one shape, will be recorded."""
        ...


@dataclass(frozen=True)
class Region:
    """A tensor in an arena: on the device at `address`, on the host as `host`."""

    address: int
    host: NDArray[Any] = field(repr=False)

    def __getitem__(self, rows: slice) -> Region:
        """Return some of its rows."""
        begin = range(len(self.host))[rows].start
        return Region(self.address + begin * self.host[:1].nbytes, self.host[rows])

    @property
    def binding(self) -> Binding:
        """Where an engine finds it."""
        return Binding(self.address, self.host.shape, self.host.ctypes.data)


class Arena:
    """A block of device memory and one of page-locked host memory for one stream. Each call divides them into tensors.

    Both blocks have the same layout. They are replaced when a call needs more memory.
    """

    ALIGNMENT = 256  # bytes: the alignment of cuMemAlloc, which engines may expect of every tensor

    def __init__(self, device: Device, stream: Stream) -> None:
        """Allocate nothing yet."""
        self._device, self._stream = device, stream
        self._size = self._used = 0
        self._memory: Memory | None = None
        self._staging: Staging | None = None

    def cut(self, tensors: Mapping[str, tuple[str, Shape]]) -> dict[str, Region]:
        """Reserve regions for named tensors of a type, as bundle.json spells it, and a shape. Earlier regions become invalid."""
        sizes = {name: numpy_dtype(dtype).itemsize * int(np.prod(shape)) for name, (dtype, shape) in tensors.items()}
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name], end = end, end + size + -size % self.ALIGNMENT
        if end > self._size or self._memory is None or self._staging is None:
            self._stream.synchronize()  # the old block may be in use
            self._memory = self._staging = None
            self._memory, self._staging, self._size = self._device.allocate(end), self._device.stage(end), end
        self._used = end
        block, start = self._staging.bytes, self._memory.address
        return {
            name: Region(
                start + offsets[name],
                block[offsets[name] : offsets[name] + sizes[name]].view(numpy_dtype(dtype)).reshape(shape),
            )
            for name, (dtype, shape) in tensors.items()
        }

    def upload(self) -> None:
        """Queue one copy of all that was cut to the device."""
        assert self._memory and self._staging
        self._stream.upload(self._staging.bytes[: self._used], self._memory.address)

    def download(self, region: Region) -> None:
        """Queue a copy of one region from the device."""
        self._stream.download(region.address, region.host.reshape(-1).view(np.uint8))
