"""Clients that mean harm with uploads: they never finish, trickle, guess ids, or leave. Nobody else notices, and nothing is left."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest

from benchmarks.soak.raw_http2 import RawConnection, grpc_status
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.request import Event, Frame, GenerationRequest, ImageInput
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.imaging.image_file import decode_image
from echovlm_edge.runtime.serving.access.clients import ClientsFile
from echovlm_edge.runtime.serving.transport.limits import TransportLimits
from echovlm_edge.runtime.serving.transport.receiving import ReceivingLimits
from echovlm_edge.runtime.serving.transport.receiving_files import FileReceivingLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from echovlm_edge.runtime.serving.uploads import UploadLimits
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png
from tests.support.open_memory_files import memory_files
from tests.support.uploading import upload
from tests.support.waiting import wait_for

UPLOAD = "/echovlm.v1.ReportService/Upload"
PICTURE = png(64, 64)
PART = pb.UploadRequest(data=bytes(1000)).SerializeToString()
GOOD, BAD = (("authorization", "Bearer secret"),), (("authorization", "Bearer stolen"),)

UPLOADS, FILES, MESSAGES = UploadLimits(), FileReceivingLimits(), ReceivingLimits()


class WaitingEngine(DecodingEngine):
    """Decodes an image once it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.decoding, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.decoding.set()
        assert self.go_on.wait(60)
        yield from super().generate(request, stopped)

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        self.decoding.set()
        assert self.go_on.wait(60)
        return decode_image(image)


class Served:
    """A server and a channel to it."""

    def __init__(self, access: ClientsFile | None, uploads: UploadLimits, transport: TransportLimits) -> None:
        self.files_before = memory_files()  # of servers that other tests had
        self.engine = WaitingEngine()
        options = ServerOptions("127.0.0.1:0", grace_seconds=0.2, uploads=uploads, transport=transport)
        self.server = ReportServer(self.engine, options, access=access)
        self.channel = grpc.insecure_channel(self.server.address, [("grpc.use_local_subchannel_pool", 1)])
        self.stub = report_pb2_grpc.ReportServiceStub(self.channel)

    def counts(self) -> tuple[int, int]:
        return self.server.uploads.counts()

    def close(self) -> None:
        self.engine.go_on.set()
        self.channel.close()
        self.server.stop()


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    with ExitStack() as ending:

        def started(
            known: bool = False,
            uploads: UploadLimits = UPLOADS,
            files: FileReceivingLimits = FILES,
            messages: ReceivingLimits = MESSAGES,
        ) -> Served:
            two = {"cart": {"token": "secret"}, "bad": {"token": "stolen"}}
            access = ClientsFile(clients_file(tmp_path, two)) if known else None
            served = Served(access, uploads, TransportLimits(receiving=messages, receiving_files=files))
            ending.callback(served.close)
            return served

        yield started


class Sender:
    """An upload whose parts come when they are told to."""

    def __init__(self, stub: report_pb2_grpc.ReportServiceStub, metadata: object = ()) -> None:
        self._parts: queue.Queue[bytes | None] = queue.Queue()
        self.call = stub.Upload.future(self._requests(), metadata=metadata)

    def send(self, part: bytes | None) -> None:
        """Send a part; None ends the file."""
        self._parts.put(part)

    def _requests(self) -> Iterator[pb.UploadRequest]:
        while (part := self._parts.get()) is not None:
            yield pb.UploadRequest(data=part)


def refused(call: Callable[[], object]) -> str:
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code().name  # type: ignore[attr-defined, no-any-return]


def test_uploads_that_never_end_keep_nobody_out(serve: Serve) -> None:
    """Neither other clients' uploads nor anybody's messages, the sender's own included."""
    served = serve(known=True, messages=ReceivingLimits(total=2, per_client=1))
    with RawConnection(served.server.address, token="stolen") as hostile:
        streams = [hostile.call(UPLOAD, PART, end=False) for _ in range(40)]
        silent = [hostile.call(UPLOAD, end=False) for _ in range(40)]
        wait_for(lambda: served.counts() == (2, 2000))
        ended = set(streams + silent)
        for metadata in (GOOD, BAD):
            assert served.stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata, timeout=10).model
        name = upload(served.stub, PICTURE, GOOD).id
        asked = pb.GenerateReportRequest(images=[pb.Image(upload=name)])
        *_, last = served.stub.GenerateReport(asked, metadata=GOOD, timeout=10)
        assert last.result.text == "Done"
        refusals = grpc_status(hostile.events_until_end(sorted(ended)[2:]))
        assert set(refusals.values()) == {"8"} and len(refusals) == 78
        assert served.counts() == (3, 2000 + len(PICTURE))
    wait_for(lambda: served.counts() == (1, len(PICTURE)))


