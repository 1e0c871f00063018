"""What happens at each linear layer on the model's way through: a `Visitor` sees its weights and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from echovlm_edge.export.model.weights import Weight
from echovlm_edge.export.source.checkpoint import Checkpoint

Inputs = Callable[[], Iterator[Tensor]]  # float32 [some tokens, columns] each, as often as it is called


@dataclass(frozen=True)
class Linears:
    """Weights that are multiplied with the same inputs.

    Attributes:
        weights: checkpoint tensor name to its values float32 [rows, columns], which the model uses and a visitor may overwrite.
        everyones: whether the inputs are of all tokens, as those that reach this expert are too few.
    """

    weights: Mapping[str, Tensor]
    everyones: bool = False


class Visitor(Protocol):
    """Called at every place where linear layers stand, in the model's order, before their outputs are computed."""

    def __call__(self, linears: Linears, inputs: Inputs) -> None: ...

    def resume(self, names: Iterable[str]) -> bool:
        """Check whether these checkpoint tensors were all dealt with by an earlier run; then they are not shown again."""

    def enter(self, layer: int, power: float) -> None:
        """Begin a layer of the decoder, whose input has the mean square `power`."""


def values_of(parameter: Tensor, weight: Weight, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Split a parameter into the checkpoint tensors that it is made of: views of its values."""
    if len(weight.tensors) == 1:
        return {weight.tensors[0]: parameter}
    sizes = [checkpoint.tensors[name].shape[weight.axis] for name in weight.tensors]
    return dict(zip(weight.tensors, parameter.split(sizes, weight.axis), strict=True))
