"""Rounding with error feedback, on layers that are small enough to know the best."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.export.calibration.passage.parallel import workers
from echovlm_edge.export.calibration.rounding.feedback import DAMPING, Feedback
from echovlm_edge.export.calibration.rounding.moments import Moments, gather
from echovlm_edge.export.weights.rounding import Scales, round_blocks
from echovlm_edge.plugins.dual_path_moe.rounding import Codes


def moments_of(inputs: torch.Tensor, threads: int = 1) -> Moments:
    with workers(threads) as pool:
        return gather(inputs.split(50), inputs.shape[1], whole=True, pool=pool)


def rounded(weight: torch.Tensor, moments: Moments, bits: int, block: int, threads: int = 1) -> tuple[Codes, Scales]:
    with workers(threads) as pool:
        return Feedback.of(moments, block).round(weight, bits, np.float32, pool)


def values(codes: Codes, scales: Scales) -> torch.Tensor:
    blocks = codes.reshape(*scales.shape, -1) * scales[..., None]
    return torch.from_numpy(blocks.reshape(codes.shape))


def damped(moments: Moments) -> torch.Tensor:
    """The whole matrix, as the feedback takes it."""
    assert moments.matrix is not None
    upper = moments.matrix.triu().double()
    matrix = upper + upper.triu(1).T
    return matrix + DAMPING * matrix.diagonal().mean() * torch.eye(len(matrix))


def costs(weight: torch.Tensor, result: tuple[Codes, Scales], moments: Moments) -> torch.Tensor:
    """The squared error of each row's output."""
    error = (weight - values(*result)).double()
    return ((error @ damped(moments)) * error).sum(1)


@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 40),
    blocks=st.integers(1, 4),
    bits=st.sampled_from([4, 8]),
    rank=st.integers(1, 64),
    heavy=st.booleans(),
)
def test_no_row_is_worse_than_without_feedback(
    seed: int, rows: int, blocks: int, bits: int, rank: int, heavy: bool
) -> None:
    """Whatever the weights and inputs are, fewer inputs than columns among them; float32 sums differ by 1e-3."""
    generator = torch.Generator().manual_seed(seed)
    columns = 16 * blocks
    mixing = torch.randn(rank, columns, generator=generator)
    inputs = torch.randn(70, rank, generator=generator) @ mixing
    weight = torch.randn(rows, columns, generator=generator)
    if heavy:
        weight, inputs = weight**5, inputs * torch.rand(columns, generator=generator) ** 4
    moments = moments_of(inputs)
    importance = Feedback.of(moments, 16).importance.numpy()
    without = costs(weight, round_blocks(weight.numpy(), bits, 16, importance), moments)
    feedback = costs(weight, rounded(weight, moments, bits, 16), moments)
    assert (feedback <= without * (1 + 1e-3) + 1e-12).all()


def test_independent_inputs_leave_nothing_to_pass_on() -> None:
    """Then each value's nearest code is the best, as the search without feedback finds it."""
    generator = torch.Generator().manual_seed(1)
    weight, scale = torch.randn(8, 64, generator=generator), torch.rand(64, generator=generator) + 0.1
    moments = Moments(100, scale, torch.diag(scale))
    result = rounded(weight, moments, 4, 32)
    expected = round_blocks(weight.numpy(), 4, 32, Feedback.of(moments, 32).importance.numpy())
    torch.testing.assert_close(costs(weight, result, moments), costs(weight, expected, moments), rtol=1e-4, atol=0)


def test_equal_inputs_make_a_rows_errors_cancel() -> None:
    """If all columns have the same input, only the sum of a row counts: it is off by a step at most, where 32 errors add up to more."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.randn(20, 32, generator=generator)
    moments = moments_of(torch.ones(10, 32) * torch.randn(10, 1, generator=generator))
    codes, scales = rounded(weight, moments, 4, 32)
    off = (weight - values(codes, scales)).sum(1).abs()
    plain = (weight - values(*round_blocks(weight.numpy(), 4, 32))).sum(1).abs()
    assert (off <= torch.from_numpy(np.abs(scales[:, 0]))).all()
    assert off.mean() < plain.mean() / 2


@pytest.mark.parametrize("bits", [4, 8])
def test_threads_change_no_bit(bits: int) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs, weight = torch.randn(300, 576, generator=generator), torch.randn(600, 576, generator=generator)
    one, several = moments_of(inputs, 1), moments_of(inputs, 4)
    assert one.matrix is not None and several.matrix is not None
    assert torch.equal(one.matrix, several.matrix)
    for alone, together in zip(rounded(weight, one, bits, 64, 1), rounded(weight, one, bits, 64, 4), strict=True):
        np.testing.assert_array_equal(alone, together)


def test_inputs_that_are_always_zero() -> None:
    """A channel that no picture excites, and a layer that nothing reaches: the weights stay near what they were."""
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(4))
    for inputs in (torch.zeros(5, 32), torch.cat([torch.zeros(5, 16), torch.ones(5, 16)], 1)):
        result = rounded(weight, moments_of(inputs), 8, 16)
        torch.testing.assert_close(values(*result)[:, :16], weight[:, :16], atol=0.02, rtol=0)


def test_moments_are_means_of_products() -> None:
    inputs = torch.randn(130, 48, generator=torch.Generator().manual_seed(5))
    moments = moments_of(inputs)
    expected = inputs.T @ inputs / 130
    assert moments.matrix is not None and moments.tokens == 130
    torch.testing.assert_close(moments.matrix.triu(), expected.triu())
    with workers(1) as pool:
        torch.testing.assert_close(gather([inputs], 48, whole=False, pool=pool).diagonal, expected.diagonal())
