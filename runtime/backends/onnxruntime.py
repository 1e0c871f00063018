"""ONNX Runtime: the bundle's parts as sessions, the KV cache as fixed buffers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from echovlm_edge.plugins.attention.reference import KEY_BLOCK
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.backends import Cache, Floats, SlotRows
from echovlm_edge.runtime.backends.operator_times import NodeTime, onnxruntime_runs
from echovlm_edge.runtime.backends.providers import ON_CPU, Provider
from echovlm_edge.runtime.bundle.manifest import FIX, PARTS, Bundle, Part
from echovlm_edge.runtime.bundle.token_embedding import TokenEmbedding
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.resources.processors import usable_processors
from echovlm_edge.runtime.resources.thread_priority import lower_thread_priority

WARNING, ERROR = 2, 3  # ONNX Runtime's severities
SPIN_MICROSECONDS = 10  # as fast as unlimited spinning, and leaves processors to the threads that are waited for
SAID_WITHOUT_MEMORY = (
    "Failed to allocate memory",
    "std::bad_alloc",
)  # messages of its arena, and of operators, ours among them
CACHE_TYPES = {"float": np.float32, "float16": np.float16, "int8": np.int8}


@dataclass(frozen=True)
class OrtCache:
    """One slot's keys and values: a row of each of the buffers, which all slots share. The decoder reads and writes them in place.

    Attributes:
        buffers: [slots, kv_heads, max_sequence, head_dim] of the decoder's cache type, by the decoder's names keys.0 to values.n.
        slot: the row of this slot.
    """

    buffers: Mapping[str, NDArray[Any]] = field(repr=False)
    slot: int

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return int(next(iter(self.buffers.values())).shape[2])

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Copy the keys and values at these positions, as `SlotCache.read` does."""
        return np.stack([buffer[self.slot, :, start:stop] for buffer in self.buffers.values()])

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Write keys and values from `start` on, as `SlotCache.write` does."""
        for buffer, rows in zip(self.buffers.values(), kept, strict=True):
            buffer[self.slot, :, start : start + rows.shape[1]] = rows

    def clear(self, tokens: int) -> None:
        """Zero the first `tokens` positions."""
        for buffer in self.buffers.values():
            buffer[self.slot, :, :tokens] = 0

    def bind(self, binding: ort.IOBinding, batch: int) -> None:
        """Bind `batch` slots from this one on, for the decoder to write in place."""
        for name, buffer in self.buffers.items():
            rows = buffer[self.slot : self.slot + batch]
            where = ("cpu", 0, rows.dtype, rows.shape, rows.ctypes.data)
            binding.bind_input(name, *where)
            binding.bind_output(f"present_{name}", *where)


@dataclass(frozen=True)
class PackedCache:
    """One slot's keys and values for `echovlm::CachedAttention`, whose keys lie in transposed blocks of KEY_BLOCK positions.

    Attributes:
        buffers: keys [slots, kv_heads, blocks, head_dim, KEY_BLOCK] and values [slots, kv_heads, capacity, head_dim] of the decoder's
            cache type, by the decoder's names keys.0 to values.n.
        slot: the row of this slot.
        max_sequence: how many tokens it can hold; the capacity is that, rounded up to whole blocks.
    """

    buffers: Mapping[str, NDArray[Any]] = field(repr=False)
    slot: int
    max_sequence: int

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Copy the keys and values of the blocks from `start` up to `stop`, as `SlotCache.read` does; keys stay transposed."""
        return np.stack([self._blocks(name, start, stop) for name in self.buffers])

    def write(self, start: int, kept: NDArray[Any]) -> None:
        """Write whole blocks of keys and values from `start` on, as `SlotCache.write` does."""
        for name, rows in zip(self.buffers, kept, strict=True):
            self._blocks(name, start, start + rows.shape[1])[:] = rows

    def clear(self, tokens: int) -> None:
        """Zero the blocks of the first `tokens` positions."""
        for name in self.buffers:
            self._blocks(name, 0, tokens)[:] = 0

    def _blocks(self, name: str, start: int, stop: int) -> NDArray[Any]:
        """A view [kv_heads, positions, head_dim] of whole blocks; for keys, positions and head_dim are those of the bytes only."""
        assert start % KEY_BLOCK == 0, f"position {start} is inside a block"
        blocks = slice(start // KEY_BLOCK, -(-stop // KEY_BLOCK))
        buffer = self.buffers[name][self.slot]
        heads, dim = buffer.shape[0], self.buffers["values.0"].shape[3]
        return buffer.reshape(heads, -1, KEY_BLOCK * dim)[:, blocks].reshape(heads, -1, dim)


@dataclass(frozen=True)
class DeviceCache:
    """One sequence's keys and values in a GPU's memory: [1, kv_heads, max_sequence, head_dim] by the decoder's names."""

    buffers: Mapping[str, ort.OrtValue]

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return int(next(iter(self.buffers.values())).shape()[2])

    def clear(self, tokens: int) -> None:
        """Zero the whole cache."""
        for buffer in self.buffers.values():
            buffer.update_inplace(np.zeros_like(buffer.numpy()))

    def bind(self, binding: ort.IOBinding, batch: int) -> None:
        """Bind the cache, for the decoder to write in place."""
        assert batch == 1, "a cache on a device is one sequence's"
        for name, buffer in self.buffers.items():
            binding.bind_ortvalue_input(name, buffer)
            binding.bind_ortvalue_output(f"present_{name}", buffer)


class OnnxRuntimeBackend:
    """Runs the three parts of a bundle of ONNX graphs, on the CPU or with one of ONNX Runtime's GPU providers.

    Raises:
        NotPossibleHere: a part cannot be loaded, or this install lacks the operators it needs; the sentence names the file.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, provider: Provider = ON_CPU, profile: bool = False
    ) -> None:
        """Load the parts; `threads` defaults to `usable_processors`, `profile` is for `operator_times`."""
        options = _session_options(bundle, threads)
        options.enable_profiling = profile
        self._traces = TemporaryDirectory(prefix="echovlm-operators-") if profile else None
        self._device = provider.device
        self._spec = bundle.manifest.model
        self._embedding = TokenEmbedding.of(bundle)
        with ThreadPoolExecutor(
            1, initializer=lower_thread_priority
        ) as opener:  # a session's worker threads inherit the priority of the thread that opens it
            self._vision, self._projector, self._decoder = opener.map(
                lambda name: _session(bundle, bundle.manifest.part(name), options, provider, self._traces), PARTS
            )
        inputs = {tensor.name: tensor for tensor in bundle.manifest.part("decoder").inputs}
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

    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Run the vision encoder, as `Backend.encode` does."""
        return _run(self._vision, {"patches": patches, "cos": angles.cos, "sin": angles.sin})

    def project(self, features: Floats) -> Floats:
        """Run the projector, as `Backend.project` does."""
        return _run(self._projector, {"features": features})

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids, as `Backend.embed` does."""
        return self._embedding[token_ids]

    def new_cache(self, max_sequence: int) -> OrtCache | PackedCache | DeviceCache:
        """Make zeroed buffers for one sequence, in the memory of the provider's device."""
        (slot,) = self.new_slots(1, max_sequence)
        if self._device == ON_CPU.device:
            return slot
        move = ort.OrtValue.ortvalue_from_numpy
        return DeviceCache({name: move(buffer, self._device) for name, buffer in slot.buffers.items()})

    def new_slots(self, count: int, max_sequence: int) -> Sequence[OrtCache | PackedCache]:
        """Make zeroed adjacent rows in host memory, as `BatchBackend.new_slots` does."""
        heads, dim, layers = self._spec.num_kv_heads, self._spec.head_dim, range(self._spec.num_layers)
        blocks = -(-max_sequence // KEY_BLOCK)
        shape = (count, heads, blocks * KEY_BLOCK if self._packs_rows else max_sequence, dim)
        keys = (count, heads, blocks, dim, KEY_BLOCK) if self._packs_rows else shape
        buffers = {
            f"{name}.{layer}": np.zeros(size, self._cache_type)
            for name, size in (("keys", keys), ("values", shape))
            for layer in layers
        }
        if self._packs_rows:
            return [PackedCache(buffers, slot, max_sequence) for slot in range(count)]
        return [OrtCache(buffers, slot) for slot in range(count)]

    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Floats:
        """Run the decoder, as `Backend.decode` does."""
        if isinstance(cache, PackedCache):
            positions = past + np.arange(len(embeddings))
            return self._run_rows(embeddings, angles, np.full_like(positions, cache.slot), positions, logit_rows, cache)
        batch = Angles(angles.cos[None], angles.sin[None])
        return self._run_decoder(embeddings[None], batch, np.array([past]), logit_rows, cache)

    @property
    def packs_rows(self) -> bool:
        """Whether the decoder's graph takes packed rows."""
        return self._packs_rows

    def turn(self, rows: Sequence[SlotRows]) -> Floats:
        """Append new tokens to several sequences, as `BatchBackend.turn` does."""
        first = rows[0].slot
        if isinstance(first, PackedCache):
            embeddings, angles = _side_by_side(rows)
            lengths = [len(part.embeddings) for part in rows]
            slots = np.repeat([_number(part) for part in rows], lengths)
            positions = np.concatenate([part.past + np.arange(len(part.embeddings)) for part in rows])
            return self._run_rows(embeddings, angles, slots, positions, np.cumsum(lengths) - 1, first)
        return np.concatenate([self._rectangle(group) for group in _rectangles(rows)])

    def _rectangle(self, rows: Sequence[SlotRows]) -> Floats:
        """Run one sequence's tokens, or one token of each of adjacent slots; returns a copy of the logits of each one's last token."""
        embeddings, angles = _side_by_side(rows)
        length = len(embeddings) // len(rows)
        batch, past = (len(rows), length), np.array([part.past for part in rows])
        shaped = Angles(angles.cos.reshape(*batch, -1), angles.sin.reshape(*batch, -1))
        last = np.arange(1, len(rows) + 1) * length - 1
        return self._run_decoder(embeddings.reshape(*batch, -1), shaped, past, last, rows[0].slot).copy()

    def _run_rows(
        self,
        embeddings: Floats,
        angles: Angles,
        slots: NDArray[np.int64],
        positions: NDArray[np.int64],
        logit_rows: NDArray[np.int64],
        cache: PackedCache,
    ) -> Floats:
        """Run packed rows, embeddings [rows, hidden_size], each with its slot of `cache`'s buffers and its position there."""
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings[None],
            "cos": angles.cos[None],
            "sin": angles.sin[None],
            "slots": slots,
            "positions": positions,
            "logit_rows": logit_rows,
        }
        binding = self._bound(feeds)
        for name, buffer in cache.buffers.items():  # written in place: the graph does not give them out
            binding.bind_input(name, "cpu", 0, buffer.dtype, buffer.shape, buffer.ctypes.data)
        return self._logits(binding)

    def _run_decoder(
        self, embeddings: Floats, angles: Angles, past: NDArray[np.int64], logit_rows: NDArray[np.int64], first: Cache
    ) -> Floats:
        """Run s tokens of b sequences, embeddings [b, s, hidden_size], in the slots from `first` on."""
        assert isinstance(first, OrtCache | DeviceCache)
        feeds: dict[str, NDArray[Any]] = {
            "embeddings": embeddings,
            "cos": angles.cos,
            "sin": angles.sin,
            "past": past,
            "logit_rows": logit_rows,
        }
        batch, length = embeddings.shape[:2]
        if self._wants_mask:
            positions = past[:, None] + np.arange(length)
            feeds["mask"] = (np.arange(first.max_sequence) <= positions[..., None])[:, None]
        binding = self._bound(feeds)
        first.bind(binding, batch)
        return self._logits(binding)

    def _bound(self, feeds: Mapping[str, NDArray[Any]]) -> ort.IOBinding:
        binding = self._decoder.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(array))
        return binding

    def _logits(self, binding: ort.IOBinding) -> Floats:
        binding.bind_output("logits")
        with _memory_errors():
            self._decoder.run_with_iobinding(binding)
        logits: Floats = binding.get_outputs()[-1].numpy()
        return logits


