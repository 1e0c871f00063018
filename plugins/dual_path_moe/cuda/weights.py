"""A step of a product with stored weights: load a tile of rows, unpack it, multiply it, scale it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(pointers):
    """Every weight byte of every kernel comes through this line: `resources.py` finds it in the disassembly by that."""
    return tl.load(pointers)


@triton.jit
def tile_pointers(matrix, rows, stride, BITS: tl.constexpr, DEPTH: tl.constexpr):
    """Where the first DEPTH values of each row lie; `stride` values to a row.

    Widths are multiples of 64, so that the masks and remainders which would break 16-byte loads apart are not needed.
    """
    if BITS == 4:
        offsets = tl.arange(0, DEPTH // 2)
        starts = rows.to(tl.int64) * tl.multiple_of(stride // 2, 32)
    else:
        offsets = tl.arange(0, DEPTH)
        starts = rows.to(tl.int64) * tl.multiple_of(stride, 64)
    return matrix + starts[:, None] + offsets[None, :]


@triton.jit
def add_product(
    sums, x, pointers, scale, rows, stride, step, BITS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Sums float32 [rows, tokens] plus step `step` of the rows times x [tokens, DEPTH]; a block is one step or several.

    4-bit values enter the product as the whole numbers -8..7, exact in float16 and bfloat16; the block's scale multiplies the
    float32 result, so that nothing is rounded in between. Weights are the left operand: there they are unpacked in the
    registers of the warp that multiplies them, each once, where on the right every warp would unpack them all.
    """
    if BITS == 0:
        tile = load_tile(pointers + step * DEPTH)
        sums = tl.dot(tile, tl.trans(x), sums)
    else:
        packed = load_tile(pointers + step * (DEPTH // 2)).to(tl.uint8, bitcast=True)
        block_scale = tl.load(scale + rows * (stride // BLOCK) + step // (BLOCK // DEPTH))
        tile = tl.interleave(nibble(packed & 0xF, x.dtype), nibble(packed >> 4, x.dtype))
        sums += tl.dot(tile, tl.trans(x)) * block_scale[:, None]
    return sums


@triton.jit
def nibble(stored, dtype: tl.constexpr):
    """Q of q + 8: the nibble set into the last bits of a float whose step is 1 (1024, or 128), less that float and 8.

    Or and subtract work on two values an instruction; converting integers does not.
    """
    if dtype == tl.float16:
        return (stored.to(tl.uint16) | 0x6400).to(tl.float16, bitcast=True) - 1032.0
    else:
        return (stored.to(tl.uint16) | 0x4300).to(tl.bfloat16, bitcast=True) - 136.0
