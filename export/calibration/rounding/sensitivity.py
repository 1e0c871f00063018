"""Measure what storing each of the decoder's layers in fewer bits costs at its output, compared with what passes through there."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from echovlm_edge.export.calibration.passage.linears import Inputs, Linears
from echovlm_edge.export.calibration.passage.parallel import Workers
from echovlm_edge.export.calibration.rounding.mixed import Unit
from echovlm_edge.export.calibration.rounding.moments import gather
from echovlm_edge.export.model.weights import Weight, decoder_weights
from echovlm_edge.export.source.checkpoint import Checkpoint
from echovlm_edge.export.weights.quantize import Precision
from echovlm_edge.export.weights.rounding import round_blocks

ROWS_AT_ONCE = 4096
ATTENTION = ("self_attn.qkv_proj.weight", "self_attn.o_proj.weight")
MOE = tuple(f"dual_path_moe.{name}" for name in ("gate", "up", "down"))


@dataclass
class Sensitivity:
    """A `Visitor` that rounds each weight of the decoder's layers in every way, and keeps the errors, not the weights.

    Attributes:
        precisions: the ways, the base first.
        values: how many each of the checkpoint tensors to measure has.
        file: keeps what is measured, so that a killed calibration can be resumed.
        pool: computes.
        advance: called with the values of each weight that is done.
    """

    precisions: Sequence[Precision]
    values: Mapping[str, int]
    file: Path
    pool: Workers
    advance: Callable[[int], None]
    _power: float = 1.0
    _measured: dict[str, list[float]] = field(default_factory=dict)  # power of the output, then of each way's error

    def __post_init__(self) -> None:
        """Read what an earlier run has measured."""
        if self.file.is_file():
            lines = self.file.read_text(encoding="utf-8").splitlines(keepends=True)
            for line in lines:
                if line.endswith("\n"):
                    name, figures = json.loads(line)
                    self._measured[name] = figures

    def resume(self, names: Iterable[str]) -> bool:
        """Check whether these weights have been measured, as far as they are to be."""
        asked = self.values.keys() & set(names)
        if not asked <= self._measured.keys():
            return False
        self.advance(sum(self.values[name] for name in asked))
        return True

    def enter(self, layer: int, power: float) -> None:
        """Note the power of what passes through the layer."""
        self._power = power

    def __call__(self, linears: Linears, inputs: Inputs) -> None:
        """Measure the weights of one place."""
        asked = self.values.keys() & linears.weights.keys()
        self.advance(sum(self.values[name] for name in asked))
        missing = sorted(asked - self._measured.keys())
        if not missing:
            return
        columns = linears.weights[missing[0]].shape[1]
        diagonal = gather(inputs(), columns, whole=False, pool=self.pool).diagonal.clamp_min(1e-30)
        with self.file.open("a", encoding="utf-8") as file:
            for name in missing:
                self._measured[name] = self._measure(linears.weights[name], diagonal)
                file.write(json.dumps([name, self._measured[name]]) + "\n")

    def _measure(self, weight: Tensor, diagonal: Tensor) -> list[float]:
        """Return the mean square of the output, and of its error in each precision, in units of what passes through the layer."""

        def some(first: int) -> Tensor:
            values = weight[first : first + ROWS_AT_ONCE].contiguous()
            sums = [_weighted(values, diagonal)]
            for precision in self.precisions:
                codes, scales = round_blocks(values.numpy(), precision.bits, precision.block_size, diagonal.numpy())
                rounded = torch.from_numpy(codes).view(*scales.shape, -1) * torch.from_numpy(scales)[..., None]
                sums.append(_weighted(values - rounded.view(values.shape), diagonal))
            return torch.tensor(sums, dtype=torch.float64)

        total = sum(self.pool.in_order(some, range(0, len(weight), ROWS_AT_ONCE)), torch.zeros(1, dtype=torch.float64))
        return [float(value) / self._power for value in total]

    def units(self, checkpoint: Checkpoint) -> list[Unit]:
        """Return what can be chosen for, with errors at the layers' outputs: a weight's relative error counts as much as its output."""
        sources = decoder_weights(checkpoint.config)
        found = []
        for layer in range(checkpoint.config.decoder.num_hidden_layers):
            attention, moe = (
                [(f"layers.{layer}.{name}", sources[f"layers.{layer}.{name}"]) for name in names]
                for names in (ATTENTION, MOE)
            )
            found += [self._unit([one], [attention[1][1]], checkpoint) for one in attention]
            found.append(
                self._unit(moe, [moe[2][1].part(group) for group in range(len(moe[2][1].tensors))], checkpoint)
            )
        return found

    def _unit(
        self, parameters: Sequence[tuple[str, Weight]], leaving: Sequence[Weight], checkpoint: Checkpoint
    ) -> Unit:
        """Make a unit of parameters whose output goes through `leaving`: one weight for all, or one for each group."""
        errors = dict.fromkeys(self.precisions, 0.0)
        for _, weight in parameters:
            for group, name in enumerate(weight.tensors):
                (out,) = (leaving[group] if len(leaving) > 1 else leaving[0]).tensors
                power, *rounded = self._measured[name]
                for precision, error in zip(self.precisions, rounded, strict=True):
                    errors[precision] += error / power * self._measured[out][0] if power else 0
        values = sum(math.prod(weight.shape(checkpoint)) for _, weight in parameters)
        return Unit(tuple(name for name, _ in parameters), values, errors)


def measured_names(checkpoint: Checkpoint) -> Mapping[str, int]:
    """Return the checkpoint tensors that can be stored in different ways, with their values' number."""
    sources = decoder_weights(checkpoint.config)
    return {
        name: math.prod(checkpoint.tensors[name].shape)
        for layer in range(checkpoint.config.decoder.num_hidden_layers)
        for parameter in (*ATTENTION, *MOE)
        for name in sources[f"layers.{layer}.{parameter}"].tensors
    }


def _weighted(values: Tensor, diagonal: Tensor) -> float:
    return float((values.square() @ diagonal).double().sum())
