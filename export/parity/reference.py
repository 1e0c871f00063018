"""Run the PyTorch model behind the runtime's own interface, so that the code that serves a bundle also runs its reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from echovlm_edge.export.model import weights
from echovlm_edge.export.parity.streamed import load_streamed
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.runtime.backends import Floats, Kept, Logits, SlotCache, SlotMemory, SlotRows, move_by_copies
from echovlm_edge.runtime.backends.onnxruntime import HostKept
from echovlm_edge.runtime.prompting.rotary import Angles
from echovlm_edge.runtime.prompting.windows import Windows


@dataclass(frozen=True)
class TorchCache:
    """One sequence's keys and values, float32 [1, kv_heads, max_sequence, head_dim] per layer; a `SlotCache`."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def _tensors(self) -> tuple[torch.Tensor, ...]:
        return (*self.keys, *self.values)

    @property
    def max_sequence(self) -> int:
        """Return how many tokens it can hold."""
        return self.keys[0].shape[2]

    def clear(self, tokens: int, start: int = 0) -> None:
        """Zero keys and values, as `SlotCache.clear` does."""
        for buffer in self._tensors:
            buffer[:, :, start:tokens] = 0

    @property
    def token_bytes(self) -> int:
        """Return the size of one token's keys and values."""
        return sum(buffer[:, :, 0].nbytes for buffer in self._tensors)

    def read(self, tokens: int, start: int = 0) -> HostKept:
        """Copy the tokens' from `start` up to `tokens`, as `SlotCache.read` does."""
        return HostKept(np.stack([buffer[0, :, start:tokens].float().numpy() for buffer in self._tensors]))

    def park(self, tokens: int) -> HostKept:
        """Copy them, as `read` does."""
        return self.read(tokens)

    def write(self, kept: Kept, start: int = 0) -> None:
        """Write what `read` returned, from the position `start` on."""
        assert isinstance(kept, HostKept)
        for buffer, rows in zip(self._tensors, kept.values, strict=True):
            buffer[0, :, start : start + rows.shape[1]] = torch.from_numpy(rows)

    def move(self, target: SlotCache, tokens: int, target_tokens: int) -> None:
        """Move the first `tokens` positions, as `SlotCache.move` does."""
        move_by_copies(self, target, tokens, target_tokens)


@dataclass(frozen=True)
class DecoderInput:
    """One sequence: embeddings [n, hidden_size], its tokens' angles, and which tokens int64 [m] to give logits for."""

    embeddings: Floats
    angles: Angles
    logit_rows: NDArray[np.int64]


