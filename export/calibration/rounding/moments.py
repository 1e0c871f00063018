"""Second moments of a linear layer's inputs: what an error of its weights costs at its output.

For weights W, their rounded values Q and inputs x the expected squared error of the output is tr((W - Q) H (W - Q)^T) with H = E[x x^T].
Its diagonal alone is enough to weigh each column's error; all of it tells how one column's error can be made good by the others.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from echovlm_edge.export.calibration.passage.parallel import Workers

PANEL = 512  # rows of the matrix that one thread adds to


@dataclass(frozen=True)
class Moments:
    """Means over the tokens seen.

    Attributes:
        tokens: how many inputs were seen.
        diagonal: float32 [columns], of each input's square.
        matrix: float32 [columns, columns], of the inputs' products, of which the upper triangle is filled; None where only the diagonal was
            asked for.
    """

    tokens: int
    diagonal: Tensor
    matrix: Tensor | None

    @property
    def finite(self) -> bool:
        """Check that no input was infinite or NaN."""
        return bool(torch.isfinite(self.diagonal).all())


def gather(inputs: Iterable[Tensor], columns: int, *, whole: bool, pool: Workers) -> Moments:
    """Gather the moments of inputs [tokens, columns], which come in pieces.

    Args:
        inputs: float32 [some tokens, columns] each.
        columns: their width.
        whole: whether the matrix is wanted, 4 * columns^2 bytes, and not the diagonal alone.
        pool: computes the matrix's panels.
    """
    count, squares = 0, torch.zeros(columns, dtype=torch.float64)
    matrix = torch.zeros(columns, columns) if whole else None
    for piece in inputs:
        count += len(piece)
        squares += piece.double().square().sum(0) if matrix is None else 0
        if matrix is not None:
            _add(matrix, piece, pool)
    if matrix is None:
        return Moments(count, (squares / max(count, 1)).float(), None)
    matrix /= max(count, 1)
    return Moments(count, matrix.diagonal().clone(), matrix)


def _add(matrix: Tensor, piece: Tensor, pool: Workers) -> None:
    """Add x^T x to the upper triangle."""

    def panel(first: int) -> None:
        rows = slice(first, first + PANEL)
        matrix[rows, first:].addmm_(piece[:, rows].T, piece[:, first:])

    pool.each(panel, range(0, len(matrix), PANEL))