def _side_by_side(rows: Sequence[SlotRows]) -> tuple[Floats, Angles]:
    angles = Angles(*(np.concatenate([getattr(part.angles, name) for part in rows]) for name in ("cos", "sin")))
    return np.concatenate([part.embeddings for part in rows]), angles


def _rectangles(rows: Sequence[SlotRows]) -> list[list[SlotRows]]:
    """Group what one call takes: neighbouring slots' single tokens, or one sequence's chunk."""
    groups: list[list[SlotRows]] = []
    for part in rows:
        before = groups[-1][-1] if groups else None
        single = before is not None and len(before.embeddings) == len(part.embeddings) == 1
        if before is not None and single and _number(part) == _number(before) + 1:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _number(part: SlotRows) -> int:
    """The number of a slot that `new_slots` made."""
    assert isinstance(part.slot, OrtCache | PackedCache)
    return part.slot.slot


def _session_options(bundle: Bundle, threads: int | None) -> ort.SessionOptions:
    options = ort.SessionOptions()
    processors = sorted(os.sched_getaffinity(0))
    options.intra_op_num_threads = threads or usable_processors()
    if 1 < options.intra_op_num_threads == len(processors):
        # A worker that wakes up on its caller's processor only runs once the kernel moves it at its next tick, after up to 4 ms. So each
        # worker is pinned to its own processor (numbered from 1), and the caller can run on the one that is left.
        affinities = ";".join(str(processor + 1) for processor in processors[1:])
        options.add_session_config_entry("session.intra_op_thread_affinities", affinities)
    options.log_severity_level = ERROR
    # Worker threads spin only during a call, and only briefly: other threads need the processors.
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    if bundle.manifest.precision == "fp32":
        # Prepacking float32 weights would make a second copy, in addition to the memory-mapped file.
        options.add_session_config_entry("session.disable_prepacking", "1")
    if bundle.manifest.operator_library:
        options.register_custom_ops_library(str(_operator_library(bundle)))
    return options


