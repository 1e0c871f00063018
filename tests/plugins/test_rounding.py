"""Rounding in blocks: the native search has the reference's bits, and its error is never larger than plain rounding's."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.plugins.dual_path_moe.native import NativeLibrary
from echovlm_edge.plugins.dual_path_moe.rounding import DIVISORS, Floats, pack, plain_blocks, search_blocks, unpack

SCALE_TYPES = (np.float32, np.float16, ml_dtypes.bfloat16)
# Published, of normally distributed weights: the error's share of the norm, by largest value and by search.
PUBLISHED = {128: (0.103, 0.097), 64: (0.095, 0.090), 32: (0.086, 0.081)}


@cache
def library() -> NativeLibrary:
    path = library_path()
    if path is None:
        pytest.skip("the native library was not built")
    return NativeLibrary(path)


def _kernels() -> tuple[str, ...]:
    path = library_path()
    return NativeLibrary(path).available_kernels if path else ("none",)


def _squares(weight: Floats, codes: np.ndarray, scales: np.ndarray, importance: Floats | None = None) -> np.ndarray:
    """Each block's sum of importance * (w - s q)^2 in float64, [rows, blocks]."""
    shape = (*scales.shape, -1)
    values = codes.reshape(shape).astype(np.float64) * scales.astype(np.float64)[..., None]
    factors = 1 if importance is None else importance.reshape(1, *shape[1:])
    return (factors * (weight.reshape(shape) - values) ** 2).sum(-1)


@pytest.mark.parametrize("block", PUBLISHED)
def test_the_error_of_4_bits_is_the_published_one(block: int) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 256), dtype=np.float32)
    norm = np.linalg.norm(weight)
    for found, published in zip((plain_blocks, search_blocks), PUBLISHED[block], strict=True):
        assert np.sqrt(_squares(weight, *found(weight, 4, block)).sum()) / norm == pytest.approx(published, abs=1e-3)


@given(
    weight=arrays(np.float32, (2, 64), elements=st.floats(-8, 8, width=32)),
    bits=st.sampled_from([4, 8]),
    block=st.sampled_from([16, 32, 64]),
    scale_type=st.sampled_from(SCALE_TYPES),
)
@settings(max_examples=200, deadline=None)
def test_a_search_never_loses_to_plain_rounding(weight: Floats, bits: int, block: int, scale_type: type) -> None:
    plain = _squares(weight, *plain_blocks(weight, bits, block, scale_type))
    found = _squares(weight, *search_blocks(weight, bits, block, scale_type=scale_type))
    slack = 1e-6 * (weight.reshape(2, -1, block).astype(np.float64) ** 2).sum(-1)  # of float32 sums
    assert (found <= plain + slack).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_important_columns_have_smaller_errors(bits: int) -> None:
    random = np.random.default_rng(bits)
    weight = random.standard_normal((64, 256), dtype=np.float32)
    importance = np.exp(random.standard_normal(256)).astype(np.float32)
    alike = _squares(weight, *search_blocks(weight, bits, 64), importance).sum()
    weighed = _squares(weight, *search_blocks(weight, bits, 64, importance), importance).sum()
    assert weighed < alike


@pytest.mark.parametrize("kernel", _kernels())
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("block", [16, 32, 64, 128])
@pytest.mark.parametrize("scale_type", SCALE_TYPES)
@pytest.mark.parametrize("weighed", [False, True])
def test_kernels_have_the_references_bits(kernel: str, bits: int, block: int, scale_type: type, weighed: bool) -> None:
    random = np.random.default_rng(block)
    sizes = 10.0 ** np.array([0, -2, -4, -7, 4, -36, 0, 0])  # float16 scales are subnormal, zero, or infinite
    weight = (random.standard_normal((8, 3 * block)) * sizes[:, None]).astype(np.float32)
    weight[6, 5], weight[7, 3], weight[7, block:] = np.nan, -np.inf, 0
    importance = np.exp(random.standard_normal(3 * block)).astype(np.float32) if weighed else None
    codes, scales = search_blocks(weight, bits, block, importance, scale_type)
    with library().using(kernel):
        native_codes, native_scales = library().round_blocks(weight, bits, block, importance, scale_type)
    assert codes.tobytes() == native_codes.tobytes()
    assert scales.tobytes() == native_scales.tobytes()


def test_a_block_that_is_not_finite_stays_so() -> None:
    weight = np.ones((2, 32), np.float32)
    weight[0, 3], weight[1, 20] = np.nan, np.inf
    _, scales = search_blocks(weight, 4, 16)
    np.testing.assert_array_equal(np.isnan(scales), [[True, False], [False, True]])


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits: int) -> None:
    codes, scales = search_blocks(np.zeros((3, 64), np.float32), bits, 32)
    assert not codes.any() and not scales.any()


@given(arrays(np.int8, (3, 32), elements=st.integers(-8, 7)))
def test_packed_codes_unpack(codes: np.ndarray) -> None:
    np.testing.assert_array_equal(unpack(pack(codes, 4), 4), codes)


def test_other_bits_and_blocks_are_refused() -> None:
    weight = np.ones((2, 96), np.float32)
    for bits, block in ((3, 32), (4, 64)):
        with pytest.raises(ValueError, match="96 values"):
            search_blocks(weight, bits, block)
        with pytest.raises(ValueError, match="96 values"):
            plain_blocks(weight, bits, block)


def test_plain_roundings_scales_are_among_the_candidates() -> None:
    assert {8, -8} <= set(DIVISORS[4]) and 127 in DIVISORS[8]
