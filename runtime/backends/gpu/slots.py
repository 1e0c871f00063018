"""Slots in a device's memory: keys and values that the decoder writes in place, and copies of them that never pass the host.

All keys and values lie in one block, so that those of a sequence's first tokens are one copy of planes, rows and bytes:

    tensor keys.0 … values.n      plane: `height` rows
      slot × KV head              row: `pitch` bytes
        position × head_dim         the first tokens are the first bytes
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from echovlm_edge.runtime.backends import Kept, SlotCache, SlotMemory
from echovlm_edge.runtime.backends.gpu.device import Arena, Binding, Device, Memory, Planes, Staging, Stream
from echovlm_edge.runtime.backends.gpu.stretches import Stretch, Stretches
from echovlm_edge.runtime.bundle.manifest import Part, numpy_dtype
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

MOVED = 64  # tokens that change places at once


@dataclass(frozen=True)
class SlotLayout:
    """How keys and values lie in the block of all slots.

    Attributes:
        slots: how many.
        heads: KV heads.
        capacity: positions of a slot.
        dim: values of a head at one position.
        dtype: of keys and values, as bundle.json spells it.
        layers: of the decoder.
    """

    slots: int
    heads: int
    capacity: int
    dim: int
    dtype: str
    layers: int

    @classmethod
    def of(cls, decoder: Part, layers: int, count: int, max_sequence: int) -> SlotLayout:
        """Read it from the decoder's inputs; an engine that was built for one capacity states that."""
        keys = next(tensor for tensor in decoder.inputs if tensor.name == "keys.0")
        _, heads, context, dim = keys.shape
        assert isinstance(heads, int) and isinstance(dim, int)
        capacity = context if isinstance(context, int) else max_sequence
        return cls(count, heads, capacity, dim, keys.dtype, layers)

    @property
    def names(self) -> list[str]:
        """The decoder's names of the tensors."""
        return [f"{name}.{layer}" for name in ("keys", "values") for layer in range(self.layers)]

    @property
    def position(self) -> int:
        """Bytes of one head's keys at one position."""
        return self.dim * numpy_dtype(self.dtype).itemsize

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.layers * self.heads * self.position

    @property
    def pitch(self) -> int:
        """Bytes from one head of a slot to the next."""
        return self.capacity * self.position

    @cached_property
    def height(self) -> int:
        """Rows from one tensor to the next: those of all slots, and as many more as make it aligned."""
        rows = self.slots * self.heads
        return next(more for more in range(rows, rows + Arena.ALIGNMENT) if more * self.pitch % Arena.ALIGNMENT == 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
        return 2 * self.layers * self.height * self.pitch


class DeviceSlots:
    """The block of all slots, and the memory for what is kept of them, on the device and on the host."""

    def __init__(self, device: Device, stream: Stream, layout: SlotLayout, asked: SlotMemory) -> None:
        """Allocate and zero: attention weighs what lies beyond a sequence by zero, and zero times NaN is NaN.

        Raises:
            NotPossibleHere: the device or the host has too little memory left.
        """
        self.device, self.stream, self.layout, self.max_sequence = device, stream, layout, asked.max_sequence
        self._block = device.allocate(layout.nbytes)
        self._exchange = device.allocate(MOVED * layout.token_bytes)
        self._kept_block: Memory | None = device.allocate(asked.kept_bytes) if asked.kept_bytes else None
        self._spilled_block: Staging | None = device.stage(asked.spilled_bytes) if asked.spilled_bytes else None
        self._near = Stretches(self._kept_block.address if self._kept_block else 0, asked.kept_bytes)
        self._far = Stretches(self._spilled_block.bytes.ctypes.data if self._spilled_block else 0, asked.spilled_bytes)
        stream.clear(self._block.address, layout.nbytes)
        stream.synchronize()

    def bindings(self, first: int, count: int) -> dict[str, Binding]:
        """Return where the decoder finds `count` slots' keys and values from the slot `first` on, by its names."""
        layout = self.layout
        shape, start = (count, layout.heads, layout.capacity, layout.dim), self.planes(first).address
        return {
            name: Binding(start + index * layout.height * layout.pitch, shape)
            for index, name in enumerate(layout.names)
        }

    def planes(self, slot: int, position: int = 0) -> Planes:
        """Return where a slot's keys and values lie, from a position on."""
        layout = self.layout
        start = self._block.address + slot * layout.heads * layout.pitch + position * layout.position
        return Planes(start, layout.pitch, layout.height)

    def copy(self, source: Planes, target: Planes, tokens: int) -> None:
        """Queue a copy of so many tokens' keys and values."""
        layout = self.layout
        self.stream.copy(source, target, tokens * layout.position, layout.heads, 2 * layout.layers)

    def near(self, tokens: int) -> DeviceKept:
        """Take memory on the device for so many tokens' keys and values; raises MemoryError if there is none."""
        return DeviceKept(self, tokens, tokens, self._near.take(tokens * self.layout.token_bytes), on_host=False)

    def far(self, tokens: int) -> DeviceKept:
        """Take page-locked memory reserved for that; raises MemoryError if there is none."""
        return DeviceKept(self, tokens, tokens, self._far.take(tokens * self.layout.token_bytes), on_host=True)

    def staged(self, tokens: int) -> DeviceKept:
        """Take page-locked memory that was not reserved; raises MemoryError if there is none."""
        return DeviceKept(self, tokens, tokens, _Staged.of(self.device, tokens * self.layout.token_bytes), on_host=True)

    def exchange(self, one: int, other: int, tokens: int) -> None:
        """Queue an exchange of two slots' first `tokens` positions, some at a time."""
        between = Planes(self._exchange.address, MOVED * self.layout.position, self.layout.heads)
        for start in range(0, tokens, MOVED):
            count = min(MOVED, tokens - start)
            here, there = self.planes(one, start), self.planes(other, start)
            for source, target in ((here, between), (there, here), (between, there)):
                self.copy(source, target, count)

    def clear(self, slot: int, tokens: int, start: int) -> None:
        """Zero a slot's positions from `start` up to `tokens`, and its last, to which a padded row writes."""
        layout = self.layout
        rows = [row for tensor in range(2 * layout.layers) for row in self._rows(tensor, slot)]
        for row in rows:
            self.stream.clear(row + start * layout.position, (tokens - start) * layout.position)
            self.stream.clear(row + (layout.capacity - 1) * layout.position, layout.position)
        self.stream.synchronize()

    def _rows(self, tensor: int, slot: int) -> list[int]:
        """The addresses of a slot's heads in one tensor."""
        layout = self.layout
        first = tensor * layout.height + slot * layout.heads
        return [self._block.address + (first + head) * layout.pitch for head in range(layout.heads)]


@dataclass(frozen=True, eq=False)
class _Staged:
    """Page-locked memory of its own."""

    staging: Staging

    @classmethod
    def of(cls, device: Device, size: int) -> _Staged:
        try:
            return cls(device.stage(size))
        except NotPossibleHere:
            raise MemoryError from None

    @property
    def address(self) -> int:
        return int(self.staging.bytes.ctypes.data)


@dataclass(frozen=True, eq=False)
class DeviceKept:
    """Keys and values of `tokens` adjacent tokens of a sequence, [tensors, kv_heads, capacity, head_dim] in one stretch.

    Attributes:
        slots: whose memory it is, and whose stream copies it.
        tokens: those that count.
        capacity: those that the stretch has.
        place: keeps the stretch.
        on_host: whether the stretch is page-locked host memory.
    """

    slots: DeviceSlots = field(repr=False)
    tokens: int
    capacity: int
    place: Stretch | _Staged
    on_host: bool

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.tokens * self.slots.layout.token_bytes

    @property
    def planes(self) -> Planes:
        """Where it lies."""
        layout = self.slots.layout
        return Planes(self.place.address, self.capacity * layout.position, layout.heads, self.on_host)

    def first(self, tokens: int) -> DeviceKept:
        """Return the first `tokens` tokens', in the same stretch."""
        return DeviceKept(self.slots, min(tokens, self.tokens), self.capacity, self.place, self.on_host)

    def spilled(self) -> DeviceKept:
        """Return a copy in the host's memory that was reserved for it, as `Kept.spilled` does."""
        if self.on_host:
            return self
        target = self.slots.far(self.tokens)
        self.slots.device.enter()
        self.slots.copy(self.planes, target.planes, self.tokens)
        return target


@dataclass(frozen=True)
class DeviceSlot:
    """One slot, a `SlotCache`."""

    slots: DeviceSlots = field(repr=False)
    number: int

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return self.slots.max_sequence

    @property
    def token_bytes(self) -> int:
        """The size of one token's keys and values."""
        return self.slots.layout.token_bytes

    def clear(self, tokens: int, start: int = 0) -> None:
        """Zero positions, as `SlotCache.clear` does."""
        self.slots.device.enter()
        self.slots.clear(self.number, tokens, start)

    def read(self, tokens: int, start: int = 0) -> DeviceKept:
        """Copy the tokens' from `start` up to `tokens`, as `SlotCache.read` does."""
        try:
            return self._copied(self.slots.near(tokens - start), start)
        except MemoryError:  # the free stretches are all too short
            return self._copied(self.slots.far(tokens - start), start)

    def park(self, tokens: int) -> DeviceKept:
        """Copy them to the host's memory, as `SlotCache.park` does."""
        return self._copied(self.slots.staged(tokens))

    def write(self, kept: Kept, start: int = 0) -> None:
        """Write what `read` or `park` returned, from the position `start` on."""
        assert isinstance(kept, DeviceKept)
        self.slots.device.enter()
        self.slots.copy(kept.planes, self.slots.planes(self.number, start), kept.tokens)
        if isinstance(kept.place, _Staged):
            self.slots.stream.synchronize()  # its memory returns to the system, which knows nothing of the stream

    def move(self, target: SlotCache, tokens: int, target_tokens: int) -> None:
        """Move the first `tokens` positions, as `SlotCache.move` does."""
        assert isinstance(target, DeviceSlot)
        self.slots.device.enter()
        if target_tokens:
            self.slots.exchange(self.number, target.number, max(tokens, target_tokens))
        else:
            self.slots.copy(self.slots.planes(self.number), self.slots.planes(target.number), tokens)

    def _copied(self, kept: DeviceKept, start: int = 0) -> DeviceKept:
        self.slots.device.enter()
        self.slots.copy(self.slots.planes(self.number, start), kept.planes, kept.tokens)
        if isinstance(kept.place, _Staged):
            self.slots.stream.synchronize()
        return kept
