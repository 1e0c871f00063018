"""CachedAttention and SelfAttention: every kernel of this computer against the numpy reference, and rows against themselves alone.

Tolerance in float32: the reference sums in float64, so what is left is the kernels' own rounding, some 1e-6 of the output.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from echovlm_edge.plugins.attention import reference
from echovlm_edge.plugins.attention.reference import KEY_BLOCK, Floats
from echovlm_edge.plugins.dual_path_moe.library import library_path
from tests.support.native_kernels import kernels, library

TOLERANCE = 5e-6
BYTES_COST = 0.02  # of the output's norm, for normal queries and keys: measured 1.3 to 1.4 %
TYPES = (np.float32, np.float16, np.int8)

pytestmark = pytest.mark.skipif(library_path() is None, reason="installed without a C++ compiler")


KERNELS = kernels()


@dataclass(frozen=True)
class Rows:
    """Packed rows, and caches in which each slot already holds what comes before its rows."""

    qkv: Floats
    cos: Floats
    sin: Floats
    slots: NDArray[np.int64]
    positions: NDArray[np.int64]
    keys: NDArray[Any]
    values: NDArray[Any]
    heads: int
    scales: tuple[Floats, Floats] | None

    def run(self, kernel: str, threads: int = 1) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
        """The output and the caches, all rows in one call."""
        keys, values = self.keys.copy(), self.values.copy()
        with library().using(kernel):
            y = library().cached_attention(
                *(self.qkv, self.cos, self.sin, self.slots, self.positions, keys, values),
                *(self.heads, self.scales, threads),
            )
        return y, keys, values

    def run_apart(self, kernel: str, bounds: list[int]) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
        """Likewise, cut into calls at these rows."""
        parts, now = [], self
        for start, stop in zip([0, *bounds], [*bounds, len(self.qkv)], strict=True):
            y, keys, values = now.only(slice(start, stop)).run(kernel)
            parts.append(y)
            now = replace(now, keys=keys, values=values)
        return np.concatenate(parts), now.keys, now.values

    def only(self, rows: slice) -> Rows:
        return replace(
            self,
            **{name: getattr(self, name)[rows].copy() for name in ("qkv", "cos", "sin", "slots", "positions")},
        )


def random_rows(
    runs: list[tuple[int, int]],
    kv_heads: int = 2,
    group: int = 3,
    dim: int = 16,
    dtype: type[np.generic] = np.float32,
    capacity: int | None = None,
    seed: int = 0,
) -> Rows:
    """Rows of a slot for each run: (positions already filled, new rows); `filled` positions hold random keys and values."""
    random = np.random.default_rng(seed)
    capacity = capacity or -(-max(filled + new for filled, new in runs) // KEY_BLOCK) * KEY_BLOCK
    count = sum(new for _, new in runs)
    qkv = random.standard_normal((count, (kv_heads * group + 2 * kv_heads) * dim), dtype=np.float32)
    angles = random.uniform(-3, 3, (count, dim // 2)).astype(np.float32)
    shape = (len(runs), kv_heads, capacity, dim)
    if dtype is np.int8:
        keys, values = (random.integers(-127, 128, shape).astype(np.int8) for _ in range(2))
        scales = tuple(random.uniform(0.01, 0.03, (kv_heads, dim)).astype(np.float32) for _ in range(2))
    else:
        keys, values = (random.standard_normal(shape).astype(dtype) for _ in range(2))
        scales = None
    return Rows(
        qkv,
        np.cos(angles),
        np.sin(angles),
        np.repeat(np.arange(len(runs)), [new for _, new in runs]),
        np.concatenate([np.arange(filled, filled + new) for filled, new in runs]),
        reference.transposed(keys),
        values,
        kv_heads * group,
        scales,  # type: ignore[arg-type]
    )


def relative(actual: Floats, expected: Floats) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("dim", [16, 20, 128])
def test_cached_attention_is_the_reference(kernel: str, dtype: type[np.generic], dim: int) -> None:
    rows = random_rows([(0, 1), (70, 33), (1500, 2), (130, 1)], dim=dim, dtype=dtype)
    keys, values = rows.keys.copy(), rows.values.copy()
    expected = reference.cached_attention(
        *(rows.qkv, rows.cos, rows.sin, rows.slots, rows.positions, keys, values, rows.heads, rows.scales)
    )
    y, written_keys, written_values = rows.run(kernel, threads=2)
    assert relative(y, expected) < TOLERANCE * (200 if dtype is np.float16 else 1), "a half's rounding of a new key"
    # Rotation rounds its two products apart or as one, which moves a value over a rounding edge now and then.
    assert np.allclose(
        written_keys.astype(np.float32), keys.astype(np.float32), rtol=2e-3, atol=1 if dtype is np.int8 else 1e-6
    )
    assert np.array_equal(written_values, values)


@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_row_has_the_bits_that_it_has_alone(kernel: str, data: st.DataObject) -> None:
    """Any mixture of sequences, chunks, drafts, cache types, cuts into calls and threads."""
    runs = data.draw(
        st.lists(
            st.tuples(st.sampled_from([0, 5, 63, 64, 250, 1020, 2050]), st.integers(1, 40)), min_size=1, max_size=5
        )
    )
    rows = random_rows(
        runs,
        kv_heads=data.draw(st.integers(1, 3)),
        group=data.draw(st.integers(1, 8)),
        dim=data.draw(st.sampled_from([8, 16, 20, 32])),
        dtype=data.draw(st.sampled_from(TYPES)),
        seed=data.draw(st.integers(0, 99)),
    )
    count = len(rows.qkv)
    together = rows.run(kernel, threads=data.draw(st.integers(1, 4)))
    bounds = sorted(data.draw(st.sets(st.integers(1, count - 1), max_size=8))) if count > 1 else []
    for apart in (rows.run_apart(kernel, bounds), rows.run_apart(kernel, list(range(1, count)))):
        for one, other in zip(together, apart, strict=True):
            assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_sequences_does_not_matter(kernel: str) -> None:
    rows = random_rows([(100, 7), (1100, 1), (0, 30)])
    order = np.argsort(np.random.default_rng(1).random(len(rows.qkv)))
    order = order[np.argsort(rows.positions[order], kind="stable")]  # a slot's positions must ascend
    mixed = replace(rows, **{name: getattr(rows, name)[order] for name in ("qkv", "cos", "sin", "slots", "positions")})
    assert np.array_equal(mixed.run(kernel)[0], rows.run(kernel)[0][order])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_nan_stays_in_its_own_row_and_in_what_follows_it(kernel: str, dtype: type[np.generic]) -> None:
    """A token that holds NaN spoils its own output, and that of later tokens of its sequence, which see it."""
    rows = random_rows([(10, 20), (10, 20)], dtype=dtype)
    clean = rows.run(kernel)[0]
    rows.qkv[8] = np.nan
    y = rows.run(kernel)[0]
    assert np.isnan(y[8:20]).all()
    assert np.array_equal(np.delete(y, slice(8, 20), 0), np.delete(clean, slice(8, 20), 0))


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_lies_beyond_a_row_is_not_read(kernel: str) -> None:
    """An earlier sequence's NaN behind the filled part, in the same block and in later ones."""
    rows = random_rows([(10, 3), (70, 1)], capacity=160)
    clean = rows.run(kernel)[0]
    keys = reference.by_position(rows.keys)
    for slot, end in ((0, 13), (1, 71)):
        keys[slot, :, end:] = rows.values[slot, :, end:] = np.nan
    assert np.array_equal(replace(rows, keys=reference.transposed(keys)).run(kernel)[0], clean)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"slots": np.array([0, 0, 2])}, "row 2 has slot 2, but there are 2"),
        ({"positions": np.array([3, 4, 160])}, "row 2 has position 160, but a slot has 160"),
        ({"positions": np.array([4, 4, 0])}, "row 1 has a position that is not after the one before in its slot"),
    ],
)
def test_rows_that_cannot_be(change: dict[str, Any], sentence: str) -> None:
    rows = random_rows([(3, 2), (0, 1)], capacity=160)
    with pytest.raises(ValueError, match=sentence):
        replace(rows, **change).run(KERNELS[0])


