"""Too many calls, no memory, an engine that hangs, signals, kills, bundles that change: each does what the operations page says."""

from __future__ import annotations

import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.contracts.errors import Unavailable
from echovlm_edge.runtime.contracts.request import GenerationRequest
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine, WatchdogOptions
from echovlm_edge.runtime.serving.transport.server import ServerOptions
from tests.support.dicom_files import png
from tests.support.questions import question, result
from tests.support.running_server import Running, running
from tests.support.server_process import server_process
from tests.support.waiting import wait_for

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def health(served: Running) -> int:
    answer = health_pb2_grpc.HealthStub(served.channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    return int(answer.status)


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(golden_bundle: Path) -> None:
    options = ServerOptions(slots=2, queue=2, grace_seconds=0)
    with running(golden_bundle, options, engine_options=EngineOptions(slots=2)) as served:
        calls = [served.stub.AnswerQuestion(question(900)) for _ in range(4)]
        wait_for(lambda: served.server.admission.inside == 4)
        for _ in range(50):
            with pytest.raises(grpc.RpcError) as refused:
                result(served.stub.AnswerQuestion(question(1)))
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        delay = dict(refused.value.trailing_metadata())["grpc-retry-pushback-ms"]  # type: ignore[attr-defined]
        assert 100 <= int(delay) <= 60_000
        assert served.server.admission.inside == 4, "a call ended: the refusals may have waited for it"
        assert served.engine.stats().scheduler.busy == 2 and health(served) == SERVING
        for call in calls:
            call.cancel()
        wait_for(lambda: served.server.admission.inside == 0)
        assert result(served.stub.AnswerQuestion(question(3))).usage.generated_tokens == 3


def test_gone_clients_leave_nothing_behind(golden_bundle: Path) -> None:
    options = ServerOptions(slots=4, queue=30)
    with running(golden_bundle, options, engine_options=EngineOptions(slots=4)) as served:
        expected = result(served.stub.AnswerQuestion(question(30))).token_ids
        for round_ in range(20):
            cancelled = served.stub.AnswerQuestion(question(400, f"Why {round_}?"))
            late = served.stub.AnswerQuestion(question(400, f"How {round_}?"), timeout=0.02)
            kept = served.stub.AnswerQuestion(question(30))
            next(cancelled, None)
            cancelled.cancel()
            assert result(kept).token_ids == expected
            with pytest.raises(grpc.RpcError) as ended:
                list(late)
            assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED  # type: ignore[attr-defined]
        wait_for(lambda: served.server.admission.inside == 0)
        wait_for(lambda: served.engine.stats().scheduler.busy == served.engine.stats().scheduler.waiting == 0)


def test_no_memory_fails_one_call_with_a_clear_status(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(golden_bundle) as served:
        backend = served.engine._current.model.backend
        turn = backend.turn

        def scarce(rows):  # type: ignore[no-untyped-def]
            if any(part.past > 200 and len(part.embeddings) > 1 for part in rows):
                raise MemoryError
            return turn(rows)

        monkeypatch.setattr(backend, "turn", scarce)
        running_call = served.stub.AnswerQuestion(question(200))
        next(running_call)
        with pytest.raises(grpc.RpcError, match="no memory for this request") as refused:
            result(served.stub.AnswerQuestion(question(3, "Why? " * 300)))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert "grpc-retry-pushback-ms" in dict(refused.value.trailing_metadata())  # type: ignore[attr-defined]
        assert result(running_call).usage.generated_tokens > 1, "another call failed with it"


def hold_turns(engine: ReportEngine, until: threading.Event) -> None:
    """Let no turn of `engine`'s decoder go on before `until` is set."""
    turn = engine.model.backend.turn
    engine.model.backend.turn = lambda rows: (until.wait(), turn(rows))[1]  # type: ignore[method-assign]


def test_a_hung_engine_is_replaced(golden_bundle: Path) -> None:
    hang, engines = threading.Event(), []
    hang.set()

    def open_engine() -> ReportEngine:
        engine = ReportEngine.open(golden_bundle, threads=2)
        if not engines:
            hold_turns(engine, hang)
        engines.append(engine)
        return engine

    with running(open_engine, watchdog=WatchdogOptions(0.4, 3, 0.05)) as served:
        watch = health_pb2_grpc.HealthStub(served.channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        expected = result(served.stub.AnswerQuestion(question(9))).token_ids
        hang.clear()
        with pytest.raises(grpc.RpcError, match="hung and is being replaced") as ended:
            result(served.stub.AnswerQuestion(question(9)))
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE  # type: ignore[attr-defined]
        assert next(watch).status == NOT_SERVING
        assert next(watch).status == SERVING
        assert len(engines) == 2
        assert result(served.stub.AnswerQuestion(question(9))).token_ids == expected
        hang.set()
        watch.cancel()


def test_engines_that_hang_again_and_again_are_given_up(golden_bundle: Path) -> None:
    gave_up, hang = threading.Event(), threading.Event()

    def open_engine() -> ReportEngine:
        engine = ReportEngine.open(golden_bundle, threads=1)
        hold_turns(engine, hang)
        return engine

    engine = ServedEngine(open_engine, WatchdogOptions(0.2, 1, 0.05), gave_up.set)
    for _ in range(2):
        first = engine._current
        with pytest.raises(Unavailable):
            list(engine.generate(GenerationRequest("Why?"), lambda: False))
        wait_for(lambda first=first: engine._current is not first or gave_up.is_set())  # type: ignore[misc]
    assert gave_up.wait(5)
    hang.set()
    engine.close()


def test_bundles_swap_without_a_dropped_call(
    golden_bundle: Path, build_bundle: Callable[..., Path], tmp_path: Path
) -> None:
    link = tmp_path / "bundle"
    link.symlink_to(golden_bundle)
    other = build_bundle(precision="int4")
    with running(link) as served:
        expected = result(served.stub.AnswerQuestion(question(300)))
        call = served.stub.AnswerQuestion(question(300))
        next(event for event in call if event.text)
        old = served.engine._current
        link.unlink()
        link.symlink_to(other)
        assert served.engine.swap()
        new = result(served.stub.AnswerQuestion(question(3)))
        assert new.bundle_id != expected.bundle_id, "new calls go to the new bundle"
        kept = result(call)
        assert kept.token_ids == expected.token_ids, "the running call was dropped"
        assert kept.bundle_id == expected.bundle_id, "a text is ascribed to a bundle that did not write it"
        wait_for(lambda: old._scheduler._closed is not None)


def test_a_corrupt_bundle_is_not_swapped_in(golden_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(golden_bundle, folder)
    with server_process(folder, tmp_path) as server, Connection(server.address) as client:
        before = client.model_info().bundle_id
        (folder / Bundle(folder).manifest.part("decoder").files[0].name).write_bytes(b"")
        server.reload()
        server.wait_for("the new bundle cannot be served, the old one stays")
        assert client.model_info().bundle_id == before
        assert result(client._stub.AnswerQuestion(question(5))).usage.generated_tokens == 5
        server.stop()


def test_sigterm_ends_within_its_limit_however_long_calls_are(golden_bundle: Path, tmp_path: Path) -> None:
    with (
        server_process(golden_bundle, tmp_path, "--grace", "1") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        stub = report_pb2_grpc.ReportServiceStub(channel)
        long = [stub.AnswerQuestion(question(1900, "Why? " * (3 + index))) for index in range(8)]
        for call in long:
            next(call)
        started = time.monotonic()
        server.tell(signal.SIGTERM)
        assert server.end() == 0
        assert time.monotonic() - started < 8
        for call in long:
            try:
                assert result(call).usage.generated_tokens > 1
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNAVAILABLE)  # type: ignore[attr-defined]


def test_a_killed_server_leaves_nothing_to_repair(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(golden_bundle, tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        stub = report_pb2_grpc.ReportServiceStub(channel)
        picture = pb.Image(data=png(64, 64))
        expected = result(stub.GenerateReport(pb.GenerateReportRequest(images=[picture]))).text
        call = stub.AnswerQuestion(question(1500))
        next(call)
        pid = server.process.pid
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0", limits), "a crash would leave patients' images in a core file"
        assert psutil.Process(pid).children(), "nothing was decoded in another process"
        server.tell(signal.SIGKILL)
        server.end()
    with server_process(golden_bundle, tmp_path) as again, grpc.insecure_channel(again.address) as channel:
        stub = report_pb2_grpc.ReportServiceStub(channel)
        assert result(stub.GenerateReport(pb.GenerateReportRequest(images=[picture]))).text == expected
        again.stop()


def test_a_huge_message_is_refused_in_bounded_memory(golden_bundle: Path, tmp_path: Path) -> None:
    with (
        server_process(golden_bundle, tmp_path, "--max-message-mb", "8") as server,
        grpc.insecure_channel(server.address, options=[("grpc.max_send_message_length", -1)]) as channel,
    ):
        process = psutil.Process(server.process.pid)
        before = process.memory_info().rss
        stub = report_pb2_grpc.ReportServiceStub(channel)
        huge = pb.AnswerQuestionRequest(question="?", images=[pb.Image(data=bytes(300 << 20))])
        with pytest.raises(grpc.RpcError) as refused:
            result(stub.AnswerQuestion(huge))
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED  # type: ignore[attr-defined]
        assert process.memory_info().rss - before < 64 << 20
        server.stop()


def test_a_full_disk_at_the_port_file_is_one_sentence(golden_bundle: Path, tmp_path: Path) -> None:
    with server_process(golden_bundle, tmp_path, "--port-file", "/proc/no/port") as server:
        assert server.end() == 2
        assert "port file /proc/no/port cannot be written" in server.said and "Traceback" not in server.said
