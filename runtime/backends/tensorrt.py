"""TensorRT engines behind the runtime's interface: the KV cache stays on the device, and a decode step is one CUDA graph.

Per token the host writes the token's embedding, angles and position into page-locked memory and launches the graph: one copy
in, the decoder, and the best token's index back. Images have a stream of their own, since one thread encodes while another
decodes; image embeddings pass from one to the other as a host array. All code here uses the protocols of `device.py`; the tests
run it on a device made of numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Cache, Floats, Logits
from echovlm_edge.runtime.backends.device import (
    Arena,
    Binding,
    Context,
    Device,
    Graph,
    Memory,
    PartEngine,
    Region,
    Shape,
    Stream,
)
from echovlm_edge.runtime.backends.operator_times import LayerTimes, NodeTime
from echovlm_edge.runtime.bundle.manifest import Bundle, Part, numpy_dtype
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.contracts.errors import UnusableNumbers
from echovlm_edge.runtime.prompting.rotary import Angles

BEST = "best"  # the output with the index of each row's largest logit


@dataclass(frozen=True)
class TensorRTCache:
    """One sequence's keys and values on the device, [1, kv_heads, capacity, head_dim] per layer, and its recorded step."""

    max_sequence: int
    capacity: int
    memory: Memory
    size: int  # bytes of `memory`
    buffers: Mapping[str, Binding]  # keys.0, values.0, …
    step: _DecoderRun

    def clear(self, tokens: int) -> None:
        """Zero the whole cache."""
        self.step.device.enter()
        self.step.stream.clear(self.memory.address, self.size)
        self.step.stream.synchronize()


class TensorRTBackend:
    """Runs the three parts of a bundle of TensorRT engines."""

    def __init__(
        self, bundle: Bundle, device: Device, engines: Mapping[str, PartEngine], profile: bool = False
    ) -> None:
        """Run `engines`, the bundle's parts by name, loaded on `device`; `profile` measures for `operator_times`."""
        self._device, self._stream, images = device, device.new_stream(), device.new_stream()
        self._embedding = TokenEmbedding.of(bundle)
        manifest = bundle.manifest
        self._layers = manifest.model.num_layers
        self._times = {part.name: LayerTimes() for part in manifest.parts} if profile else {}
        self._image_parts = {
            name: _ImagePart(
                *(device, images, manifest.part(name)),
                *(engines[name].new_context(images, recorded=False), self._times.get(name)),
            )
            for name in ("vision_encoder", "projector")
        }
        self._square = manifest.model.merge_size**2
        self._decoder = manifest.part("decoder")
        self._one_token = engines["decoder"].new_context(self._stream, recorded=not profile)
        chunk, times = engines["decoder"].new_context(self._stream, recorded=False), self._times.get("decoder")
        self._chunk = _DecoderRun(device, self._stream, self._decoder, chunk, times)
        if times:
            for context in (chunk, self._one_token):
                context.profile(times.report)

    def operator_times(self) -> dict[str, list[list[NodeTime]]]:
        """Return every run's layer times, as `ProfiledBackend.operator_times` does."""
        return {part: times.runs for part, times in self._times.items()}

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Run the vision encoder, as `Backend.encode` does."""
        feeds = {"patches": patches, "cos": angles.cos, "sin": angles.sin}
        return self._image_parts["vision_encoder"].run(feeds, len(patches))

    def project(self, features: Floats) -> Floats:
        """Run the projector, as `Backend.project` does."""
        return self._image_parts["projector"].run({"features": features}, len(features) // self._square)

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids, as `Backend.embed` does."""
        return self._embedding[token_ids]

    def new_cache(self, max_sequence: int) -> TensorRTCache:
        """Make a zeroed cache for one sequence. Attention weighs what lies beyond the sequence by zero, and zero times NaN is NaN.

        Raises:
            NotPossibleHere: the device has too little memory left.
        """
        self._device.enter()
        shape, stride = _cache_layout(self._decoder, max_sequence)
        names = [f"{name}.{layer}" for name in ("keys", "values") for layer in range(self._layers)]
        size = stride * len(names)
        memory = self._device.allocate(size)
        self._stream.clear(memory.address, size)
        self._stream.synchronize()
        buffers = {name: Binding(memory.address + stride * index, shape) for index, name in enumerate(names)}
        step = _DecoderRun(self._device, self._stream, self._decoder, self._one_token, self._times.get("decoder"))
        return TensorRTCache(max_sequence, shape[2], memory, size, buffers, step)

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Logits:
        """Run the decoder, as `Backend.decode` does; one token with one logit row uses the recorded step."""
        assert isinstance(cache, TensorRTCache)
        self._device.enter()
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings[None],
            "cos": angles.cos[None],
            "sin": angles.sin[None],
            "past": np.array([past]),
            "logit_rows": logit_rows,
        }
        if any(tensor.name == "mask" for tensor in self._decoder.inputs):
            positions = past + np.arange(len(embeddings))
            feeds["mask"] = (np.arange(cache.capacity) <= positions[:, None])[None, None]
        if len(embeddings) == len(logit_rows) == 1:
            return cache.step.run_recorded(feeds, cache.buffers)
        return self._chunk.run(feeds, cache.buffers)


