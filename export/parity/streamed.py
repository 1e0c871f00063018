"""Run a PyTorch part with one layer's weights at a time: the published model in float32 would take 47 GB, its largest layer 2.2."""

from __future__ import annotations

from typing import Any

from torch import nn

from echovlm_edge.export.model.weights import Weight, below, load
from echovlm_edge.export.source.checkpoint import Checkpoint


class Streamed(nn.Module):
    """A module whose weights are read from the checkpoint when it is called, and released when it returns."""

    def __init__(self, module: nn.Module, sources: dict[str, Weight], checkpoint: Checkpoint) -> None:
        super().__init__()
        self._hidden = (module,)  # in a tuple, where PyTorch does not find its parameters: they are loaded here
        self._sources, self._checkpoint = sources, checkpoint

    def forward(self, *inputs: Any) -> Any:
        """Load the weights, run the module, release the weights."""
        (module,) = self._hidden
        load(module, self._sources, self._checkpoint)
        try:
            return module(*inputs)
        finally:
            module.to("meta")


def load_streamed(part: nn.Module, sources: dict[str, Weight], checkpoint: Checkpoint) -> None:
    """Make a part that was made on the meta device run layer by layer; what belongs to no layer is loaded now."""
    rest = dict(sources)
    for path in _layers(part):
        own = below(sources, path)
        for name in own:
            del rest[f"{path}.{name}"]
        parent, _, name = path.rpartition(".")
        setattr(part.get_submodule(parent), name, Streamed(part.get_submodule(path), own, checkpoint))
    load(part, rest, checkpoint)


def _layers(part: nn.Module) -> list[str]:
    """Return the paths of the modules that are held one at a time: the members of lists of layers, and the head."""
    lists = [name for name, child in part.named_children() if isinstance(child, nn.ModuleList)]
    members = [f"{name}.{index}" for name in lists for index in range(len(part.get_submodule(name)))]  # type: ignore[arg-type]
    return [*members, *(name for name, _ in part.named_children() if name == "lm_head")]
