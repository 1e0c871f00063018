"""The report service's methods: calls to the engine and to studies, independent of the transport."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Protocol

from google.protobuf.message import DecodeError, Message

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import InvalidInput, Stopped
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Priority,
    Source,
    Span,
    Stage,
    StageStarted,
    pictures,
)
from echovlm_edge.runtime.contracts.tasks import Task, prompt_for
from echovlm_edge.runtime.engine.engine_info import EngineInfo, EngineStats
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.serving import messages
from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.conversations import earlier_turns
from echovlm_edge.runtime.serving.review.reviewed import Asked, Reviewed, Rule
from echovlm_edge.runtime.serving.review.rules import RULES, notes
from echovlm_edge.runtime.serving.studies import Studies
from echovlm_edge.runtime.serving.uploads import IncomingFile, Uploads

NAME = pb.DESCRIPTOR.services_by_name["ReportService"].full_name

PROMPT_TOKENS, PICTURE_MARKS = 64, 2  # more than an empty prompt has; those around a picture's tokens

GenerateRequest = pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest


class Engine(Protocol):
    """What the service needs from an engine; `ReportEngine` is the real one."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    def stats(self) -> EngineStats:
        """Return counters and gauges."""
        ...

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Answer one request; ends with `Finished`."""
        ...

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None:
        """Encode and prefill a study's pictures before a request asks about them."""
        ...

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        """Count the tokens of a prompt about these frames; raises InvalidInput if they exceed the context."""
        ...

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        """Decode an image that is added to a study after the frames `before`; returns its frames."""
        ...


@dataclass(frozen=True)
class ShownFrame:
    """A frame as the model would see it.

    Attributes:
        frame: it.
        whole: the same frame before it was cropped, at another resolution; None where nothing was cropped, or it cannot be shown.
    """

    frame: Frame
    whole: Frame | None = None


@dataclass(frozen=True)
class ServiceState:
    """What is loaded, and how busy it is.

    Attributes:
        info: the model and the bundle.
        engine: slots, tokens and caches.
        studies: how many are open, and the bytes of their pictures.
        uploads: how many files there are, and their bytes.
    """

    info: EngineInfo
    engine: EngineStats
    studies: tuple[int, int]
    uploads: tuple[int, int]


@dataclass(frozen=True)
class Method:
    """One method of the service.

    Attributes:
        name: its name in report.proto.
        request: the type of its request message.
        answer: yields the answer's messages, exactly one if the method does not stream; it blocks and raises UserErrors.
        needs_place: whether a call of it needs a place of `Admission`.
        in_parts: whether its request is a stream of parts of a file; `answer` gets them as an `IncomingFile`.
    """

    name: str
    request: type[Message]
    answer: Callable[[Any, CallRecord], Iterator[Message]]
    needs_place: bool = False
    in_parts: bool = False

    def parse(self, data: bytes) -> Message:
        """Parse the request's message.

        Raises:
            InvalidInput: the bytes are not such a message.
        """
        try:
            return self.request.FromString(data)
        except DecodeError:
            raise InvalidInput(f"The message is not a valid {self.request.DESCRIPTOR.full_name}.") from None


