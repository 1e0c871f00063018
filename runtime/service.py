"""The gRPC servicer: calls to the engine and to studies, their events to streams, errors to status codes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime import messages
from echovlm_edge.runtime.access import Access
from echovlm_edge.runtime.admission import Admission
from echovlm_edge.runtime.call_record import CallRecord, Observer
from echovlm_edge.runtime.clients import Client
from echovlm_edge.runtime.engine import DecodeImage, EngineInfo
from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.request import Event, Finished, FinishReason, Frame, GenerationRequest
from echovlm_edge.runtime.studies import Studies
from echovlm_edge.runtime.tasks import Task, prompt_for


class Engine(Protocol):
    """What the service needs of an engine; `ReportEngine` is the real one."""

    @property
    def info(self) -> EngineInfo:
        """What is loaded."""
        ...

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        """Answer one request; ends with `Finished`."""
        ...

    def prepare(self, frames: Sequence[Frame], client: str, stopped: Callable[[], bool]) -> None:
        """Read a study's pictures before they are asked about."""
        ...

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        """How many tokens a prompt about these frames takes; InvalidInput where the context does not hold them."""
        ...


class ReportService(report_pb2_grpc.ReportServiceServicer):
    """Serves one engine."""

    def __init__(
        self,
        engine: Engine,
        studies: Studies,
        admission: Admission,
        access: Access,
        limits: messages.CallLimits,
        decode: DecodeImage,
        observers: Sequence[Observer],
    ) -> None:
        """`decode` reads the images of studies; `observers` are told of every call that ended."""
        self._engine, self._studies, self._admission, self._access = engine, studies, admission, access
        self._limits, self._decode, self._observers = limits, decode, observers

    def GenerateReport(
        self, request: pb.GenerateReportRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.REPORT, request.prompt, request, context)

    def Diagnose(self, request: pb.DiagnoseRequest, context: grpc.ServicerContext) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.DIAGNOSIS, request.prompt, request, context)

    def AnswerQuestion(
        self, request: pb.AnswerQuestionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        """See report.proto."""
        return self._generate(Task.QUESTION, request.question, request, context)

    def BeginStudy(self, request: pb.BeginStudyRequest, context: grpc.ServicerContext) -> pb.Study:
        """See report.proto."""
        with self._call("BeginStudy", context) as call:
            seconds = self._studies.limits.expires_after_seconds
            return pb.Study(id=self._studies.begin(call.client), expires_after_seconds=seconds)

    def AddImage(self, request: pb.AddImageRequest, context: grpc.ServicerContext) -> pb.AddedImage:
        """See report.proto."""
        with self._call("AddImage", context) as call, self._admission.place(call.client):
            self._limits.check("", [request.image])
            self._studies.check(call.client, request.study)
            frames = self._decode(messages.image_input(request.image, 1))
            added = self._studies.add(call.client, request.study, frames, self._engine.prompt_tokens)
            return pb.AddedImage(
                number=added.number, frames=len(frames), study_tokens=self._engine.prompt_tokens(added.frames)
            )

    def WithdrawImage(
        self, request: pb.WithdrawImageRequest, context: grpc.ServicerContext
    ) -> pb.WithdrawImageResponse:
        """See report.proto."""
        with self._call("WithdrawImage", context) as call:
            self._studies.withdraw(call.client, request.study, request.number)
            return pb.WithdrawImageResponse()

    def EndStudy(self, request: pb.EndStudyRequest, context: grpc.ServicerContext) -> pb.EndStudyResponse:
        """See report.proto."""
        with self._call("EndStudy", context) as call:
            self._studies.end(call.client, request.study)
            return pb.EndStudyResponse()

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        """See report.proto."""
        with self._call("GetModelInfo", context):
            return messages.model_info(self._engine.info, self._limits)

    def _call(self, method: str, context: grpc.ServicerContext) -> CallRecord:
        return CallRecord(method, self._access.identify(context), context, self._observers)

    def _generate(
        self,
        task: Task,
        text: str,
        asked: pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest,
        context: grpc.ServicerContext,
    ) -> Iterator[pb.GenerateEvent]:
        started = time.perf_counter()

        def stopped() -> bool:
            # gRPC ends the call itself once its deadline has passed, so this covers both.
            return not context.is_active()

        with self._call(METHODS[task], context) as call, self._admission.place(call.client):
            self._limits.check(text, asked.images)
            request = replace(self._request(task, text, asked, call.client), came=started)
            for event in self._engine.generate(request, stopped):
                if isinstance(event, Finished):
                    call.finished = event
                    if event.finish_reason is FinishReason.CANCELLED:
                        call.outcome = "cancelled"
                seconds = time.perf_counter() - started
                yield messages.event_message(event, self._engine.info, asked.options.include_token_ids, seconds)

    def _request(
        self,
        task: Task,
        text: str,
        asked: pb.GenerateReportRequest | pb.DiagnoseRequest | pb.AnswerQuestionRequest,
        client: Client,
    ) -> GenerationRequest:
        options = asked.options
        frames = self._studies.frames(client, asked.study) if asked.study else ()
        if asked.study and task is not Task.QUESTION and not (frames or asked.images):
            raise InvalidInput("The study has no image yet: add one first.")
        count = len(frames) + len(asked.images)
        return GenerationRequest(
            prompt_for(task, text, count, messages.language(options), messages.region(options)),
            tuple(map(messages.image_input, asked.images, range(1, len(asked.images) + 1))),
            messages.sampling(options),
            frames,
            messages.priority(options),
            client.name,
        )


METHODS = {Task.REPORT: "GenerateReport", Task.DIAGNOSIS: "Diagnose", Task.QUESTION: "AnswerQuestion"}
