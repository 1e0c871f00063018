"""`Connection` for asyncio: the same calls, errors and retries over `grpc.aio`; files are read in threads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.sending import (
    PLAINLY_SMALL,
    Progress,
    Reading,
    Sending,
    ahead,
    changed,
    message,
    no_uploads,
    plan,
    read_all,
)
from echovlm_edge.runtime.client.wire.attempts import ONCE, Attempts, Deadline, Retries
from echovlm_edge.runtime.client.wire.connection import FORGET_SECONDS, request_id_of
from echovlm_edge.runtime.client.wire.connection_fault import connection_fault
from echovlm_edge.runtime.client.wire.credentials import PLAIN, Credentials, channel_options
from echovlm_edge.runtime.client.wire.refusals import error_of, is_stated
from echovlm_edge.runtime.client.wire.requests import (
    ReportRequest,
    begin_message,
    check_limits,
    message_of,
    put_images,
)
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.image_path import SentImage


class AsyncConnection:
    """A connection to a report server, for one event loop; `close` ends it.

    Raises:
        NotPossibleHere: a file of the credentials cannot be used, or a token would be sent in plain text to another machine.
    """

    def __init__(self, address: str, credentials: Credentials = PLAIN, retries: Retries = ONCE) -> None:
        """Connect to HOST:PORT with the first call."""
        credentials.check(address)
        self._address, self._credentials, self._retries = address, credentials, retries
        self._metadata = credentials.metadata
        self._channel: grpc.aio.Channel | None = None
        self._limits: pb.Limits | None = None  # the server's, once it was asked for them

    async def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        if self._channel:
            await self._channel.close()

    async def model_info(self, timeout: float | None = None) -> pb.ModelInfo:
        """Return what the server has loaded."""
        return await self._model_info(Deadline(timeout))

    async def generate(
        self,
        request: ReportRequest,
        timeout: float | None = None,
        progress: Progress | None = None,
        begun: Callable[[str], None] = lambda request_id: None,
    ) -> AsyncGenerator[pb.GenerateEvent, None]:
        """Stream one generation's events; see `Connection.generate`."""
        deadline = Deadline(timeout)
        method, words = message_of(request)
        if request.recent:
            check_limits(request, self._limits or (await self._model_info(deadline)).limits)
        async with self._sent(request.all_images, put_images(request, words), words.ByteSize(), deadline, progress):
            attempts = Attempts(self._retries, deadline)
            while True:
                call = getattr(self._stub, method)(words, timeout=deadline.seconds_for_call(), metadata=self._metadata)
                started = False
                try:
                    async for event in call:
                        if not started:
                            begun(request_id_of(await call.initial_metadata()))
                        started = True
                        yield event
                    return
                except grpc.aio.AioRpcError as error:
                    pause = None if started else attempts.pause_after(error, or_unavailable=True)
                    if pause is None:
                        raise await self._explained(error, request.all_images, words.ByteSize()) from None
                finally:
                    call.cancel()
                await asyncio.sleep(pause)

    async def begin_study(self, timeout: float | None = None, image_tokens: int | None = None) -> str:
        """Open a study; returns its id. `image_tokens` bounds its frames."""
        return str((await self._ask("BeginStudy", begin_message(image_tokens), Deadline(timeout))).id)

    async def add_image(
        self,
        study: str,
        image: SentImage,
        timeout: float | None = None,
        *,
        allow_mixed_studies: bool = False,
        progress: Progress | None = None,
    ) -> pb.AddedImage:
        """Add an image to the end of a study; see `Connection.add_image`."""
        deadline = Deadline(timeout)
        asked = pb.AddImageRequest(study=study, allow_mixed_studies=allow_mixed_studies)
        async with self._sent([image], asked.image.CopyFrom, asked.ByteSize(), deadline, progress):
            added: pb.AddedImage = await self._ask("AddImage", asked, deadline, [image])
            return added

    async def withdraw_image(self, study: str, number: int, timeout: float | None = None) -> None:
        """Remove an image from a study, as if it had never been added."""
        await self._ask("WithdrawImage", pb.WithdrawImageRequest(study=study, number=number), Deadline(timeout))

    async def end_study(self, study: str, timeout: float | None = None) -> None:
        """Forget a study, by its id or by its id in `list_studies`."""
        await self._ask("EndStudy", pb.EndStudyRequest(study=study), Deadline(timeout))

    async def list_studies(self, timeout: float | None = None) -> pb.ListStudiesResponse:
        """List this client's own open studies, the one that has been unused for longest first."""
        listed: pb.ListStudiesResponse = await self._ask(
            "ListStudies", pb.ListStudiesRequest(), Deadline(timeout), changes=False
        )
        return listed

    @property
    def _stub(self) -> Any:
        if self._channel is None:  # not earlier: a channel belongs to the loop that runs when it is created
            options = channel_options(self._address)
            if self._credentials.server_ca:
                self._channel = grpc.aio.secure_channel(self._address, self._credentials.channel(), options)
            else:
                self._channel = grpc.aio.insecure_channel(self._address, options)
        return report_pb2_grpc.ReportServiceStub(self._channel)

    async def _model_info(self, deadline: Deadline) -> pb.ModelInfo:
        info: pb.ModelInfo = await self._ask("GetModelInfo", pb.GetModelInfoRequest(), deadline, changes=False)
        self._limits = info.limits
        return info

    async def _ask(
        self, method: str, asked: Any, deadline: Deadline, images: Sequence[SentImage] = (), *, changes: bool = True
    ) -> Any:
        attempts = Attempts(self._retries, deadline)
        while True:
            try:
                return await getattr(self._stub, method)(
                    asked, timeout=deadline.seconds_for_call(), metadata=self._metadata
                )
            except grpc.aio.AioRpcError as error:
                pause = attempts.pause_after(error, or_unavailable=not changes)
                if pause is None:
                    raise await self._explained(error, images, asked.ByteSize()) from None
            await asyncio.sleep(pause)

    @asynccontextmanager
    async def _sent(
        self,
        images: Sequence[SentImage],
        put: Callable[[pb.Image], None],
        words: int,
        deadline: Deadline,
        progress: Progress | None,
    ) -> AsyncIterator[None]:
        """Put images one by one into a request; afterwards forget the uploads."""
        loop = asyncio.get_running_loop()

        def limits() -> pb.Limits:  # called in the planning thread
            return self._limits or asyncio.run_coroutine_threadsafe(self._model_info(deadline), loop).result().limits

        sendings = await asyncio.to_thread(plan, images, words, limits)
        done, total = 0, sum(sending.size for sending in sendings if sending.uploaded)
        uploads: list[str] = []
        try:
            for sending in sendings:
                if sending.uploaded:
                    uploads.append(await self._upload(sending, deadline, partial(ahead, progress, done, total)))
                    put(message(sending.image, upload=uploads[-1]))
                    done += sending.size
                else:
                    put(message(sending.image, await asyncio.to_thread(read_all, sending.image)))
            yield
        finally:
            for upload in uploads:
                await self._forget(upload)

    async def _upload(self, sending: Sending, deadline: Deadline, sent: Callable[[int], None]) -> str:
        attempts = Attempts(self._retries, deadline)
        while True:
            reading = Reading(sending, sent)
            try:
                uploaded = await self._stub.Upload(
                    _in_threads(reading), timeout=deadline.seconds_for_call(), metadata=self._metadata
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise no_uploads(sending) from None
                pause = attempts.pause_after(error, or_unavailable=True)
                if pause is None:
                    raise await self._explained(error) from None
                await asyncio.sleep(pause)
                continue
            if uploaded.bytes == sending.size:
                return str(uploaded.id)
            await self._forget(uploaded.id)
            raise reading.failure or changed(sending)

    async def _forget(self, upload: str) -> None:
        with suppress(grpc.RpcError):
            await self._stub.ForgetUpload(
                pb.ForgetUploadRequest(id=upload), timeout=FORGET_SECONDS, metadata=self._metadata
            )

    async def _explained(
        self, error: grpc.aio.AioRpcError, images: Sequence[SentImage] = (), sent_bytes: int = 0
    ) -> UserError:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not is_stated(error):
            fault = await asyncio.to_thread(connection_fault, self._address, self._credentials)
            if fault:
                return fault
        most = self._limits.max_message_bytes if self._limits else PLAINLY_SMALL
        return error_of(error, self._address, [image.name for image in images], too_large=sent_bytes > most > 0)


async def _in_threads(reading: Reading) -> AsyncIterator[pb.UploadRequest]:
    """Yield the upload's messages, each read in a thread so that the loop is not blocked."""
    requests = reading.requests()
    while (request := await asyncio.to_thread(next, requests, None)) is not None:
        yield request
