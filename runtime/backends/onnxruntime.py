"""Run a bundle of ONNX graphs on the CPU: the parts as sessions of ONNX Runtime, the slots as fixed buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from echovlm_edge.plugins.attention.reference import KEY_BLOCK
from echovlm_edge.runtime.backends import Floats, Kept, Logits, SlotCache, SlotMemory, SlotRows, move_by_copies
from echovlm_edge.runtime.backends.onnxruntime_session import CPU, memory_errors, open_session, session_options
from echovlm_edge.runtime.backends.operator_times import NodeTime, onnxruntime_runs
from echovlm_edge.runtime.backends.rectangles import join, logit_rows, most_tokens, rectangles, split
from echovlm_edge.runtime.bundle.manifest import PARTS, Bundle
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.prompting.windows import Windows
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

STEP_TOKENS = 16  # of a sequence in a step
OWN_PRODUCTS = "echovlm::BlockQuantLinear"
CACHE_TYPES = {"float": np.float32, "float16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class HostKept:
    """Keys and values that were copied out of a slot in the host's memory, a `Kept`.

    Attributes:
        values: [tensors, kv_heads, positions, head_dim] of the decoder's cache type.
    """

    values: NDArray[Any] = field(repr=False)

    @property
    def tokens(self) -> int:
        """How many tokens' keys and values it has."""
        return int(self.values.shape[2])

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.values.nbytes

    def first(self, tokens: int) -> HostKept:
        """Return a view of the first `tokens` tokens'."""
        return HostKept(self.values[:, :, :tokens])

    def spilled(self) -> HostKept:
        """Return itself: the slots are in the same memory."""
        return self


