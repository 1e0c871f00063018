"""Compute the inner values of all groups in one launch: SwiGLU over rows of gate and up, in group order."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl

from echovlm_edge.plugins.dual_path_moe.cuda.weights import add_product, tile_pointers


@triton.jit
def group_of_row(row, dense, shared, expert):
    """Return the group (dense, shared, expert 0, …) that contains `row`; a tile never spans two groups."""
    routed = row - dense - shared
    return tl.where(routed >= 0, 2 + tl.maximum(routed, 0) // expert, tl.where(row >= dense, 1, 0))


@triton.jit
def inner_tile(
    x, gate, up, gate_scale, up_scale, token, present, first, hidden,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute silu(gate x) * (up x) float32 [TOKENS, ROWS] for the tokens `token` (if `present`) and ROWS rows from `first` on.

    The rows of gate and of up form one tile, so that twice as many warps can share the work as with a tile for each.
    """
    both = tl.arange(0, 2 * ROWS)
    is_gate = both < ROWS
    row = first + both % ROWS
    sums = tl.zeros((2 * ROWS, TOKENS), tl.float32)
    x_tile = x + token.to(tl.int64)[:, None] * hidden + tl.arange(0, DEPTH)[None, :]
    # Select by an offset instead of selecting pointers: the compiler would lose track of the pointers' 16-byte alignment.
    apart = (up.to(tl.int64) - gate.to(tl.int64)) // (gate.dtype.element_ty.primitive_bitwidth // 8)
    tile = tile_pointers(gate, row, hidden, BITS, DEPTH) + tl.multiple_of(tl.where(is_gate, 0, apart), 16)[:, None]
    scale = tl.where(is_gate, gate_scale, up_scale)
    for step in range(0, hidden // DEPTH):
        value = tl.load(x_tile + step * DEPTH, mask=present[:, None], other=0)
        sums = add_product(sums, value, tile, scale, row, hidden, step, BITS, BLOCK, DEPTH)
    gate_sums, up_sums = tl.split(tl.permute(tl.reshape(sums, (2, ROWS, TOKENS)), (2, 1, 0)))
    return gate_sums * tl.sigmoid(gate_sums) * up_sums


@triton.jit
def gate_up_decode(
    x, gate, up, gate_scale, up_scale, group_weights, inner, tokens, hidden, dense, shared, expert, experts,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Run one program per ROWS rows for all (at most TOKENS) tokens: each weight is read once, unselected experts not at all."""
    first = tl.program_id(0) * ROWS
    group = group_of_row(first, dense, shared, expert)
    token = tl.arange(0, TOKENS)
    weight = tl.load(group_weights + token * (2 + experts) + group, mask=token < tokens, other=0)
    present = weight != 0
    if tl.max(present.to(tl.int32), axis=0) == 0:
        return
    rows = first + tl.arange(0, ROWS)
    values = inner_tile(
        x, gate, up, gate_scale, up_scale, token, present, first, hidden, BITS, BLOCK, TOKENS, ROWS, DEPTH
    )  # fmt: skip
    to = inner + token[:, None] * (dense + shared + experts * expert) + rows[None, :]
    tl.store(to, (values * weight[:, None]).to(inner.dtype.element_ty), mask=present[:, None])


@triton.jit
def gate_up_prefill(
    x, gate, up, gate_scale, up_scale, group_weights, expert_tokens, expert_counts, inner,
    tokens, hidden, dense, shared, expert, experts,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Run one program per TOKENS tokens of a group and ROWS of its rows.

    Programs that share a tile of weights have adjacent indices, so that they find it in the L2 cache.
    """
    first = tl.program_id(1) * ROWS
    group = group_of_row(first, dense, shared, expert)
    count = tokens
    if group >= 2:
        count = tl.load(expert_counts + group - 2)
    if tl.program_id(0) * TOKENS >= count:
        return
    place = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    present = place < count
    token = place
    if group >= 2:
        token = tl.load(expert_tokens + (group - 2).to(tl.int64) * tokens + place, mask=present, other=0)
    rows = first + tl.arange(0, ROWS)
    values = inner_tile(
        x, gate, up, gate_scale, up_scale, token, present, first, hidden, BITS, BLOCK, TOKENS, ROWS, DEPTH
    )  # fmt: skip
    # Loaded after the loop: before it, this would occupy a register for every token of a thread.
    weight = tl.load(group_weights + token * (2 + experts) + group, mask=present, other=0)
    to = inner + token.to(tl.int64)[:, None] * (dense + shared + experts * expert) + rows[None, :]
    tl.store(to, (values * weight[:, None]).to(inner.dtype.element_ty), mask=present[:, None])
