"""A result as one JSON object, as `echovlm-report --json` prints it and a server's `/v1/reports` answers it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client import picture_list
from echovlm_edge.runtime.client.report import STAGE_OF_WIRE


def as_json(result: pb.Result, names: Sequence[str] = (), request_id: str = "") -> dict[str, Any]:
    """Convert a result; `names` are those of the call's images, in order."""
    return {
        "text": result.text,
        "findings": result.sections.findings,
        "impression": result.sections.impression,
        "token_ids": list(result.token_ids),
        "finish_reason": _name(pb.FinishReason.Name(result.finish_reason), "FINISH_REASON_"),
        "usage": {field.name: getattr(result.usage, field.name) for field in pb.Usage.DESCRIPTOR.fields},
        "timings": {
            "stages": {stage_key(timed.stage): timed.seconds for timed in result.timings.stages},
            "first_token_seconds": result.timings.first_token_seconds
            if result.timings.HasField("first_token_seconds")
            else None,
            "total_seconds": result.timings.total_seconds,
        },
        "prompt": result.prompt,
        "notice": result.notice,
        "notes": list(result.notes),
        "model": result.model,
        "bundle_id": result.bundle_id,
        "request_id": request_id,
        "pictures": picture_list.as_json(result.pictures, names),
        **({"tokens": [_token(one) for one in result.tokens]} if result.tokens else {}),
        **({"choices": [choice_json(one) for one in result.choices]} if result.choices else {}),
    }


def choice_json(one: pb.ChoiceProbability) -> dict[str, Any]:
    """Convert a choice and how likely it is."""
    return {"text": one.text, "log_probability": one.log_probability, "probability": one.probability}


def _token(one: pb.TokenProbability) -> dict[str, Any]:
    alternatives = {"alternatives": [_token(other) for other in one.alternatives]} if one.alternatives else {}
    return {"text": one.text, "bytes": list(one.bytes), "log_probability": one.log_probability, **alternatives}


def _name(full: str, prefix: str) -> str:
    return full.removeprefix(prefix).lower()


def stage_key(stage: int) -> str:
    """Name a stage of the wire in JSON."""
    return _name(pb.Stage.Name(stage), "STAGE_") if stage in STAGE_OF_WIRE else f"stage_{stage}"  # of a newer server
