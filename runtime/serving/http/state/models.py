"""`/v1/models`: the one model that is loaded."""

from __future__ import annotations

import time
from typing import Any, cast

from google.protobuf.json_format import MessageToDict

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, as_json
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused

METHOD = "GetModelInfo"


class Models:
    """Lists the model, with the server's limits beside what OpenAI's API has."""

    def __init__(self, calls: HttpCalls) -> None:
        """Ask the service of `calls`."""
        self._calls, self._started = calls, int(time.time())

    async def list(self, exchange: Exchange) -> None:
        """Answer `GET /v1/models`."""
        async with self._calls.call(METHOD, exchange) as call:
            await exchange.answer(as_json({"object": "list", "data": [await self._model(call)]}))

    async def one(self, exchange: Exchange) -> None:
        """Answer `GET /v1/models/{model}`."""
        async with self._calls.call(METHOD, exchange) as call:
            model = await self._model(call)
            check_model(exchange.path("model"), model["id"])
            await exchange.answer(as_json(model))

    async def _model(self, call: CallRecord) -> dict[str, Any]:
        make = self._calls.service.methods[METHOD].answer
        answer = self._calls.messages(lambda: make(pb.GetModelInfoRequest(), call), call)
        (info,) = [cast(pb.ModelInfo, message) async for message in answer]
        more = MessageToDict(info, preserving_proto_field_name=True)
        limits = pb.Limits.DESCRIPTOR.fields
        more["limits"] = {
            field.name: getattr(info.limits, field.name) for field in limits
        }  # numbers, where JSON of protobuf has texts
        more.pop("calibration_pictures", None)  # hashes of pictures, which no client of this door compares
        return {
            "id": info.model,
            "object": "model",
            "created": self._started,
            "owned_by": "echovlm-edge",
            "echovlm": more,
        }


def check_model(asked: str, loaded: str) -> None:
    """Refuse a model that is not loaded.

    Raises:
        Refused: it is another one.
    """
    if asked != loaded:
        sentence = f"This server has not loaded the model that was asked for: name {loaded}, as /v1/models does."
        raise Refused(sentence, "model_not_found", "model", 404)
