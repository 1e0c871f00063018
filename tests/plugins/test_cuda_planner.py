"""The launch plan: covers every token and row exactly once, stays within its buffers, refuses invalid shapes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.plugins.dual_path_moe.cuda.planner import (
    BUFFER_ALIGNMENT,
    SPLIT_TOKENS,
    Launch,
    Plan,
    Shape,
    Tile,
    down_splits,
    plan_decode,
    plan_prefill,
)

PUBLISHED = Shape(3584, (18944, 5632, 1408, 1408, 1408, 1408), 2, 4, 128)


def tiles(tokens: int, rows: int) -> Callable[[str], Tile]:
    return lambda kernel: {"route": Tile(1, 1), "sort": Tile(1, 1024), "sum_parts": Tile(1, 1024)}.get(
        kernel, Tile(tokens, rows)
    )


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    bits, block_size = draw(st.sampled_from([(0, 0), (4, 64), (4, 128)]))
    width = st.integers(1, 5).map(lambda blocks: blocks * (block_size or 64))
    experts = draw(st.integers(1, 6))
    widths = (draw(width), draw(width), *[draw(width)] * experts)
    return Shape(draw(width), widths, draw(st.integers(1, experts)), bits, block_size)


def launch_of(plan: Plan, kernel: str) -> Launch:
    (launch,) = (launch for launch in plan.launches if launch.kernel == kernel)
    return launch


def sizes_of(plan: Plan) -> dict[str, int]:
    return {buffer.name: buffer.size for buffer in plan.buffers}


def group_of_rows(shape: Shape) -> np.ndarray:
    return np.repeat(np.arange(len(shape.group_widths)), shape.group_widths)


def read_by_splits(shape: Shape, splits: int) -> np.ndarray:
    """How often each column is read, as output_tile in down.py cuts them."""
    read = np.zeros(shape.inner, int)
    always = shape.dense + shape.shared
    for split in range(splits):
        for first, width in ((0, always), *((always + e * shape.expert, shape.expert) for e in range(shape.experts))):
            share = -(-(width // 64) // splits)
            for step in range(split * share, min(split * share + share, width // 64)):
                read[first + 64 * step : first + 64 * (step + 1)] += 1
    return read


def parts_are_summed(plan: Plan, tokens: int, shape: Shape) -> None:
    """Every element once."""
    total = launch_of(plan, "sum_parts")
    assert (total.grid[0] - 1) * total.tile.rows < total.scalars[0] == tokens * shape.hidden
    assert total.grid[0] * total.tile.rows >= total.scalars[0]


def buffers_are_apart(plan: Plan) -> None:
    end = 0
    for buffer in plan.buffers:
        assert buffer.offset % BUFFER_ALIGNMENT == 0 and buffer.offset >= end
        end = buffer.offset + buffer.size
    assert plan.workspace == end


@given(shapes(), st.integers(1, 16), st.integers(1, 200), st.sampled_from([32, 64]))
def test_decode_writes_every_element_once(shape: Shape, tokens: int, multiprocessors: int, rows: int) -> None:
    plan = plan_decode(tokens, shape, multiprocessors, tiles(16, rows))
    buffers_are_apart(plan)
    assert launch_of(plan, "route").grid == (tokens, 1)

    gate_up = launch_of(plan, "gate_up_decode")
    starts = np.arange(gate_up.grid[0]) * rows
    written = (starts[:, None] + np.arange(rows)).ravel()
    np.testing.assert_array_equal(written, np.arange(shape.inner))
    group = group_of_rows(shape)
    assert all(len(set(group[start : start + rows])) == 1 for start in starts)

    down = launch_of(plan, "down_decode")
    assert down.grid[0] * rows == shape.hidden
    splits = down.scalars[-1]
    assert splits == down.grid[1] == launch_of(plan, "sum_parts").scalars[-1]
    assert (read_by_splits(shape, splits) == 1).all()
    parts_are_summed(plan, tokens, shape)
    assert sizes_of(plan) == {
        "group_weights": 4 * tokens * len(shape.group_widths),
        "inner": 2 * tokens * shape.inner,
        "parts": 4 * splits * tokens * shape.hidden,
    }


@given(
    shapes(), st.integers(1, 150), st.integers(1, 200), st.sampled_from([32, 64]), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_prefill_writes_every_chosen_element_once(
    shape: Shape, tokens: int, multiprocessors: int, tile: int, seed: int
) -> None:
    rows = 64
    plan = plan_prefill(tokens, shape, multiprocessors, tiles(tile, rows))
    buffers_are_apart(plan)
    random = np.random.default_rng(seed)
    chosen = np.ones((tokens, len(shape.group_widths)), bool)
    chosen[:, 2:] = random.random((tokens, shape.experts)).argsort(1) < shape.top_k

    assert launch_of(plan, "sort").grid == (shape.experts, 1)
    lists = [np.arange(tokens)] * 2 + [np.flatnonzero(chosen[:, 2 + e]) for e in range(shape.experts)]
    group = group_of_rows(shape)
    written = np.zeros((tokens, shape.inner), int)
    gate_up = launch_of(plan, "gate_up_prefill")
    for column in range(gate_up.grid[1]):
        of_tile = slice(column * rows, column * rows + rows)
        (one,) = set(group[of_tile])
        for row in range(gate_up.grid[0]):
            written[lists[one][row * tile : row * tile + tile], of_tile] += 1
    np.testing.assert_array_equal(written, chosen[:, group])

    down = launch_of(plan, "down_prefill")
    splits = down.scalars[-1]
    assert splits == (down_splits(shape.hidden // rows, multiprocessors) if tokens <= SPLIT_TOKENS else 1)
    token_tiles, rest = divmod(down.grid[0], splits)
    assert rest == 0 and (token_tiles - 1) * tile < tokens <= token_tiles * tile
    assert down.grid[1] * rows == shape.hidden
    assert (read_by_splits(shape, splits) == 1).all()
    parts = {"parts": 4 * splits * tokens * shape.hidden} if splits > 1 else {}
    if parts:
        parts_are_summed(plan, tokens, shape)
    assert [launch.kernel for launch in plan.launches[4:]] == ["sum_parts"] * bool(parts)
    assert sizes_of(plan) == parts | {
        "group_weights": 4 * tokens * len(shape.group_widths),
        "inner": 2 * tokens * shape.inner,
        "expert_tokens": 4 * shape.experts * tokens,
        "expert_counts": 4 * shape.experts,
    }


def test_the_published_shape_on_an_orin() -> None:
    plan = plan_decode(1, PUBLISHED, 16, tiles(16, 64))
    assert [launch.kernel for launch in plan.launches] == ["route", "gate_up_decode", "down_decode", "sum_parts"]
    assert launch_of(plan, "gate_up_decode").grid == (30208 // 64, 1)
    assert launch_of(plan, "down_decode").grid == (56, 2)
    assert launch_of(plan, "down_decode").scalars == (1, 3584, 18944, 5632, 1408, 4, 2)


@pytest.mark.parametrize(
    ("tokens", "multiprocessors", "programs"),
    [(17, 132, 448), (64, 132, 448), (65, 132, 896), (128, 132, 896), (129, 132, 168), (64, 16, 112), (512, 16, 448)],
)
def test_few_tokens_of_the_published_width_have_enough_programs(
    tokens: int, multiprocessors: int, programs: int
) -> None:
    """Of down, in tiles of 64 tokens and 64 rows; without parts there were 56, and 132 multiprocessors."""
    down = launch_of(plan_prefill(tokens, PUBLISHED, multiprocessors, tiles(64, 64)), "down_prefill")
    assert down.grid[0] * down.grid[1] == programs


@pytest.mark.parametrize(("row_tiles", "multiprocessors", "splits"), [(56, 8, 1), (56, 16, 2), (56, 132, 8), (1, 1, 4)])
def test_splits_give_a_device_enough_programs(row_tiles: int, multiprocessors: int, splits: int) -> None:
    assert down_splits(row_tiles, multiprocessors) == splits


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((64, (64, 64), 1, 0, 0), "0 experts"),
        ((64, (64,) * 67, 1, 0, 0), "65 experts"),
        ((64, (64, 64, 64, 128), 1, 0, 0), "experts of one width"),
        ((64, (64, 64, 64), 1, 8, 64), "8 bits"),
        ((64, (64, 64, 64), 1, 4, 32), "blocks of 32"),
        ((96, (64, 64, 64), 1, 0, 0), "width 96 is not a multiple of 64"),
        ((128, (128, 64, 128), 1, 4, 128), "width 64 is not a multiple of 128"),
        ((64, (64, 64, 64), 2, 0, 0), "top_k 2"),
    ],
)
def test_what_the_kernels_do_not_take_is_refused(arguments: tuple, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Shape(*arguments)


@pytest.mark.parametrize("tokens", [0, 17])
def test_decode_refuses_other_numbers_of_tokens(tokens: int) -> None:
    with pytest.raises(ValueError, match=f"{tokens} tokens"):
        plan_decode(tokens, PUBLISHED, 16, tiles(16, 64))
