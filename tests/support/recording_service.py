"""A report service that answers immediately and records its requests, to test what clients send."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.statuses import RETRY_AFTER

USAGE = {field.name: 11 * field.number for field in pb.Usage.DESCRIPTOR.fields}  # all different, none 0


LIMITS = pb.Limits(max_message_bytes=4 << 20, max_images=64, max_upload_bytes=16 << 20, max_turns=64)


class Recording(report_pb2_grpc.ReportServiceServicer):
    """Keeps what it is asked.

    Attributes:
        report, question, added: the last of their kind.
        calls: the names of all, in order.
        uploads: by their ids, as they came; those that were forgotten stay.
        limits: what it says that it takes.
        result: what it answers.
        refusals: codes that its next uploads are refused with.
    """

    def __init__(self) -> None:
        self.report = pb.GenerateReportRequest()
        self.question = pb.AnswerQuestionRequest()
        self.added = pb.AddImageRequest()
        self.calls: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.parts: list[int] = []
        self.limits = pb.Limits()
        self.limits.CopyFrom(LIMITS)
        self.result = pb.Result(text="Done", usage=pb.Usage(**USAGE))
        self.refusals: list[grpc.StatusCode] = []

    def GetModelInfo(self, request: pb.GetModelInfoRequest, context: grpc.ServicerContext) -> pb.ModelInfo:
        self.calls.append("GetModelInfo")
        return pb.ModelInfo(limits=self.limits)

    def Upload(self, requests: Iterator[pb.UploadRequest], context: grpc.ServicerContext) -> pb.Uploaded:
        self.calls.append("Upload")
        if self.refusals:
            context.set_trailing_metadata(((RETRY_AFTER, "10"),))
            context.abort(self.refusals.pop(0), "Full.")
        parts = [request.data for request in requests]
        self.parts += map(len, parts)
        self.uploads[f"upload {len(self.uploads)}"] = b"".join(parts)
        return pb.Uploaded(id=f"upload {len(self.uploads) - 1}", bytes=sum(map(len, parts)))

    def ForgetUpload(self, request: pb.ForgetUploadRequest, context: grpc.ServicerContext) -> pb.ForgetUploadResponse:
        self.calls.append(f"forget {request.id}")
        return pb.ForgetUploadResponse()

    def GenerateReport(
        self, request: pb.GenerateReportRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        self.calls.append("GenerateReport")
        self.report = request
        yield pb.GenerateEvent(text=self.result.text)
        yield pb.GenerateEvent(result=self.result)

    def AnswerQuestion(
        self, request: pb.AnswerQuestionRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        self.calls.append("AnswerQuestion")
        self.question = request
        yield pb.GenerateEvent(result=self.result)

    def BeginStudy(self, request: pb.BeginStudyRequest, context: grpc.ServicerContext) -> pb.Study:
        return pb.Study(id="study")

    def EndStudy(self, request: pb.EndStudyRequest, context: grpc.ServicerContext) -> pb.EndStudyResponse:
        return pb.EndStudyResponse()

    def ListStudies(self, request: pb.ListStudiesRequest, context: grpc.ServicerContext) -> pb.ListStudiesResponse:
        return pb.ListStudiesResponse()

    def AddImage(self, request: pb.AddImageRequest, context: grpc.ServicerContext) -> pb.AddedImage:
        self.calls.append("AddImage")
        self.added = request
        return pb.AddedImage(number=1)


@contextmanager
def recording_service() -> Iterator[tuple[Recording, str]]:
    """Run the service; yields its address."""
    servicer, server = (
        Recording(),
        grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)]),
    )
    report_pb2_grpc.add_ReportServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
