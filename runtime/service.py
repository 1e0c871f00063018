"""The gRPC servicer: requests to the engine, its events to the stream, errors to status codes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from traceback import format_tb
from typing import Protocol

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.engine import EngineInfo
from echovlm_edge.runtime.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.image import ImageLimits
from echovlm_edge.runtime.report import split_sections
from echovlm_edge.runtime.request import (
    Event,
    Finished,
    FinishReason,
    FrameSelection,
    GenerationRequest,
    ImageInput,
    Sampling,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.tasks import Language, Region, Task, prompt_for

NOTICE = "Draft, not reviewed by a clinician."
MAX_GENERATIONS = 24  # at once, waiting ones included; each holds one of the server's threads

STAGES = {
    Stage.QUEUE: pb.STAGE_QUEUE,
    Stage.DECODE_IMAGES: pb.STAGE_DECODING_IMAGES,
    Stage.PREPROCESS: pb.STAGE_PREPROCESSING,
    Stage.VISION: pb.STAGE_VISION,
    Stage.PROJECTOR: pb.STAGE_PROJECTOR,
    Stage.PREFILL: pb.STAGE_PREFILL,
    Stage.DECODE: pb.STAGE_DECODE,
    Stage.DETOKENIZE: pb.STAGE_DETOKENIZE,
}
FINISH_REASONS = {
    FinishReason.STOP: pb.FINISH_REASON_STOP,
    FinishReason.LENGTH: pb.FINISH_REASON_LENGTH,
    FinishReason.CANCELLED: pb.FINISH_REASON_CANCELLED,
}
LANGUAGES = {pb.LANGUAGE_UNSPECIFIED: Language.EN, pb.LANGUAGE_EN: Language.EN, pb.LANGUAGE_ZH: Language.ZH}
REGIONS = {pb.AnatomicalRegion.Value(f"ANATOMICAL_REGION_{region.name}"): region for region in Region}

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What the service needs of an engine; `ReportEngine` is the real one."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Answer one request; ends with `Finished`."""
        ...


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """Serves one engine."""

    def __init__(self, engine: Engine, max_message_bytes: int) -> None:
        """`max_message_bytes` is only told to clients; the server enforces it."""
        self._engine = engine
        self._max_message_bytes = max_message_bytes
        self._places = threading.BoundedSemaphore(MAX_GENERATIONS)

    def GenerateReport(
        self, request: pb.GenerateReportRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.REPORT, request.prompt, request.images, request.options, context)

    def Diagnose(self, request: pb.DiagnoseRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.DIAGNOSIS, request.prompt, request.images, request.options, context)

    def AnswerQuestion(
        self, request: pb.AnswerQuestionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.QUESTION, request.question, request.images, request.options, context)

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        """See report.proto."""
        info = self._engine.info
        return pb.ModelInfo(
            model=info.model,
            checkpoint_sha256=info.checkpoint_sha256,
            bundle_id=info.bundle_id,
            bundle_format=info.bundle_format,
            target=info.target,
            precision=info.precision,
            limits=pb.Limits(
                max_sequence=info.max_sequence,
                max_model_pixels=info.max_pixels,
                max_image_pixels=ImageLimits().max_pixels,
                max_message_bytes=self._max_message_bytes,
            ),
            languages=[pb.LANGUAGE_EN, pb.LANGUAGE_ZH],
            regions=[f"ANATOMICAL_REGION_{region.name}" for region in Region],
            version=version("echovlm-edge"),
        )

    def _generate(
        self,
        task: Task,
        text: str,
        images: Sequence[pb.Image],
        options: pb.GenerationOptions,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.GenerateEvent]:
        started = time.perf_counter()

        def stopped() -> bool:
            # gRPC ends the call itself once its deadline has passed, so this covers both.
            return not context.is_active()

        if not self._places.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"The server is busy with {MAX_GENERATIONS} calls: ask again when one has ended.",
            )
        try:
            prompt = prompt_for(task, text, len(images), _language(options), _region(options))
            request = GenerationRequest(
                prompt, tuple(map(_image, images, range(1, len(images) + 1))), _sampling(options)
            )
            for event in self._engine.generate(request, stopped):
                yield self._message(event, options.include_token_ids, started)
        except InvalidInput as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except NotPossibleHere as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except Exception as error:
            # Where it failed, without the error's own text, which could quote the request.
            _log.error(
                "a %s failed with %s:\n%s", task.value, type(error).__name__, "".join(format_tb(error.__traceback__))
            )
            context.abort(grpc.StatusCode.INTERNAL, "The server failed on this request; its log says where.")
        finally:
            self._places.release()

    def _message(self, event: Event, include_token_ids: bool, started: float) -> pb.GenerateEvent:
        match event:
            case StageStarted(stage):
                return pb.GenerateEvent(stage_started=STAGES[stage])
            case TextDelta(text):
                return pb.GenerateEvent(text=text)
            case Finished():
                return pb.GenerateEvent(result=self._result(event, include_token_ids, time.perf_counter() - started))

    def _result(self, event: Finished, include_token_ids: bool, total_seconds: float) -> pb.Result:
        sections = split_sections(event.text)
        return pb.Result(
            text=event.text,
            sections=pb.Sections(findings=sections.findings, impression=sections.impression),
            finish_reason=FINISH_REASONS[event.finish_reason],
            usage=pb.Usage(
                prompt_tokens=event.prompt_tokens,
                image_tokens=event.image_tokens,
                generated_tokens=len(event.token_ids),
            ),
            timings=pb.Timings(
                stages=[pb.StageTime(stage=STAGES[stage], seconds=seconds) for stage, seconds in event.seconds.items()],
                first_token_seconds=event.first_token_seconds,
                total_seconds=total_seconds,
            ),
            token_ids=event.token_ids if include_token_ids else (),
            notice=NOTICE,
            model=self._engine.info.model,
            bundle_id=self._engine.info.bundle_id,
        )


def _language(options: pb.GenerationOptions) -> Language:
    if options.language not in LANGUAGES:
        raise InvalidInput(f"There is no language {options.language}: choose LANGUAGE_EN or LANGUAGE_ZH.")
    return LANGUAGES[options.language]


def _region(options: pb.GenerationOptions) -> Region | None:
    if options.region == pb.ANATOMICAL_REGION_UNSPECIFIED:
        return None
    if options.region not in REGIONS:
        raise InvalidInput(f"There is no anatomical region {options.region}: choose one that GetModelInfo lists.")
    return REGIONS[options.region]


def _image(image: pb.Image, number: int) -> ImageInput:
    selection = FrameSelection(tuple(image.frames.indices.index), image.frames.evenly_spaced)
    return ImageInput(image.data, image.media_type, f"image {number}", selection, not image.keep_whole_frame)


def _sampling(options: pb.GenerationOptions) -> Sampling:
    given = {field.name: value for field, value in options.sampling.ListFields()}
    return Sampling(**given)
