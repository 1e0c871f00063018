"""The client that most programs want: files in, a report out, one method for each task."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Unpack

from echovlm_edge.runtime.client.call_options import CallOptions, ImageOptions, image_of, request_of
from echovlm_edge.runtime.client.given_images import GivenImage, GivenImages
from echovlm_edge.runtime.client.report import (
    AddedImage,
    OpenStudy,
    Report,
    ReportEvent,
    added_of,
    event_of,
    open_studies_of,
)
from echovlm_edge.runtime.client.said import Said
from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.credentials import Credentials
from echovlm_edge.runtime.client.wire.requests import EarlierTurn
from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS
from echovlm_edge.runtime.contracts.errors import ServerUnavailable, UserError
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.tasks import Task

END_SECONDS = 2.0  # a study that could not be ended expires
NO_RESULT = "The server ended the stream without a result: see its log."
AnyPath = str | os.PathLike[str]


class ReportClient:
    """Ask a report server; use it as a context manager. Threads may share it.

    Images are a path, a `Path`, a file's bytes, a folder, `"cine.dcm@0,5"` for frames of one cine, or a list of these.

    Raises:
        NotPossibleHere: a file of the credentials cannot be used, or a token would be sent in plain text to another machine.
    """

    def __init__(
        self,
        address: str = DEFAULT_ADDRESS,
        *,
        token_file: AnyPath | None = None,
        ca: AnyPath | None = None,
        certificate: AnyPath | None = None,
        key: AnyPath | None = None,
        retries: int = 0,
    ) -> None:
        """Connect to HOST:PORT with the first call.

        Args:
            address: of the server.
            token_file: holds the bearer token that identifies this client.
            ca: the authority that signed the server's certificate (PEM); with it the connection is encrypted.
            certificate: this client's own (PEM), if the server asks for one.
            key: its key.
            retries: how often to repeat a call if the server is busy or unavailable, where repeating is safe.
        """
        self.connection = Connection(address, credentials_of(token_file, ca, certificate, key), Retries(retries + 1))

    def __enter__(self) -> ReportClient:
        """Return the client."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()

    def report(self, images: GivenImages, *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report, findings and impression, about images; `prompt` replaces the default one.

        Options are those of `CallOptions`.

        Raises:
            InvalidInput: a file cannot be read, or the server refused the request.
            NotPossibleHere: the server cannot do it, or a file is larger than it takes.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        return last(self.stream(images, prompt=prompt, **options))

    def diagnose(self, images: GivenImages, *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression alone; otherwise as `report`."""
        return last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question, with or without images; raises as `report`."""
        return last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task by its name; see `stream`. For judge and choice, `prompt` is the statement or the options."""
        return last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> Iterator[ReportEvent]:
        """Yield `StageStarted` and `TextDelta` as they come, and the `Report` last; closing the iterator cancels the call.

        `task` is report, findings (of one image its description), diagnosis, question, judge (True or False) or choice (a
        letter); `prompt` is the question, the statement to judge, or the options. Raises as `report`.
        """
        return _events(self.connection, task, prompt, images, options)

    @contextmanager
    def study(self, timeout: float | None = None, *, image_tokens: int | None = None) -> Iterator[Study]:
        """Open a study, whose images are sent as they are taken and read before the question; it is ended on leaving the block.

        `image_tokens` bounds the visual tokens of its frames, for fewer than the server's.
        """
        study = Study(self.connection, self.connection.begin_study(timeout, image_tokens))
        try:
            yield study
        finally:
            with suppress(UserError):
                self.connection.end_study(study.id, END_SECONDS)

    def conversation(self, system: str = "") -> Conversation:
        """Begin a conversation: each request has all turns before it, and their images, as context.

        `system` are instructions that precede them; empty for those of the model's chat template.
        """
        return Conversation(self.connection, system)

    def studies(self, timeout: float | None = None) -> tuple[OpenStudy, ...]:
        """List the studies that this client has open, in any of its programs; the one that has been unused for longest first.

        Raises:
            NotOffered: the server is a department's or too old; it lists none.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        return open_studies_of(self.connection.list_studies(timeout))

    def end_study(self, id: str, timeout: float | None = None) -> None:
        """End a study by its id in `studies`, for example one that was left open by a program that died.

        Raises:
            NotFound: this client has no such study open.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        self.connection.end_study(id, timeout)


class Study:
    """An open study. Not for two threads at once.

    Attributes:
        id: names it on the server; keep it secret.
    """

    def __init__(self, connection: Connection, id: str) -> None:
        """Called by `ReportClient.study`."""
        self.id, self._connection = id, connection
        self._images: dict[int, SentImage] = {}

    def add(self, image: GivenImage, **options: Unpack[ImageOptions]) -> AddedImage:
        """Add an image at the end; returns once it is decoded, and the model reads it in the background.

        Raises:
            InvalidInput: it cannot be read, does not fit in the context, or belongs to another patient or study.
            NotFound: the study was not used for too long.
            StudyReplaced: it was unused, and was ended because its client needed room for a newer one.
            ServerBusy, ServerUnavailable, DeadlineExceeded, Unauthenticated: as their classes say.
        """
        sent = image_of(image, options)
        added = self._connection.add_image(
            self.id,
            sent,
            options.get("timeout"),
            allow_mixed_studies=options.get("allow_mixed_studies", False),
            progress=options.get("progress"),
        )
        self._images[added.number] = sent
        return added_of(added, sent)

    def withdraw(self, number: int, timeout: float | None = None) -> None:
        """Remove an image, as if it had never been added; `number` is `AddedImage.number`."""
        self._connection.withdraw_image(self.id, number, timeout)
        self._images.pop(number, None)

    def report(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report about the study's images, followed by those of the call; otherwise as `ReportClient.report`."""
        return last(self.stream(images, prompt=prompt, **options))

    def diagnose(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression about the study's images, followed by those of the call."""
        return last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question about the study's images, followed by those of the call."""
        return last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task about the study's images, followed by those of the call; see `ReportClient.write`."""
        return last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> Iterator[ReportEvent]:
        """Stream the events of a call about the study's images, followed by those of the call; see `ReportClient.stream`."""
        return _events(self._connection, task, prompt, images, options, self.id, self._images)

    def conversation(self, system: str = "") -> Conversation:
        """Begin a conversation about the study's images; see `ReportClient.conversation`.

        An image that is added between two questions is shown with the second one.
        """
        return Conversation(self._connection, system, self.id, self._images)


class Conversation:
    """Questions that continue each other. The server keeps nothing of it but what it computed, which makes the next turn quick.

    Not for two threads at once. A request that fails or is cancelled leaves the conversation as it was.
    """

    def __init__(
        self,
        connection: Connection,
        system: str = "",
        study: str = "",
        study_images: Mapping[int, SentImage] | None = None,
    ) -> None:
        """Called by `ReportClient.conversation` and `Study.conversation`."""
        self._connection, self._study = connection, study
        self._study_images = {} if study_images is None else study_images
        self._said = Said(system)

    @property
    def turns(self) -> tuple[EarlierTurn, ...]:
        """The turns so far, the first one first."""
        return self._said.turns

    def correct(self, text: str) -> None:
        """Replace the last reply by a corrected one, which the next turn then builds on."""
        self._said.correct(text)

    def report(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report as the next turn; images are those that are new. Otherwise as `ReportClient.report`."""
        return last(self.stream(images, prompt=prompt, **options))

    def diagnose(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression as the next turn."""
        return last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question as the next turn."""
        return last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task as the next turn; see `ReportClient.write`."""
        return last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> Iterator[ReportEvent]:
        """Stream the events of the next turn, which is part of the conversation once its report was taken; see `ReportClient.stream`."""
        return _events(self._connection, task, prompt, images, options, self._study, self._study_images, self._said)


def credentials_of(
    token_file: AnyPath | None, ca: AnyPath | None, certificate: AnyPath | None, key: AnyPath | None
) -> Credentials:
    """Read the credentials' files, given as any kind of path."""
    token_path, *paths = (Path(path) if path else None for path in (token_file, ca, certificate, key))
    return Credentials.read(token_path, *paths)


def _events(
    connection: Connection,
    task: Task | str,
    prompt: str,
    images: GivenImages,
    options: CallOptions,
    study: str = "",
    study_images: Mapping[int, SentImage] | None = None,
    said: Said | None = None,
) -> Iterator[ReportEvent]:
    request, asked = request_of(task, prompt, images, options, study, study_images, said)
    ids = [""]
    messages = connection.generate(request, options.get("timeout"), options.get("progress"), ids.append)
    with closing(messages):
        for message in messages:
            if event := event_of(message, ids[-1], asked):
                if said and isinstance(event, Report):
                    said.add(request, event)
                yield event


def last(events: Iterator[ReportEvent]) -> Report:
    """Return the report at a stream's end.

    Raises:
        ServerUnavailable: there is none.
    """
    report = None
    for event in events:  # to the stream's end: leaving the loop earlier would cancel the call
        report = event if isinstance(event, Report) else report
    if report is None:
        raise ServerUnavailable(NO_RESULT)
    return report
