"""Round a weight with error feedback: what rounding one column costs at the output is made good in the columns that follow.

GPTQ (Frantar et al. 2022, arXiv 2210.17323), in this order: blocks that share a scale one after another, those with the largest inputs
first, and within a block likewise. A block's scale is searched when its turn comes, on the values that the feedback has left there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.rounding.moments import Moments
from echovlm_edge.export.weights.rounding import Scales, round_blocks
from echovlm_edge.plugins.dual_path_moe.rounding import CODES, Codes

DAMPING = 0.01  # of the mean of the diagonal, added to it: the published choice
ROWS_AT_ONCE = 512  # of the weight, by one thread: each row is rounded by itself


@dataclass(frozen=True)
class Feedback:
    """How the errors of a weight's columns are passed on, for all weights that share their inputs.

    Attributes:
        order: int64 [columns], the columns in the order in which they are rounded; a block's stay together.
        factor: float32 [columns, columns] in that order, the upper Cholesky factor of the damped moments' inverse.
        importance: float32 [columns], of each column by itself, in the weight's own order.
        block_size: columns that share a scale.
    """

    order: Tensor
    factor: Tensor
    importance: Tensor
    block_size: int

    @classmethod
    def of(cls, moments: Moments, block_size: int) -> Feedback:
        """Factor a matrix of moments, in float64."""
        assert moments.matrix is not None
        diagonal = moments.diagonal
        blocks = diagonal.view(-1, block_size)
        first = torch.argsort(blocks.sum(1), descending=True, stable=True)
        within = torch.argsort(blocks, dim=1, descending=True, stable=True)
        order = (first[:, None] * block_size + within[first]).flatten()
        upper = moments.matrix.triu()
        matrix = (upper + upper.triu(1).T)[order][:, order].double()
        importance = diagonal + DAMPING * diagonal.mean()
        damping = float(DAMPING * diagonal.double().mean()) or 1.0  # no input was ever other than zero
        matrix.diagonal().add_(damping)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
        factor = torch.linalg.cholesky(inverse, upper=True).float()
        return cls(order, factor, importance.clamp_min(torch.finfo(torch.float32).tiny), block_size)

    def round(self, weight: Tensor, bits: int, scale_type: DTypeLike, pool: Workers) -> tuple[Codes, Scales]:
        """Round a weight float32 [rows, columns].

        Returns:
            Codes int8 [rows, columns], and scales [rows, columns / block_size] of `scale_type`.
        """
        rows, columns = weight.shape
        codes = np.empty((rows, columns), np.int8)
        scales = np.empty((rows, columns // self.block_size), scale_type)

        def some(first: int) -> None:
            part = slice(first, first + ROWS_AT_ONCE)
            codes[part], scales[part] = self._round_rows(weight[part], bits, scale_type)

        pool.each(some, range(0, rows, ROWS_AT_ONCE))
        return codes, scales

    def _round_rows(self, weight: Tensor, bits: int, scale_type: DTypeLike) -> tuple[Codes, Scales]:
        size, left = self.block_size, weight[:, self.order].T.contiguous()  # [columns, rows]: a column is contiguous
        codes, cost = torch.empty(left.shape, dtype=torch.int8), torch.zeros(len(weight))
        scales = np.empty((len(weight), len(left) // size), scale_type)
        for start in range(0, len(left), size):
            block = slice(start, start + size)
            scale = self._search(left[block], self.order[block], bits, scale_type)
            scales[:, int(self.order[start]) // size] = scale
            codes[block], errors = _pass_on(
                left[block], torch.from_numpy(scale.astype(np.float32)), self.factor[block, block], bits
            )
            left[start + size :].addmm_(self.factor[block, start + size :].T, errors, alpha=-1)
            cost += errors.square().sum(0)
        restored = torch.empty_like(codes)
        restored[self.order] = codes
        return self._or_without(weight, bits, scale_type, restored.T.contiguous().numpy(), scales, cost)

    def _or_without(
        self, weight: Tensor, bits: int, scale_type: DTypeLike, codes: Codes, scales: Scales, cost: Tensor
    ) -> tuple[Codes, Scales]:
        """Take the plain search's result for the rows where it costs less: greedy feedback has no bound where values are clipped."""
        searched = round_blocks(weight.contiguous().numpy(), bits, self.block_size, self.importance.numpy(), scale_type)
        factors = torch.from_numpy(searched[1].astype(np.float32))[..., None]
        rounded = (torch.from_numpy(searched[0]).view(*factors.shape[:2], -1) * factors).view(weight.shape)
        errors = torch.linalg.solve_triangular(self.factor, (weight - rounded)[:, self.order], upper=True, left=False)
        better = (errors.square().sum(1) < cost).numpy()[:, None]
        return np.where(better, searched[0], codes), np.where(better, searched[1], scales)

    def _search(self, block: Tensor, columns: Tensor, bits: int, scale_type: DTypeLike) -> Scales:
        importance = self.importance[columns].numpy()
        return round_blocks(block.T.contiguous().numpy(), bits, self.block_size, importance, scale_type)[1][:, 0]


def _pass_on(block: Tensor, scale: Tensor, factor: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Round the columns of one block, each after the errors of those before it were passed on to it.

    Args:
        block: values [block_size, rows], a column of the weight each; they are overwritten.
        scale: [rows].
        factor: [block_size, block_size], upper triangular.
        bits: 4 or 8.

    Returns:
        Codes int8 [block_size, rows], and each column's error over its entry of the factor's diagonal, float32 likewise.
    """
    least, most = CODES[bits]
    inverse = torch.where(scale == 0, 0, 1 / scale)
    codes, errors = torch.empty_like(block), torch.empty_like(block)
    for index in range(len(block)):
        values = block[index]
        torch.clamp(torch.round(values * inverse), least, most, out=codes[index])
        torch.sub(values, codes[index] * scale, out=errors[index])
        errors[index] /= factor[index, index]
        block[index + 1 :].addr_(factor[index, index + 1 :], errors[index], alpha=-1)
    return codes.to(torch.int8), errors
