"""Rounded weights on disk, until the bundle's files are written: one file for each checkpoint tensor, in a folder with a journal."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import DTypeLike
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from echovlm_edge.export.bundle.journal import Journal
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import Precision
from echovlm_edge.export.weights.rounding import Rounding, Scales
from echovlm_edge.export.weights.weight_file import Piece
from echovlm_edge.plugins.dual_path_moe.rounding import Codes, Floats, pack, unpack

VALUES_AT_ONCE = 1 << 23  # that are unpacked


@dataclass(frozen=True)
class Rounded:
    """How a weight was rounded.

    Attributes:
        method: `feedback` (error feedback over the whole matrix of moments) or `importance` (a search weighted by their diagonal).
        bits: 4 or 8.
        block_size: values that share a scale.
        tokens: how many inputs it was rounded for.
        everyones: whether these were all tokens' because too few reach this expert.
    """

    method: str
    bits: int
    block_size: int
    tokens: int
    everyones: bool = False

    @property
    def precision(self) -> Precision:
        """Return bits and block size."""
        return Precision(self.bits, self.block_size)


class RoundedWeights:
    """The folder's weights. A file counts only if the journal has its hash, so that a killed calibration can be resumed."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        """Use a folder, and its open journal."""
        self._folder, self._journal = folder, journal
        self.made: dict[str, Rounded] = {}

    def find(self, name: str) -> bool:
        """Check whether a weight is there and intact."""
        if name in self.made:
            return True
        known, path = self._journal.known.get(name), self._path(name)
        if known is None or not path.is_file():
            return False
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != known:
                return False
        with safe_open(path, framework="pt") as weight:
            self.made[name] = Rounded(**json.loads(weight.metadata()["rounded"]))
        return True

    def put(self, name: str, codes: Codes, scales: Scales, made: Rounded) -> None:
        """Write a weight, and record it."""
        tensors = {
            "codes": torch.from_numpy(pack(np.ascontiguousarray(codes), made.bits)),
            "scales": torch.from_numpy(np.ascontiguousarray(scales)),
        }
        data = save(tensors, {"rounded": json.dumps(asdict(made))})
        self._path(name).write_bytes(data)
        self._journal.record(name, hashlib.sha256(data).hexdigest())
        self.made[name] = made

    def read(self, name: str, rows: slice | None = None) -> tuple[Codes, Scales]:
        """Return codes int8 [rows, columns] and scales [rows, blocks] of a weight, or of some of its rows."""
        with safe_open(self._path(name), framework="pt") as file:
            packed, scales = (file.get_slice(tensor)[rows or slice(None)].numpy() for tensor in ("codes", "scales"))
        return unpack(packed, self.made[name].bits), scales

    def rounding_of(self, piece: Piece, checkpoint: Checkpoint) -> Rounding | None:
        """Return a rounding that gives a piece of a bundle the values that are here; None for a weight that was not rounded."""
        if not all(name in self.made for name in piece.weight.tensors):
            return None

        def rounding(
            weight: Floats, bits: int, block_size: int, *, scale_type: DTypeLike = np.float32
        ) -> tuple[Codes, Scales]:
            parts = [self.read(name, rows) for name, rows in piece.weight.rows_of_tensors(checkpoint, piece.rows)]
            codes, scales = (np.concatenate(some, piece.weight.axis) for some in zip(*parts, strict=True))
            assert codes.shape == weight.shape and codes.shape[1] == scales.shape[1] * block_size
            return codes, scales.astype(scale_type)

        return rounding

    def copy_to(self, name: str, values: Tensor) -> None:
        """Overwrite values [rows, columns] with the rounded ones."""
        step = max(1, VALUES_AT_ONCE // values.shape[1])
        for start in range(0, len(values), step):
            rows = slice(start, min(start + step, len(values)))
            codes, scales = self.read(name, rows)
            factors = torch.from_numpy(scales.astype(np.float32))[..., None]
            values[rows] = (torch.from_numpy(codes).view(*scales.shape, -1) * factors).view(codes.shape)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"
