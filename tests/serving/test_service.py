"""The server on loopback: events in order, errors by status, cancellation within a token, health, commands, draining."""

from __future__ import annotations

import json
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client import report_command
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import (
    Event,
    Finished,
    FinishReason,
    Frame,
    GenerationRequest,
    ImageInput,
    Sampling,
    Stage,
    StageStarted,
    TextDelta,
)
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.engine.engine_info import EngineInfo
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.imaging.decoder import Asker
from echovlm_edge.runtime.serving.messages import CallLimits
from echovlm_edge.runtime.serving.supervision.serve_command import main as serve
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.dicom_files import png, shipped
from tests.support.server_process import server_process

TOKEN_SECONDS = 0.02
PICTURE = ImageInput(png(64, 64))


class SlowEngine:
    """Writes a letter every 20 ms until it is stopped, and remembers what it was asked."""

    info = EngineInfo("slow", "0" * 64, "b", 1, "cpu", "fp32", 100, 1000)

    def __init__(self) -> None:
        self.requests: list[GenerationRequest] = []
        self.tokens = 0
        self.stopped, self.goes_on = threading.Event(), threading.Event()
        self.goes_on.set()
        self.failure: Exception | None = None

    def generate(self, request: GenerationRequest, stopped: Callable[[], bool]) -> Iterator[Event]:
        self.requests.append(request)
        self.tokens = 0
        if self.failure:
            raise self.failure
        yield StageStarted(Stage.PREFILL)
        try:
            while self.tokens < request.sampling.max_new_tokens and not stopped():
                time.sleep(TOKEN_SECONDS)
                self.tokens += 1
                yield TextDelta("字")
                assert self.goes_on.wait(60)
            text = "字" * self.tokens
            yield Finished(text, tuple(range(self.tokens)), FinishReason.LENGTH, 7, 4, {Stage.PREFILL: 0.5}, 0.25)
        finally:
            self.stopped.set()

    def prepare(self, frames: Sequence[Frame], client: str, scope: str, stopped: Callable[[], bool]) -> None: ...

    def prompt_tokens(self, frames: Sequence[Frame]) -> int:
        return 10 * len(frames)

    def read_image(
        self, image: ImageInput, before: Sequence[Frame], asker: Asker, allow_mixed_studies: bool
    ) -> list[Frame]:
        return []


@pytest.fixture
def engine() -> SlowEngine:
    return SlowEngine()


@pytest.fixture
def server(engine: SlowEngine) -> Iterator[ReportServer]:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.2, slots=2, queue=6))
    yield server
    server.stop()


@pytest.fixture
def client(server: ReportServer) -> Iterator[Connection]:
    with Connection(server.address) as client:
        yield client