def _cache_layout(decoder: Part, max_sequence: int) -> tuple[Shape, int]:
    """Return the shape of one layer's keys, with the engine's capacity if it was built for one only, and their aligned size in bytes."""
    keys = next(tensor for tensor in decoder.inputs if tensor.name == "keys.0")
    _, heads, context, dim = keys.shape
    assert isinstance(heads, int) and isinstance(dim, int)
    shape = (1, heads, context if isinstance(context, int) else max_sequence, dim)
    size = int(np.prod(shape)) * numpy_dtype(keys.dtype).itemsize
    return shape, size + -size % Arena.ALIGNMENT


@dataclass
class DeviceLogits:
    """A decoder's logits, which stay on the device until they are read.

    Each run also copies the index of each row's largest logit to the host, and each row's first logit: if a hidden state has NaN, all
    logits of its row are NaN, so that checking the first one suffices.
    """

    best: NDArray[np.int64] = field(repr=False)
    first: Floats = field(repr=False)
    fetch: Callable[[], Floats] = field(repr=False)
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
        """Copy the logits from the device; possible until the next decoder call."""
        logits = self.fetch()
        return logits if self.row is None else logits[self.row]

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
        """`feeds` to the output's `rows` rows."""
        self._device.enter()
        inputs = _fill(self._inputs, self._dtypes, feeds)
        name, width = self._output.name, self._output.shape[-1]
        assert isinstance(width, int)
        output = self._outputs.cut({name: (self._output.dtype, (rows, width))})[name]
        self._inputs.upload()
        self._context.queue(inputs, {name: output.address})
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
        self._tokens = int(feeds["embeddings"].shape[1])
        self._filled = _fill(self.inputs, self._dtypes, feeds)
        rows = len(feeds["logit_rows"])
        shapes = {name: (rows, *spec.shape[1:]) for name, spec in self._output_types.items()}
        self._placed = self.outputs.cut(
            {name: (self._output_types[name].dtype, shape) for name, shape in shapes.items()}  # type: ignore[misc]
        )

    def _queue(self, feeds: Mapping[str, NDArray[Any]], cache: Mapping[str, Binding]) -> None:
        """Queue the copy in, the decoder and the copy out; a captured graph repeats these."""
        self.inputs.upload()
        present = {f"present_{name}": buffer.address for name, buffer in cache.items()}
        outputs = {name: region.address for name, region in self._placed.items()}
        self.context.queue({**self._filled, **cache}, outputs | present)
        logits = self._placed["logits"]
        if BEST not in self._placed:
            self.outputs.download(logits)
            return
        self.outputs.download(self._placed[BEST])
        for row, values in enumerate(logits.host):
            self.outputs.download(Region(logits.address + row * values.nbytes, values[:1]))

    def _finish(self) -> Logits:
        self.stream.synchronize()
        if self.times:
            self.times.end_run(self._tokens)
        self.serial += 1
        if BEST not in self._placed:
            return self._placed["logits"].host.astype(np.float32)
        serial = self.serial

        def fetch() -> Floats:
            if serial != self.serial:
                raise RuntimeError("these logits were overwritten by a later decoder call")
            self.device.enter()
            self.outputs.download(self._placed["logits"])
            self.stream.synchronize()
            return self._placed["logits"].host.astype(np.float32)

        first = self._placed["logits"].host[:, 0].astype(np.float32)
        return DeviceLogits(self._placed[BEST].host.astype(np.int64), first, fetch)


def _fill(arena: Arena, dtypes: Mapping[str, str], feeds: Mapping[str, NDArray[Any]]) -> dict[str, Binding]:
    """Write the arrays into the arena as the engine's dtypes."""
    regions = arena.cut({name: (dtypes[name], array.shape) for name, array in feeds.items()})
    for name, array in feeds.items():
        regions[name].host[...] = array
    return {name: region.binding for name, region in regions.items()}
