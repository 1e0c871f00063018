"""What an operator sees: metrics that a Prometheus parser reads and that follow what was done."""

from __future__ import annotations

import logging
import signal
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.served import free_port, port_file
from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.drafting.drafter import Source
from echovlm_edge.runtime.engine.caching.reuse import StoreStats
from echovlm_edge.runtime.engine.engine_info import EngineStats
from echovlm_edge.runtime.engine.scheduling.drafting import DraftingStats
from echovlm_edge.runtime.engine.scheduling.scheduler import SchedulerStats
from echovlm_edge.runtime.observability.metrics import Metrics
from echovlm_edge.runtime.observability.metrics_server import MAX_CONNECTIONS, MetricsServer
from tests.support.dicom_files import png
from tests.support.running_server import Running, running
from tests.support.server_process import server_process
from tests.support.waiting import wait_for

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(scope="module")
def served(golden_bundle: Path) -> Iterator[Running]:
    with running(golden_bundle) as server:
        yield server


@pytest.fixture(scope="module")
def port(served: Running) -> Iterator[int]:
    server = MetricsServer("127.0.0.1", 0, served.metrics.registry)
    server.start()
    yield server.port
    server.close()


def scrape(port: int) -> Samples:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_drafts_are_counted_by_source_and_result() -> None:
    drafting = DraftingStats({Source.PROMPT: 9, Source.CLIENT: 0}, {Source.PROMPT: 4, Source.CLIENT: 0}, 4, 800)
    scheduler = SchedulerStats(8, 0, 0, 0, 0, 0, 0, 20, 16, drafting)
    stats = EngineStats(scheduler, StoreStats(0, 0, 0, 0), StoreStats(0, 0, 0, 0))
    families = Metrics(lambda: stats, lambda: (0, 0)).registry.collect()
    found = {
        (sample.name, sample.labels.get("source"), sample.labels.get("result")): sample.value
        for family in families
        for sample in family.samples
    }
    assert found["echovlm_drafted_tokens_total", "prompt", "accepted"] == 4
    assert found["echovlm_drafted_tokens_total", "prompt", "rejected"] == 5
    assert found["echovlm_drafted_tokens_total", "client", "accepted"] == 0
    assert found["echovlm_saved_steps_total", None, None] == 4 and found["echovlm_reply_bytes", None, None] == 800


def grown(before: Samples, after: Samples, name: str, **labels: str) -> float:
    key = (name, tuple(sorted(labels.items())))
    return after[key] - before.get(key, 0.0)


def test_figures_follow_what_was_done(served: Running, port: int) -> None:
    before = scrape(port)
    asked = pb.GenerateReportRequest(
        images=[pb.Image(data=png(96, 72))], options=pb.GenerationOptions(sampling=pb.Sampling(max_new_tokens=9))
    )
    results = [list(served.stub.GenerateReport(asked))[-1].result for _ in range(2)]
    with pytest.raises(grpc.RpcError):
        list(served.stub.GenerateReport(pb.GenerateReportRequest(images=[pb.Image(data=b"text")])))
    study = served.stub.BeginStudy(pb.BeginStudyRequest()).id
    served.stub.AddImage(pb.AddImageRequest(study=study, image=pb.Image(data=png(64, 64))))
    after = scrape(port)
    report = {"method": "GenerateReport", "client": "anybody", "door": "grpc"}
    assert grown(before, after, "echovlm_calls_total", **report, outcome="ok") == 2
    assert grown(before, after, "echovlm_calls_total", **report, outcome="invalid_argument") == 1
    assert grown(before, after, "echovlm_tokens_total", kind="written") == 18
    assert grown(before, after, "echovlm_tokens_total", kind="reused") >= results[1].usage.reused_tokens > 0
    assert grown(before, after, "echovlm_image_hits_total") == 1
    for stage in ("vision", "prefill", "decode"):
        assert grown(before, after, "echovlm_stage_seconds_count", stage=stage) >= 1
    assert grown(before, after, "echovlm_first_token_seconds_count") == 2
    assert after["echovlm_slots", ()] == 8 and after["echovlm_prefix_bytes", ()] > 0
    assert after["echovlm_studies", ()] == 1 and after["echovlm_study_bytes", ()] == 56 * 56 * 3, "as the model sees it"


@pytest.mark.parametrize("host", ["127.0.0.1", "192.0.2.1", "no.such.host.invalid", "x" * 70 + ".invalid"])
def test_a_metrics_port_that_cannot_be_had_is_one_sentence(host: str, served: Running, port: int) -> None:
    with pytest.raises(NotPossibleHere, match=r"cannot be served on .* give another --metrics"):
        MetricsServer(host, port, served.metrics.registry)


