"""A client of the report service: what a program on the cart imports, without the command around it."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.errors import InvalidInput, NotFound, NotPossibleHere, Unavailable, UserError
from echovlm_edge.runtime.loopback import is_loopback_target
from echovlm_edge.runtime.request import FrameSelection, ImageInput, Priority, Sampling
from echovlm_edge.runtime.statuses import RETRY_AFTER
from echovlm_edge.runtime.tasks import Language, Region, Task

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
        images: encoded files.
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
    images: Sequence[ImageInput] = ()
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


@dataclass(frozen=True)
class Retries:
    """When a call is made again: only where nothing of it can have happened, or where it changes nothing.

    A call that found no room (RESOURCE_EXHAUSTED with the server's delay) is made again after that delay. One that found
    no server (UNAVAILABLE) is made again after a pause that doubles, from 0.1 s, with up to as much again at random, so
    that carts do not come back all at once; a stream only before its first message, and never a call that changes a study,
    which may have been made although no answer came. A timeout covers all attempts and the pauses between them.

    Attributes:
        attempts: calls in all; 1 for no retry.
        longest_pause: a server that asks for more seconds than this is not waited for.
    """

    attempts: int = 1
    longest_pause: float = 30.0


class ReportClient:
    """A connection to a report server; use it as a context manager.

    Raises:
        NotPossibleHere: a file of the credentials cannot be read, or a token would be sent in plain text to another machine.
    """

    def __init__(self, address: str, credentials: Credentials = Credentials(), retries: Retries = Retries()) -> None:
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
        info: pb.ModelInfo = self._ask(self._stub.GetModelInfo, pb.GetModelInfoRequest(), timeout, changes=False)
        return info

    def generate(self, request: ReportRequest, timeout: float | None = None) -> Iterator[pb.GenerateEvent]:
        """Stream one generation's events; closing the iterator cancels the call.

        Raises:
            InvalidInput: a number that the message cannot hold, or the server refused the request.
            NotPossibleHere: the server cannot be reached, is busy, or did not finish within `timeout` seconds.
        """
        begin = self._begin(request)
        attempts = _Attempts(self._retries, timeout)
        while True:
            call = begin(timeout=attempts.seconds_left(), metadata=self._metadata)
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
        study = self._ask(self._stub.BeginStudy, pb.BeginStudyRequest(), timeout)
        return str(study.id)

    def add_image(
        self, study: str, image: ImageInput, timeout: float | None = None, *, allow_mixed_studies: bool = False
    ) -> int:
        """Add an image at a study's end; returns the number that `withdraw_image` knows it by.

        `allow_mixed_studies` takes one whose StudyInstanceUID differs from those before it.

        Raises:
            InvalidInput: it cannot be read, the context does not hold it, or it is another patient's or study's.
            NotPossibleHere: the server is busy, or the study's memory is full.
            NotFound: the study was ended, or not used for too long.
        """
        message = pb.AddImageRequest(study=study, image=_image(image), allow_mixed_studies=allow_mixed_studies)
        return int(self._ask(self._stub.AddImage, message, timeout, [image]).number)

    def withdraw_image(self, study: str, number: int, timeout: float | None = None) -> None:
        """Take an image out of a study, as though it had never been added."""
        self._ask(self._stub.WithdrawImage, pb.WithdrawImageRequest(study=study, number=number), timeout)

    def end_study(self, study: str, timeout: float | None = None) -> None:
        """Forget a study."""
        self._ask(self._stub.EndStudy, pb.EndStudyRequest(study=study), timeout)

    def _ask(
        self,
        method: Any,
        message: Any,
        timeout: float | None,
        images: Sequence[ImageInput] = (),
        *,
        changes: bool = True,
    ) -> Any:
        attempts = _Attempts(self._retries, timeout)
        while True:
            try:
                return method(message, timeout=attempts.seconds_left(), metadata=self._metadata)
            except grpc.RpcError as error:
                if not attempts.pause_after(error, or_unavailable=not changes):
                    raise self._explained(error, images) from None

    def _begin(self, request: ReportRequest) -> Callable[..., Any]:
        images = [_image(image) for image in request.images]
        options = _options(request)
        match request.task:
            case Task.REPORT:
                message = pb.GenerateReportRequest(
                    images=images, prompt=request.prompt, options=options, study=request.study
                )
                return partial(self._stub.GenerateReport, message)
            case Task.DIAGNOSIS:
                diagnosis = pb.DiagnoseRequest(
                    images=images, prompt=request.prompt, options=options, study=request.study
                )
                return partial(self._stub.Diagnose, diagnosis)
            case Task.QUESTION:
                question = pb.AnswerQuestionRequest(
                    images=images, question=request.prompt, options=options, study=request.study
                )
                return partial(self._stub.AnswerQuestion, question)

    def _explained(self, error: grpc.RpcError, images: Sequence[ImageInput] = ()) -> UserError:
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


class _Attempts:
    """Counts one call's attempts, within one deadline."""

    def __init__(self, retries: Retries, timeout: float | None) -> None:
        self._retries, self._made = retries, 1
        self._deadline = None if timeout is None else time.monotonic() + timeout

    def seconds_left(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def pause_after(self, error: grpc.RpcError, *, or_unavailable: bool) -> bool:
        """Wait until the call is to be made again; False, at once, where it is not."""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            trailing = {item.key: str(item.value) for item in error.trailing_metadata() or ()}
            asked = trailing.get(RETRY_AFTER, "")
            if not asked.isdigit():  # too large, or told not to come back
                return False
            pause = int(asked) / 1000
        elif error.code() is grpc.StatusCode.UNAVAILABLE and or_unavailable:
            pause = 0.1 * 2 ** (self._made - 1) * random.uniform(1, 2)
        else:
            return False
        left = self.seconds_left()
        if self._made >= self._retries.attempts or pause > self._retries.longest_pause:
            return False
        if left is not None and pause >= left:
            return False
        self._made += 1
        time.sleep(pause)
        return True


def _channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    files = (credentials.server_ca, credentials.key, credentials.certificate)
    try:
        return grpc.ssl_channel_credentials(*(path.read_bytes() if path else None for path in files))
    except OSError as error:
        raise NotPossibleHere(f"{error.filename} cannot be read ({error.strerror}): give a PEM file.") from None


def read_image(path: Path, selection: FrameSelection, crop_to_regions: bool) -> ImageInput:
    """A file as it is sent.

    Raises:
        InvalidInput: it cannot be read.
    """
    try:
        return ImageInput(path.read_bytes(), "", path.name, selection, crop_to_regions)
    except OSError as error:
        raise InvalidInput(
            f"The image {path} cannot be read ({error.strerror}): give a DICOM, PNG or JPEG file."
        ) from None


def _image(image: ImageInput) -> pb.Image:
    selection = image.selection
    frames = None
    if selection.indices:
        frames = pb.FrameSelection(
            indices=pb.FrameIndices(index=[_number("frame", index) for index in selection.indices])
        )
    elif selection.evenly_spaced:
        frames = pb.FrameSelection(evenly_spaced=_number("frames_spaced", selection.evenly_spaced))
    return pb.Image(
        data=image.data, media_type=image.media_type, frames=frames, keep_whole_frame=not image.crop_to_regions
    )


def _number(name: str, value: int, bits: int = 32) -> int:
    if not 0 <= value < 1 << bits:
        raise InvalidInput(f"{name} must be between 0 and {2**bits - 1}, got {value}.")
    return value


def _options(request: ReportRequest) -> pb.GenerationOptions:
    sampling = request.sampling
    return pb.GenerationOptions(
        language=f"LANGUAGE_{request.language.name}",
        region=f"ANATOMICAL_REGION_{request.region.name if request.region else 'UNSPECIFIED'}",
        sampling=pb.Sampling(
            max_new_tokens=_number("max_new_tokens", sampling.max_new_tokens),
            temperature=sampling.temperature,
            top_k=_number("top_k", sampling.top_k),
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            seed=_number("seed", sampling.seed, 64),
            ignore_stop=sampling.ignore_stop,
        ),
        include_token_ids=request.include_token_ids,
        priority=pb.PRIORITY_BATCH if request.priority is Priority.BATCH else pb.PRIORITY_INTERACTIVE,
        allow_mixed_studies=request.allow_mixed_studies,
    )
