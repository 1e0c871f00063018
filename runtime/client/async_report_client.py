"""`ReportClient` for asyncio: the same methods, options, results and errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
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
from echovlm_edge.runtime.client.report_client import END_SECONDS, NO_RESULT, AnyPath, credentials_of
from echovlm_edge.runtime.client.said import Said
from echovlm_edge.runtime.client.wire.async_connection import AsyncConnection
from echovlm_edge.runtime.client.wire.attempts import Retries
from echovlm_edge.runtime.client.wire.requests import EarlierTurn
from echovlm_edge.runtime.contracts.addresses import DEFAULT_ADDRESS
from echovlm_edge.runtime.contracts.errors import ServerUnavailable, UserError
from echovlm_edge.runtime.contracts.image_path import SentImage
from echovlm_edge.runtime.contracts.tasks import Task


class AsyncReportClient:
    """Ask a report server from one event loop; use it with `async with`. Tasks may share it.

    Arguments, images, options and errors are those of `ReportClient`.
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
        """Connect to HOST:PORT with the first call; see `ReportClient`."""
        credentials = credentials_of(token_file, ca, certificate, key)
        self.connection = AsyncConnection(address, credentials, Retries(retries + 1))

    async def __aenter__(self) -> AsyncReportClient:
        """Return the client."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        await self.close()

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()

    async def report(self, images: GivenImages, *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report; see `ReportClient.report`."""
        return await _last(self.stream(images, prompt=prompt, **options))

    async def diagnose(self, images: GivenImages, *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression alone."""
        return await _last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    async def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question, with or without images."""
        return await _last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    async def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task by its name; see `stream`. For judge and choice, `prompt` is the statement or the options."""
        return await _last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[ReportEvent, None]:
        """Yield `StageStarted` and `TextDelta` as they come, and the `Report` last; `aclose` cancels the call."""
        return _events(self.connection, task, prompt, images, options)

    @asynccontextmanager
    async def study(
        self, timeout: float | None = None, *, image_tokens: int | None = None
    ) -> AsyncIterator[AsyncStudy]:
        """Open a study, which is ended on leaving the block; `image_tokens` bounds the visual tokens of its frames."""
        study = AsyncStudy(self.connection, await self.connection.begin_study(timeout, image_tokens))
        try:
            yield study
        finally:
            with suppress(UserError):
                await self.connection.end_study(study.id, END_SECONDS)

    def conversation(self, system: str = "") -> AsyncConversation:
        """Begin a conversation; see `ReportClient.conversation`."""
        return AsyncConversation(self.connection, system)

    async def studies(self, timeout: float | None = None) -> tuple[OpenStudy, ...]:
        """List the studies that this client has open; see `ReportClient.studies`."""
        return open_studies_of(await self.connection.list_studies(timeout))

    async def end_study(self, id: str, timeout: float | None = None) -> None:
        """End a study by its id in `studies`; see `ReportClient.end_study`."""
        await self.connection.end_study(id, timeout)


class AsyncStudy:
    """An open study; see `Study`. Images are in the order in which their `add` returned.

    Attributes:
        id: names it on the server; keep it secret.
    """

    def __init__(self, connection: AsyncConnection, id: str) -> None:
        """Called by `AsyncReportClient.study`."""
        self.id, self._connection = id, connection
        self._images: dict[int, SentImage] = {}

    async def add(self, image: GivenImage, **options: Unpack[ImageOptions]) -> AddedImage:
        """Add an image at the end; see `Study.add`."""
        sent = await asyncio.to_thread(image_of, image, options)
        added = await self._connection.add_image(
            self.id,
            sent,
            options.get("timeout"),
            allow_mixed_studies=options.get("allow_mixed_studies", False),
            progress=options.get("progress"),
        )
        self._images[added.number] = sent
        return added_of(added, sent)

    async def withdraw(self, number: int, timeout: float | None = None) -> None:
        """Remove an image, as if it had never been added."""
        await self._connection.withdraw_image(self.id, number, timeout)
        self._images.pop(number, None)

    async def report(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report about the study's images, followed by those of the call."""
        return await _last(self.stream(images, prompt=prompt, **options))

    async def diagnose(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression about the study's images, followed by those of the call."""
        return await _last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    async def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question about the study's images, followed by those of the call."""
        return await _last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    async def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task about the study's images, followed by those of the call; see `ReportClient.write`."""
        return await _last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[ReportEvent, None]:
        """Stream the events of a call about the study's images, followed by those of the call; see `ReportClient.stream`."""
        return _events(self._connection, task, prompt, images, options, self.id, self._images)

    def conversation(self, system: str = "") -> AsyncConversation:
        """Begin a conversation about the study's images; see `Study.conversation`."""
        return AsyncConversation(self._connection, system, self.id, self._images)


class AsyncConversation:
    """Questions that continue each other; see `Conversation`. One request at a time."""

    def __init__(
        self,
        connection: AsyncConnection,
        system: str = "",
        study: str = "",
        study_images: Mapping[int, SentImage] | None = None,
    ) -> None:
        """Called by `AsyncReportClient.conversation` and `AsyncStudy.conversation`."""
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

    async def report(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write a report as the next turn; images are those that are new. Otherwise as `ReportClient.report`."""
        return await _last(self.stream(images, prompt=prompt, **options))

    async def diagnose(self, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]) -> Report:
        """Write the impression as the next turn."""
        return await _last(self.stream(images, task=Task.DIAGNOSIS, prompt=prompt, **options))

    async def ask(self, question: str, images: GivenImages = (), **options: Unpack[CallOptions]) -> Report:
        """Answer a question as the next turn."""
        return await _last(self.stream(images, task=Task.QUESTION, prompt=question, **options))

    async def write(
        self, task: Task | str, images: GivenImages = (), *, prompt: str = "", **options: Unpack[CallOptions]
    ) -> Report:
        """Perform any task as the next turn; see `ReportClient.write`."""
        return await _last(self.stream(images, task=task, prompt=prompt, **options))

    def stream(
        self,
        images: GivenImages = (),
        *,
        task: Task | str = Task.REPORT,
        prompt: str = "",
        **options: Unpack[CallOptions],
    ) -> AsyncGenerator[ReportEvent, None]:
        """Stream the events of the next turn, which is part of the conversation once its report was taken; see `ReportClient.stream`."""
        return _events(self._connection, task, prompt, images, options, self._study, self._study_images, self._said)


async def _events(
    connection: AsyncConnection,
    task: Task | str,
    prompt: str,
    images: GivenImages,
    options: CallOptions,
    study: str = "",
    study_images: Mapping[int, SentImage] | None = None,
    said: Said | None = None,
) -> AsyncGenerator[ReportEvent, None]:
    request, asked = await asyncio.to_thread(request_of, task, prompt, images, options, study, study_images, said)
    ids = [""]
    messages = connection.generate(request, options.get("timeout"), options.get("progress"), ids.append)
    async with aclosing(messages):
        async for message in messages:
            if event := event_of(message, ids[-1], asked):
                if said and isinstance(event, Report):
                    said.add(request, event)
                yield event


async def _last(events: AsyncGenerator[ReportEvent, None]) -> Report:
    report = None
    async for event in events:
        report = event if isinstance(event, Report) else report
    if report is None:
        raise ServerUnavailable(NO_RESULT)
    return report
