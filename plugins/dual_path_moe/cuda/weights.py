"""Multiply by stored weights, one step of K: load a tile of rows, unpack it, multiply it, scale it."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators
# (Triton gives a kernel's arguments their types when it is compiled.)

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_tile(pointers):
    """Load weights. All kernels load all weights in this one line, by which `resources.py` finds the loads in the disassembly."""
    return tl.load(pointers)


@triton.jit
def tile_pointers(matrix, rows, stride, BITS: tl.constexpr, DEPTH: tl.constexpr):
    """Return pointers to the first DEPTH values of each row; a row has `stride` values.

    Widths are multiples of 64, so no masks and remainders are needed, which would split 16-byte loads.
    """
    if BITS == 4:
        offsets = tl.arange(0, DEPTH // 2)
        starts = rows.to(tl.int64) * tl.multiple_of(stride // 2, 32)
    else:
        offsets = tl.arange(0, DEPTH)
        starts = rows.to(tl.int64) * tl.multiple_of(stride, 64)
    return (matrix + starts)[:, None] + offsets[None, :]


@triton.jit
def add_product(
    sums, x, pointers, scale, rows, stride, step, BITS: tl.constexpr, BLOCK: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """Add step `step` of the rows times x [tokens, DEPTH] to sums float32 [rows, tokens]; a block is one or more steps.

    Quantized values are multiplied as integers, which are exact in float16, and those of 4 bits in bfloat16 too; the block's scale is
    applied to the float32 result, so that nothing is rounded in between. Weights are the left operand, because then each warp unpacks
    only the rows that it multiplies, in its own registers; as the right operand, every warp would unpack all of them.
    """
    if BITS == 0:
        tile = load_tile(pointers + step * DEPTH)
        sums = tl.dot(tile, tl.trans(x), sums)
    else:
        packed = load_tile(pointers + step * (DEPTH * BITS // 8)).to(tl.uint8, bitcast=True)
        block_scale = tl.load(scale + rows * (stride // BLOCK) + step // (BLOCK // DEPTH))
        numbers = whole_numbers(packed, x.dtype) if BITS == 4 else signed_bytes(packed)
        sums += tl.dot(numbers, tl.trans(x)) * block_scale[:, None]
    return sums


def _unpacking(upper: int, add: str) -> tl.constexpr:
    """Return assembly that converts a register of four bytes to eight values, in four registers of two.

    A byte is copied to the lower half of a register, and the byte shifted right by 4 to the upper half. Its nibbles become the
    lowest mantissa bits of `upper`, two floats whose unit in the last place is 1; `add` then subtracts these floats and 8.
    """
    each = (
        f"prmt.b32 t, $4, high, 0x{byte + 4}{byte + 4}{byte}{byte}; lop3.b32 t, t, 0x000f000f, {upper:#x}, 0xea; "
        + add.format(f"${byte}")
        for byte in range(4)
    )
    return tl.constexpr(
        "{ .reg .b32 t, high, less, one; mov.b32 one, 0x3f803f80; shr.b32 high, $4, 4;\n" + "\n".join(each) + "\n}"
    )


FLOAT16 = _unpacking(0x64006400, "mov.b32 less, 0xe408e408; add.rn.f16x2 {}, t, less;")  # 1024, -1032
BFLOAT16 = _unpacking(  # 128, 1 and -136
    0x43004300, "mov.b32 less, 0xc308c308; fma.rn.bf16x2 {}, t, one, less;"
)


@triton.jit
def whole_numbers(packed, dtype: tl.constexpr):
    """Unpack bytes [rows, n] to values -8..7 [rows, 2 n]; a byte has q + 8 of two adjacent values, the first in the low nibble."""
    rows: tl.constexpr = packed.shape[0]
    count: tl.constexpr = packed.shape[1]
    if dtype == tl.float16:
        first, second = tl.inline_asm_elementwise(
            FLOAT16, "=r,=r,=r,=r,r", [packed], dtype=(tl.float16, tl.float16), is_pure=True, pack=4
        )
    else:
        first, second = tl.inline_asm_elementwise(
            BFLOAT16, "=r,=r,=r,=r,r", [packed], dtype=(tl.bfloat16, tl.bfloat16), is_pure=True, pack=4
        )
    # `first` has the values of a register's first two bytes, `second` those of the other two.
    both = tl.permute(tl.reshape(tl.join(first, second), (rows, count // 4, 4, 2)), (0, 1, 3, 2))
    return tl.reshape(both, (rows, 2 * count))


# A byte q + 128 becomes the lowest mantissa bits of 1024; then 1152 is subtracted.
SIGNED = tl.constexpr(
    "{ .reg .b32 t, upper, less; mov.b32 upper, 0x64646464; mov.b32 less, 0xe480e480; lop3.b32 t, $2, 0x80808080, 0, 0x3c;\n"
    "prmt.b32 $0, t, upper, 0x4140; add.rn.f16x2 $0, $0, less; prmt.b32 $1, t, upper, 0x4342; add.rn.f16x2 $1, $1, less;\n}"
)


@triton.jit
def signed_bytes(packed):
    """Convert bytes that hold -127..127 in two's complement to float16, two values in three instructions."""
    return tl.inline_asm_elementwise(SIGNED, "=r,=r,r", [packed], dtype=tl.float16, is_pure=True, pack=4)
