"""Choose each layer's bits and block size under a budget: first where a byte more takes most of the error away."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from echovlm_edge.export.weights.quantize import BLOCK_SIZES, Precision
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

SCALE_BITS = 16
SMALLEST_BLOCK = 32  # that is chosen; 16 is for tiny test models


@dataclass(frozen=True)
class Unit:
    """Parameters that must be stored alike, such as all of one DualPathMoE.

    Attributes:
        parameters: their names in the decoder.
        values: how many they have together.
        errors: what storing them in each precision costs, in any measure that all units share; the first is the base.
    """

    parameters: tuple[str, ...]
    values: int
    errors: Mapping[Precision, float]


@dataclass(frozen=True)
class _Change:
    """One unit in a better precision: the error that it takes away, and the bits that it adds."""

    unit: int
    precision: Precision
    gain: float
    added: float


def bits_of(precision: Precision) -> float:
    """Return the bits of a value, with its share of the block's scale."""
    return precision.bits + SCALE_BITS / precision.block_size


def precisions(block_size: int) -> tuple[Precision, ...]:
    """Return what a layer can be stored in, the base first: 4 bits in blocks of `block_size` or smaller ones, or 8 bits."""
    sizes = [size for size in BLOCK_SIZES if SMALLEST_BLOCK <= size <= block_size] or [block_size]
    return (*(Precision(4, size) for size in sizes), Precision(8, block_size))


def choose(units: Sequence[Unit], bits: float) -> dict[str, Precision]:
    """Choose a precision for every parameter, of `bits` per value together at most.

    Greedy: of the changes that still fit, the one with the largest gain per added bit is made (Dantzig's rule for the knapsack).

    Raises:
        NotPossibleHere: the budget is less than the base takes.
    """
    chosen = [next(iter(unit.errors)) for unit in units]
    total = sum(unit.values for unit in units)
    base = sum(bits_of(precision) * unit.values for precision, unit in zip(chosen, units, strict=True))
    left = bits * total - base
    if left < 0:
        raise NotPossibleHere(
            f"--bits {bits:g} is less than the {base / total:.3f} that 4-bit weights take with their scales: give at least that."
        )
    while fitting := [change for change in _changes(units, chosen) if change.added <= left]:
        best = max(fitting, key=lambda change: change.gain / change.added)
        chosen[best.unit] = best.precision
        left -= best.added
    return {name: precision for precision, unit in zip(chosen, units, strict=True) for name in unit.parameters}


def _changes(units: Sequence[Unit], chosen: Sequence[Precision]) -> Iterator[_Change]:
    for number, (unit, now) in enumerate(zip(units, chosen, strict=True)):
        for precision, error in unit.errors.items():
            gain, added = unit.errors[now] - error, (bits_of(precision) - bits_of(now)) * unit.values
            if gain > 0 and added > 0:
                yield _Change(number, precision, gain, added)
