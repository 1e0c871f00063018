"""The targets a bundle can be built for, and the rules that lower a graph to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from echovlm_edge.export import standard
from echovlm_edge.export.engines import onnxruntime
from echovlm_edge.export.lower import Rule
from echovlm_edge.runtime.errors import NotPossibleHere


@dataclass(frozen=True)
class Target:
    """Where a bundle will run."""

    name: str
    summary: str
    rules: Mapping[str, Rule]
    warning: str = ""


_SPELLED_OUT = (
    "DualPathMoE is spelled out in ONNX Runtime's own operators: every expert runs on every token, "
    "about a tenth more arithmetic than the chosen experts need."
)

TARGETS = {
    target.name: target
    for target in (
        Target("cpu", "ONNX Runtime on a CPU, with its own fused operators", onnxruntime.SPELLED_OUT, _SPELLED_OUT),
        Target(
            "portable", "ONNX opset 24, standard operators only, for any runtime", standard.SPELLED_OUT, _SPELLED_OUT
        ),
    )
}


def target(name: str) -> Target:
    """The target of that name.

    Raises:
        NotPossibleHere: there is none.
    """
    if name not in TARGETS:
        raise NotPossibleHere(f"There is no target {name}: choose one of {', '.join(TARGETS)}.")
    return TARGETS[name]
