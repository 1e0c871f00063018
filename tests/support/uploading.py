"""Upload files to a server, as clients do."""

from __future__ import annotations

from collections.abc import Iterator

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc


def parts(data: bytes, size: int = 1 << 16) -> Iterator[pb.UploadRequest]:
    """Split a file into parts."""
    for start in range(0, len(data), size):
        yield pb.UploadRequest(data=data[start : start + size])


def upload(stub: report_pb2_grpc.ReportServiceStub, data: bytes, metadata: object = ()) -> pb.Uploaded:
    """Upload a file."""
    return stub.Upload(parts(data), metadata=metadata, timeout=60)
