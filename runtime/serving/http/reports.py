"""`/v1/reports`: files in, a report out as JSON, DICOM SR or FHIR. Nothing of a request is kept once it is answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, cast

from google.protobuf.message import Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.client.result_json import as_json as result_json
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput
from echovlm_edge.runtime.serving import messages
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.chat_request import LANGUAGES, PRIORITIES
from echovlm_edge.runtime.serving.http.exchange import Exchange, as_json, refuse_longer
from echovlm_edge.runtime.serving.http.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.refusals import Refused
from echovlm_edge.runtime.serving.http.report_fields import MEDIA_TYPES, Format, ReportFields, format_of, report_fields
from echovlm_edge.runtime.serving.http.report_form import (
    MOST_AROUND,
    MOST_FIELD_BYTES,
    ReportForm,
    SentFile,
    boundary_of,
)

if TYPE_CHECKING:
    from echovlm_edge.runtime.clinical.source_images import SourceImage

Answer = Callable[[Message, CallRecord], Iterator[pb.GenerateEvent]]
REGIONS = {region: cast(pb.AnatomicalRegion, number) for number, region in messages.REGIONS.items()}
METHODS = {"report": "GenerateReport", "findings": "GenerateReport", "impression": "Diagnose"}


class Reports:
    """Answers requests for reports. Their files count and are limited as uploads are."""

    def __init__(self, calls: HttpCalls) -> None:
        """Answer by the service of `calls`."""
        self._calls = calls

    async def report(self, exchange: Exchange) -> None:
        """Answer `POST /v1/reports`."""
        async with self._calls.call(METHODS["report"], exchange) as call:
            service = self._calls.service
            service.admission.check(call.client)
            most = call.client.share(service.uploads.limits.max_bytes) + MOST_FIELD_BYTES + MOST_AROUND
            refuse_longer(exchange.header("content-length"), most)
            form = ReportForm(
                boundary_of(exchange.header("content-type")),
                lambda: service.uploads.begin(call.client),
                service.limits.images,
            )
            try:
                with self._calls.files.place(self._calls.who(call.client, exchange)):
                    await self._receive(form, exchange)
                    fields = report_fields(form.texts())
                    format = format_of(exchange.header("accept"), fields.format)
                    uploads = await self._calls.in_thread(lambda: [file.upload.finish() for file in form.files])
                call.method = METHODS[fields.task]
                work = _Report(self._calls, fields, form.files, uploads, format)
                async with exchange.watched([call.gone]):
                    document = await work.written(call)
                if document:
                    await exchange.answer(document, MEDIA_TYPES[format])
            finally:
                for file in form.files:
                    file.upload.abandon()

    async def _receive(self, form: ReportForm, exchange: Exchange) -> None:
        """Read the whole form, as fast as an upload must come."""
        pieces, started, size = exchange.pieces(), time.monotonic(), 0
        receiver, files = self._calls.receiver, self._calls.files
        while (
            piece := await receiver.receive_part(lambda: anext(pieces, None), files.patience(started, size))
        ) is not None:
            size += len(piece)
            await self._calls.in_thread(lambda data=piece: form.feed(data))  # type: ignore[misc]


class _Report:
    """One report: the request to the service, and the document of its result."""

    def __init__(
        self, calls: HttpCalls, fields: ReportFields, files: Sequence[SentFile], uploads: Sequence[str], format: Format
    ) -> None:
        self._calls, self._fields, self._files, self._uploads, self._format = calls, fields, files, uploads, format

    async def written(self, call: CallRecord) -> bytes:
        """Write the report; returns nothing where nobody waits for it any more."""
        request = self._request()
        sources = await self._calls.in_thread(lambda: self._sources(call.client))
        answer = cast(Answer, self._calls.service.methods[call.method].answer)
        result = pb.Result()
        async for event in self._calls.messages(lambda: answer(request, call), call):
            if event.HasField("result"):
                result = event.result
        if result.finish_reason == pb.FINISH_REASON_CANCELLED:
            return b""
        return await self._calls.in_thread(lambda: self._document(result, sources, call.id))

    def _request(self) -> pb.GenerateReportRequest | pb.DiagnoseRequest:
        fields = self._fields
        images = [
            pb.Image(
                upload=name,
                media_type=file.media_type,
                frames=pb.FrameSelection(evenly_spaced=fields.frames) if fields.frames else None,
                keep_whole_frame=fields.keep_whole_frame,
            )
            for name, file in zip(self._uploads, self._files, strict=True)
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
        said = pb.Conversation(system_prompt=fields.system_prompt) if fields.system_prompt else None
        common: dict[str, Any] = {
            "images": images,
            "prompt": fields.prompt,
            "options": options,
            "image_tokens": fields.image_tokens,
            "conversation": said,
        }
        if fields.task == "impression":
            return pb.DiagnoseRequest(**common)
        parts = pb.REPORT_PARTS_FINDINGS if fields.task == "findings" else pb.REPORT_PARTS_UNSPECIFIED
        return pb.GenerateReportRequest(**common, parts=parts)

    def _sources(self, client: Client) -> list[SourceImage]:
        """Read what a document says about its images, before the report is written: who the patient is, and which study."""
        if self._format == "json":
            return []
        from echovlm_edge.runtime.clinical.source_images import source_images  # an optional dependency

        selection = FrameSelection(evenly_spaced=self._fields.frames)
        with ExitStack() as in_use:
            images = [
                ImageInput(
                    in_use.enter_context(self._calls.service.uploads.use(client, name)),
                    file.media_type,
                    f"image {place}",
                    selection,
                )
                for place, (name, file) in enumerate(zip(self._uploads, self._files, strict=True), 1)
            ]
            sources = source_images(images)
        if self._format == "sr":
            import echovlm_edge.runtime.clinical.structured_report  # whether it is installed

            if not sources:
                raise Refused(
                    "A DICOM SR belongs to a study: send at least one DICOM image.", "invalid_value", "format"
                )
        else:
            import echovlm_edge.runtime.clinical.diagnostic_report  # noqa: F401
        return sources

    def _document(self, result: pb.Result, sources: Sequence[SourceImage], request_id: str) -> bytes:
        language = self._fields.language
        if self._format == "json":
            return as_json(result_json(result, request_id=request_id))
        if self._format == "fhir":
            from echovlm_edge.runtime.clinical.diagnostic_report import diagnostic_report

            return diagnostic_report(result, sources, language, request_id)
        from echovlm_edge.runtime.clinical.source_images import as_shown
        from echovlm_edge.runtime.clinical.structured_report import structured_report

        return structured_report(result, as_shown(sources, result), language, request_id)