@dataclass(frozen=True)
class HostSlot:
    """One slot's keys and values: a row of each of the buffers, which all slots share. The decoder writes them in place.

    Attributes:
        buffers: by the decoder's names keys.0 to values.n, of its cache type: [slots, kv_heads, max_sequence, head_dim]; for
            `echovlm::CachedAttention`, keys [slots, kv_heads, blocks, head_dim, KEY_BLOCK] and values of as many positions.
        number: the row of this slot.
        max_sequence: how many tokens it can hold.
    """

    buffers: Mapping[str, NDArray[Any]] = field(repr=False)
    number: int
    max_sequence: int

    @property
    def token_bytes(self) -> int:
        """The size of one token's keys and values."""
        values = self.buffers["values.0"]
        return len(self.buffers) * values.shape[1] * values.shape[3] * values.itemsize

    def clear(self, tokens: int, start: int = 0) -> None:
        """Zero positions, as `SlotCache.clear` does."""
        for name in self.buffers:
            self._span(name, start, tokens)[:] = 0

    def read(self, tokens: int, start: int = 0) -> HostKept:
        """Copy the tokens' from `start` up to `tokens`, as `SlotCache.read` does."""
        return HostKept(np.stack([self._span(name, start, tokens) for name in self.buffers]))

    def park(self, tokens: int) -> HostKept:
        """Copy them, as `read` does."""
        return self.read(tokens)

    def write(self, kept: Kept, start: int = 0) -> None:
        """Write what `read` returned, from the position `start` on."""
        assert isinstance(kept, HostKept)
        for name, rows in zip(self.buffers, kept.values, strict=True):
            self._span(name, start, start + rows.shape[1])[:] = rows

    def move(self, target: SlotCache, tokens: int, target_tokens: int) -> None:
        """Move the first `tokens` positions, as `SlotCache.move` does."""
        move_by_copies(self, target, tokens, target_tokens)

    def _span(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """A view [kv_heads, positions, head_dim] of adjacent positions; transposed keys in whole blocks, as bytes only."""
        buffer, dim = self.buffers[name][self.number], self.buffers["values.0"].shape[3]
        if not self.transposed:
            return buffer[:, start:stop]
        blocks = buffer.reshape(len(buffer), -1, KEY_BLOCK * dim)[:, start // KEY_BLOCK : -(-stop // KEY_BLOCK)]
        return blocks.reshape(len(buffer), -1, dim)

    @property
    def transposed(self) -> bool:
        """Whether keys lie in transposed blocks."""
        return self.buffers["keys.0"].ndim > self.buffers["values.0"].ndim


class OnnxRuntimeBackend:
    """Runs the three parts of a bundle of ONNX graphs on the CPU.

    Raises:
        NotPossibleHere: a part cannot be loaded, or this install lacks the operators it needs; the sentence names the file.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None, profile: bool = False) -> None:
        """Load the parts; `threads` defaults to `usable_processors`, `profile` is for `operator_times`."""
        options = session_options(bundle, threads)
        self._traces = TemporaryDirectory(prefix="echovlm-operators-") if profile else None
        self._spec = bundle.manifest.model
        self._embedding = TokenEmbedding.of(bundle)

        def load(name: str) -> ort.InferenceSession:
            trace = Path(self._traces.name) / name if self._traces else None
            return open_session(bundle, bundle.manifest.part(name), options, [(CPU, {})], trace)

        with ThreadPoolExecutor(
            1, initializer=lower_thread_priority
        ) as opener:  # a session's worker threads inherit the priority of the thread that opens it
            self._vision, self._projector, self._decoder = opener.map(load, PARTS)
        self._vision_inputs = [tensor.name for tensor in bundle.manifest.part("vision_encoder").inputs]
        decoder = bundle.manifest.part("decoder")
        inputs = {tensor.name: tensor for tensor in decoder.inputs}
        self._own_products = OWN_PRODUCTS in decoder.operators and "MatMul" not in decoder.operators
        self._packs_rows, self._wants_mask = "slots" in inputs, "mask" in inputs
        self._cache_type = CACHE_TYPES[inputs["keys.0"].dtype]

    def operator_times(self) -> dict[str, list[list[NodeTime]]]:
        """Return every run's operator times, as `ProfiledBackend.operator_times` does."""
        if self._traces is None:
            return {}
        sessions = zip(PARTS, (self._vision, self._projector, self._decoder), strict=True)
        times = {part: onnxruntime_runs(Path(session.end_profiling())) for part, session in sessions}
        self._traces.cleanup()
        self._traces = None
        return times

    def encode(self, patches: Floats, angles: Angles, windows: Windows | None = None) -> Floats:
        """Run the vision encoder, as `Backend.encode` does."""
        given = {"patches": patches, "cos": angles.cos, "sin": angles.sin, **(windows.inputs() if windows else {})}
        return _run(self._vision, {name: given[name] for name in self._vision_inputs})

    def project(self, features: Floats) -> Floats:
        """Run the projector, as `Backend.project` does."""
        return _run(self._projector, {"features": features})

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids, as `Backend.embed` does."""
        return self._embedding[token_ids]

    def new_slots(self, memory: SlotMemory) -> Sequence[HostSlot]:
        """Make zeroed adjacent rows, as `Backend.new_slots` does; the system gives them memory as they are written."""
        heads, dim, layers = self._spec.num_kv_heads, self._spec.head_dim, range(self._spec.num_layers)
        count, blocks = memory.count, -(-memory.max_sequence // KEY_BLOCK)
        shape = (count, heads, blocks * KEY_BLOCK if self._packs_rows else memory.max_sequence, dim)
        keys = (count, heads, blocks, dim, KEY_BLOCK) if self._packs_rows else shape
        buffers = {
            f"{name}.{layer}": np.zeros(size, self._cache_type)
            for name, size in (("keys", keys), ("values", shape))
            for layer in layers
        }
        return [HostSlot(buffers, number, memory.max_sequence) for number in range(count)]

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: SlotCache
    ) -> Floats:
        """Run the decoder, as `Backend.decode` does."""
        rows = [SlotRows(cache, past, embeddings, angles)]
        return self._packed(rows, logit_rows) if self._packs_rows else self._rectangle(rows, logit_rows)

    @property
    def packs_rows(self) -> bool:
        """Whether the decoder's graph takes packed rows; those of older bundles do not."""
        return self._packs_rows

    def step_tokens(self, sequences: int) -> int:
        """Only our own operators sum a row in one order for any number of rows; a float32 bundle's linear layers are ONNX Runtime's."""
        return STEP_TOKENS if self._packs_rows and self._own_products else 1

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        """Append new tokens to several sequences, as `Backend.turn` does."""
        if self._packs_rows:
            starts = np.cumsum([0, *(part.tokens for part in rows)])
            wanted = [start + part.logit_rows for start, part in zip(starts, rows, strict=False)]
            return split(self._packed(rows, np.concatenate(wanted)), rows)
        found = list[list[Logits]]()
        for group in rectangles(rows, lambda part: _slot(part).number, longest=1):
            found += split(self._rectangle(group, logit_rows(group, most_tokens(group))).copy(), group)
        return found

    def _packed(self, rows: Sequence[SlotRows], logit_rows: NDArray[np.int64]) -> Floats:
        """Run all rows in one call, each with its slot and its position there."""
        lengths = [part.tokens for part in rows]
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": np.concatenate([part.embeddings for part in rows])[None],
            "cos": np.concatenate([part.angles.cos for part in rows])[None],
            "sin": np.concatenate([part.angles.sin for part in rows])[None],
            "slots": np.repeat([_slot(part).number for part in rows], lengths),
            "positions": np.concatenate([part.past + np.arange(part.tokens) for part in rows]),
            "logit_rows": logit_rows,
        }
        binding = self._bound(feeds)
        for name, buffer in _slot(rows[0]).buffers.items():  # written in place: the graph does not give them out
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return self._logits(binding)

    def _rectangle(self, rows: Sequence[SlotRows], logit_rows: NDArray[np.int64]) -> Floats:
        """Run one sequence's tokens, or one token of each of adjacent slots."""
        embeddings, angles = join(rows)
        past, slot = np.array([part.past for part in rows]), _slot(rows[0])
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "cos": angles.cos,
            "sin": angles.sin,
            "past": past,
            "logit_rows": logit_rows,
        }
        if self._wants_mask:
            positions = past[:, None] + np.arange(embeddings.shape[1])
            feeds["mask"] = (np.arange(slot.max_sequence) <= positions[..., None])[:, None]
        binding = self._bound(feeds)
        for name, buffer in slot.buffers.items():
            part = buffer[slot.number : slot.number + len(rows)]
            where = ("cpu", 0, part.dtype, part.shape, part.ctypes.data)
            binding.bind_input(name, *where)
            binding.bind_output(f"present_{name}", *where)
        return self._logits(binding)

    def _bound(self, feeds: Mapping[str, NDArray[Any]]) -> ort.IOBinding:
        binding = self._decoder.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        return binding

    def _logits(self, binding: ort.IOBinding) -> Floats:
        binding.bind_output("logits")
        with memory_errors():
            self._decoder.run_with_iobinding(binding)
        logits: Floats = binding.get_outputs()[-1].numpy()
        return logits


def _slot(part: SlotRows) -> HostSlot:
    assert isinstance(part.slot, HostSlot)
    return part.slot


def _run(session: ort.InferenceSession, feeds: dict[str, NDArray[Any]]) -> Floats:
    with memory_errors():
        output: Floats = session.run(None, feeds)[0]
    return output
