"""Round every linear layer for the inputs that it has, and let the model go on with what was rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from echovlm_edge.export.calibration.passage.linears import Inputs, Linears
from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.rounding.feedback import Feedback
from echovlm_edge.export.calibration.rounding.moments import Moments, gather
from echovlm_edge.export.calibration.rounding.rounded_weights import Rounded, RoundedWeights
from echovlm_edge.export.weights.quantize import Precision
from echovlm_edge.export.weights.rounding import round_blocks
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


@dataclass(frozen=True)
class Wanted:
    """How a bundle stores a weight: the precision, the type of its scales, and how many values it has."""

    precision: Precision
    scale_type: np.dtype[np.generic]
    values: int


@dataclass(frozen=True)
class Rounder:
    """A `Visitor` that rounds.

    Attributes:
        wanted: how each checkpoint tensor is stored; others are left as they are.
        rounded: where the results go; what is there already is taken from there.
        feedback_width: inputs up to which a layer is rounded with error feedback; wider ones by a search weighted by importance.
        pool: what computes.
        advance: called with the values of each weight that is done.
    """

    wanted: Mapping[str, Wanted]
    rounded: RoundedWeights
    feedback_width: int
    pool: Workers
    advance: Callable[[int], None]

    def resume(self, names: Iterable[str]) -> bool:
        """Check whether these weights have been rounded, as far as they are wanted, and are intact."""
        wanted = [name for name in names if name in self.wanted]
        if not all(self.rounded.find(name) for name in wanted):
            return False
        self.advance(sum(self.wanted[name].values for name in wanted))
        return True

    def enter(self, layer: int, power: float) -> None:
        """Begin a layer: nothing to do."""

    def __call__(self, linears: Linears, inputs: Inputs) -> None:
        """Round the weights that the bundle stores in blocks, and overwrite their values."""
        values = {name: value for name, value in linears.weights.items() if name in self.wanted}
        missing = {name: value for name, value in values.items() if not self.rounded.find(name)}
        if missing:
            columns = next(iter(missing.values())).shape[1]
            moments = gather(inputs(), columns, whole=columns <= self.feedback_width, pool=self.pool)
            if not moments.finite:
                raise NotPossibleHere(
                    f"The inputs of {next(iter(missing))} are not finite in the calibration: check that the checkpoint is intact, or leave "
                    "--calibrate away to round without data."
                )
            self._round(linears, list(missing), moments)
        for name, value in values.items():
            self.rounded.copy_to(name, value)
            self.advance(self.wanted[name].values)

    def _round(self, linears: Linears, names: list[str], moments: Moments) -> None:
        feedback: Feedback | None = None
        for name in names:
            value, wanted = linears.weights[name], self.wanted[name]
            bits, block_size = wanted.precision.bits, wanted.precision.block_size
            if moments.matrix is None:
                importance = moments.diagonal.clamp_min(float(moments.diagonal.mean()) * 1e-6 + 1e-30).numpy()
                codes, scales = round_blocks(
                    value.contiguous().numpy(), bits, block_size, importance, wanted.scale_type
                )
            else:
                if feedback is None or feedback.block_size != block_size:
                    feedback = Feedback.of(moments, block_size)
                codes, scales = feedback.round(value, bits, wanted.scale_type, self.pool)
            method = "importance" if moments.matrix is None else "feedback"
            made = Rounded(method, bits, block_size, moments.tokens, linears.everyones)
            self.rounded.put(name, codes, scales, made)