def _operator_library(bundle: Bundle) -> Path:
    path = library_path()
    if path is None:
        raise NotPossibleHere(
            f"The bundle {bundle.path} needs the operator library {bundle.manifest.operator_library}, which this install "
            "lacks because there was no C++ compiler: install one and reinstall echovlm-edge, or build the bundle with "
            "this install."
        )
    return path


def _session(
    bundle: Bundle,
    part: Part,
    options: ort.SessionOptions,
    provider: Provider,
    traces: TemporaryDirectory[str] | None,
) -> ort.InferenceSession:
    path = bundle.path / part.files[0].name
    if traces:
        options.profile_file_prefix = str(Path(traces.name) / part.name)
    try:
        session = ort.InferenceSession(path, options, providers=list(provider.chain))
    except Exception as error:  # ONNX Runtime raises a different class per status, without a common base class
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise NotPossibleHere(f"ONNX Runtime cannot load {path} ({reason}): {FIX}.") from None
    provider.check(session, path)
    return session


def _run(session: ort.InferenceSession, feeds: dict[str, Floats]) -> Floats:
    with _memory_errors():
        output: Floats = session.run(None, feeds)[0]
    return output


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Raise MemoryError if ONNX Runtime's message says that memory ran out, as it has no error class for that."""
    try:
        yield
    except Exception as error:
        if any(said in str(error) for said in SAID_WITHOUT_MEMORY):
            raise MemoryError from None
        raise
