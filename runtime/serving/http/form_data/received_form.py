"""Receive a form with files, within the limits of uploads: for `/v1/reports` and `/v1/pictures`."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange, refuse_longer
from echovlm_edge.runtime.serving.http.exchange.http_calls import HttpCalls
from echovlm_edge.runtime.serving.http.form_data.report_form import (
    MOST_AROUND,
    MOST_FIELD_BYTES,
    ReportForm,
    SentFile,
    boundary_of,
)


@dataclass(frozen=True)
class ReceivedForm:
    """A form that has arrived.

    Attributes:
        texts: the fields beside the files.
        files: in order.
        uploads: their ids, in order.
    """

    texts: Mapping[str, str] = field(repr=False)
    files: Sequence[SentFile]
    uploads: Sequence[str] = field(repr=False)


@asynccontextmanager
async def received_form(calls: HttpCalls, exchange: Exchange, call: CallRecord) -> AsyncIterator[ReceivedForm]:
    """Read a call's whole form, as fast as an upload must come. Its files are forgotten at the context's end.

    Raises:
        UserError: it is no such form, too large or too slow, or there is no room for the call.
        ClientDisconnect: the client is gone.
    """
    service = calls.service
    service.admission.check(call.client)
    most = call.client.share(service.uploads.limits.max_bytes) + MOST_FIELD_BYTES + MOST_AROUND
    refuse_longer(exchange.header("content-length"), most)
    form = ReportForm(
        boundary_of(exchange.header("content-type")),
        lambda: service.uploads.begin(call.client),
        service.limits.images,
    )
    try:
        with calls.files.place(calls.who(call.client, exchange)):
            await _receive(calls, form, exchange)
            texts = form.texts()
            uploads = await calls.in_thread(lambda: [file.upload.finish() for file in form.files])
        yield ReceivedForm(texts, form.files, uploads)
    finally:
        for file in form.files:
            file.upload.abandon()


async def _receive(calls: HttpCalls, form: ReportForm, exchange: Exchange) -> None:
    pieces, started, size = exchange.pieces(), time.monotonic(), 0
    while (
        piece := await calls.receiver.receive_part(lambda: anext(pieces, None), calls.files.patience(started, size))
    ) is not None:
        size += len(piece)
        await calls.in_thread(lambda data=piece: form.feed(data))  # type: ignore[misc]
