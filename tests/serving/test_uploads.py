"""Uploaded files: read as though they had been sent in the request, kept apart by client, bounded, forgotten in time."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.errors import Busy, InvalidInput, NotFound, NotOffered, Unavailable, UserError
from echovlm_edge.runtime.contracts.request import FrameSelection, OriginalFrames
from echovlm_edge.runtime.observability.metrics import Metrics
from echovlm_edge.runtime.serving.access.clients import ANYBODY, Client
from echovlm_edge.runtime.serving.messages import CallLimits, image_input
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from echovlm_edge.runtime.serving.uploads import IncomingFile, UploadLimits, Uploads
from tests.support.decoding_engine import DecodingEngine
from tests.support.dicom_files import png, shipped
from tests.support.open_memory_files import memory_files
from tests.support.questions import question, result
from tests.support.running_server import Running, running
from tests.support.uploading import upload

OPTIONS = question(16).options
CINE = shipped("examples_ybr_color.dcm")
PICTURE = png(84, 84)
MINE, OTHER = Client("mine", token_sha256="0" * 64), Client("other", token_sha256="1" * 64)


def kept(uploads: Uploads, client: Client, data: bytes) -> str:
    """Upload a file; returns its id."""
    file = uploads.begin(client)
    try:
        file.add(data)
        return file.finish()
    except UserError:
        file.abandon()
        raise


# --- in calls ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    """Takes messages that are smaller than the cine."""
    with running(golden_bundle, ServerOptions(limits=CallLimits(message_bytes=len(CINE) // 2))) as server:
        yield server


@pytest.fixture(scope="module")
def roomy(golden_bundle: Path) -> Iterator[Running]:
    """Takes messages of any size."""
    with running(golden_bundle) as server:
        yield server


SELECTED = pb.FrameSelection(indices=pb.FrameIndices(index=[0, 29]))
CINES = [pb.Image(data=CINE, frames=SELECTED), pb.Image(data=PICTURE)]


@pytest.mark.parametrize("method", ["GenerateReport", "Diagnose", "AnswerQuestion"])
def test_an_uploaded_file_gets_the_text_of_one_that_was_sent(served: Running, roomy: Running, method: str) -> None:
    asked = {
        "GenerateReport": pb.GenerateReportRequest(options=OPTIONS),
        "Diagnose": pb.DiagnoseRequest(options=OPTIONS),
        "AnswerQuestion": pb.AnswerQuestionRequest(question="What is it?", options=OPTIONS),
    }[method]
    asked.images.extend(CINES)
    sent = result(getattr(roomy.stub, method)(asked))
    uploaded = upload(served.stub, CINE)
    assert uploaded.bytes == len(CINE) and uploaded.expires_after_seconds == 300
    asked.images[0].ClearField("data")
    asked.images[0].upload = uploaded.id
    for _ in range(2):  # a call does not use it up
        got = result(getattr(served.stub, method)(asked))
        assert (got.text, got.token_ids) == (sent.text, sent.token_ids)


def test_a_study_takes_an_uploaded_file(served: Running, roomy: Running) -> None:
    image = pb.Image(upload=upload(served.stub, CINE).id, frames=SELECTED)
    study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    assert served.stub.AddImage(pb.AddImageRequest(study=study, image=image)).frames == 2
    served.stub.ForgetUpload(pb.ForgetUploadRequest(id=image.upload))
    got = result(served.stub.GenerateReport(pb.GenerateReportRequest(study=study, options=OPTIONS)))
    sent = result(roomy.stub.GenerateReport(pb.GenerateReportRequest(images=CINES[:1], options=OPTIONS)))
    assert got.text == sent.text
    served.stub.EndStudy(pb.EndStudyRequest(study=study))


def test_metrics_count_them(served: Running) -> None:
    value = served.metrics.registry.get_sample_value
    before = value("echovlm_uploads"), value("echovlm_upload_bytes")
    name = upload(served.stub, PICTURE).id
    assert value("echovlm_uploads") == (before[0] or 0) + 1
    assert value("echovlm_upload_bytes") == (before[1] or 0) + len(PICTURE)
    served.stub.ForgetUpload(pb.ForgetUploadRequest(id=name))
    assert (value("echovlm_uploads"), value("echovlm_upload_bytes")) == before
    assert Metrics(served.engine.stats, lambda: (0, 0)).registry.get_sample_value("echovlm_uploads") == 0


Serve = Callable[..., tuple[ReportServer, report_pb2_grpc.ReportServiceStub]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as ending:

        def started(uploads: UploadLimits, **options: object) -> tuple[ReportServer, report_pb2_grpc.ReportServiceStub]:
            chosen = ServerOptions("127.0.0.1:0", grace_seconds=0.2, uploads=uploads, **options)  # type: ignore[arg-type]
            server = ReportServer(DecodingEngine(), chosen)
            ending.callback(server.stop)
            channel = ending.enter_context(grpc.insecure_channel(server.address))
            return server, report_pb2_grpc.ReportServiceStub(channel)

        yield started


def refused(call: Callable[[], object]) -> tuple[str, str]:
    """The status and the sentence of a call that is refused."""
    with pytest.raises(grpc.RpcError) as refusal:
        call()
    return refusal.value.code().name, refusal.value.details()  # type: ignore[attr-defined]


def test_a_client_learns_how_large_a_file_may_be(serve: Serve) -> None:
    _, stub = serve(UploadLimits(max_bytes=5000, max_file_bytes=4000))
    assert stub.GetModelInfo(pb.GetModelInfoRequest()).limits.max_upload_bytes == 4000
    assert Uploads(UploadLimits(max_bytes=4000, max_file_bytes=9000)).most_bytes(MINE) == 3000, "its share"
    assert Uploads(UploadLimits()).most_bytes(ANYBODY) >= 400_000_000, "a cine of five minutes"


def test_a_server_without_uploads_says_so_before_it_reads_one(serve: Serve) -> None:
    _, stub = serve(UploadLimits(max_bytes=0))
    assert stub.GetModelInfo(pb.GetModelInfoRequest()).limits.max_upload_bytes == 0
    code, sentence = refused(lambda: stub.Upload(endless(b"x"), timeout=20))
    assert code == "UNIMPLEMENTED" and sentence.startswith("This server takes no uploads: send the file")


def endless(part: bytes) -> Iterator[pb.UploadRequest]:
    while True:
        yield pb.UploadRequest(data=part)


def test_what_cannot_be_taken_is_refused_before_all_of_it_came(serve: Serve) -> None:
    server, stub = serve(UploadLimits(max_bytes=20_000, max_file_bytes=10_000))
    code, sentence = refused(lambda: stub.Upload(endless(bytes(1000)), timeout=20))
    assert (
        code == "INVALID_ARGUMENT" and sentence == "The uploaded file has more than 10,000 bytes: send a smaller one."
    )
    for _ in range(2):
        upload(stub, bytes(9000))
    call = stub.Upload.future(endless(bytes(1000)), timeout=20)
    assert call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert call.details() == "The memory for uploaded files is full: try again later."
    assert int(dict(call.trailing_metadata())["grpc-retry-pushback-ms"]) >= 1000
    assert server.uploads.counts() == (2, 18_000)


@pytest.mark.parametrize("sent", [[], [b""], [b"data", b""]])
def test_an_empty_file_and_an_empty_part_are_refused(serve: Serve, sent: list[bytes]) -> None:
    server, stub = serve(UploadLimits())
    code, sentence = refused(lambda: stub.Upload(iter(pb.UploadRequest(data=part) for part in sent), timeout=20))
    assert code == "INVALID_ARGUMENT" and "empty: send" in sentence
    assert server.uploads.counts() == (0, 0)


def test_an_image_has_one_file(serve: Serve) -> None:
    _, stub = serve(UploadLimits())
    name = upload(stub, PICTURE).id
    both = pb.Image(data=PICTURE, upload=name)
    unknown = pb.Image(upload="guessed")
    study = stub.BeginStudy(pb.BeginStudyRequest()).id
    for image, said in (
        (both, ("INVALID_ARGUMENT", "image 1 has both data and an upload: send one of them.")),
        (unknown, ("NOT_FOUND", NO_SUCH)),
    ):
        assert refused(lambda image=image: list(stub.GenerateReport(pb.GenerateReportRequest(images=[image])))) == said
        assert refused(lambda image=image: stub.AddImage(pb.AddImageRequest(study=study, image=image))) == said
    assert refused(lambda: stub.ForgetUpload(pb.ForgetUploadRequest(id="guessed"))) == ("NOT_FOUND", NO_SUCH)


NO_SUCH = "There is no such upload: it was forgotten, or has expired; send the file again."


# --- where the frames of a shortened cine come from ----------------------------------------------------------------


def test_a_shortened_cine_is_read_whole() -> None:
    image = pb.Image(data=b"file", original=pb.OriginalFrames(index=[20, 7], count=30))
    read = image_input(image, 1)
    assert read.original == OriginalFrames((20, 7), 30)
    assert read.selection == FrameSelection((0, 1))
    assert image_input(pb.Image(data=b"file"), 1).original is None


@pytest.mark.parametrize(
    ("index", "count", "sentence"),
    [
        ([], 30, "image 3 has no frame numbers of its original"),
        ([0, 30], 30, "image 3 gives frame 30 of an original that has 30 frames"),
        ([0], 0, "image 3 gives frame 0 of an original that has 0 frames"),
        (range(65), 1000, "image 3 has 65 frames of its original, at most 64"),
    ],
)
def test_an_original_that_cannot_be_is_refused(index: list[int], count: int, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        image_input(pb.Image(data=b"file", original=pb.OriginalFrames(index=index, count=count)), 3)


def test_frames_of_shortened_cines_count_as_frames() -> None:
    many = pb.Image(original=pb.OriginalFrames(index=range(60), count=60))
    with pytest.raises(InvalidInput, match="asks for 180 frames"):
        CallLimits().check("", [many] * 3)


# --- the store -----------------------------------------------------------------------------------------------------


def test_files_belong_to_clients_and_expire() -> None:
    now = [0.0]
    uploads = Uploads(UploadLimits(expires_after_seconds=60), lambda: now[0])
    name = kept(uploads, MINE, b"data")
    for act in (uploads.forget, lambda client, name: uploads.use(client, name).__enter__()):
        with pytest.raises(NotFound):
            act(OTHER, name)
    now[0] = 50
    with uploads.use(MINE, name) as file:
        assert file.open().read() == b"data"
        now[0] = 200
        uploads.forget_old()
        assert uploads.counts() == (1, 4) and file.open().read() == b"data", "it expired while it was in use"
    now[0] = 259
    uploads.forget_old()
    assert uploads.counts() == (1, 4), "its use ended not long ago"
    now[0] = 261
    uploads.forget_old()
    assert uploads.counts() == (0, 0)
    with pytest.raises(NotFound):
        uploads.forget(MINE, name)


def test_a_file_forgotten_in_use_is_there_and_counted_until_then() -> None:
    before, uploads = memory_files(), Uploads(UploadLimits(max_bytes=10))
    name = kept(uploads, ANYBODY, b"12345678")
    with uploads.use(ANYBODY, name) as file, uploads.use(ANYBODY, name) as again:
        uploads.forget(ANYBODY, name)
        with pytest.raises(NotFound):
            uploads.use(ANYBODY, name).__enter__()
        with pytest.raises(Busy):
            kept(uploads, ANYBODY, b"1234")
        assert file.open().read() == again.open().read() == b"12345678"
    assert uploads.counts() == (0, 0)
    gc.collect()  # refusals' tracebacks
    assert memory_files() <= before
    kept(uploads, ANYBODY, b"1234")


def test_a_client_has_its_share_and_no_more() -> None:
    uploads = Uploads(UploadLimits(max_bytes=4000, max_files=4))
    for _ in range(2):
        kept(uploads, MINE, bytes(1400))
    with pytest.raises(Busy, match="Your uploaded files use all the memory"):
        kept(uploads, MINE, bytes(400))
    with pytest.raises(InvalidInput, match="more than 3,000 bytes"):
        kept(uploads, MINE, bytes(3001))
    kept(uploads, MINE, b"1")
    with pytest.raises(Busy, match="The server holds 3 of your uploaded files"):
        uploads.begin(MINE)
    kept(uploads, OTHER, bytes(1000))
    with pytest.raises(Busy, match="maximum number of uploaded files"):
        uploads.begin(OTHER)


def test_an_unfinished_file_counts_as_it_grows() -> None:
    uploads = Uploads(UploadLimits(max_bytes=10))
    file = uploads.begin(ANYBODY)
    file.add(b"12345678")
    assert uploads.counts() == (1, 8)
    with pytest.raises(Busy, match="memory for uploaded files is full"):
        kept(uploads, ANYBODY, b"1234")
    file.abandon()
    assert uploads.counts() == (0, 0)


def test_a_file_that_is_given_up_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its descriptor's number may be somebody else's by then."""
    uploads, before = Uploads(UploadLimits()), memory_files()
    file = uploads.begin(ANYBODY)
    file.add(b"data")
    writing, on = threading.Event(), threading.Event()
    write = os.write

    def slow(descriptor: int, data: bytes) -> int:
        writing.set()
        assert on.wait(60)
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", slow)
    adding = threading.Thread(target=lambda: file.add(b"more"))
    adding.start()
    assert writing.wait(60)
    abandoning = threading.Thread(target=file.abandon)
    abandoning.start()
    abandoning.join(0.05)
    assert abandoning.is_alive(), "it was closed under the write"
    on.set()
    adding.join()
    abandoning.join()
    file.add(b"more")
    with pytest.raises(Unavailable):
        file.finish()
    gc.collect()
    assert uploads.counts() == (0, 0) and memory_files() <= before


