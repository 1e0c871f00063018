"""A report service that answers at once and keeps what it was asked: what a client puts on the wire."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc

USAGE = {field.name: 11 * field.number for field in pb.Usage.DESCRIPTOR.fields}  # no two alike, none 0


class Recording(report_pb2_grpc.ReportServiceServicer):
    """Keeps what it is asked."""

    def __init__(self) -> None:
        self.report = pb.GenerateReportRequest()
        self.added = pb.AddImageRequest()

    def GenerateReport(
        self, request: pb.GenerateReportRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.GenerateEvent]:
        self.report = request
        yield pb.GenerateEvent(result=pb.Result(text="Done", usage=pb.Usage(**USAGE)))

    def BeginStudy(self, request: pb.BeginStudyRequest, context: grpc.ServicerContext) -> pb.Study:
        return pb.Study(id="study")

    def EndStudy(self, request: pb.EndStudyRequest, context: grpc.ServicerContext) -> pb.EndStudyResponse:
        return pb.EndStudyResponse()

    def AddImage(self, request: pb.AddImageRequest, context: grpc.ServicerContext) -> pb.AddedImage:
        self.added = request
        return pb.AddedImage(number=1)


@contextmanager
def recording_service() -> Iterator[tuple[Recording, str]]:
    """The service, running, and its address."""
    servicer, server = Recording(), grpc.server(ThreadPoolExecutor(1))
    report_pb2_grpc.add_ReportServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()
