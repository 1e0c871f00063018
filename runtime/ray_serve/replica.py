"""One replica of the report service under Ray Serve: its own engine, and the methods of the service."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from grpc_health.v1 import health_pb2
from ray import serve

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import NotOffered, Unauthenticated, UserError
from echovlm_edge.runtime.contracts.statuses import REQUEST_ID, CallStatus, status_of
from echovlm_edge.runtime.observability import logs
from echovlm_edge.runtime.ray_serve.call_context import CallContext
from echovlm_edge.runtime.ray_serve.routing import SEPARATOR
from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import Client
from echovlm_edge.runtime.serving.access.identification import log_refusal, traceparent
from echovlm_edge.runtime.serving.call_record import CallRecord
from echovlm_edge.runtime.serving.service import ReportService
from echovlm_edge.runtime.serving.studies import Studies
from echovlm_edge.runtime.serving.supervision import from_settings
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from echovlm_edge.runtime.serving.transport.server import SPARE_THREADS
from echovlm_edge.runtime.serving.transport.threaded_answer import ThreadedAnswer
from echovlm_edge.runtime.serving.uploads import UploadLimits, Uploads

# An upload would have to reach the replica whose study its file is added to, and an upload does not say which study that will be.
NO_UPLOADS = UploadLimits(max_bytes=0)


class ReportReplica:
    """A deployment of Ray Serve, which calls the method that a gRPC call names. The service blocks, so calls run in threads.

    If the engine hangs, the process ends: Ray starts another replica, and the others continue to serve.

    Raises:
        NotPossibleHere: the bundle, the clients file or the certificates cannot be used on this node.
    """

    def __init__(self, settings: ServeSettings) -> None:
        """Load the bundle; the options are those of `echovlm-serve`."""
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dumps: the memory holds patients' images
        logs.start(settings.log == "json")
        options = from_settings.server_options(settings)
        self._tls_only = options.tls is not None
        self._access = from_settings.access(settings)
        self._decode = from_settings.decode_sandbox(settings)
        choice = from_settings.bundle_choice(
            settings, self._decode, recorded=False
        )  # Ray kills replicas that are still loading
        self._engine = from_settings.served_engine(settings, choice, self._decode, replacements=0)
        home = serve.get_replica_context().replica_id.unique_id
        self._studies = Studies(options.studies, self._engine.prepare, home=f"{home}{SEPARATOR}")
        slots = self._engine.stats().scheduler.slots
        places = slots + options.queue
        self._threads = ThreadPoolExecutor(places + SPARE_THREADS)
        self._traces = from_settings.traces(settings)
        self._observers = (logs.log_call, self._traces.observe) if self._traces else (logs.log_call,)
        self._service = ReportService(
            self._engine,
            self._studies,
            Uploads(NO_UPLOADS),
            Admission(places, slots, options.request_bytes),
            options.limits,
            options.rules,
        )

    async def GenerateReport(self, request: pb.GenerateReportRequest, grpc_context: Any) -> AsyncIterator[Any]:
        """See report.proto."""
        async for event in self._answers("GenerateReport", request, grpc_context):
            yield event

    async def Diagnose(self, request: pb.DiagnoseRequest, grpc_context: Any) -> AsyncIterator[Any]:
        """See report.proto."""
        async for event in self._answers("Diagnose", request, grpc_context):
            yield event

    async def AnswerQuestion(self, request: pb.AnswerQuestionRequest, grpc_context: Any) -> AsyncIterator[Any]:
        """See report.proto."""
        async for event in self._answers("AnswerQuestion", request, grpc_context):
            yield event

    async def BeginStudy(self, request: pb.BeginStudyRequest, grpc_context: Any) -> pb.Study:
        """See report.proto."""
        return await self._answer("BeginStudy", request, grpc_context)

    async def AddImage(self, request: pb.AddImageRequest, grpc_context: Any) -> pb.AddedImage:
        """See report.proto."""
        return await self._answer("AddImage", request, grpc_context)

    async def WithdrawImage(self, request: pb.WithdrawImageRequest, grpc_context: Any) -> pb.WithdrawImageResponse:
        """See report.proto."""
        return await self._answer("WithdrawImage", request, grpc_context)

    async def EndStudy(self, request: pb.EndStudyRequest, grpc_context: Any) -> pb.EndStudyResponse:
        """See report.proto."""
        return await self._answer("EndStudy", request, grpc_context)

    async def ListStudies(self, request: pb.ListStudiesRequest, grpc_context: Any) -> pb.ListStudiesResponse:
        """See report.proto; a replica knows only its own studies, so a department lists none."""
        context = CallContext(grpc_context)
        self._known("ListStudies", context)
        context.refuse(status_of(NotOffered("A department does not list studies: end each by the id that began it.")))

    async def Upload(self, parts: Any, grpc_context: Any) -> pb.Uploaded:
        """See report.proto; a department takes no uploads."""
        context = CallContext(grpc_context)
        client = self._known("Upload", context)
        try:
            self._service.uploads.begin(client)
        except UserError as error:
            context.refuse(status_of(error))
        raise AssertionError("an upload was taken")

    async def ForgetUpload(self, request: pb.ForgetUploadRequest, grpc_context: Any) -> pb.ForgetUploadResponse:
        """See report.proto."""
        return await self._answer("ForgetUpload", request, grpc_context)

    async def GetModelInfo(self, request: pb.GetModelInfoRequest, grpc_context: Any) -> pb.ModelInfo:
        """See report.proto."""
        return await self._answer("GetModelInfo", request, grpc_context)

    async def Check(self, request: health_pb2.HealthCheckRequest) -> health_pb2.HealthCheckResponse:
        """Answer the standard health check, without a token; a replica that answers is serving."""
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    def check_health(self) -> None:
        """Forget unused studies. Ray Serve calls this every ten seconds; an engine that hangs ends the process instead of failing it."""
        self._studies.forget_old()

    def __del__(self) -> None:
        """Shut down. Ray Serve calls this after the replica's last call has ended."""
        self._studies.close()
        self._engine.close()
        self._decode.close()
        if self._traces:
            self._traces.close()

    async def _answer(self, method: str, request: Any, grpc_context: Any) -> Any:
        answers = [answer async for answer in self._answers(method, request, grpc_context)]
        return answers[0]

    async def _answers(self, name: str, request: Any, grpc_context: Any) -> AsyncIterator[Any]:
        context = CallContext(grpc_context)
        client = self._known(name, context)
        method = self._service.methods[name]
        call = CallRecord(name, client, self._observers, traceparent(context))
        context.send_last(((REQUEST_ID, call.id),))
        answer = ThreadedAnswer[Any]()
        self._threads.submit(answer.write, lambda: method.answer(request, call), call)
        status: CallStatus | None = None
        try:
            while (event := await answer.next()) is not None and not isinstance(event, CallStatus):
                yield event
            status = event
        except BaseException:  # the client is gone: the engine checks `gone` before every token
            call.gone.set()
            raise
        finally:
            call.end()
        if status:
            context.refuse(status)

    def _known(self, method: str, context: CallContext) -> Client:
        try:
            if self._tls_only and not context.encrypted():
                raise Unauthenticated("This port has no TLS: call the one that has.", "plain text")
            return self._access.identify(context)
        except Unauthenticated as error:
            log_refusal(method, context, error)
            context.refuse(status_of(error))