def test_nothing_new_is_taken_at_the_end() -> None:
    uploads = Uploads(UploadLimits())
    name = kept(uploads, MINE, b"data")
    uploads.close()
    with pytest.raises(Unavailable):
        uploads.begin(MINE)
    with uploads.use(MINE, name) as file:
        assert len(file) == 4
    with pytest.raises(NotOffered):
        Uploads(UploadLimits(max_bytes=0)).begin(MINE)


def test_without_memory_or_descriptors_a_client_may_ask_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(24, "Too many open files")

    uploads = Uploads(UploadLimits())
    file = uploads.begin(MINE)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(Busy, match="no memory for the upload"):
        file.add(b"data")
    file.abandon()
    monkeypatch.setattr(os, "memfd_create", fail)
    with pytest.raises(Busy, match="no free file descriptor for an upload"):
        uploads.begin(MINE)
    assert uploads.counts() == (0, 0)


class Clients(RuleBasedStateMachine):
    """Two clients in any order; what they have never exceeds what they may, and nothing is left that nobody has."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.before = memory_files()
        self.uploads = Uploads(UploadLimits(1000, 8, 600, expires_after_seconds=10), lambda: self.now)
        self.coming = list[IncomingFile]()
        self.names = list[tuple[Client, str, int]]()
        self.in_use = list[ExitStack]()

    @rule(client=st.sampled_from((MINE, OTHER)))
    def begin(self, client: Client) -> None:
        with suppress(Busy):
            self.coming.append(self.uploads.begin(client))

    @precondition(lambda self: self.coming)
    @rule(data=st.data(), size=st.integers(0, 400))
    def add(self, data: st.DataObject, size: int) -> None:
        file = data.draw(st.sampled_from(self.coming))
        with suppress(Busy, InvalidInput):
            file.add(bytes(size))

    @precondition(lambda self: self.coming)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data: st.DataObject, keep: bool) -> None:
        file = data.draw(st.sampled_from(self.coming))
        self.coming.remove(file)
        if keep and file.size:
            self.names.append((file._client, file.finish(), file.size))
        else:
            file.abandon()

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        client, name, size = data.draw(st.sampled_from(self.names))
        using = ExitStack()
        with suppress(NotFound):
            assert len(using.enter_context(self.uploads.use(client, name)).open().read()) == size
            self.in_use.append(using)

    @precondition(lambda self: self.in_use)
    @rule()
    def end_use(self) -> None:
        self.in_use.pop().close()

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        client, name, _ = data.draw(st.sampled_from(self.names))
        with suppress(NotFound):
            self.uploads.forget(client, name)

    @rule()
    def wait(self) -> None:
        self.now += 6

    @invariant()
    def nobody_has_more_than_they_may(self) -> None:
        held = self.uploads._held
        assert sum(one.bytes for one in held) <= 1000 and len(held) <= 8
        for client in (MINE, OTHER):
            own = [one for one in held if one.client == client.name]
            assert sum(one.bytes for one in own) <= 750 and len(own) <= 6
        assert set(self.uploads._named.values()) <= held

    def teardown(self) -> None:
        for file in self.coming:
            file.abandon()
        for using in self.in_use:
            using.close()
        self.now += 100
        self.uploads.forget_old()
        assert self.uploads.counts() == (0, 0)
        assert memory_files() <= self.before, "a file is left"


Clients.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
TestClients = Clients.TestCase
