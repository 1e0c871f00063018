"""A client of the report service: what a program on the cart imports, without the command around it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.client.attempts import ONCE, Attempts, Deadline, Retries
from echovlm_edge.runtime.client.sending import Sending, message, no_uploads, number_within, parts, plan, read_all
from echovlm_edge.runtime.contracts.addresses import is_loopback_target
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotFound, NotPossibleHere, Unavailable, UserError
from echovlm_edge.runtime.contracts.image_path import SentImage, unreadable
from echovlm_edge.runtime.contracts.request import FrameSelection, ImageInput, Priority, Sampling
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task

FORGET_SECONDS = 2.0  # an upload that could not be forgotten expires
Progress = Callable[[int, int], None]  # bytes sent, of how many

_MENDABLE = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidInput,
    grpc.StatusCode.FAILED_PRECONDITION: NotPossibleHere,
    grpc.StatusCode.RESOURCE_EXHAUSTED: NotPossibleHere,
    grpc.StatusCode.NOT_FOUND: NotFound,
}


@dataclass(frozen=True)
class ReportRequest:
    """One call: a task about images.

    Attributes:
        task: report, diagnosis or question.
        images: encoded files, in memory or on disk.
        prompt: replaces the task's default; for a question it is the question.
        language: of the default prompt.
        region: named in the default prompt where it is known.
        sampling: greedy by default.
        include_token_ids: ask for them in the result.
        study: an open study's id, whose images come before `images`.
        priority: who goes first where many ask.
        allow_mixed_studies: take images of several studies of one patient.
    """

    task: Task = Task.REPORT
    images: Sequence[SentImage] = ()
    prompt: str = field(default="", repr=False)
    language: Language = Language.EN
    region: Region | None = None
    sampling: Sampling = field(default_factory=Sampling)
    include_token_ids: bool = False
    study: str = field(default="", repr=False)
    priority: Priority = Priority.INTERACTIVE
    allow_mixed_studies: bool = False


@dataclass(frozen=True)
class Credentials:
    """How a client proves who it is, and knows the server; files are PEM.

    Attributes:
        server_ca: who signed the server's certificate; None for a plain-text connection.
        certificate: the client's own chain, where the server asks for one; `key` belongs to it.
        key: see `certificate`.
        token: sent as a bearer token.
    """

    server_ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def read(
        cls, token_file: Path | None, server_ca: Path | None, certificate: Path | None = None, key: Path | None = None
    ) -> Credentials:
        """The same with the token from a file, where there is one.

        Raises:
            NotPossibleHere: the file cannot be read.
        """
        try:
            token = token_file.read_text(encoding="utf-8").strip() if token_file else ""
        except OSError as error:
            raise NotPossibleHere(f"The token file {token_file} cannot be read ({error.strerror}).") from None
        return cls(server_ca, certificate, key, token)


class ReportClient:
    """A connection to a report server; use it as a context manager.

    Raises:
        NotPossibleHere: a file of the credentials cannot be read, or a token would be sent in plain text to another machine.
    """

    def __init__(self, address: str, credentials: Credentials = Credentials(), retries: Retries = ONCE) -> None:
        """Connect lazily to HOST:PORT."""
        self._address, self._retries = address, retries
        self._metadata = (("authorization", f"Bearer {credentials.token}"),) if credentials.token else ()
        local = is_loopback_target(address)
        options = [("grpc.max_send_message_length", -1)]
        if local:
            options.append(("grpc.enable_http_proxy", 0))  # which would read what is meant for this computer alone
        if credentials.server_ca:
            self._channel = grpc.secure_channel(address, _channel_credentials(credentials), options)
        else:
            if credentials.token and not local:
                raise NotPossibleHere(
                    f"The token would travel to {address} in plain text: give the server's certificate authority "
                    "(--tls-ca), so that the connection is encrypted."
                )
            self._channel = grpc.insecure_channel(address, options)
        self._stub = report_pb2_grpc.ReportServiceStub(self._channel)
        self._limits: pb.Limits | None = None  # the server's, once they mattered

    def __enter__(self) -> ReportClient:
        """The client itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self._channel.close()

    def wait_until_ready(self, seconds: float) -> None:
        """Wait for the server to answer.

        Raises:
            NotPossibleHere: it did not within `seconds`.
        """
        try:
            grpc.channel_ready_future(self._channel).result(timeout=seconds)
        except grpc.FutureTimeoutError:
            raise NotPossibleHere(f"No server answers at {self._address}: start one with echovlm-serve.") from None

    def model_info(self, timeout: float | None = None) -> pb.ModelInfo:
        """What the server has loaded."""
        return self._model_info(Deadline(timeout))

    def generate(
        self, request: ReportRequest, timeout: float | None = None, progress: Progress | None = None
    ) -> Iterator[pb.GenerateEvent]:
        """Stream one generation's events; closing the iterator cancels the call.

        Where the images are large, cines are cut to the frames asked for, and what does not fit in a request is uploaded
        first; `progress` is called with the bytes of it that are sent, from another thread.

        Raises:
            InvalidInput: a file cannot be read, a number that the message cannot hold, or the server refused the request.
            NotPossibleHere: the server cannot be reached, is busy, takes no file so large, or did not finish within
                `timeout` seconds.
        """
        deadline = Deadline(timeout)
        begin = self._begin(request)
        words = begin.args[0]
        with self._sent(request.images, words.images.append, words.ByteSize(), deadline, progress):
            attempts = Attempts(self._retries, deadline)
            while True:
                call = begin(timeout=deadline.seconds_left(), metadata=self._metadata)
                begun = False
                try:
                    for event in call:
                        begun = True
                        yield event
                    return
                except grpc.RpcError as error:
                    if begun or not attempts.pause_after(error, or_unavailable=True):
                        raise self._explained(error, request.images) from None
                finally:
                    call.cancel()

    def begin_study(self, timeout: float | None = None) -> str:
        """Open a study, whose images are read before they are asked about; returns its id."""
        return str(self._ask(self._stub.BeginStudy, pb.BeginStudyRequest(), Deadline(timeout)).id)

    def add_image(
        self,
        study: str,
        image: SentImage,
        timeout: float | None = None,
        *,
        allow_mixed_studies: bool = False,
        progress: Progress | None = None,
    ) -> int:
        """Add an image at a study's end; returns the number that `withdraw_image` knows it by.

        `allow_mixed_studies` takes one whose StudyInstanceUID differs from those before it. A large one is sent as
        `generate` sends it.

        Raises:
            InvalidInput: it cannot be read, the context does not hold it, or it is another patient's or study's.
            NotPossibleHere: the server is busy, the study's memory is full, or it takes no file so large.
            NotFound: the study was ended, or not used for too long.
        """
        deadline = Deadline(timeout)
        asked = pb.AddImageRequest(study=study, allow_mixed_studies=allow_mixed_studies)
        with self._sent([image], asked.image.CopyFrom, asked.ByteSize(), deadline, progress):
            return int(self._ask(self._stub.AddImage, asked, deadline, [image]).number)

    def withdraw_image(self, study: str, number: int, timeout: float | None = None) -> None:
        """Take an image out of a study, as though it had never been added."""
        self._ask(self._stub.WithdrawImage, pb.WithdrawImageRequest(study=study, number=number), Deadline(timeout))

    def end_study(self, study: str, timeout: float | None = None) -> None:
        """Forget a study."""
        self._ask(self._stub.EndStudy, pb.EndStudyRequest(study=study), Deadline(timeout))

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
                return method(asked, timeout=deadline.seconds_left(), metadata=self._metadata)
            except grpc.RpcError as error:
                if not attempts.pause_after(error, or_unavailable=not changes):
                    raise self._explained(error, images) from None

    @contextmanager
    def _sent(
        self,
        images: Sequence[SentImage],
        put: Callable[[pb.Image], None],
        words: int,
        deadline: Deadline,
        progress: Progress | None,
    ) -> Iterator[None]:
        """Put images one by one into a request that has so many bytes without them; forget afterwards what was uploaded."""
        sendings = plan(images, words, lambda: self._limits or self._model_info(deadline).limits)
        done, total = 0, sum(sending.size for sending in sendings if sending.uploaded)
        uploads: list[str] = []
        try:
            for sending in sendings:
                if sending.uploaded:
                    uploads.append(self._upload(sending, deadline, partial(_ahead, progress, done, total)))
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
            reading = _Reading(sending, sent)
            try:
                uploaded = self._stub.Upload(
                    reading.requests(), timeout=deadline.seconds_left(), metadata=self._metadata
                )
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    raise no_uploads(sending) from None
                if not attempts.pause_after(error, or_unavailable=True):
                    raise self._explained(error) from None
                continue
            if uploaded.bytes == sending.size:
                return str(uploaded.id)
            self._forget(uploaded.id)
            raise reading.failure or InvalidInput(
                f"{sending.image.name} changed while it was sent: send it once it is written."
            )

    def _forget(self, upload: str) -> None:
        with suppress(grpc.RpcError):
            self._stub.ForgetUpload(pb.ForgetUploadRequest(id=upload), timeout=FORGET_SECONDS, metadata=self._metadata)

    def _begin(self, request: ReportRequest) -> partial[Any]:
        """The call of a request whose images are still to come."""
        options = _options(request)
        match request.task:
            case Task.REPORT:
                report = pb.GenerateReportRequest(prompt=request.prompt, options=options, study=request.study)
                return partial(self._stub.GenerateReport, report)
            case Task.DIAGNOSIS:
                diagnosis = pb.DiagnoseRequest(prompt=request.prompt, options=options, study=request.study)
                return partial(self._stub.Diagnose, diagnosis)
            case Task.QUESTION:
                question = pb.AnswerQuestionRequest(question=request.prompt, options=options, study=request.study)
                return partial(self._stub.AnswerQuestion, question)

    def _explained(self, error: grpc.RpcError, images: Sequence[SentImage] = ()) -> UserError:
        code, details = error.code(), error.details() or ""
        names = {f"image {number}": image.name for number, image in enumerate(images, 1)}
        # The server knows an image by its place, the user by its name.
        details = re.sub(r"\bimage \d+\b", lambda place: names.get(place[0], place[0]), details)
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
            return NotPossibleHere(
                f"The request is too large for the server ({details}): send fewer or smaller images, or start the "
                "server with a larger --max-message-mb."
            )
        if code in _MENDABLE:
            return _MENDABLE[code](details)
        if code is grpc.StatusCode.UNAVAILABLE and details.endswith("ask again in a while."):
            return Unavailable(details)
        if code is grpc.StatusCode.UNAVAILABLE:
            return NotPossibleHere(
                f"No server answers at {self._address}: start one with echovlm-serve, and give the certificates it asks for."
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return NotPossibleHere("The server did not finish within the time given: allow more with --timeout.")
        return NotPossibleHere(f"The server answered {code.name}: {details}")


class _Reading:
    """A file on its way to the server; gRPC takes its parts in a thread of its own, where nothing may be raised."""

    def __init__(self, sending: Sending, sent: Callable[[int], None]) -> None:
        self._sending, self._sent = sending, sent
        self.failure: InvalidInput | None = None

    def requests(self) -> Iterator[pb.UploadRequest]:
        sent = 0
        try:
            for part in parts(self._sending.image):
                yield pb.UploadRequest(data=part)
                sent += len(part)
                self._sent(sent)
        except InvalidInput as error:
            self.failure = error


def _ahead(progress: Progress | None, before: int, total: int, sent: int) -> None:
    if progress:
        progress(before + sent, total)


def _channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    files = (credentials.server_ca, credentials.key, credentials.certificate)
    try:
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
    except OSError as error:
        raise NotPossibleHere(f"{error.filename} cannot be read ({error.strerror}): give a PEM file.") from None


def read_image(path: Path, selection: FrameSelection, crop_to_regions: bool) -> ImageInput:
    """A file in memory; `ImagePath` is one that is read when it is sent.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return ImageInput(path.read_bytes(), "", path.name, selection, crop_to_regions)
    except OSError as error:
        raise unreadable(path, error) from None


def _options(request: ReportRequest) -> pb.GenerationOptions:
    sampling = request.sampling
    return pb.GenerationOptions(
        language=f"LANGUAGE_{request.language.name}",
        region=f"ANATOMICAL_REGION_{request.region.name if request.region else 'UNSPECIFIED'}",
        sampling=pb.Sampling(
            max_new_tokens=number_within("max_new_tokens", sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_k=number_within("top_k", sampling.top_k),
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=number_within("seed", sampling.seed, 64),
            ignore_stop=sampling.ignore_stop,
        ),
        include_token_ids=request.include_token_ids,
        priority=pb.PRIORITY_BATCH if request.priority is Priority.BATCH else pb.PRIORITY_INTERACTIVE,
        allow_mixed_studies=request.allow_mixed_studies,
    )
