"""The token embedding: a memory-mapped table of which only the requested rows are read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.bundle.manifest import TOKEN_EMBEDDING, WEIGHT_ALIGNMENT, Bundle, EmbeddingSpec, reading

Floats = NDArray[np.float32]


class TokenEmbedding:
    """The table [vocab_size, hidden_size] of a bundle: floating, or int8 in blocks of `block_size` along a row.

    An int8 table is followed, on the next page, by its scales float32 [vocab_size, hidden_size / block_size].
    """

    def __init__(self, file: Path, spec: EmbeddingSpec, shape: tuple[int, int]) -> None:
        """Map the file.

        Raises:
            NotPossibleHere: the file cannot be mapped, or its size does not fit the shape.
        """
        self._scales: np.memmap | None = None
        with reading(file):
            self._values = np.memmap(file, spec.dtype, mode="r", shape=shape)
            if spec.block_size:
                scales = (shape[0], shape[1] // spec.block_size)
                start = -(-self._values.nbytes // WEIGHT_ALIGNMENT) * WEIGHT_ALIGNMENT
                self._scales = np.memmap(file, np.float32, mode="r", offset=start, shape=scales)

    @classmethod
    def of(cls, bundle: Bundle) -> TokenEmbedding:
        """Open a bundle's token embedding."""
        model = bundle.manifest.model
        return cls(bundle.path / TOKEN_EMBEDDING, bundle.manifest.embedding, (model.vocab_size, model.hidden_size))

    def __getitem__(self, token_ids: NDArray[np.int64]) -> Floats:
        """Read the rows of `token_ids`, int64 [n], as float32 [n, hidden_size]."""
        rows = np.asarray(self._values[token_ids], np.float32)
        if self._scales is None:
            return rows
        scales = self._scales[token_ids]
        blocks = rows.reshape(*scales.shape, -1) * scales[..., None]
        return np.asarray(blocks.reshape(rows.shape))