def talk(port: int, *said: bytes) -> socket.socket:
    """A connection on which so much was said."""
    client = socket.create_connection(("127.0.0.1", port), timeout=20)
    for piece in said:
        client.sendall(piece)
    return client


def hang_up(client: socket.socket) -> None:
    """Close it so that the server's next word meets a reset."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


GARBAGE = (
    b"",
    b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET /metrics\r\n",
    b"GET /metrics HTTP/9.9\r\n\r\n",
    b"GET /metrics HTTP/x\r\n\r\n",
    b"GET http://[::1 HTTP/1.1\r\n\r\n",
    b"GET /?name[]=%ff%fe&name[]=\xff HTTP/1.1\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n" + b"A: b\r\n" * 200 + b"\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text; version=x\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\nAccept: text/plain; version=1.0.0.0.0.x\r\n\r\n",
    b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
    b"POST /metrics HTTP/1.1\r\nContent-Length: -7\r\n\r\n",
    b"GET /metrics HTTP/1.1\r\n\r\n",
)


def test_clients_that_hang_up_or_send_garbage_leave_no_traceback(
    served: Running, port: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    for said in GARBAGE:
        hang_up(talk(port, said))
        with talk(port, said) as polite, suppress(ConnectionError):
            polite.shutdown(socket.SHUT_WR)
            while polite.recv(1 << 16):
                pass
    assert scrape(port)
    assert capfd.readouterr().err == ""
    assert not [record for record in caplog.records if record.levelno > logging.DEBUG and record.exc_info]


def test_a_request_that_fails_is_a_line_in_the_log(
    served: Running, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> tuple[int, int]:
        raise ValueError("Jane Doe, 1950")

    server = MetricsServer("127.0.0.1", 0, Metrics(served.engine.stats, fail).registry)
    server.start()
    try:
        with talk(server.port, b"GET /metrics HTTP/1.1\r\n\r\n") as client:
            assert client.recv(1 << 16) == b""
        wait_for(lambda: caplog.messages)
        assert caplog.messages == ["a request for metrics failed with ValueError"]
        assert "Jane" not in caplog.text and capfd.readouterr().err == ""
    finally:
        server.close()


def test_silent_and_slow_clients_do_not_keep_others_out(served: Running, port: int) -> None:
    threads = threading.active_count()
    with ExitStack() as open_:
        for said in (b"", b"GET /metrics HTTP/1.1\r\nA") * 40:
            open_.enter_context(talk(port, said))
        assert scrape(port)["echovlm_slots", ()] == 8
        assert threading.active_count() - threads <= MAX_CONNECTIONS + 1


def test_a_scrape_before_the_server_is_answered_once_it_serves(golden_bundle: Path, tmp_path: Path) -> None:
    metrics = free_port()
    patch = f"""
import socket
from echovlm_edge.runtime.serving.supervision import serve_command
make = serve_command.ReportServer
def slow(*given, **named):
    global client
    client = socket.create_connection(("127.0.0.1", {metrics}))
    client.sendall(b"GET /metrics HTTP/1.0\\r\\n\\r\\n")
    client.settimeout(1)
    try:
        print("it was answered with", client.recv(99), flush=True)
    except TimeoutError:
        print("it waits", flush=True)
    client.settimeout(20)
    return make(*given, **named)
serve_command.ReportServer = slow
ready = serve_command.ServiceManager.ready
def answered(self):
    answer = b"".join(iter(lambda: client.recv(1 << 16), b""))
    print("studies:", b"echovlm_studies 0.0" in answer, flush=True)
    ready(self)
serve_command.ServiceManager.ready = answered
"""
    with server_process(golden_bundle, tmp_path, "--metrics", f"127.0.0.1:{metrics}", patch=patch) as server:
        server.wait_for("studies: True")
        assert "it waits" in server.said
        server.tell(signal.SIGTERM)
        assert server.end() == 0 and "Traceback" not in server.said


def test_a_taken_metrics_port_is_told_before_anything_is_served(golden_bundle: Path, tmp_path: Path, port: int) -> None:
    with server_process(golden_bundle, tmp_path, "--metrics", f"127.0.0.1:{port}") as server:
        assert server.end() == 2
        assert server.said.endswith(
            f"error: Metrics cannot be served on 127.0.0.1:{port} (Address already in use): give another "
            "--metrics HOST:PORT.\n"
        )
        assert not port_file(tmp_path).exists()
