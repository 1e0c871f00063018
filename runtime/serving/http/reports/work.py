"""Where the time of a finished generation went, as a waterfall draws it, and the decoder's steps."""

from __future__ import annotations

from typing import Any

from echovlm_edge.runtime.client.result_json import stage_key
from echovlm_edge.runtime.contracts.request import Finished, Stage
from echovlm_edge.runtime.engine.clock import pieces
from echovlm_edge.runtime.serving.messages import STAGES

FINEST = 1 / 200  # of the whole time: pieces of a stage that are closer are one


def spans(finished: Finished, total: float) -> list[dict[str, Any]]:
    """List the pieces of work by stage, in seconds from the call's arrival; each moment of `total` seconds is in one of them at most."""
    found: dict[Stage, list[list[float]]] = {}
    for stage, start, seconds in pieces(finished.spans, total):
        own = found.setdefault(stage, [])
        if own and start - own[-1][1] <= total * FINEST:
            own[-1][1] = start + seconds
        else:
            own.append([start, start + seconds])
    return [{"stage": stage_key(STAGES[stage]), "pieces": own} for stage, own in found.items()]


def decode_steps(finished: Finished) -> int:
    """Count the decoder's steps that wrote the text, the prefill's own among them; one writes several tokens where drafts were right."""
    return len({span.start for span in finished.spans if span.stage is Stage.DECODE})
