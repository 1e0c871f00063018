"""Events of a report as `/v1/reports` answers them: one JSON object at the end, or server-sent events as they happen."""

from __future__ import annotations

from typing import Any

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.result_json import as_json as result_json
from echovlm_edge.runtime.client.result_json import stage_key
from echovlm_edge.runtime.contracts.sections import section_ranges
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.exchange.exchange import as_json
from echovlm_edge.runtime.serving.http.exchange.http_calls import ACCEPTED
from echovlm_edge.runtime.serving.http.form_data.report_fields import ReportFields
from echovlm_edge.runtime.serving.http.reports.documents import Documents
from echovlm_edge.runtime.serving.http.reports.work import decode_steps, spans


class ReportAnswer:
    """The answer to one request.

    Attributes:
        accepted: whether the request is known to be right, so that a stream can begin.
    """

    def __init__(self, fields: ReportFields, documents: Documents, call: CallRecord) -> None:
        """Answer `call`, which asked for `fields`."""
        self._fields, self._documents, self._call = fields, documents, call
        self._text = ""
        self.accepted = False

    def whole(self, result: pb.Result) -> bytes:
        """Return the whole answer."""
        return as_json(self._result(result))

    def event(self, event: pb.GenerateEvent) -> bytes:
        """Return a server-sent event of an event of the service: `stage`, `text` or `result`."""
        if event.HasField("stage_started"):
            self.accepted = self.accepted or event.stage_started in ACCEPTED
            return _sent({"stage": stage_key(event.stage_started)})
        self.accepted = True
        if event.HasField("text"):
            self._text += event.text
            return _sent({"text": event.text, "sections": self._ranges(self._text)})
        return _sent({"result": self._result(event.result)})

    def _result(self, result: pb.Result) -> dict[str, Any]:
        answer = result_json(result, request_id=self._call.id) | {"section_ranges": self._ranges(result.text)}
        if finished := self._call.finished:
            answer["timings"]["spans"] = spans(finished, result.timings.total_seconds)
            answer["usage"]["decode_steps"] = decode_steps(finished)
        documents = self._documents.as_json(result, self._fields.language, self._call.id)
        return answer | ({"documents": documents} if documents else {})

    def _ranges(self, text: str) -> dict[str, tuple[int, int]]:
        """Find the sections of a text, as `Result.sections` has them."""
        ranges = section_ranges(text)
        return {"findings": (0, len(text))} if self._fields.task == "findings" and not ranges else ranges


def _sent(value: dict[str, Any]) -> bytes:
    return b"data: " + as_json(value) + b"\n\n"
