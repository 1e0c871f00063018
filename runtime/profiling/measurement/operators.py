"""Find which operator of which layer takes the time: join what an engine's own profiler reports to this project's names.

Exporters and engines rename and fuse nodes, but keep the order of a layer: a decoder layer begins with the norm before attention,
its DualPathMoE with the second norm, the head with the last one; a vision block is the same with its MLP. So a node's layer
follows from the number of norms before it. A name is `layer 3, attention`, `layer 3, DualPathMoE`, `block 7, MLP`, `head`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from echovlm_edge.runtime.backends.operator_times import NodeTime
from echovlm_edge.runtime.profiling.schema import Operator

NAMES = {  # part: one layer's name, what its first and second half are, what comes before and after the layers
    "decoder": ("layer", ("attention", "DualPathMoE"), "input", "head"),
    "vision_encoder": ("block", ("attention", "MLP"), "patch embedding", "output"),
}


def joined(runs_by_part: Mapping[str, Sequence[Sequence[NodeTime]]]) -> tuple[Operator, ...]:
    """Add up times by part, phase (the decoder's: prefill or decode), layer and node."""
    totals: dict[tuple[str, str, str, str, str], tuple[int, float]] = {}
    for part, runs in runs_by_part.items():
        for run in runs:
            phase = _phase(part, run)
            for layer, node in zip(layers(part, run), run, strict=True):
                key = (part, phase, layer, node.name, node.kind)
                calls, seconds = totals.get(key, (0, 0.0))
                totals[key] = (calls + 1, seconds + node.seconds)
    return tuple(Operator(*key, calls, seconds) for key, (calls, seconds) in totals.items())


def layers(part: str, run: Sequence[NodeTime]) -> list[str]:
    """Name the layer of each node of a run."""
    if part not in NAMES:
        return [part] * len(run)
    unit, halves, before, after = NAMES[part]
    norms = sum(map(_is_norm, run))
    passed, found = 0, []
    last = norms if norms % 2 else norms + 1  # the decoder's last norm belongs to the head; the vision encoder has none
    for node in run:
        passed += _is_norm(node)
        if not passed:
            found.append(before)
        elif passed >= last:
            found.append(after)
        else:
            found.append(f"{unit} {(passed - 1) // 2}, {halves[(passed - 1) % 2]}")
    return found


def _is_norm(node: NodeTime) -> bool:
    return "norm" in (node.kind + node.name).lower().replace("normal_", "")


def _phase(part: str, run: Sequence[NodeTime]) -> str:
    if part != "decoder":
        return "image"
    tokens = next((node.tokens for node in run if node.tokens), None)
    return "" if tokens is None else "decode" if tokens == 1 else "prefill"
