"""Clients that mean harm: they hold calls open, send too much, never read, or speak no protobuf. Nobody else notices."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.soak.raw_http2 import RawConnection, grpc_status
from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.errors import Busy, InvalidInput, Unavailable
from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, GenerationRequest, TextDelta
from echovlm_edge.runtime.engine.engine_info import EngineInfo
from echovlm_edge.runtime.serving.access.admission import Admission
from echovlm_edge.runtime.serving.access.clients import ANYBODY, Arrival, Client, ClientsFile, Everybody
from echovlm_edge.runtime.serving.transport.limits import TransportLimits
from echovlm_edge.runtime.serving.transport.receiving import Receiver, ReceivingLimits
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from echovlm_edge.runtime.serving.transport.wire_shape import check_shape
from tests.support.client_process import memory_during
from tests.support.clients_file import clients_file
from tests.support.decoding_engine import DecodingEngine
from tests.support.waiting import wait_for

SERVICE = "/echovlm.v1.ReportService"
QUESTION = pb.AnswerQuestionRequest(question="Why?")
TOKEN = (("authorization", "Bearer secret"),)


class TalkativeEngine(DecodingEngine):
    """Writes much, at once."""

    info = EngineInfo("talkative", "0" * 64, "b", 1, "cpu", "fp32", 100, 1000)

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        for _ in range(4):
            yield TextDelta("word " * 10_000)
        yield Finished("word", (1,), FinishReason.STOP, 1, 0, {}, 0.0)


Serve = Callable[..., ReportServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def started(access: object = None, **options: object) -> ReportServer:
        chosen = ServerOptions("127.0.0.1:0", **{"grace_seconds": 0.2, **options})  # type: ignore[arg-type]
        servers.append(ReportServer(TalkativeEngine(), chosen, access=access))  # type: ignore[arg-type]
        return servers[-1]

    yield started
    for server in servers:
        server.stop()


@pytest.fixture
def clients(tmp_path: Path) -> ClientsFile:
    return ClientsFile(clients_file(tmp_path, {"cart": {"token": "secret"}}))


def answers(server: ReportServer, metadata: object = ()) -> None:
    """Health and a report, as any other client gets them."""
    with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=10).status == 1
        stub = report_pb2_grpc.ReportServiceStub(channel)
        assert stub.GetModelInfo(pb.GetModelInfoRequest(), metadata=metadata, timeout=10).model == "talkative"
        *_, last = stub.AnswerQuestion(QUESTION, metadata=metadata, timeout=10)
        assert last.result.text == "word"


def test_half_open_calls_hold_nobody_up(serve: Serve) -> None:
    server = serve(slots=2, queue=2)
    with ExitStack() as connections:
        for _ in range(8):
            connection = connections.enter_context(RawConnection(server.address))
            for method in ("AnswerQuestion", "GetModelInfo", "AddImage") * 4:
                connection.call(f"{SERVICE}/{method}", end=False)
            connection.call("/grpc.health.v1.Health/Check", end=False)
            connection.call("/grpc.health.v1.Health/Watch", end=False)
        answers(server)
        assert server.admission.inside == 0


def test_half_open_calls_with_a_token_hold_only_that_client_up(serve: Serve, tmp_path: Path) -> None:
    two = clients_file(tmp_path, {"cart": {"token": "secret"}, "bad": {"token": "stolen"}})
    server = serve(ClientsFile(two), slots=2, queue=2)
    with ExitStack() as connections:
        for _ in range(4):
            connection = connections.enter_context(RawConnection(server.address, token="stolen"))
            for _ in range(60):
                connection.call(f"{SERVICE}/AnswerQuestion", end=False)
        answers(server, TOKEN)


def test_a_stranger_is_refused_before_the_message(serve: Serve, clients: ClientsFile) -> None:
    server = serve(clients)
    with RawConnection(server.address) as stranger:
        stream = stranger.call(f"{SERVICE}/AnswerQuestion", end=False)  # and the message never comes
        assert grpc_status(stranger.events_until_end([stream])) == {stream: "16"}


def test_a_message_that_does_not_come_is_given_up(serve: Serve) -> None:
    server = serve(transport=TransportLimits(receiving=ReceivingLimits(seconds=0.1)))
    with RawConnection(server.address) as slow:
        stream = slow.call(f"{SERVICE}/GetModelInfo", end=False)
        assert grpc_status(slow.events_until_end([stream])) == {stream: "3"}


def test_strangers_large_messages_are_not_held(serve: Serve, clients: ClientsFile) -> None:
    server = serve(clients)
    client = (
        "import grpc, sys, threading; from echovlm.v1 import report_pb2 as pb, report_pb2_grpc\n"
        "asked = pb.AnswerQuestionRequest(question='Why?', images=[pb.Image(data=bytes(60_000_000))])\n"
        "health = b'\\x0a\\x80\\xce\\xda\\x03' + bytes(7_776_000)\n"
        "def ask():\n"
        "    options = [('grpc.max_send_message_length', -1), ('grpc.use_local_subchannel_pool', 1)]\n"
        "    channel = grpc.insecure_channel(sys.argv[1], options)\n"
        "    for method, message in (('/echovlm.v1.ReportService/AnswerQuestion', asked.SerializeToString()),\n"
        "                            ('/grpc.health.v1.Health/Check', health)):\n"
        "        try: list(channel.unary_stream(method)(message, timeout=60)); said.append('OK')\n"
        "        except grpc.RpcError as error: said.append(error.code().name)\n"
        "said = []; threads = [threading.Thread(target=ask) for _ in range(12)]\n"
        "[thread.start() for thread in threads]; [thread.join() for thread in threads]; print(*said)\n"
    )
    output, grown = memory_during(client, server.address)
    said = output.split()
    assert said.count("UNAUTHENTICATED") == 12 and said.count("NOT_FOUND") + said.count("OK") == 12, said
    assert grown < 150e6, f"{grown / 1e6:.0f} MB more"


@pytest.mark.parametrize("method", ["Check", "Watch"])
def test_the_health_of_an_unknown_name_is_not_found(serve: Serve, method: str) -> None:
    server = serve(transport=TransportLimits(health_seconds=20.0))
    with grpc.insecure_channel(server.address) as channel:
        asked = health_pb2.HealthCheckRequest(service="x" * 2_000_000)
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            list(stub.Watch(asked, timeout=10)) if method == "Watch" else stub.Check(asked, timeout=10)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]


def test_silent_connections_are_closed_and_let_others_in(serve: Serve) -> None:
    server = serve(transport=TransportLimits(connections=8, handshake_seconds=0.5))
    host, _, port = server.address.rpartition(":")
    with ExitStack() as silent:
        for _ in range(20):
            silent.enter_context(socket.create_connection((host, int(port))))

        def answered() -> bool:
            try:
                answers(server)
            except grpc.RpcError:
                return False
            return True

        wait_for(answered)


def test_connections_without_calls_are_closed(serve: Serve) -> None:
    server = serve(transport=TransportLimits(idle_seconds=0.3))
    with RawConnection(server.address) as idle:
        while idle.socket.recv(1 << 16):
            pass  # until the server closes it


def test_answers_that_nobody_reads_hold_no_place(serve: Serve) -> None:
    server = serve(slots=2, queue=2, transport=TransportLimits(delivery_seconds=1.0))
    message = QUESTION.SerializeToString()
    with RawConnection(server.address, window=0) as deaf:
        streams = []
        for _ in range(12):  # three times as many as there are places
            wait_for(lambda: server.admission.inside < 4)
            streams.append(deaf.call(f"{SERVICE}/AnswerQuestion", message))
        wait_for(lambda: server.admission.inside == 0)
        answers(server)
        wait_for(lambda: not server.calls_in_flight)
    answers(server)


@pytest.mark.parametrize("method", ["AnswerQuestion", "GetModelInfo"])
def test_what_is_no_message_is_refused_without_a_traceback(
    serve: Serve,
    method: str,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])  # other tests' may be closed
    server = serve(transport=TransportLimits(health_seconds=20.0))
    with RawConnection(server.address) as odd, caplog.at_level(logging.INFO):
        streams = [
            odd.call(f"{SERVICE}/{method}", b"\xff\xff\xff no protobuf"),
            odd.call(f"{SERVICE}/{method}"),  # ends without a message
            odd.call("/grpc.health.v1.Health/Check", b"\x0a\xff"),
            odd.call("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", b"\xff"),
        ]
        assert set(grpc_status(odd.events_until_end(streams)).values()) == {"3"}
    assert "Traceback" not in caplog.text + "".join(capfd.readouterr())


def test_who_calls_is_asked_once(serve: Serve) -> None:
    class Counting(Everybody):
        asked = 0

        def identify(self, arrival: Arrival) -> Client:
            self.asked += 1
            return super().identify(arrival)

    access = Counting()
    answers(serve(access))
    assert access.asked == 2, "a model's information and a question"


def test_open_streams_do_not_hold_up_the_end(serve: Serve) -> None:
    server = serve(grace_seconds=600.0)
    over = threading.Event()

    def no_message() -> Iterator[bytes]:
        over.wait(60)
        yield from ()

    with grpc.insecure_channel(server.address) as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"")
        next(watch)
        open_calls = [
            channel.stream_stream(f"{SERVICE}/AnswerQuestion")(no_message()),
            channel.stream_stream("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo")(no_message()),
        ]
        answers(server)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert (
            list(watch) == [health_pb2.HealthCheckResponse(status=2).SerializeToString()] and watch.code().value[0] == 0
        )
        assert {call.code() for call in open_calls} == {grpc.StatusCode.UNAVAILABLE}
        over.set()
        stopping.join(60)
        assert not stopping.is_alive()


def test_clients_that_leave_are_no_faults(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    server = serve()
    with grpc.insecure_channel(server.address) as channel, caplog.at_level(logging.INFO):
        stub = report_pb2_grpc.ReportServiceStub(channel)
        for _ in range(60):
            call = stub.AnswerQuestion(QUESTION)
            next(call)
            call.cancel()
        wait_for(lambda: not server.calls_in_flight)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_compressed_messages_are_refused(serve: Serve) -> None:
    with grpc.insecure_channel(serve().address, compression=grpc.Compression.Gzip) as channel:
        asked = health_pb2.HealthCheckRequest(service="x" * 1_000_000)
        with pytest.raises(grpc.RpcError) as refused:
            health_pb2_grpc.HealthStub(channel).Check(asked, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("message", "sentence"),
    [
        (b"\x0a\x00" * 3000, "more than 1,024 fields"),
        (b"\x0a\x80\x20" + b"\x1a\x00" * 2048, "more than 1,024 fields"),  # of one image
        (pb.GenerateReportRequest(prompt="x" * 2_000_000).SerializeToString(), "2,000,0.. bytes besides"),
        (
            pb.GenerateReportRequest(
                images=[pb.Image(frames=pb.FrameSelection(indices=pb.FrameIndices(index=range(900_000))))]
            ).SerializeToString(),
            "bytes besides",
        ),
        (b"\x0a\xff", "damaged"),
        (b"\x0a\x05abc", "damaged"),
    ],
)
def test_what_would_be_large_is_refused_before_it_is_parsed(message: bytes, sentence: str) -> None:
    with pytest.raises(InvalidInput, match=sentence):
        check_shape(message, pb.GenerateReportRequest)


@given(st.binary(max_size=300))
def test_every_message_that_parses_has_a_shape(data: bytes) -> None:
    try:
        pb.GenerateReportRequest.FromString(data)
    except DecodeError:
        return
    try:
        check_shape(data, pb.GenerateReportRequest)
    except InvalidInput:
        assert any(byte & 7 in (3, 4) for byte in data), "only groups, which no message here has, parse and are refused"


def test_pictures_of_any_size_have_a_shape() -> None:
    images = [pb.Image(data=bytes(3_000_000), media_type="image/png")] * 3
    check_shape(
        pb.GenerateReportRequest(images=images, prompt="x" * 20_000).SerializeToString(), pb.GenerateReportRequest
    )
    check_shape(pb.AddImageRequest(image=images[0]).SerializeToString(), pb.AddImageRequest)


def test_no_client_takes_all_places_by_default() -> None:
    admission, cart = Admission(8, 2, 1000), Client("cart", token_sha256="0" * 64)
    with ExitStack() as inside:
        for _ in range(6):
            inside.enter_context(admission.place(cart, 1))
        with pytest.raises(Busy, match="the maximum for your client"):
            inside.enter_context(admission.place(cart, 1))
        inside.enter_context(admission.place(Client("other", token_sha256="1" * 64), 1))


@pytest.mark.parametrize(
    "silent", ["connection", "client", "half-open call", "deaf reader", "deaf watch", "stopped client"]
)
def test_what_is_silent_does_not_hold_up_the_end(serve: Serve, silent: str) -> None:
    server = serve(grace_seconds=600.0, transport=TransportLimits(handshake_seconds=600.0, delivery_seconds=600.0))
    host, _, port = server.address.rpartition(":")
    with ExitStack() as open_:
        if silent == "connection":
            open_.enter_context(socket.create_connection((host, int(port))))
        elif silent == "stopped client":
            client = psutil.Process(open_.enter_context(idle_client(server.address)).pid)
            client.suspend()
        else:
            raw = open_.enter_context(RawConnection(server.address, window=0 if "deaf" in silent else 65_535))
            if silent == "half-open call":
                raw.call(f"{SERVICE}/AnswerQuestion", end=False)
            elif silent == "deaf reader":
                raw.call(f"{SERVICE}/AnswerQuestion", QUESTION.SerializeToString())
            elif silent == "deaf watch":
                raw.call("/grpc.health.v1.Health/Watch", b"")
            if "reader" in silent or "call" in silent:
                wait_for(lambda: server.calls_in_flight == 1 and server.admission.inside == 0)
        answers(server)
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()


@contextmanager
def idle_client(address: str) -> Iterator[subprocess.Popen[str]]:
    """A gRPC client of its own process, connected and without a call."""
    code = (
        "import grpc, sys; channel = grpc.insecure_channel(sys.argv[1])\n"
        "grpc.channel_ready_future(channel).result(60); print('connected', flush=True); sys.stdin.read()\n"
    )
    arguments = [sys.executable, "-c", code, address]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout and process.stdout.readline() == "connected\n"
            yield process
        finally:
            process.kill()


def test_batch_calls_never_take_all_places() -> None:
    admission = Admission(4, 2, 1000)
    with ExitStack() as inside:
        for _ in range(2):
            inside.enter_context(admission.place(ANYBODY, 1, batch=True))
        with pytest.raises(Busy, match="batch calls"):
            inside.enter_context(admission.place(ANYBODY, 1, batch=True))
        inside.enter_context(admission.place(ANYBODY, 1))
    with admission.place(ANYBODY, 1, batch=True):
        pass


def test_requests_inside_have_one_budget() -> None:
    admission = Admission(9, 2, 1000)
    for held in ((2000,), (500, 500)):  # alone, any message that was received is taken
        with ExitStack() as inside:
            for size in held:
                inside.enter_context(admission.place(ANYBODY, size))
            with pytest.raises(Busy, match="MB of requests"):
                inside.enter_context(admission.place(ANYBODY, 1))


async def never() -> bytes:
    await asyncio.Event().wait()
    return b""


async def at_once() -> bytes:
    return b"message"


def test_the_message_longest_on_its_way_makes_room() -> None:
    async def run() -> None:
        receiver = Receiver(ReceivingLimits(total=4, per_client=2))
        held = [asyncio.ensure_future(receiver.receive(never, client)) for client in "aabb"]
        await asyncio.sleep(0)
        assert await receiver.receive(at_once, "c") == b"message"
        done, _ = await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert held[0] in done and isinstance(held[0].exception(), Busy), "the oldest of those with most goes first"
        waiting = asyncio.ensure_future(receiver.receive(at_once, "b"))
        await asyncio.sleep(0.01)
        assert not waiting.done(), "a client's own calls wait their turn"
        receiver.close()
        for call in [*held[1:], waiting]:
            with pytest.raises((Unavailable, Busy)):
                await call
        await asyncio.sleep(0)
        assert not receiver._receiving and not receiver._turns

    asyncio.run(run())


def test_a_message_that_is_here_makes_no_room_for_others() -> None:
    async def run() -> None:
        receiver, parsed = Receiver(ReceivingLimits(total=2, per_client=1)), asyncio.Event()

        async def parse(message: bytes) -> int:
            await parsed.wait()
            return len(message)

        here = asyncio.ensure_future(receiver.receive_and(parse, at_once, "a"))
        await asyncio.sleep(0)
        held = [asyncio.ensure_future(receiver.receive(never, client)) for client in "bc"]
        await asyncio.wait(held, return_when=asyncio.FIRST_COMPLETED)
        assert [call.done() for call in held] == [True, False] and isinstance(held[0].exception(), Busy)
        again = asyncio.ensure_future(receiver.receive_and(parse, at_once, "a"))
        await asyncio.sleep(0.01)
        parsed.set()
        assert await here == await again == len(b"message")
        receiver.close()
        await asyncio.wait(held)

    asyncio.run(run())


def test_what_is_here_leaves_no_room_for_what_comes() -> None:
    async def run() -> None:
        receiver, parsed = Receiver(ReceivingLimits(total=2, per_client=1)), asyncio.Event()

        async def parse(message: bytes) -> bytes:
            await parsed.wait()
            return message

        here = [asyncio.ensure_future(receiver.receive_and(parse, at_once, client)) for client in "ab"]
        await asyncio.sleep(0.01)
        with pytest.raises(Busy):
            await receiver.receive(never, "c")
        parsed.set()
        assert await asyncio.gather(*here) == [b"message"] * 2
        assert await receiver.receive(at_once, "c") == b"message"

    asyncio.run(run())


def test_a_turn_is_given_back_however_a_call_ends() -> None:
    async def run() -> None:
        receiver = Receiver(ReceivingLimits(per_client=1, seconds=0.05))
        for _ in range(3):
            with pytest.raises(InvalidInput, match="did not arrive"):
                await receiver.receive(never, "a")
            cancelled = asyncio.ensure_future(receiver.receive(never, "a"))
            await asyncio.sleep(0.01)
            cancelled.cancel()
            await asyncio.wait([cancelled])
        late = [asyncio.ensure_future(receiver.receive(never, "a")) for _ in range(3)]
        for call in late:
            with pytest.raises(InvalidInput):
                await call
        assert await receiver.receive(at_once, "a") == b"message"
        await asyncio.sleep(0)
        assert not receiver._receiving and not receiver._turns

    asyncio.run(run())
