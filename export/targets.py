"""The targets a bundle can be built for, and the rules that lower a graph to each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from echovlm_edge.export import standard
from echovlm_edge.export.engines import onnxruntime
from echovlm_edge.export.lower import Rule
from echovlm_edge.plugins.dual_path_moe.library import OPERATOR_LIBRARY, library_path
from echovlm_edge.runtime.errors import NotPossibleHere


@dataclass(frozen=True)
class Target:
    """Where a bundle will run.

    Attributes:
        name: as `--target` spells it.
        summary: one line for `--help`.
        rules: what its graphs are lowered by.
        operator_library: the native library that the lowered graphs need, or None.
        warning: what the build says of it.
    """

    name: str
    summary: str
    rules: Mapping[str, Rule]
    operator_library: str | None = None
    warning: str = ""


_NATIVE = Target("cpu", "ONNX Runtime on a CPU", onnxruntime.NATIVE, OPERATOR_LIBRARY)
_NOT_NATIVE = replace(
    _NATIVE,
    rules=onnxruntime.SPELLED_OUT,
    operator_library=None,
    warning=(
        "this install has no operator library, for want of a C++ compiler, so DualPathMoE is spelled out in ONNX Runtime's "
        "own operators. The published model will write about half as many tokens a second, and read a prompt in three times "
        "the time. Install a C++ compiler and echovlm-edge anew, then build again."
    ),
)
_PORTABLE = Target(
    "portable",
    "ONNX opset 24, standard operators only, for any runtime",
    standard.SPELLED_OUT,
    warning=(
        "DualPathMoE is spelled out in standard operators: every expert runs on every token, about a tenth more arithmetic "
        "than the chosen experts need."
    ),
)

TARGETS = {target.name: target for target in (_NATIVE, _PORTABLE)}


def target(name: str) -> Target:
    """The target of that name, as this install can build it.

    Raises:
        NotPossibleHere: there is none.
    """
    if name not in TARGETS:
        raise NotPossibleHere(f"There is no target {name}: choose one of {', '.join(TARGETS)}.")
    chosen = TARGETS[name]
    return _NOT_NATIVE if chosen.operator_library and library_path() is None else chosen
