"""The PyTorch model behind the runtime's own interface: what every bundle is compared with, by the same code that serves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from echovlm_edge.export.checkpoint import Checkpoint
from echovlm_edge.export.model import weights
from echovlm_edge.runtime.backends import Cache, Floats
from echovlm_edge.runtime.rotary import Angles


@dataclass(frozen=True)
class TorchCache:
    """One sequence's keys and values, float32 [1, kv_heads, max_sequence, head_dim] per layer."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def max_sequence(self) -> int:
        """How many tokens it can hold."""
        return self.keys[0].shape[2]


class TorchBackend:
    """A checkpoint's parts, loaded eagerly in float32 (or another dtype, for benchmarks)."""

    def __init__(self, checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> None:
        """Read every tensor."""
        config = checkpoint.config
        self._config, self._dtype = config.decoder, dtype
        parts = weights.parts_without_values(config)
        for part, sources in (
            (parts.vision_encoder, weights.vision_encoder_weights(config)),
            (parts.projector, weights.projector_weights(config)),
            (parts.decoder, weights.decoder_weights(config)),
        ):
            weights.load(part, sources, checkpoint)
            part.to(dtype)
        self.parts = parts
        self._embedding = weights.TOKEN_EMBEDDING.read(checkpoint).to(dtype)

    @torch.inference_mode()
    def encode(self, patches: Floats, angles: Angles) -> Floats:
        """Vision encoder: see `Backend.encode`."""
        return self._floats(self.parts.vision_encoder(self._tensor(patches), *self._angles(angles)))

    @torch.inference_mode()
    def project(self, features: Floats) -> Floats:
        """Projector: see `Backend.project`."""
        return self._floats(self.parts.projector(self._tensor(features)))

    def embed(self, token_ids: NDArray[np.int64]) -> Floats:
        """Token embedding: see `Backend.embed`."""
        return self._floats(self._embedding[torch.from_numpy(token_ids)])

    def new_cache(self, max_sequence: int) -> TorchCache:
        """Buffers for one sequence, zeroed."""
        config = self._config
        shape = (1, config.num_key_value_heads, max_sequence, config.head_dim)
        keys, values = (
            tuple(torch.zeros(shape, dtype=self._dtype) for _ in range(config.num_hidden_layers)) for _ in range(2)
        )
        return TorchCache(keys, values)

    @torch.inference_mode()
    def decode(
        self, embeddings: Floats, angles: Angles, past: int, logit_rows: NDArray[np.int64], cache: Cache
    ) -> Floats:
        """Decoder: see `Backend.decode`."""
        assert isinstance(cache, TorchCache)
        cos, sin = (table.unsqueeze(0) for table in self._angles(angles))
        tokens, rows = self._tensor(embeddings).unsqueeze(0), torch.from_numpy(logit_rows)
        logits, _, _ = self.parts.decoder(tokens, cos, sin, torch.tensor([past]), rows, cache.keys, cache.values)
        return self._floats(logits)

    def _tensor(self, array: Floats) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._dtype)

    def _angles(self, angles: Angles) -> tuple[torch.Tensor, torch.Tensor]:
        return self._tensor(angles.cos), self._tensor(angles.sin)

    def _floats(self, tensor: torch.Tensor) -> Floats:
        array: Floats = tensor.float().numpy()
        return array
