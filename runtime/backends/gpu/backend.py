"""Engines on a GPU behind the runtime's interface: slots stay on the device, and a decode step is one CUDA graph.

Per step the host writes the tokens' embeddings, angles and positions into page-locked memory and launches the graph: one copy in, the
decoder, and each row's best token back. Images have a stream of their own, since one thread encodes while another decodes; image
embeddings pass from one to the other as a host array. All code here uses the protocols of `device.py`; the tests run it on a device
made of numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Floats, Logits, SlotCache, SlotMemory, SlotRows
from echovlm_edge.runtime.backends.gpu.device import (
    Arena,
    Binding,
    Context,
    Device,
    Graph,
    PartEngine,
    Region,
    Stream,
    step_sizes,
)
from echovlm_edge.runtime.backends.gpu.slots import DeviceSlot, DeviceSlots, SlotLayout
from echovlm_edge.runtime.backends.operator_times import LayerTimes, NodeTime
from echovlm_edge.runtime.backends.rectangles import join, logit_rows, most_tokens, rectangles, split
from echovlm_edge.runtime.bundle.manifest import Bundle, Part
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.contracts.errors import UnusableNumbers
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.prompting.windows import Windows

STEP_TOKENS = 8  # of one sequence in a step: a TensorRT engine's first profile takes no more
BEST = "best"  # the output with the index of each row's largest logit
WARM_UPS = 4  # runs of a step before it must have become a graph: engines initialize in the first, and some in a second


class GpuBackend:
    """Runs the three parts of a bundle on a GPU."""

    def __init__(
        self, bundle: Bundle, device: Device, engines: Mapping[str, PartEngine], profile: bool = False
    ) -> None:
        """Run `engines`, the bundle's parts by name, loaded on `device`; `profile` measures for `operator_times`."""
        self._bundle, self._device = bundle, device
        self._stream, images = device.new_stream(urgent=True), device.new_stream()
        self._embedding = TokenEmbedding.of(bundle)
        manifest = bundle.manifest
        self._times = {part.name: LayerTimes() for part in manifest.parts} if profile else {}
        self._image_parts = {
            name: _ImagePart(
                *(device, images, manifest.part(name)),
                *(engines[name].new_context(images, recorded=False), self._times.get(name)),
            )
            for name in ("vision_encoder", "projector")
        }
        self._square = manifest.model.merge_size**2
        self._decoder, self._engine, self._engines = manifest.part("decoder"), engines["decoder"], engines
        self._takes_mask = any(tensor.name == "mask" for tensor in self._decoder.inputs)
        self._chunk = self._new_run(recorded=False)
        self._steps: WeakKeyDictionary[DeviceSlots, dict[int, _Step]] = WeakKeyDictionary()

    def operator_times(self) -> dict[str, list[list[NodeTime]]]:
        """Return every run's operator times, as `ProfiledBackend.operator_times` does."""
        return {part: self._engines[part].profiled_runs() or times.runs for part, times in self._times.items()}

    def encode(self, patches: Floats, angles: Angles, windows: Windows | None = None) -> Floats:
        """Run the vision encoder, as `Backend.encode` does."""
        feeds = {"patches": patches, "cos": angles.cos, "sin": angles.sin, **(windows.inputs() if windows else {})}
        return self._image_parts["vision_encoder"].run(feeds, len(patches))

    def project(self, features: Floats) -> Floats:
        """Run the projector, as `Backend.project` does."""
        return self._image_parts["projector"].run({"features": features}, len(features) // self._square)

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids, as `Backend.embed` does."""
        return self._embedding[token_ids]

    def new_slots(self, memory: SlotMemory) -> Sequence[DeviceSlot]:
        """Make zeroed adjacent caches, as `Backend.new_slots` does, and record the step of every number of sequences."""
        self._device.enter()
        layout = SlotLayout.of(self._decoder, self._bundle.manifest.model.num_layers, memory.count, memory.max_sequence)
        slots = DeviceSlots(self._device, self._stream, layout, memory)
        made = [DeviceSlot(slots, number) for number in range(memory.count)]
        if self._engine.limits.recorded and not self._times:
            self._steps[slots] = {
                size: _Step(self._new_run(recorded=True), self._padding(layout, size), slots.bindings(0, size))
                for size in step_sizes(memory.count)
            }
            for step in self._steps[slots].values():
                for _ in range(WARM_UPS):
                    step.run(step.padding, 0)
        return made

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: SlotCache
    ) -> Logits:
        """Run the decoder, as `Backend.decode` does."""
        assert isinstance(cache, DeviceSlot)
        self._device.enter()
        if len(embeddings) == len(logit_rows) == 1:
            return self._run([SlotRows(cache, past, embeddings, angles)])
        feeds = self._feeds(cache.slots.layout, join([SlotRows(cache, past, embeddings, angles)]), np.array([past]))
        return self._chunk.run({**feeds, "logit_rows": logit_rows}, cache.slots.bindings(cache.number, 1))

    @property
    def packs_rows(self) -> bool:
        """An engine takes tokens of adjacent slots, all as many."""
        return False

    def step_tokens(self, sequences: int) -> int:
        """One sequence's may be as many as a TensorRT engine's steps take."""
        return STEP_TOKENS if sequences == 1 else self._engine.limits.tokens

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        """Append new tokens to several sequences, as `Backend.turn` does."""
        self._device.enter()
        groups = rectangles(rows, _number, self._engine.limits.tokens)
        found = list[list[Logits]]()
        for group in groups:
            logits = self._run(group)
            found += split(logits if len(groups) == 1 else logits.copy(), group)  # the next group may overwrite it
        return found

    def _run(self, rows: Sequence[SlotRows]) -> Logits:
        """Run tokens of adjacent slots, padded to equally many; a token each is a recorded step where there is one."""
        slot = rows[0].slot
        assert isinstance(slot, DeviceSlot)
        slots, count, length = slot.slots, len(rows), most_tokens(rows)
        feeds = self._feeds(slots.layout, join(rows), np.array([part.past for part in rows]))
        steps = self._steps.get(slots, {})
        size = next((size for size in steps if size >= count), None)
        if size is None or slot.number or length > 1:
            wanted = {"logit_rows": logit_rows(rows, length)}
            return self._chunk.run({**feeds, **wanted}, slots.bindings(slot.number, count))
        return steps[size].run(feeds, count)

    def _feeds(
        self, layout: SlotLayout, joined: tuple[Floats, Angles], past: NDArray[np.int64]
    ) -> dict[str, NDArray[Any]]:
        """The decoder's inputs for b sequences' tokens, embeddings and angles [b, s, …], after `past` [b] tokens."""
        embeddings, angles = joined
        batch, length = embeddings.shape[:2]
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "cos": angles.cos,
            "sin": angles.sin,
            "past": past,
            "logit_rows": np.arange(1, batch + 1) * length - 1,
        }
        if self._takes_mask:
            positions = past[:, None] + np.arange(length)
            feeds["mask"] = (np.arange(layout.capacity) <= positions[..., None])[:, None]
        return feeds

    def _padding(self, layout: SlotLayout, size: int) -> dict[str, NDArray[Any]]:
        """A step's inputs for rows without a sequence. Each writes to its slot's last position, which no sequence reaches.

        A sequence's last token is chosen, but not appended: the last position of a slot is nobody's.
        """
        hidden, half = (
            next(t for t in self._decoder.inputs if t.name == name).shape[-1] for name in ("embeddings", "cos")
        )
        assert isinstance(hidden, int) and isinstance(half, int)
        angles = Angles(np.ones((size, 1, half), np.float32), np.zeros((size, 1, half), np.float32))
        past = np.full(size, layout.capacity - 1)
        return self._feeds(layout, (np.zeros((size, 1, hidden), np.float32), angles), past)

    def _new_run(self, recorded: bool) -> _DecoderRun:
        times = self._times.get("decoder")
        context = self._engine.new_context(self._stream, recorded)
        if times:
            context.profile(times.report)
        return _DecoderRun(self._device, self._stream, self._decoder, context, times)


@dataclass(frozen=True)
class _Step:
    """A step of so many sequences, whose inputs without any are `padding`."""

    recorded: _DecoderRun
    padding: Mapping[str, NDArray[Any]]
    cache: Mapping[str, Binding]

    def run(self, feeds: Mapping[str, NDArray[Any]], count: int) -> Logits:
        """Run the first `count` sequences' inputs, and padding behind them."""
        padded = {name: np.concatenate([feeds[name][:count], rest[count:]]) for name, rest in self.padding.items()}
        return self.recorded.run_recorded(padded, self.cache)


def _number(part: SlotRows) -> int:
    assert isinstance(part.slot, DeviceSlot)
    return part.slot.number


@dataclass
class DeviceLogits:
    """A decoder's logits, which stay on the device until they are read.

    Each run also copies the index of each row's largest logit to the host, and each row's first logit: if a hidden state has NaN, all
    logits of its row are NaN, so that checking the first one suffices.
    """

    best: NDArray[np.int64] = field(repr=False)
    first: Floats = field(repr=False)
    fetch: Callable[[slice], Floats] = field(repr=False)
    row: int | None = None

    def argmax(self) -> int:
        """Return the index of the one row's largest logit.

        Raises:
            UnusableNumbers: the row's first logit is not finite.
        """
        if not np.isfinite(self.first[self.row or 0]):
            raise UnusableNumbers
        return int(self.best[self.row or 0])

    def __getitem__(self, row: int) -> DeviceLogits:
        """Return one row, which stays on the device."""
        return DeviceLogits(self.best, self.first, self.fetch, range(len(self.best))[row])

    def __array__(self, dtype: object = None, copy: bool | None = None) -> Floats:
        """Copy the logits from the device, of one row only that row's; possible until the next decoder call."""
        if self.row is None:
            return self.fetch(slice(None))
        return self.fetch(slice(self.row, self.row + 1))[0]

    def copy(self) -> Floats:
        """Copy the logits from the device into an array that stays valid."""
        return np.array(self)


class _ImagePart:
    """The vision encoder or the projector: one image in, one matrix out."""

    def __init__(self, device: Device, stream: Stream, part: Part, context: Context, times: LayerTimes | None) -> None:
        self._device, self._stream, self._context, self._times = device, stream, context, times
        if times:
            context.profile(times.report)
        self._dtypes = {tensor.name: tensor.dtype for tensor in part.inputs}
        (self._output,) = part.outputs
        self._inputs, self._outputs = Arena(device, stream), Arena(device, stream)

    def run(self, feeds: Mapping[str, NDArray[Any]], rows: int) -> Floats:
        """`feeds`, of which some may not be the part's inputs, to the output's `rows` rows."""
        self._device.enter()
        inputs = _fill(self._inputs, self._dtypes, {name: feeds[name] for name in self._dtypes})
        name, width = self._output.name, self._output.shape[-1]
        assert isinstance(width, int)
        output = self._outputs.cut({name: (self._output.dtype, (rows, width))})[name]
        self._inputs.upload()
        self._context.queue(inputs, {name: output.binding})
        self._outputs.download(output)
        self._stream.synchronize()
        if self._times:
            self._times.end_run()
        return output.host.astype(np.float32)


@dataclass
class _DecoderRun:
    """The decoder's tensors in its own arenas, and the CUDA graph that was captured over them."""

    device: Device
    stream: Stream
    part: Part
    context: Context
    times: LayerTimes | None
    inputs: Arena = field(init=False)
    outputs: Arena = field(init=False)
    graph: Graph | None = None
    serial: int = 0
    _placed: dict[str, Region] = field(default_factory=dict)
    _warm: bool = False
    _tokens: int = 0

    def __post_init__(self) -> None:
        self.inputs, self.outputs = Arena(self.device, self.stream), Arena(self.device, self.stream)
        self._dtypes = {tensor.name: tensor.dtype for tensor in self.part.inputs}
        self._output_types = {tensor.name: tensor for tensor in self.part.outputs if tensor.name in ("logits", BEST)}

    def run(self, feeds: Mapping[str, NDArray[Any]], cache: Mapping[str, Binding]) -> Logits:
        """Run tokens of any shapes."""
        self._place(feeds)
        self._queue(feeds, cache)
        return self._finish()

    def run_recorded(self, feeds: Mapping[str, NDArray[Any]], cache: Mapping[str, Binding]) -> Logits:
        """Run the step of fixed shapes and cache: first queued, as engines initialize; then captured; from then on launched as a graph."""
        self._place(feeds)
        if self.graph is None and self._warm and self.times is None and self.context.recordable():
            self.graph = self.stream.record(lambda: self._queue(feeds, cache))
        if self.graph is None:
            self._queue(feeds, cache)
            self._warm = True
        else:
            self.graph.launch()
        return self._finish()

    def _place(self, feeds: Mapping[str, NDArray[Any]]) -> None:
        """Write the feeds into page-locked memory, and reserve memory for the outputs."""
        self._tokens = int(np.prod(feeds["embeddings"].shape[:2]))
        self._filled = _fill(self.inputs, self._dtypes, feeds)
        rows = len(feeds["logit_rows"])
        shapes = {name: (rows, *spec.shape[1:]) for name, spec in self._output_types.items()}
        self._placed = self.outputs.cut(
            {name: (self._output_types[name].dtype, shape) for name, shape in shapes.items()}  # type: ignore[misc]
        )

    def _queue(self, feeds: Mapping[str, NDArray[Any]], cache: Mapping[str, Binding]) -> None:
        """Queue the copy in, the decoder and the copy out; a captured graph repeats these."""
        self.inputs.upload()
        present = {f"present_{name}": buffer for name, buffer in cache.items()}
        outputs = {name: region.binding for name, region in self._placed.items()}
        self.context.queue({**self._filled, **cache}, outputs | present)
        logits = self._placed["logits"]
        if BEST not in self._placed:
            self.outputs.download(logits)
            return
        self.outputs.download(self._placed[BEST])
        for row in range(len(logits.host)):
            first = logits[row : row + 1]
            self.outputs.download(Region(first.address, first.host[:, :1]))

    def _finish(self) -> Logits:
        self.stream.synchronize()
        if self.times:
            self.times.end_run(self._tokens)
        self.serial += 1
        if BEST not in self._placed:
            return self._placed["logits"].host.astype(np.float32)
        serial = self.serial

        def fetch(rows: slice) -> Floats:
            if serial != self.serial:
                raise RuntimeError("these logits were overwritten by a later decoder call")
            self.device.enter()
            wanted = self._placed["logits"][rows]
            self.outputs.download(wanted)
            self.stream.synchronize()
            return wanted.host.astype(np.float32)

        first = self._placed["logits"].host[:, 0].astype(np.float32)
        return DeviceLogits(self._placed[BEST].host.astype(np.int64), first, fetch)


def _fill(arena: Arena, dtypes: Mapping[str, str], feeds: Mapping[str, NDArray[Any]]) -> dict[str, Binding]:
    """Write the arrays into the arena as the engine's dtypes."""
    regions = arena.cut({name: (dtypes[name], array.shape) for name, array in feeds.items()})
    for name, array in feeds.items():
        regions[name].host[...] = array
    return {name: region.binding for name, region in regions.items()}