def test_one_connection_of_strangers_does_not_keep_the_others_out(serve: Serve) -> None:
    served = serve()
    with RawConnection(served.server.address) as hostile:
        for _ in range(40):
            hostile.call(UPLOAD, PART, end=False)
        wait_for(lambda: served.counts() == (2, 2000))
        assert upload(served.stub, PICTURE).id


def test_no_more_are_received_at_once_than_there_may_be(serve: Serve) -> None:
    served = serve(files=FileReceivingLimits(total=2, per_client=1))
    with RawConnection(served.server.address) as one, RawConnection(served.server.address) as two:
        for connection in (one, two):
            connection.call(UPLOAD, PART, end=False)
        wait_for(lambda: served.counts() == (2, 2000))
        assert refused(lambda: upload(served.stub, PICTURE)) == "RESOURCE_EXHAUSTED"
    wait_for(lambda: served.counts() == (0, 0))
    assert upload(served.stub, PICTURE).id


@pytest.mark.parametrize("sent", [0, 1])
def test_one_that_stops_sending_is_ended(serve: Serve, sent: int) -> None:
    served = serve(files=FileReceivingLimits(seconds=0.1))
    sender = Sender(served.stub)
    for _ in range(sent):
        sender.send(b"data")
    assert sender.call.exception(20).code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[union-attr]
    assert sender.call.details() == "The upload is too slow, or has stopped: send it again."
    sender.send(None)
    assert served.counts() == (0, 0)
    wait_for(lambda: memory_files() <= served.files_before, 10)


def test_one_that_trickles_is_ended(serve: Serve) -> None:
    """Each of its parts comes in time, but there would be no end of them."""
    served = serve(files=FileReceivingLimits(seconds=0.5, slowest=10_000))

    def trickle() -> Iterator[pb.UploadRequest]:
        while not over.wait(0.01):
            yield pb.UploadRequest(data=b"x")

    over = threading.Event()
    assert refused(lambda: served.stub.Upload(trickle(), timeout=30)) == "INVALID_ARGUMENT"
    over.set()
    assert served.counts() == (0, 0)


def test_empty_parts_for_ever_are_ended_at_the_first(serve: Serve) -> None:
    served = serve()

    def nothing() -> Iterator[pb.UploadRequest]:
        while not over.wait(0.001):
            yield pb.UploadRequest()

    over = threading.Event()
    assert refused(lambda: served.stub.Upload(nothing(), timeout=30)) == "INVALID_ARGUMENT"
    over.set()


def test_what_is_no_part_is_refused(serve: Serve) -> None:
    served = serve(files=FileReceivingLimits(per_client=3))
    with RawConnection(served.server.address) as odd:
        streams = [odd.call(UPLOAD, b"\xff\xff no protobuf"), odd.call(UPLOAD, PART, b"\xff"), odd.call(UPLOAD)]
        assert set(grpc_status(odd.events_until_end(streams)).values()) == {"3"}
    assert served.counts() == (0, 0)


def test_a_part_over_the_limit_of_messages_leaves_no_half_file(serve: Serve) -> None:
    served = serve()
    large = iter([pb.UploadRequest(data=PICTURE), pb.UploadRequest(data=bytes(65 << 20))])
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(served.server.address, options) as channel:
        stub = report_pb2_grpc.ReportServiceStub(channel)
        assert refused(lambda: stub.Upload(large, timeout=60)) == "RESOURCE_EXHAUSTED"
    wait_for(lambda: served.counts() == (0, 0))
    wait_for(lambda: memory_files() <= served.files_before, 10)