class TorchBackend:
    """A checkpoint's parts in float32 (or another dtype, for benchmarks), loaded at once or a layer at a time."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32, *, streamed: bool = False) -> None:
        """Read every tensor now, or (`streamed`) each layer's at every call: slow, in little memory."""
        config = checkpoint.config
        self._config, self._dtype, self._checkpoint = config.decoder, dtype, checkpoint
        load = load_streamed if streamed else weights.load
        parts = weights.parts_without_values(config)
        for part, sources in (
            (parts.vision_encoder, weights.vision_encoder_weights(config)),
            (parts.projector, weights.projector_weights(config)),
            (parts.decoder, weights.decoder_weights(config)),
        ):
            load(part, sources, checkpoint)
            part.to(dtype)
        self.parts = parts
        self._embedding = None if streamed else weights.TOKEN_EMBEDDING.read(checkpoint).to(dtype)

    @torch.inference_mode()
    def encode(self, patches: Floats, angles: Angles, windows: Windows | None = None) -> Floats:
        """Run the vision encoder, as `Backend.encode` does."""
        given = windows.inputs() if windows else {}
        ordered = [torch.from_numpy(given[name]) for name in ("window_order", "merge_order", "window_offsets") if given]
        return self._floats(self.parts.vision_encoder(self._tensor(patches), *self._angles(angles), *ordered))

    @torch.inference_mode()
    def project(self, features: Floats) -> Floats:
        """Run the projector, as `Backend.project` does."""
        return self._floats(self.parts.projector(self._tensor(features)))

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Embed token ids, as `Backend.embed` does."""
        if self._embedding is not None:
            return self._floats(self._embedding[torch.from_numpy(token_ids)])
        ids, places = np.unique(token_ids, return_inverse=True)
        rows = [weights.TOKEN_EMBEDDING.read(self._checkpoint, slice(token, token + 1)) for token in ids.tolist()]
        return self._floats(torch.cat(rows)[torch.from_numpy(places)])

    def new_slots(self, memory: SlotMemory) -> Sequence[TorchCache]:
        """Make zeroed caches, as `Backend.new_slots` does."""
        config = self._config
        shape = (1, config.num_key_value_heads, memory.max_sequence, config.head_dim)

        def buffers() -> tuple[torch.Tensor, ...]:
            return tuple(torch.zeros(shape, dtype=self._dtype) for _ in range(config.num_hidden_layers))

        return [TorchCache(buffers(), buffers()) for _ in range(memory.count)]

    @torch.inference_mode()
    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: SlotCache
    ) -> Floats:
        """Run the decoder, as `Backend.decode` does."""
        assert isinstance(cache, TorchCache)
        cos, sin = (table.unsqueeze(0) for table in self._angles(angles))
        tokens, rows = self._tensor(embeddings).unsqueeze(0), torch.from_numpy(logit_rows)
        logits, _, _ = self.parts.decoder(tokens, cos, sin, torch.tensor([past]), rows, cache.keys, cache.values)
        return self._floats(logits)

    @property
    def packs_rows(self) -> bool:
        """Whether one call takes any rows: as far as the engine sees."""
        return True

    def step_tokens(self, sequences: int) -> int:
        """PyTorch's products of several rows have other bits than those of one."""
        return 1

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        """Append new tokens to each sequence, one after another, as `Backend.turn` does."""
        return [[*self.decode(part.embeddings, part.angles, part.past, part.logit_rows, part.slot)] for part in rows]

    @torch.inference_mode()
    def logits(self, sequences: Sequence[DecoderInput]) -> list[Floats]:
        """Compute each sequence's logits [m, vocab_size] at the rows asked for, in one pass through the decoder's layers."""
        logits, _, _ = self._read(sequences)
        return np.split(self._floats(logits), np.cumsum([len(sequence.logit_rows) for sequence in sequences])[:-1])

    @torch.inference_mode()
    def caches(self, sequences: Sequence[DecoderInput]) -> tuple[list[Floats], list[Floats]]:
        """Compute each layer's keys, and its values, of all the sequences' tokens: [tokens, kv_heads, head_dim]."""
        _, keys, values = self._read(sequences)
        lengths = [len(sequence.embeddings) for sequence in sequences]

        def tokens(cache: torch.Tensor) -> Floats:
            kept = [cache[number, :, :length].transpose(0, 1) for number, length in enumerate(lengths)]
            return self._floats(torch.cat(kept))

        return [tokens(cache) for cache in keys], [tokens(cache) for cache in values]

    def _read(self, sequences: Sequence[DecoderInput]) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        """Run one pass; shorter sequences are padded at their end, to which causal attention never attends."""
        longest = max(len(sequence.embeddings) for sequence in sequences)

        def padded(arrays: Iterable[Floats]) -> torch.Tensor:
            return self._tensor(np.stack([np.pad(array, ((0, longest - len(array)), (0, 0))) for array in arrays]))

        shape = (len(sequences), self._config.num_key_value_heads, longest, self._config.head_dim)
        keys, values = ([torch.zeros(shape, dtype=self._dtype) for _ in self.parts.decoder.layers] for _ in range(2))
        rows = [number * longest + sequence.logit_rows for number, sequence in enumerate(sequences)]
        logits, keys, values = self.parts.decoder(
            padded(sequence.embeddings for sequence in sequences),
            padded(sequence.angles.cos for sequence in sequences),
            padded(sequence.angles.sin for sequence in sequences),
            torch.zeros(len(sequences), dtype=torch.int64),
            torch.from_numpy(np.concatenate(rows)),
            keys,
            values,
        )
        return logits, keys, values

    def _tensor(self, array: Floats) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._dtype)

    def _angles(self, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        return self._tensor(angles.cos), self._tensor(angles.sin)

    def _floats(self, tensor: torch.Tensor) -> Floats:
        array: Floats = tensor.float().numpy()
        return array
