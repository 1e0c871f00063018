"""A client in terms of the service's messages: one method for each RPC, with deadlines, retries and uploads.

`ReportClient` is built on it; use this one if a program wants the messages of report.proto themselves.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import sleep
from types import TracebackType
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
from echovlm_edge.runtime.client.wire.connection_fault import connection_fault
from echovlm_edge.runtime.client.wire.credentials import PLAIN, Credentials, channel_options
from echovlm_edge.runtime.client.wire.refusals import error_of, is_stated, no_answer
from echovlm_edge.runtime.client.wire.requests import (
    ReportRequest,
    begin_message,
    check_limits,
    message_of,
    put_images,
)
from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.statuses import REQUEST_ID

FORGET_SECONDS = 2.0  # if it takes longer, the upload expires by itself


class Connection:
    """A connection to a report server; use it as a context manager.

    Raises:
        NotPossibleHere: a file of the credentials cannot be used, or a token would be sent in plain text to another machine.
    """

    def __init__(self, address: str, credentials: Credentials = PLAIN, retries: Retries = ONCE) -> None:
        """Connect to HOST:PORT with the first call."""
        self._address, self._credentials, self._retries = address, credentials, retries
        self._metadata = credentials.metadata
        credentials.check(address)
        options = channel_options(address)
        if credentials.server_ca:
            self._channel = grpc.secure_channel(address, credentials.channel(), options)
        else:
            self._channel = grpc.insecure_channel(address, options)
        self._stub = report_pb2_grpc.ReportServiceStub(self._channel)
        self._limits: pb.Limits | None = None  # the server's, once it was asked for them

    def __enter__(self) -> Connection:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection; calls in flight are cancelled."""
        self._channel.close()

    def wait_until_ready(self, seconds: float) -> None:
        """Connect, within `seconds`.

        Raises:
            ServerUnavailable: there is no connection; raised at once if the cause is known (a refused port, a wrong certificate).
        """
        states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
        self._channel.subscribe(states.put, try_to_connect=True)
        deadline = Deadline(seconds)
        try:
            while (state := states.get(timeout=deadline.seconds_left())) is not grpc.ChannelConnectivity.READY:
                if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    fault = connection_fault(self._address, self._credentials)
                    if fault:
                        raise fault
        except queue.Empty:
            raise connection_fault(self._address, self._credentials) or no_answer(self._address) from None
        finally:
            self._channel.unsubscribe(states.put)

    def model_info(self, timeout: float | None = None) -> pb.ModelInfo:
        """Return what the server has loaded."""
        return self._model_info(Deadline(timeout))

    def generate(
        self,
        request: ReportRequest,
        timeout: float | None = None,
        progress: Progress | None = None,
        begun: Callable[[str], None] = lambda request_id: None,
    ) -> Generator[pb.GenerateEvent, None, None]:
        """Stream one generation's events; closing the iterator cancels the call.

        If the images are large, cines are cut to the frames asked for, and what does not fit in a request is uploaded
        first; `progress` is called from another thread with the bytes sent and their total. `begun` is called before the
        first event with the id that names the call in the server's log; it is empty if the server sends none.

        Raises:
            InvalidInput: a file cannot be read, a number does not fit in the message, or the server refused the request.
            NotPossibleHere: a file is larger than the server takes, or the server cannot do what is asked.
            NotFound: the study was ended, or not used for too long; StudyReplaced if a newer one took its place.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        deadline = Deadline(timeout)
        method, words = message_of(request)
        if request.recent:
            check_limits(request, self._limits or self._model_info(deadline).limits)
        with self._sent(request.all_images, put_images(request, words), words.ByteSize(), deadline, progress):
            attempts = Attempts(self._retries, deadline)
            while True:
                call = getattr(self._stub, method)(words, timeout=deadline.seconds_for_call(), metadata=self._metadata)
                started = False
                try:
                    for event in call:
                        if not started:
                            begun(request_id_of(call.initial_metadata()))
                        started = True
                        yield event
                    return
                except grpc.RpcError as error:
                    pause = None if started else attempts.pause_after(error, or_unavailable=True)
                    if pause is None:
                        raise self._explained(error, request.all_images, words.ByteSize()) from None
                finally:
                    call.cancel()
                sleep(pause)

    def begin_study(self, timeout: float | None = None, image_tokens: int | None = None) -> str:
        """Open a study, whose images are read before the question about them; returns its id. `image_tokens` bounds its frames."""
        return str(self._ask(self._stub.BeginStudy, begin_message(image_tokens), Deadline(timeout)).id)

    def add_image(
        self,
        study: str,
        image: SentImage,
        timeout: float | None = None,
        *,
        allow_mixed_studies: bool = False,
        progress: Progress | None = None,
    ) -> pb.AddedImage:
        """Add an image to the end of a study; `withdraw_image` takes the number in the answer.

        `allow_mixed_studies` accepts an image whose StudyInstanceUID differs from those before it. A large image is sent as
        by `generate`.

        Raises:
            InvalidInput: it cannot be read, does not fit in the context, or belongs to another patient or study.
            NotPossibleHere: the file is larger than the server takes.
            NotFound: the study was ended, or not used for too long; StudyReplaced if a newer one took its place.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        deadline = Deadline(timeout)
        asked = pb.AddImageRequest(study=study, allow_mixed_studies=allow_mixed_studies)
        with self._sent([image], asked.image.CopyFrom, asked.ByteSize(), deadline, progress):
            added: pb.AddedImage = self._ask(self._stub.AddImage, asked, deadline, [image])
            return added

    def withdraw_image(self, study: str, number: int, timeout: float | None = None) -> None:
        """Remove an image from a study, as if it had never been added."""
        self._ask(self._stub.WithdrawImage, pb.WithdrawImageRequest(study=study, number=number), Deadline(timeout))

    def end_study(self, study: str, timeout: float | None = None) -> None:
        """Forget a study, by its id or by its id in `list_studies`."""
        self._ask(self._stub.EndStudy, pb.EndStudyRequest(study=study), Deadline(timeout))

    def list_studies(self, timeout: float | None = None) -> pb.ListStudiesResponse:
        """List this client's own open studies, the one that has been unused for longest first."""
        listed: pb.ListStudiesResponse = self._ask(
            self._stub.ListStudies, pb.ListStudiesRequest(), Deadline(timeout), changes=False
        )
        return listed

    def _model_info(self, deadline: Deadline) -> pb.ModelInfo:
        info: pb.ModelInfo = self._ask(self._stub.GetModelInfo, pb.GetModelInfoRequest(), deadline, changes=False)
        self._limits = info.limits
        return info

    def _ask(
        self,
        method: Any,
        asked: Any,
        deadline: Deadline,
        images: Sequence[SentImage] = (),
        *,
        changes: bool = True,
    ) -> Any:
        attempts = Attempts(self._retries, deadline)
        while True:
            try:
                return method(asked, timeout=deadline.seconds_for_call(), metadata=self._metadata)
            except grpc.RpcError as error:
                pause = attempts.pause_after(error, or_unavailable=not changes)
                if pause is None:
                    raise self._explained(error, images, asked.ByteSize()) from None
            sleep(pause)

    @contextmanager
    def _sent(
        self,
        images: Sequence[SentImage],
        put: Callable[[pb.Image], None],
        words: int,
        deadline: Deadline,
        progress: Progress | None,
    ) -> Iterator[None]:
        """Put images one by one into a request that has `words` bytes without them; afterwards forget the uploads."""
        sendings = plan(images, words, lambda: self._limits or self._model_info(deadline).limits)
        done, total = 0, sum(sending.size for sending in sendings if sending.uploaded)
        uploads: list[str] = []
        try:
            for sending in sendings:
                if sending.uploaded:
                    uploads.append(self._upload(sending, deadline, partial(ahead, progress, done, total)))
                    put(message(sending.image, upload=uploads[-1]))
                    done += sending.size
                else:
                    put(message(sending.image, read_all(sending.image)))
            yield
        finally:
            for upload in uploads:
                self._forget(upload)

    def _upload(self, sending: Sending, deadline: Deadline, sent: Callable[[int], None]) -> str:
        attempts = Attempts(self._retries, deadline)
        while True:
            reading = Reading(sending, sent)
            try:
                uploaded = self._stub.Upload(
                    reading.requests(), timeout=deadline.seconds_for_call(), metadata=self._metadata
                )
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise no_uploads(sending) from None
                pause = attempts.pause_after(error, or_unavailable=True)
                if pause is None:
                    raise self._explained(error) from None
                sleep(pause)
                continue
            if uploaded.bytes == sending.size:
                return str(uploaded.id)
            self._forget(uploaded.id)
            raise reading.failure or changed(sending)

    def _forget(self, upload: str) -> None:
        with suppress(grpc.RpcError):
            self._stub.ForgetUpload(pb.ForgetUploadRequest(id=upload), timeout=FORGET_SECONDS, metadata=self._metadata)

    def _explained(self, error: grpc.RpcError, images: Sequence[SentImage] = (), sent_bytes: int = 0) -> UserError:
        if error.code() is grpc.StatusCode.UNAVAILABLE and not is_stated(error):
            fault = connection_fault(self._address, self._credentials)
            if fault:
                return fault
        most = self._limits.max_message_bytes if self._limits else PLAINLY_SMALL
        return error_of(error, self._address, [image.name for image in images], too_large=sent_bytes > most > 0)


def request_id_of(metadata: Any) -> str:
    """Return the request id in a call's initial metadata; empty if there is none."""
    return next((str(value) for key, value in metadata or () if key == REQUEST_ID), "")