class ReportService:
    """Serves one engine. Its methods block: a transport runs them in threads."""

    def __init__(
        self,
        engine: Engine,
        studies: Studies,
        uploads: Uploads,
        admission: Admission,
        limits: messages.CallLimits,
        rules: Sequence[Rule] = tuple(RULES.values()),
    ) -> None:
        """Serve `engine`, which reads images and writes text; `admission` bounds how many calls do either at once.

        `rules` make the notes about finished texts.
        """
        self._engine, self._studies, self.uploads = engine, studies, uploads
        self.admission, self.limits, self._rules = admission, limits, rules
        self.methods = {
            method.name: method
            for method in (
                Method("GenerateReport", pb.GenerateReportRequest, self._report, needs_place=True),
                Method("Diagnose", pb.DiagnoseRequest, self._diagnose, needs_place=True),
                Method("AnswerQuestion", pb.AnswerQuestionRequest, self.answer_question, needs_place=True),
                Method("BeginStudy", pb.BeginStudyRequest, self._begin_study),
                Method("AddImage", pb.AddImageRequest, self._add_image, needs_place=True),
                Method("WithdrawImage", pb.WithdrawImageRequest, self._withdraw_image),
                Method("EndStudy", pb.EndStudyRequest, self._end_study),
                Method("ListStudies", pb.ListStudiesRequest, self._list_studies),
                Method("Upload", pb.UploadRequest, self._upload, in_parts=True),
                Method("ForgetUpload", pb.ForgetUploadRequest, self._forget_upload),
                Method("GetModelInfo", pb.GetModelInfoRequest, self._model_info),
            )
        }

    @property
    def model(self) -> str:
        """The name of the model that is loaded."""
        return self._engine.info.model

    @property
    def context(self) -> int:
        """How many tokens a prompt and its answer can have together."""
        return self._engine.info.max_sequence

    def state(self) -> ServiceState:
        """Return what is loaded, and how busy it is."""
        return ServiceState(self._engine.info, self._engine.stats(), self._studies.counts(), self.uploads.counts())

    def _report(self, request: pb.GenerateReportRequest, call: CallRecord) -> Iterator[pb.GenerateEvent]:
        return self._generate(messages.report_task(request), request.prompt, request, call)

    def _diagnose(self, request: pb.DiagnoseRequest, call: CallRecord) -> Iterator[pb.GenerateEvent]:
        return self._generate(Task.DIAGNOSIS, request.prompt, request, call)

    def answer_question(
        self, request: pb.AnswerQuestionRequest, call: CallRecord, stop: tuple[str, ...] = (), choice: int = 0
    ) -> Iterator[pb.GenerateEvent]:
        """Answer as the method AnswerQuestion does.

        Args:
            request: the message.
            call: the call's record.
            stop: the text ends before the first of these.
            choice: of several answers to one request, this one's number from 0; each has its own seed, the request's plus this.
        """
        return self._generate(messages.answer_task(request), request.question, request, call, stop, choice)

    def show_pictures(
        self, images: Sequence[pb.Image], image_tokens: int, allow_mixed_studies: bool, call: CallRecord
    ) -> list[ShownFrame]:
        """Read images as a report about them would, without running the model; needs a place, as a report does.

        Args:
            images: of the call.
            image_tokens: as in GenerateReportRequest.
            allow_mixed_studies: as in GenerationOptions.
            call: the call's record.

        Raises:
            UserError: a report about them would be refused.
            Stopped: nobody waits for them any more.
        """
        with self.admission.place(call.client, 0), ExitStack() as in_use:
            self.limits.check("", images)
            bound = messages.image_tokens(image_tokens, self._engine.info)
            asker = Asker(call.client.name, stopped=call.gone.is_set)
            shown, frames = list[ShownFrame](), list[Frame]()
            for number, image in enumerate(images, 1):
                file = self._image(image, number, call.client, in_use, bound)
                read = self._engine.read_image(file, frames, asker, allow_mixed_studies)
                own = [replace(frame, image=number) for frame in read]
                whole = self._whole(file, own, asker)
                shown += [ShownFrame(*pair) for pair in zip(own, whole, strict=True)]
                frames += own
        return shown

    def _whole(self, file: ImageInput, frames: Sequence[Frame], asker: Asker) -> Sequence[Frame | None]:
        """Read the frames of a file before they were cropped, if one was: as large as the context holds them, which no report has to."""
        info, none = self._engine.info, [None] * len(frames)
        if not any(frame.source and _is_cropped(frame.source) for frame in frames):
            return none
        least, most = info.image_tokens
        bound = min(most, (info.max_sequence - PROMPT_TOKENS) // len(frames) - PICTURE_MARKS)
        if bound < least:
            return none
        try:
            return self._engine.read_image(replace(file, crop_to_regions=False, image_tokens=bound), (), asker, True)
        except InvalidInput:  # a shape that only cropping makes usable
            return none

    def _begin_study(self, request: pb.BeginStudyRequest, call: CallRecord) -> Iterator[pb.Study]:
        seconds = self._studies.limits.expires_after_seconds
        bound = messages.image_tokens(request.image_tokens, self._engine.info)
        yield pb.Study(id=self._studies.begin(call.client, bound), expires_after_seconds=seconds)

    def _add_image(self, request: pb.AddImageRequest, call: CallRecord) -> Iterator[pb.AddedImage]:
        with self.admission.place(call.client, request.ByteSize()), self._study_in_use(call.client, request.study):
            self.limits.check("", [request.image])
            study, mixed = request.study, request.allow_mixed_studies
            before, bound = self._studies.pictures(call.client, study), self._studies.image_tokens(call.client, study)
            asker = Asker(call.client.name, stopped=call.gone.is_set)
            with ExitStack() as in_use:
                image = self._image(request.image, 1, call.client, in_use, bound)
                del request  # `image` is a copy of what is needed of it
                try:
                    frames = self._engine.read_image(image, before, asker, mixed)
                except Stopped:  # the client is gone, so that nobody waits for an answer
                    return
            added = self._studies.add(call.client, study, frames, self._engine.prompt_tokens, mixed)
            tokens = self._engine.prompt_tokens(added.frames)
        shown = map(messages.picture, pictures(added.frames[-added.own :]))
        yield pb.AddedImage(number=added.number, frames=added.own, study_tokens=tokens, pictures=shown)

    def _withdraw_image(self, request: pb.WithdrawImageRequest, call: CallRecord) -> Iterator[pb.WithdrawImageResponse]:
        self._studies.withdraw(call.client, request.study, request.number)
        yield pb.WithdrawImageResponse()

    def _end_study(self, request: pb.EndStudyRequest, call: CallRecord) -> Iterator[pb.EndStudyResponse]:
        self._studies.end(call.client, request.study)
        yield pb.EndStudyResponse()

    def _list_studies(self, request: pb.ListStudiesRequest, call: CallRecord) -> Iterator[pb.ListStudiesResponse]:
        listed = [pb.OpenStudy(**vars(study)) for study in self._studies.listed(call.client)]
        yield pb.ListStudiesResponse(studies=listed, max_studies=self._studies.most(call.client))

    def _upload(self, file: IncomingFile, call: CallRecord) -> Iterator[pb.Uploaded]:
        name, seconds = file.finish(), self.uploads.limits.expires_after_seconds
        yield pb.Uploaded(id=name, bytes=file.size, expires_after_seconds=seconds)

    def _forget_upload(self, request: pb.ForgetUploadRequest, call: CallRecord) -> Iterator[pb.ForgetUploadResponse]:
        self.uploads.forget(call.client, request.id)
        yield pb.ForgetUploadResponse()

    def _model_info(self, request: pb.GetModelInfoRequest, call: CallRecord) -> Iterator[pb.ModelInfo]:
        yield messages.model_info(self._engine.info, self.limits, self.uploads.most_bytes(call.client))

    def _generate(
        self,
        task: Task,
        text: str,
        asked: GenerateRequest,
        call: CallRecord,
        stop: tuple[str, ...] = (),
        choice: int = 0,
    ) -> Iterator[pb.GenerateEvent]:
        priority = messages.priority(asked.options)
        batch = priority is Priority.BATCH
        with (
            self.admission.place(call.client, asked.ByteSize(), batch),
            self._study_in_use(call.client, asked.study),
            ExitStack() as in_use,
        ):
            self.limits.check(text, asked.images, asked.conversation)
            request = self._request(task, text, asked, call.client, in_use)
            sampling = replace(request.sampling, seed=(request.sampling.seed + choice) % 2**64)
            request = replace(request, came=call.started, stop=stop, sampling=sampling)
            with_token_ids = asked.options.include_token_ids
            what = Asked(task, messages.language(asked.options), messages.region(asked.options), text)
            del asked  # `request` has copies of its images and of everything else
            remarks: Sequence[str] = ()
            for event in self._engine.generate(request, call.gone.is_set):
                if event != StageStarted(Stage.DECODE_IMAGES):  # any later event means that all files have been read
                    in_use.close()
                if isinstance(event, Finished):
                    began = time.perf_counter()
                    remarks = notes(Reviewed(event.text, event.finish_reason, what, event.pictures), self._rules)
                    taken = time.perf_counter() - began
                    event = call.finished = event.with_span(Span(Stage.DELIVER, began - call.started, taken))
                    if event.finish_reason is FinishReason.CANCELLED:
                        call.outcome = "cancelled"
                seconds = time.perf_counter() - call.started
                yield messages.event_message(
                    event, self._engine.info, with_token_ids, seconds, remarks, request.prompt, task
                )

    def _request(
        self, task: Task, text: str, asked: GenerateRequest, client: Client, in_use: ExitStack
    ) -> GenerationRequest:
        options, bound = asked.options, self._bound(asked, client)
        of_study, numbers = self._studies.frames(client, asked.study) if asked.study else None, count(1)

        def read(images: Sequence[pb.Image]) -> tuple[ImageInput, ...]:
            return tuple(self._image(image, next(numbers), client, in_use, bound) for image in images)

        earlier, frames = earlier_turns(asked.conversation, read, of_study)
        files = read(asked.images)
        shown = len(of_study or ()) + len(files) + sum(len(turn.images) for turn in earlier)
        if asked.study and task is not Task.QUESTION and not shown:
            raise InvalidInput("The study has no image yet: add one first.")
        return GenerationRequest(
            prompt_for(task, text, shown, messages.language(options), messages.region(options)),
            files,
            messages.sampling(options),
            frames,
            messages.priority(options),
            client.name,
            client.scope,
            allow_mixed_studies=options.allow_mixed_studies,
            system=asked.conversation.system_prompt,
            earlier=earlier,
            log_probabilities=messages.log_probabilities(options),
            form=messages.text_form(options, task, text),
        )

    def _bound(self, asked: GenerateRequest, client: Client) -> int | None:
        """Return the bound on a frame's tokens in a call; one about a study has the study's."""
        bound = messages.image_tokens(asked.image_tokens, self._engine.info)
        if not asked.study:
            return bound
        of_study = self._studies.image_tokens(client, asked.study)
        if bound not in (None, of_study):
            raise InvalidInput(
                f"image_tokens {bound:,} is not the study's bound: leave it out, or begin a study with that bound."
            )
        return of_study

    def _study_in_use(self, client: Client, study: str) -> AbstractContextManager[None]:
        """Hold a call's study, if it names one, for as long as the call works."""
        return self._studies.use(client, study) if study else nullcontext()

    def _image(
        self, image: pb.Image, number: int, client: Client, in_use: ExitStack, image_tokens: int | None
    ) -> ImageInput:
        """Convert an image of a call; the upload that it names stays in use until `in_use` is closed."""
        uploaded = in_use.enter_context(self.uploads.use(client, image.upload)) if image.upload else None
        return messages.image_input(image, number, uploaded, image_tokens)


def _is_cropped(source: Source) -> bool:
    return source.box != (0, 0, source.width, source.height)