@pytest.fixture
def stub(server: ReportServer) -> Iterator[report_pb2_grpc.ReportServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield report_pb2_grpc.ReportServiceStub(channel)


def test_events_come_in_order_and_the_result_last(client: Connection) -> None:
    events = list(client.generate(ReportRequest(images=[PICTURE], sampling=Sampling(max_new_tokens=3))))
    assert [event.WhichOneof("event") for event in events] == ["stage_started", "text", "text", "text", "result"]
    result = events[-1].result
    assert result.text == "字字字" and result.finish_reason == pb.FINISH_REASON_LENGTH
    assert (result.usage.prompt_tokens, result.usage.image_tokens, result.usage.generated_tokens) == (7, 4, 3)
    assert result.timings.stages[0] == pb.StageTime(stage=pb.STAGE_PREFILL, seconds=0.5)
    assert list(result.token_ids) == [], "token ids only where they were asked for"


def test_text_streams_while_the_rest_is_being_written(client: Connection, engine: SlowEngine) -> None:
    engine.goes_on.clear()  # after its first token
    events = client.generate(ReportRequest(images=[PICTURE], sampling=Sampling(max_new_tokens=100)))
    next(event for event in events if event.text)
    assert engine.tokens == 1
    engine.goes_on.set()
    assert [*events][-1].result.usage.generated_tokens == 100


@pytest.mark.parametrize("way", ["cancel", "deadline"])
def test_a_call_that_ends_stops_the_generation_within_a_token(way: str, stub: object, engine: SlowEngine) -> None:
    request = pb.GenerateReportRequest(images=[pb.Image(data=PICTURE.data)])
    call = stub.GenerateReport(request, timeout=10 * TOKEN_SECONDS if way == "deadline" else None)  # type: ignore[attr-defined]
    for count, _ in enumerate(iter(lambda: next(call, None), None) if way == "cancel" else ()):
        if count == 5:
            break
    if way == "cancel":
        call.cancel()
    with pytest.raises(grpc.RpcError) as ended:
        list(call)
    expected = grpc.StatusCode.CANCELLED if way == "cancel" else grpc.StatusCode.DEADLINE_EXCEEDED
    assert ended.value.code() is expected  # type: ignore[attr-defined]
    tokens_at_end = engine.tokens
    assert engine.stopped.wait(2), "the generation went on"
    assert engine.tokens <= tokens_at_end + 2, "more than the running token came after the end"


@pytest.mark.parametrize(
    ("failure", "code", "sentence"),
    [
        (InvalidInput("image 1 is empty."), grpc.StatusCode.INVALID_ARGUMENT, "image 1 is empty."),
        (NotPossibleHere("The disk is full."), grpc.StatusCode.FAILED_PRECONDITION, "The disk is full."),
        (KeyError("patient Smith"), grpc.StatusCode.INTERNAL, "its log says where"),
    ],
)
def test_errors_by_status(
    failure: Exception,
    code: grpc.StatusCode,
    sentence: str,
    stub: object,
    engine: SlowEngine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.failure = failure
    with caplog.at_level(logging.INFO), pytest.raises(grpc.RpcError) as refused:
        list(stub.GenerateReport(pb.GenerateReportRequest(images=[pb.Image(data=b"x")])))  # type: ignore[attr-defined]
    assert refused.value.code() is code and sentence in refused.value.details()  # type: ignore[attr-defined]
    assert "Smith" not in caplog.text + refused.value.details()  # type: ignore[attr-defined]
    assert ("KeyError" in caplog.text) == (code is grpc.StatusCode.INTERNAL)


def test_what_a_task_needs(client: Connection) -> None:
    with pytest.raises(InvalidInput, match="report needs at least one image"):
        list(client.generate(ReportRequest(Task.REPORT)))
    with pytest.raises(InvalidInput, match="question is empty"):
        list(client.generate(ReportRequest(Task.QUESTION, [PICTURE])))
    with pytest.raises(InvalidInput, match="temperature must be between"):
        bad = pb.Sampling(temperature=-1)
        request = pb.AnswerQuestionRequest(question="Why?", options=pb.GenerationOptions(sampling=bad))
        try:
            list(client._stub.AnswerQuestion(request))
        except grpc.RpcError as error:
            raise client._explained(error) from None


def test_default_prompts_name_language_and_region(client: Connection, engine: SlowEngine) -> None:
    one = Sampling(max_new_tokens=1)
    for task in (Task.REPORT, Task.DIAGNOSIS):
        for language, region in ((Language.EN, Region.THYROID), (Language.ZH, Region.BREAST), (Language.ZH, None)):
            list(client.generate(ReportRequest(task, [PICTURE], "", language, region, one)))
    prompts = [request.prompt for request in engine.requests]
    assert len(set(prompts)) == 6
    assert "thyroid" in prompts[0] and "乳腺" in prompts[1] and prompts[2] == "帮我给出超声报告"
    list(client.generate(ReportRequest(Task.REPORT, [PICTURE], "My own words", sampling=one)))
    assert engine.requests[-1].prompt == "My own words"


def test_an_absent_sampling_option_is_the_default(stub: object, engine: SlowEngine) -> None:
    options = pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=1, seed=9))
    list(stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?", options=options)))  # type: ignore[attr-defined]
    assert engine.requests[-1].sampling == Sampling(max_new_tokens=1, seed=9)


def test_model_info(client: Connection) -> None:
    info = client.model_info()
    assert (info.model, info.precision, info.limits.max_sequence) == ("slow", "fp32", 100)
    assert len(info.regions) == 7 and len(info.languages) == 2


def test_health_and_reflection(server: ReportServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for service in ("", "echovlm.v1.ReportService"):
            answer = health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert "echovlm.v1.ReportService" in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_waiting_calls_leave_room_for_health_checks(server: ReportServer, stub: object) -> None:
    request = pb.AnswerQuestionRequest(question="Why?", options={"sampling": {"max_new_tokens": 500}})
    calls = [stub.AnswerQuestion(request) for _ in range(8)]  # type: ignore[attr-defined]
    for call in calls:
        next(call)
    with pytest.raises(grpc.RpcError) as refused:
        list(stub.AnswerQuestion(request))  # type: ignore[attr-defined]
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
    with grpc.insecure_channel(server.address) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    for call in calls:
        call.cancel()
    few = pb.AnswerQuestionRequest(question="Why?", options={"sampling": {"max_new_tokens": 1}})
    deadline = time.monotonic() + 5
    while True:  # a place is free again within a token of the cancellation
        try:
            assert list(stub.AnswerQuestion(few))[-1].HasField("result")  # type: ignore[attr-defined]
            break
        except grpc.RpcError:
            assert time.monotonic() < deadline, "no place came free"
            time.sleep(TOKEN_SECONDS)


def test_an_unknown_language_or_region_is_refused(stub: object, engine: SlowEngine) -> None:
    for options in (pb.GenerationOptions(language=99), pb.GenerationOptions(region=99)):  # type: ignore[arg-type]
        with pytest.raises(grpc.RpcError, match=r"There is no .* 99") as refused:
            list(stub.AnswerQuestion(pb.AnswerQuestionRequest(question="Why?", options=options)))  # type: ignore[attr-defined]
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert engine.requests == []


def test_health_says_not_serving_while_draining(engine: SlowEngine) -> None:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=2))
    with Connection(server.address) as client, grpc.insecure_channel(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        events = client.generate(ReportRequest(images=[PICTURE], sampling=Sampling(max_new_tokens=20)))
        next(event for event in events if event.text)
        stopping = threading.Thread(target=server.stop)
        stopping.start()
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert list(events)[-1].result.text == "字" * 20, "the running call was cut off"
        watch.cancel()
        stopping.join()


@pytest.mark.parametrize(
    "option",
    ["--threads=0", "--max-sequence=-5", "--max-message-mb=0", "--max-message-mb=4096", "--grace=-1", "--grace=nan"],
)
def test_an_option_out_of_range_is_one_sentence(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert serve(["--bundle", "/nowhere", option]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {option.split('=')[0]} must be") and errors.count("\n") == 1


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_an_ipv6_address_can_be_given_to_a_client(engine: SlowEngine) -> None:
    server = ReportServer(engine, ServerOptions("[::1]:0"))
    assert server.address == f"[::1]:{server.port}"
    with Connection(server.address) as client:
        assert client.model_info(timeout=5).model == "slow"
    server.stop()


def test_a_message_over_the_limit_is_refused(engine: SlowEngine) -> None:
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", limits=CallLimits(1 << 20)))
    with Connection(server.address) as client, pytest.raises(NotPossibleHere, match="larger than max"):
        list(client.generate(ReportRequest(images=[ImageInput(b"image")], prompt="?" * (2 << 20))))
    server.stop()


@pytest.mark.parametrize("listen", ["nonsense", "127.0.0.1", "127.0.0.1:99999", "203.0.113.1:50051"])
def test_a_bad_address_is_one_sentence(listen: str, engine: SlowEngine) -> None:
    with pytest.raises(NotPossibleHere, match="give"):
        ReportServer(engine, ServerOptions(listen))


def test_a_taken_port_is_one_sentence(server: ReportServer, engine: SlowEngine) -> None:
    with pytest.raises(NotPossibleHere, match=r"\(Address already in use\)"):
        ReportServer(engine, ServerOptions(server.address))


def test_the_commands(golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cine, manifest = tmp_path / "cine.dcm", Bundle(golden_bundle).manifest
    cine.write_bytes(shipped("examples_ybr_color.dcm"))
    with server_process(golden_bundle, tmp_path) as server:
        address = server.address
        ask = ["--server", address, "--image", str(cine), "--max-new-tokens", "8"]
        assert report_command.main([*ask, "--json", "--frames", "0,29"]) == 0
        answer = json.loads(capsys.readouterr().out)
        assert set(answer) >= {"text", "findings", "impression", "token_ids", "finish_reason", "usage", "timings"}
        assert len(answer["token_ids"]) == answer["usage"]["generated_tokens"] == 8
        assert answer["timings"]["stages"]["vision"] > 0
        assert report_command.main([*ask, "--frames", "0,29"]) == 0
        assert capsys.readouterr().out == answer["text"] + "\n"
        too_many = ["--frames-spaced", "30", "--prompt", "long " * 3000]
        assert report_command.main([*ask, *too_many]) == 2
        assert "the context holds" in capsys.readouterr().err
        assert report_command.main(["--server", address, "--image", __file__]) == 2
        assert f"{Path(__file__).name} is of no known kind" in capsys.readouterr().err
        assert report_command.main(["--server", address, "--image", "/nowhere.dcm"]) == 2
        assert "/nowhere.dcm cannot be read" in capsys.readouterr().err
        server.stop()
    assert "image decoding is confined by:" in server.said
    assert server.log and all(" call request_id=" in line for line in server.log), server.said
    assert "cine.dcm" not in server.said and "long" not in server.said, "the log says what was asked"
    assert server.output == f"Serving golden ({manifest.precision}, {manifest.target}) on {address}\n"


def test_no_server_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert report_command.main(["--server", "127.0.0.1:9", "--prompt", "Hello?", "--timeout", "1"]) == 4
    assert "No server listens at 127.0.0.1:9: start one with echovlm-serve," in capsys.readouterr().err


def test_a_running_call_is_drained_on_sigterm(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(golden_bundle, tmp_path) as server, Connection(server.address) as client:
        request = ReportRequest(Task.QUESTION, prompt="Why?", sampling=Sampling(max_new_tokens=600))
        events = client.generate(request)
        next(event for event in events if event.text)
        server.tell(signal.SIGTERM)
        assert list(events)[-1].result.usage.generated_tokens > 1, "the running call was cut off"
        assert server.end() == 0


def test_calls_at_once_get_the_same_tokens(golden_bundle: Path) -> None:
    engine = ReportEngine.open(golden_bundle)
    request = GenerationRequest("Why?", sampling=Sampling(max_new_tokens=40))
    alone = list(engine.generate(request))[-1]
    results: list[Event] = []
    threads = [threading.Thread(target=lambda: results.append(list(engine.generate(request))[-1])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {result.token_ids for result in results} == {alone.token_ids}  # type: ignore[union-attr]