def patches(count: int, heads: int = 2, dim: int = 80, seed: int = 0) -> tuple[Floats, Floats, Floats]:
    random = np.random.default_rng(seed)
    qkv = random.standard_normal((count, 3 * heads * dim), dtype=np.float32)
    angles = random.uniform(-3, 3, (count, dim // 2)).astype(np.float32)
    return qkv, np.cos(angles), np.sin(angles)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize("offsets", [[0, 1], [0, 150], [0, 64, 100, 101, 230], [0, 129, 257]])
@pytest.mark.parametrize("dim", [16, 20, 80])
def test_self_attention_is_the_reference(kernel: str, bits: int, offsets: list[int], dim: int) -> None:
    qkv, cos, sin = patches(offsets[-1], dim=dim)
    windows = np.array(offsets)
    expected = reference.self_attention(qkv, cos, sin, windows, 2)
    with library().using(kernel):
        y = library().self_attention(qkv, cos, sin, windows, 2, bits, threads=2)
        again = library().self_attention(qkv, cos, sin, windows, 2, bits, threads=1)
    assert relative(y, expected) < (BYTES_COST if bits else TOLERANCE)
    assert np.array_equal(y, again)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [0, 8])
def test_a_window_has_the_bits_that_it_has_alone(kernel: str, bits: int) -> None:
    qkv, cos, sin = patches(300)
    with library().using(kernel):
        together = library().self_attention(qkv, cos, sin, np.array([0, 64, 210, 300]), 2, bits)
        alone = library().self_attention(*(x[64:210] for x in (qkv, cos, sin)), np.array([0, 146]), 2, bits)
    assert np.array_equal(together[64:210], alone)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("bits", [0, 8])
def test_nan_stays_in_its_window(kernel: str, bits: int) -> None:
    qkv, cos, sin = patches(200)
    windows = np.array([0, 70, 200])
    with library().using(kernel):
        clean = library().self_attention(qkv, cos, sin, windows, 2, bits)
        qkv[75] = np.nan
        y = library().self_attention(qkv, cos, sin, windows, 2, bits)
    assert np.array_equal(y[:70], clean[:70]) and np.isnan(y[70:]).all()


@pytest.mark.parametrize("kernel", KERNELS)
def test_sharp_and_flat_attention_in_bytes(kernel: str) -> None:
    """One patch that takes all the weight, and weights that are all the same, with means far from zero."""
    qkv, cos, sin = patches(200, heads=1)
    for factor in (0.0, 8.0):
        scaled = qkv.copy()
        scaled[:, :80] *= factor
        scaled[:, 160:] += 5
        expected = reference.self_attention(scaled, cos, sin, np.array([0, 200]), 1)
        with library().using(kernel):
            y = library().self_attention(scaled, cos, sin, np.array([0, 200]), 1, 8)
        assert relative(y, expected) < BYTES_COST


@pytest.mark.parametrize("offsets", [[0, 5], [1, 10], [0, 7, 6, 10], [0, 10, 10]])
def test_windows_that_cannot_be(offsets: list[int]) -> None:
    qkv, cos, sin = patches(10)
    with pytest.raises(ValueError, match="offsets must ascend from 0 to the number of rows"):
        library().self_attention(qkv, cos, sin, np.array(offsets), 2)
