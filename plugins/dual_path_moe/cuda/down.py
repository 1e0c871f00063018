"""The down projection: inner values are already multiplied by their group's weight, so that one product sums over all groups."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl

from echovlm_edge.plugins.dual_path_moe.cuda import planner
from echovlm_edge.plugins.dual_path_moe.cuda.weights import add_product, tile_pointers

MOST_SPLITS = tl.constexpr(planner.MOST_SPLITS)


@triton.jit
def output_tile(
    inner, down, down_scale, group_weights, token, present, rows, dense, shared, expert, experts, split, splits,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute sums float32 [TOKENS, ROWS] over part `split` of `splits` of the columns of dense and shared, and of each expert.

    An expert that none of these tokens selected is skipped; if one did, the other tokens' columns count as zero.
    """
    sums = tl.zeros((ROWS, TOKENS), tl.float32)
    always = dense + shared
    columns = always + experts * expert
    depth = tl.arange(0, DEPTH)
    inner_tile = inner + token.to(tl.int64)[:, None] * columns + depth[None, :]
    down_tile = tile_pointers(down, rows, columns, BITS, DEPTH)
    steps = always // DEPTH
    share = tl.cdiv(steps, splits)
    for step in range(split * share, tl.minimum(split * share + share, steps)):
        value = tl.load(inner_tile + step * DEPTH, mask=present[:, None], other=0)
        sums = add_product(sums, value, down_tile, down_scale, rows, columns, step, BITS, BLOCK, DEPTH)

    expert_steps = expert // DEPTH
    share = tl.cdiv(expert_steps, splits)
    for routed in range(0, experts):
        weight = tl.load(group_weights + token * (2 + experts) + 2 + routed, mask=present, other=0)
        chose = weight != 0
        first = steps + routed * expert_steps
        last = tl.minimum(split * share + share, expert_steps) * tl.max(chose.to(tl.int32), axis=0)
        for step in range(first + split * share, first + last):
            value = tl.load(inner_tile + step * DEPTH, mask=chose[:, None], other=0)
            sums = add_product(sums, value, down_tile, down_scale, rows, columns, step, BITS, BLOCK, DEPTH)
    return tl.trans(sums)


@triton.jit
def down_decode(
    inner, down, down_scale, group_weights, parts, tokens, hidden, dense, shared, expert, experts, splits,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute `parts` float32 [splits, tokens, hidden]; one program per ROWS outputs and part of the columns, for all tokens."""
    split = tl.program_id(1)
    token = tl.arange(0, TOKENS)
    present = token < tokens
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    sums = output_tile(
        inner, down, down_scale, group_weights, token, present, rows, dense, shared, expert, experts, split, splits,
        BITS, BLOCK, TOKENS, ROWS, DEPTH,
    )  # fmt: skip
    to = parts + (split * tokens + token)[:, None] * hidden + rows[None, :]
    tl.store(to, sums, mask=present[:, None])


@triton.jit
def sum_parts(parts, y, elements, splits, ROWS: tl.constexpr):
    """Sum parts [splits, elements] to y [elements] in a fixed order, so that the result is the same in every run."""
    element = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = element < elements
    total = tl.zeros((ROWS,), tl.float32)
    for split in tl.static_range(MOST_SPLITS):  # unrolled, so that all loads are in flight at once
        there = tl.where(split < splits, elements, 0)
        total += tl.load(parts + split * elements + element, mask=element < there, other=0)
    tl.store(y + element, total.to(y.dtype.element_ty), mask=inside)


@triton.jit
def down_prefill(
    inner, down, down_scale, group_weights, parts, y, tokens, hidden, dense, shared, expert, experts, splits,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute y, or with several splits `parts` float32 [splits, tokens, hidden].

    One program per TOKENS consecutive tokens, ROWS outputs and part of the columns. Programs that share a tile of weights have adjacent
    indices.
    """
    token_tiles = tl.cdiv(tokens, TOKENS)
    split = tl.program_id(0) // token_tiles
    token = tl.program_id(0) % token_tiles * TOKENS + tl.arange(0, TOKENS)
    present = token < tokens
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    sums = output_tile(
        inner, down, down_scale, group_weights, token, present, rows, dense, shared, expert, experts, split, splits,
        BITS, BLOCK, TOKENS, ROWS, DEPTH,
    )  # fmt: skip
    to = token.to(tl.int64)[:, None] * hidden + rows[None, :]
    if splits == 1:
        tl.store(y + to, sums.to(y.dtype.element_ty), mask=present[:, None])
    else:
        tl.store(parts + split.to(tl.int64) * tokens * hidden + to, sums, mask=present[:, None])
