"""CachedAttention and SelfAttention in numpy, as README.md in this folder specifies them: the reference for every implementation."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Cache = NDArray[Any]  # float32, float16 or int8

KEY_BLOCK = 16  # positions whose keys lie together


def rotate(x: Floats, cos: Floats, sin: Floats) -> Floats:
    """Turn x [rows, heads, d] by each row's angles, cos and sin [rows, d / 2]; halves convention (Su et al. 2021, eq. 34)."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def transposed(keys: Cache) -> Cache:
    """Keys [..., positions, d] as the cache holds them: [..., positions / KEY_BLOCK, d, KEY_BLOCK]."""
    *leading, positions, dim = keys.shape
    return np.ascontiguousarray(keys.reshape(*leading, positions // KEY_BLOCK, KEY_BLOCK, dim).swapaxes(-1, -2))


def by_position(keys: Cache) -> Cache:
    """The inverse of `transposed`."""
    *leading, blocks, dim, block = keys.shape
    return np.ascontiguousarray(keys.swapaxes(-1, -2)).reshape(*leading, blocks * block, dim)


def attend(q: Floats, keys: Floats, values: Floats) -> Floats:
    """Softmax(q k^T / sqrt(d)) v of one row's heads: q [heads, d], keys and values [heads, positions, d]."""
    scores = np.einsum("hd,hpd->hp", q.astype(np.float64), keys) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (np.einsum("hp,hpd->hd", weights, values) / weights.sum(-1, keepdims=True)).astype(np.float32)


def cached_attention(
    qkv: Floats,
    cos: Floats,
    sin: Floats,
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    keys: Cache,
    values: Cache,
    heads: int,
    scales: tuple[Floats, Floats] | None = None,
) -> Floats:
    """Attention of packed rows; writes their keys and values.

    Args:
        qkv: queries, keys and values side by side, [rows, (heads + 2 * kv_heads) * d].
        cos: [rows, d / 2]; sin: likewise.
        slots: int64 [rows], each row's sequence.
        positions: int64 [rows], where each row's key and value go; a row sees the positions up to its own.
        keys: the caches [slots, kv_heads, capacity / KEY_BLOCK, d, KEY_BLOCK], written in place.
        values: the caches [slots, kv_heads, capacity, d], written in place.
        heads: query heads.
        scales: of int8 keys and of int8 values, [kv_heads, d] each.

    Returns:
        [rows, heads * d].
    """
    kv_heads, dim = keys.shape[1], keys.shape[3]
    split = qkv.reshape(len(qkv), heads + 2 * kv_heads, dim)
    q, k, v = np.split(split, [heads, heads + kv_heads], axis=1)
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    k_scale, v_scale = scales or (None, None)
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        keys[slot, :, position // KEY_BLOCK, :, position % KEY_BLOCK] = _stored(k[row], keys.dtype, k_scale)
        values[slot, :, position] = _stored(v[row], values.dtype, v_scale)
    group, y = heads // kv_heads, np.empty((len(qkv), heads * dim), np.float32)
    for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
        seen = slice(0, position + 1)
        key, value = by_position(keys[slot])[:, seen].astype(np.float32), values[slot, :, seen].astype(np.float32)
        if k_scale is not None and v_scale is not None:
            key, value = key * k_scale[:, None], value * v_scale[:, None]
        y[row] = attend(q[row], key.repeat(group, 0), value.repeat(group, 0)).reshape(-1)
    return y


def _stored(x: Floats, dtype: np.dtype[Any], scale: Floats | None) -> Cache:
    if scale is None:
        return x.astype(dtype)
    return np.clip(np.rint(x / scale), -128, 127).astype(dtype)


def self_attention(qkv: Floats, cos: Floats, sin: Floats, offsets: NDArray[np.int64], heads: int) -> Floats:
    """Attention of every row to all rows of its window.

    Args:
        qkv: queries, keys and values side by side, [rows, 3 * heads * d].
        cos: [rows, d / 2]; sin: likewise.
        offsets: int64 [windows + 1], where each window begins, then the number of rows.
        heads: attention heads.

    Returns:
        [rows, heads * d].
    """
    rows = len(qkv)
    q, k, v = (part[:, 0] for part in np.split(qkv.reshape(rows, 3, heads, -1), 3, axis=1))
    q, k = rotate(q, cos, sin), rotate(k, cos, sin)
    y = np.empty((rows, heads * q.shape[-1]), np.float32)
    for first, last in pairwise(offsets):
        key, value = k[first:last].swapaxes(0, 1), v[first:last].swapaxes(0, 1)
        for row in range(first, last):
            y[row] = attend(q[row], key, value).reshape(-1)
    return y
