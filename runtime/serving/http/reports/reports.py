"""`/v1/reports`: files in, a report or an answer out, whole or as it is written. Nothing of a request is kept once it is answered."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from typing import Any, cast

from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.serving import messages
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.exchange.never import check_tokens
from echovlm_edge.runtime.serving.http.exchange.option_words import LANGUAGES, PRIORITIES
from echovlm_edge.runtime.serving.http.exchange.refusals import Refused
from echovlm_edge.runtime.serving.http.exchange.silences import ALIVE, ALIVE_SECONDS, with_silences
from echovlm_edge.runtime.serving.http.form_data.received_form import ReceivedForm, received_form
from echovlm_edge.runtime.serving.http.form_data.report_fields import (
    MEDIA_TYPES,
    Document,
    Format,
    ReportFields,
    format_of,
    report_fields,
)
from echovlm_edge.runtime.serving.http.reports.answer import ReportAnswer
from echovlm_edge.runtime.serving.http.reports.documents import Documents

Answer = Callable[[Message, CallRecord], Iterator[pb.GenerateEvent]]
REGIONS = {region: cast(pb.AnatomicalRegion, number) for number, region in messages.REGIONS.items()}
METHODS = {"report": "GenerateReport", "findings": "GenerateReport", "impression": "Diagnose"}  # others: AnswerQuestion
FORMS = {"judge": pb.ANSWER_FORM_TRUE_FALSE, "choice": pb.ANSWER_FORM_LETTER}


class Reports:
    """Answers requests for reports. Their files count and are limited as uploads are."""

    def __init__(self, calls: HttpCalls) -> None:
        """Answer by the service of `calls`."""
        self._calls = calls

    async def report(self, exchange: Exchange) -> None:
        """Answer `POST /v1/reports`."""
        async with (
            self._calls.call(METHODS["report"], exchange) as call,
            received_form(self._calls, exchange, call) as form,
        ):
            fields = report_fields(form.texts)
            check_tokens("max_completion_tokens", fields.max_completion_tokens, self._calls.service.context)
            format = format_of(exchange.header("accept"), fields.format, fields.stream)
            call.method = METHODS.get(fields.task, "AnswerQuestion")
            work = _Report(self._calls, fields, form, format)
            async with exchange.watched([call.gone]):
                answer = await (work.stream(call, exchange) if fields.stream else work.written(call))
            if not answer:  # nobody is there
                return
            if fields.stream:
                await exchange.put(answer)
                await exchange.end()
            else:
                await exchange.answer(answer, MEDIA_TYPES[format])


class _Report:
    """One report: the request to the service, and the answer that its result becomes."""

    def __init__(self, calls: HttpCalls, fields: ReportFields, form: ReceivedForm, format: Format) -> None:
        self._calls, self._fields, self._form, self._format = calls, fields, form, format

    async def written(self, call: CallRecord) -> bytes:
        """Write the report; returns nothing where nobody waits for it any more."""
        documents = await self._documents(call)
        result = pb.Result()
        async for event in self._events(call):
            if event.HasField("result"):
                result = event.result
        if result.finish_reason == pb.FINISH_REASON_CANCELLED:
            return b""
        if self._format == "json":
            answer = ReportAnswer(self._fields, documents, call)
            return await self._calls.in_thread(lambda: answer.whole(result))
        kind = self._format
        return await self._calls.in_thread(lambda: documents.made(kind, result, self._fields.language, call.id))

    async def stream(self, call: CallRecord, exchange: Exchange) -> bytes:
        """Send what happens as server-sent events, and return the last one, of the result; nothing where nobody waits for it.

        The stream begins with the first of the model's stages, when the request is known to be right.
        """
        answer = ReportAnswer(self._fields, await self._documents(call), call)
        async with aclosing(with_silences(self._events(call), ALIVE_SECONDS)) as events:
            async for event in events:
                if event is None:
                    await exchange.begin()
                    await exchange.put(ALIVE)
                    continue
                if event.HasField("result") and event.result.finish_reason == pb.FINISH_REASON_CANCELLED:
                    break
                piece = await self._calls.in_thread(lambda event=event: answer.event(event))  # type: ignore[misc]
                if not answer.accepted:
                    continue
                await exchange.begin()
                if event.HasField("result"):
                    return piece
                await exchange.put(piece)
        return b""

    def _events(self, call: CallRecord) -> AsyncIterator[pb.GenerateEvent]:
        request = self._request()
        answer = cast(Answer, self._calls.service.methods[call.method].answer)
        return self._calls.messages(lambda: answer(request, call), call)

    def _request(self) -> pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest:
        fields = self._fields
        images = [
            pb.Image(
                upload=name,
                media_type=file.media_type,
                frames=pb.FrameSelection(evenly_spaced=fields.frames) if fields.frames else None,
                keep_whole_frame=fields.keep_whole_frame,
            )
            for name, file in zip(self._form.uploads, self._form.files, strict=True)
        ]
        sampling: dict[str, Any] = {
            "max_new_tokens": fields.max_completion_tokens,
            **{name: getattr(fields, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")},
        }
        options = pb.GenerationOptions(
            language=LANGUAGES[fields.language.value],
            sampling=pb.Sampling(**{name: value for name, value in sampling.items() if value is not None}),
            priority=PRIORITIES[fields.priority],
            allow_mixed_studies=fields.allow_mixed_studies,
            log_probabilities=0 if fields.logprobs else None,
            text_form=pb.TextForm(sections=True) if fields.sections else None,
        )
        if fields.region:
            options.region = REGIONS[fields.region]
        turns = [pb.Turn(prompt=turn.prompt, reply=turn.reply) for turn in fields.turns]
        if turns:  # the files were shown with the first one
            turns[0].images.extend(images)
        said = pb.Conversation(system_prompt=fields.system_prompt, turns=turns)
        common: dict[str, Any] = {
            "images": [] if turns else images,
            "options": options,
            "image_tokens": fields.image_tokens,
            "conversation": said if turns or fields.system_prompt else None,
        }
        if fields.task == "impression":
            return pb.DiagnoseRequest(prompt=fields.prompt, **common)
        if fields.task in METHODS:
            parts = pb.REPORT_PARTS_FINDINGS if fields.task == "findings" else pb.REPORT_PARTS_UNSPECIFIED
            return pb.GenerateReportRequest(prompt=fields.prompt, parts=parts, **common)
        form = FORMS.get(fields.task, pb.ANSWER_FORM_UNSPECIFIED)
        return pb.AnswerQuestionRequest(question=fields.prompt, form=form, **common)

    async def _documents(self, call: CallRecord) -> Documents:
        """Read what documents say about the images, before the report is written."""
        fields, wanted, param = self._fields, tuple[Document, ...](dict.fromkeys(self._fields.documents)), "documents"
        if self._format != "json":
            if wanted:
                raise Refused("documents come in JSON: leave out documents, or ask for json.", param="documents")
            wanted, param = (self._format,), "format"
        if wanted and (fields.turns or fields.task not in METHODS):
            raise Refused("A document is made of a report, not of an answer: ask for json alone.", param=param)
        uploads = self._calls.service.uploads
        return await self._calls.in_thread(
            lambda: Documents(wanted, self._form, fields.frames, uploads, call.client, param)
        )
