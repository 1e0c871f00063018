"""Answer the files of the study that the console offers to try, to known clients."""

from __future__ import annotations

from collections.abc import Sequence

from echovlm_edge.runtime.serving.http.exchange.door_options import StudyFile
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused

METHOD = "GetConsoleStudy"


class StudyFiles:
    """Answers the study's files by their number."""

    def __init__(self, calls: HttpCalls, files: Sequence[StudyFile]) -> None:
        """Answer `files` to callers that `calls` knows."""
        self._calls = calls
        self._files = {str(number): file for number, file in enumerate(files, 1)}

    async def send(self, exchange: Exchange) -> None:
        """Answer `GET /console/study/{number}`, counted from 1."""
        async with self._calls.call(METHOD, exchange):
            file = self._files.get(exchange.path("number"))
            if file is None:
                raise Refused("There is no such file: /console/session lists them.", "unknown_path", status=404)
            await exchange.answer(file.data, "application/octet-stream")
