"""Interpret in numpy the PTX instructions that the kernels use: Triton's interpreter runs no inline assembly."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint32]


def run(assembly: str, word: Words, outputs: int) -> list[Words]:
    """The first `outputs` registers after a block whose input, the register behind them, is `word`.

    Raises:
        KeyError: it has an instruction that is not known here.
    """
    registers: dict[str, Words] = {f"${outputs}": word}
    for statement in re.sub(r"\.reg [^;]*;", "", assembly.strip().strip("{}")).split(";"):
        if statement.strip():
            name, target, *sources = re.split(r"[\s,]+", statement.strip())
            values = [
                registers[source] if source in registers else np.full_like(word, int(source, 0)) for source in sources
            ]
            registers[target] = INSTRUCTIONS[name](*values)
    return [registers[f"${index}"] for index in range(outputs)]


def _choose_bytes(low: Words, high: Words, selector: Words) -> Words:
    """Select bytes of both operands by four selectors of 4 bits (`prmt.b32`); their sign mode, the fourth bit, is not supported."""
    every = low.astype(np.uint64) | high.astype(np.uint64) << 32
    chosen = [every >> 8 * (selector.astype(np.uint64) >> 4 * place & 7) & 0xFF for place in range(4)]
    return np.add.reduce([byte << 8 * place for place, byte in enumerate(chosen)]).astype(np.uint32)


def _by_table(a: Words, b: Words, c: Words, table: Words) -> Words:
    """Look up every bit in a truth table of eight (`lop3.b32`)."""
    result = np.zeros_like(a)
    for bit in range(32):
        row = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | (c >> bit & 1)
        result |= (table >> row & 1) << bit
    return result


def _pairs(dtype: Any, compute: Callable[..., Any]) -> Callable[..., Words]:
    """Apply an operation to both halves of a register; each result is rounded once."""

    def both(*words: Words) -> Words:
        values = [np.ascontiguousarray(word).view(dtype).astype(np.float64) for word in words]
        result: Words = compute(*values).astype(dtype).view(np.uint32)
        return result

    return both


INSTRUCTIONS: dict[str, Callable[..., Words]] = {
    "mov.b32": lambda a: a,
    "shr.b32": lambda a, by: a >> by,
    "prmt.b32": _choose_bytes,
    "lop3.b32": _by_table,
    "add.rn.f16x2": _pairs(np.float16, lambda a, b: a + b),
    "fma.rn.bf16x2": _pairs(ml_dtypes.bfloat16, lambda a, b, c: a * b + c),
}
