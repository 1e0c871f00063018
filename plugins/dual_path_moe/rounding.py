"""Round weights to 4 or 8 bits in blocks, in numpy: the reference for `cpu/block_rounding.hpp`, and the packing of README.md.

A block of w is stored as codes q and one scale s. Two ways to choose them:

    plain     the largest |w| decides: s = max|w| / 127 for 8 bits; w_max / -8 for 4 bits, so that it has the code -8
    search    the s, of several candidates and either sign, with the smallest sum of importance * (w - s q)^2

A candidate max|w| / d gives codes, and these give the scale that suits them best by least squares, sum(i w q) / sum(i q q). That is
rounded to the type in which it is stored, and only then compared with the others. The winner's codes are rounded once more, so that
each is the nearest to w / s. All arithmetic is float32, and blocks are summed value after value: every implementation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import DTypeLike, NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int8]

CODES = {4: (-8, 7), 8: (-127, 127)}  # the smallest and the largest
# Candidates are the largest |w| divided by these: a smaller divisor leaves codes unused, a larger one clips the largest values.
# Those of plain rounding, 8 and 127, are among them, so that a search never loses to it.
_FOUR_BITS = np.linspace(6.5, 11, 16, dtype=np.float32)
DIVISORS = {4: np.concatenate([_FOUR_BITS, -_FOUR_BITS]), 8: np.linspace(121, 132.25, 16, dtype=np.float32)}
NOTHING = np.float32(1.5e-36)  # blocks below this are zero: a divisor over their largest value could overflow
_VALUES_AT_ONCE = 1 << 18  # their temporaries stay in the cache


def plain_blocks(
    weight: Floats, bits: int, block_size: int, scale_type: DTypeLike = np.float32
) -> tuple[Codes, Floats]:
    """Round a weight [rows, columns], each block's scale by its largest value.

    Returns:
        Codes [rows, columns], and scales [rows, columns / block_size] of `scale_type`, to which they are rounded last.

    Raises:
        ValueError: `bits` is neither 4 nor 8, or `columns` is not a multiple of `block_size`.
    """

    def rounded(blocks: Floats) -> tuple[Floats, Floats]:
        high, low = blocks.max(-1), blocks.min(-1)
        peak = np.maximum(high, -low) if bits == 8 else np.where(high > -low, high, low)
        scales = peak / np.float32(127 if bits == 8 else -8)
        scales[np.abs(peak) < NOTHING] = 0
        return _nearest(blocks, _inverse(scales), bits), scales

    return _some_rows_at_a_time(weight, bits, block_size, scale_type, rounded)


def search_blocks(
    weight: Floats,
    bits: int,
    block_size: int,
    importance: Floats | None = None,
    scale_type: DTypeLike = np.float32,
) -> tuple[Codes, Floats]:
    """Round a weight [rows, columns], each block's scale by search.

    Args:
        weight: a block with a value that is not finite gets the scale NaN.
        bits: 4 or 8.
        block_size: values that share a scale.
        importance: [columns], positive: how much the square of an error in a column counts; None: all the same.
        scale_type: float32, float16 or bfloat16.

    Returns:
        Codes [rows, columns], -8..7 or -127..127, and scales [rows, columns / block_size] of `scale_type`.

    Raises:
        ValueError: `bits` is neither 4 nor 8, or `columns` is not a multiple of `block_size`.
    """
    factors = None if importance is None else importance.reshape(-1, block_size)

    def rounded(blocks: Floats) -> tuple[Floats, Floats]:
        peak = np.abs(blocks).max(-1)
        weighted = blocks if factors is None else blocks * factors
        least = np.full(peak.shape, np.inf, np.float32)
        scales = np.full(peak.shape, np.nan, np.float32)
        for divisor in DIVISORS[bits]:
            codes = _nearest(blocks, divisor / peak, bits)
            products = _sum(weighted * codes)
            squares = _sum(codes * codes if factors is None else codes * factors * codes)
            scale = (products / squares).astype(scale_type).astype(np.float32)
            errors = scale * (
                scale * squares - 2 * products
            )  # less the sum of importance * w^2, which all candidates share
            better = errors < least
            least[better], scales[better] = errors[better], scale[better]
        scales[peak < NOTHING] = 0
        codes = _nearest(blocks, _inverse(scales), bits)
        codes[np.isnan(scales)] = 0
        return codes, scales

    with np.errstate(all="ignore"):
        return _some_rows_at_a_time(weight, bits, block_size, scale_type, rounded)


def pack(codes: Codes, bits: int) -> Codes:
    """Pack codes [rows, columns] as README.md's section Groups and packing says: two of 4 bits in a byte, 8 bits as they are."""
    if bits == 8:
        return codes
    pairs = (codes + np.int8(8)).view(np.uint16)  # little-endian: the even value is the low byte
    return ((pairs | (pairs >> 4)) & 0xFF).astype(np.uint8).view(np.int8)


def unpack(packed: Codes, bits: int) -> Codes:
    """Return the codes [rows, columns] that `pack` packed."""
    if bits == 8:
        return packed
    stored = packed.view(np.uint8)
    return np.stack((stored & 15, stored >> 4), axis=-1).reshape(len(stored), -1).astype(np.int8) - np.int8(8)


def _some_rows_at_a_time(
    weight: Floats,
    bits: int,
    block_size: int,
    scale_type: DTypeLike,
    rounded: Callable[[Floats], tuple[Floats, Floats]],
) -> tuple[Codes, Floats]:
    """Call `rounded` with blocks [rows, blocks, block_size]; it returns codes of that shape, and scales [rows, blocks]."""
    rows, columns = weight.shape
    if bits not in (4, 8) or columns % block_size:
        raise ValueError(f"cannot quantize rows of {columns} values to {bits} bits in blocks of {block_size}")
    codes, scales = np.empty((rows, columns), np.int8), np.empty((rows, columns // block_size), scale_type)
    some = max(1, _VALUES_AT_ONCE // columns)
    for first in range(0, rows, some):
        part = slice(first, first + some)
        values, scales[part] = rounded(weight[part].reshape(-1, columns // block_size, block_size))
        codes[part] = values.reshape(-1, columns)
    return codes, scales


def _inverse(scales: Floats) -> Floats:
    return np.divide(1, scales, out=np.zeros_like(scales), where=scales != 0)


def _nearest(blocks: Floats, inverse: Floats, bits: int) -> Floats:
    """Return the codes of blocks [..., block_size] as float32; half rounds to even."""
    values = blocks * inverse[..., None]
    np.clip(values, *map(np.float32, CODES[bits]), out=values)
    return np.rint(values, out=values)


def _sum(values: Floats) -> Floats:
    """Sum over the last axis, one value after another from 0."""
    total = np.zeros(values.shape[:-1], np.float32)
    for k in range(values.shape[-1]):
        total += values[..., k]
    return total
