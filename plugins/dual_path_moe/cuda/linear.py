"""One product with 8-bit weights for few tokens: the head, all of which is read for every token."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl

from echovlm_edge.plugins.dual_path_moe.cuda.weights import add_product, tile_pointers


@triton.jit
def linear(
    x, weight, scale, y, tokens, inputs, outputs,
    BITS: tl.constexpr, BLOCK: tl.constexpr, TOKENS: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Compute y float32 [tokens, outputs] = x float32 [tokens, inputs] W^T, x rounded to float16; one program per TOKENS and ROWS.

    Programs that share rows of the weight have adjacent indices, so that they find them in the L2 cache.
    """
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    present = token < tokens
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    stored = tl.minimum(
        rows, outputs - 1
    )  # rows behind the last are computed, and not written: a mask would narrow the loads
    x_tile = x + token.to(tl.int64)[:, None] * inputs + tl.arange(0, DEPTH)[None, :]
    tile = tile_pointers(weight, stored, inputs, BITS, DEPTH)
    sums = tl.zeros((ROWS, TOKENS), tl.float32)
    for step in range(0, inputs // DEPTH):
        value = tl.load(x_tile + step * DEPTH, mask=present[:, None], other=0).to(tl.float16)
        sums = add_product(sums, value, tile, scale, stored, inputs, step, BITS, BLOCK, DEPTH)
    to = y + token.to(tl.int64)[:, None] * outputs + rows[None, :]
    tl.store(to, tl.trans(sums), mask=present[:, None] & (rows < outputs)[None, :])