@pytest.mark.parametrize("parts", [0, 1, 3])
def test_clients_that_leave_give_everything_back(serve: Serve, parts: int) -> None:
    served = serve()
    assert served.stub.GetModelInfo(pb.GetModelInfoRequest(), timeout=10)
    for _ in range(10):
        with RawConnection(served.server.address) as leaving:
            leaving.call(UPLOAD, *[PART] * parts, end=False)
            wait_for(lambda: served.counts() == (1, 1000 * parts))
        wait_for(lambda: served.counts() == (0, 0))
        sender = Sender(served.stub)
        for _part in range(parts):
            sender.send(bytes(1000))
        wait_for(lambda: served.counts() == (1, 1000 * parts))
        sender.call.cancel()
        sender.send(None)
        wait_for(lambda: served.counts() == (0, 0))
    wait_for(lambda: not served.server.calls_in_flight)
    wait_for(lambda: memory_files() <= served.files_before, 10)


def test_ids_are_of_no_use_to_others(serve: Serve) -> None:
    served = serve(known=True)
    name = upload(served.stub, PICTURE, GOOD).id
    assert len(name) >= 20
    study = served.stub.BeginStudy(pb.BeginStudyRequest(), metadata=BAD).id
    image = pb.Image(upload=name)
    for guess in (name, name[:-1], name.upper(), "", "x" * 100_000, "../" + name):
        image = pb.Image(upload=guess)
        asked = pb.GenerateReportRequest(images=[image])
        expected = "NOT_FOUND" if guess else "INVALID_ARGUMENT"  # that has no file at all
        assert refused(lambda asked=asked: list(served.stub.GenerateReport(asked, metadata=BAD))) == expected
        adding = pb.AddImageRequest(study=study, image=image)
        assert refused(lambda adding=adding: served.stub.AddImage(adding, metadata=BAD)) == expected
        forgetting = pb.ForgetUploadRequest(id=guess)
        assert refused(lambda asked=forgetting: served.stub.ForgetUpload(asked, metadata=BAD)) == "NOT_FOUND"
    assert refused(lambda: served.stub.Upload(iter([pb.UploadRequest(data=b"x")]))) == "UNAUTHENTICATED"
    asked = pb.GenerateReportRequest(images=[pb.Image(upload=name)])
    assert list(served.stub.GenerateReport(asked, metadata=GOOD))[-1].result.text == "Done"


def test_more_than_a_share_leaves_the_rest_to_others(serve: Serve) -> None:
    served = serve(known=True, uploads=UploadLimits(max_bytes=40_000))
    sent = 0
    with pytest.raises(grpc.RpcError):
        while True:
            sent += upload(served.stub, bytes(9000), BAD).bytes
    assert sent == 27_000, "three quarters"
    assert upload(served.stub, bytes(9000), GOOD).bytes == 9000


@pytest.mark.parametrize("adding", [False, True])
@pytest.mark.parametrize("way", ["forgotten", "expired"])
def test_a_file_that_goes_while_it_is_decoded_is_decoded(serve: Serve, adding: bool, way: str) -> None:
    served = serve(uploads=UploadLimits(max_bytes=2 * len(PICTURE) - 1, expires_after_seconds=300.0))
    name = upload(served.stub, PICTURE).id
    served.engine.go_on.clear()
    image = pb.Image(upload=name)
    if adding:
        study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
        call = served.stub.AddImage.future(pb.AddImageRequest(study=study, image=image), timeout=60)
    else:
        call = served.stub.GenerateReport(pb.GenerateReportRequest(images=[image]), timeout=60)
    assert served.engine.decoding.wait(60)
    if way == "forgotten":
        served.stub.ForgetUpload(pb.ForgetUploadRequest(id=name))
    else:
        later = served.server.uploads._clock() + 1000
        served.server.uploads._clock = lambda: later
        served.server.uploads.forget_old()
    assert refused(lambda: upload(served.stub, PICTURE)) == "RESOURCE_EXHAUSTED", "what is in use takes memory"
    served.engine.go_on.set()
    if adding:
        assert call.result(60).frames == 1
    else:
        assert list(call)[-1].result.text == "Done"
    if way == "forgotten":
        wait_for(lambda: served.counts() == (0, 0))
        wait_for(lambda: memory_files() <= served.files_before, 10)


def test_uploads_do_not_hold_up_the_end(serve: Serve) -> None:
    served = serve()
    sender = Sender(served.stub)
    sender.send(b"data")
    wait_for(lambda: served.counts() == (1, 4))
    stopping = threading.Thread(target=served.server.stop)
    stopping.start()
    assert sender.call.code() is grpc.StatusCode.UNAVAILABLE
    sender.send(None)
    stopping.join(60)
    assert not stopping.is_alive() and served.counts() == (0, 0)
