"""Traces: a collector on loopback receives a call and its stages, in the client's own trace, and nothing of what was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import grpc
import pytest

pytest.importorskip("opentelemetry.exporter.otlp.proto.grpc", reason="pip install 'echovlm-edge[traces]'")
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from echovlm.v1 import report_pb2 as pb
from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.contracts.request import Finished, FinishReason, Span, Stage
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.observability.traces import Traces
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support import golden
from tests.support.waiting import wait_for

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
QUESTION = "Secret question?"


@dataclass
class Call:
    """A call that has ended."""

    id: str
    method: str
    outcome: str
    seconds: float
    finished: Finished | None
    traceparent: str
    client_name: str
    door: str = "grpc"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):  # type: ignore[misc]
    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.received = threading.Event()

    def Export(self, request: Any, context: grpc.ServicerContext) -> Any:
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self.received.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def stub(golden_bundle: Any, collector: tuple[Collector, str]) -> Iterator[report_pb2_grpc.ReportServiceStub]:
    engine = ReportEngine.open(golden_bundle, threads=2)
    traces = Traces(collector[1])
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.2), observers=[traces.observe])
    with grpc.insecure_channel(server.address) as channel:
        yield report_pb2_grpc.ReportServiceStub(channel)
        server.stop()
    traces.close()
    engine.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in span.attributes}


def test_a_call_and_its_stages(stub: report_pb2_grpc.ReportServiceStub, collector: tuple[Collector, str]) -> None:
    image = golden.load("one_image_en").images[0].read_bytes()
    asked = pb.AnswerQuestionRequest(question=QUESTION, images=[pb.Image(data=image)])
    asked.options.sampling.max_new_tokens = 8
    metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"),)
    *_, last = stub.AnswerQuestion(asked, metadata=metadata)
    assert collector[0].received.wait(10)
    (call,) = [span for span in collector[0].spans if span.name == "AnswerQuestion"]
    stages = [span for span in collector[0].spans if span is not call]
    assert call.trace_id.hex() == TRACE and call.parent_span_id.hex() == PARENT
    assert all(span.trace_id == call.trace_id and span.parent_span_id == call.span_id for span in stages)
    told = attributes(call)
    assert re.fullmatch("[0-9a-f]{16}", told["echovlm.request_id"]) and told["echovlm.outcome"] == "ok"
    assert told["echovlm.generated_tokens"] == last.result.usage.generated_tokens
    assert told["echovlm.image_tokens"] == last.result.usage.image_tokens > 0
    names = [span.name for span in sorted(stages, key=lambda span: span.start_time_unix_nano)]
    order = [names.index(name) for name in ("decode_images", "vision", "prefill", "decode")]
    assert order == sorted(order) and names.count("decode") == 1, names
    for span in stages:
        assert call.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= call.end_time_unix_nano + 1_000_000
    stages.sort(key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))
    for span, following in pairwise(stages):
        assert span.end_time_unix_nano <= following.start_time_unix_nano + 1  # rounded to a nanosecond each
    assert QUESTION.encode() not in b"".join(span.SerializeToString() for span in collector[0].spans)


def test_stages_cover_a_call(stub: report_pb2_grpc.ReportServiceStub, collector: tuple[Collector, str]) -> None:
    """All but a tenth of it, in the best of some calls: a busy machine takes its time between stages, too."""
    image = golden.load("one_image_en").images[0].read_bytes()
    asked = pb.AnswerQuestionRequest(question=QUESTION, images=[pb.Image(data=image)])
    asked.options.sampling.max_new_tokens = 8
    spans = collector[0].spans

    def calls() -> list[Any]:
        return [span for span in spans if span.name == "AnswerQuestion"]

    def coverage(call: Any) -> float:
        stages = [span for span in spans if span.parent_span_id == call.span_id]
        covered = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in stages)
        return float(covered / (call.end_time_unix_nano - call.start_time_unix_nano))

    for count in range(1, 41):  # a busy machine has quiet moments
        list(stub.AnswerQuestion(asked))
        wait_for(lambda count=count: len(calls()) == count)  # type: ignore[misc]
        if coverage(calls()[-1]) > 0.9:
            return
    raise AssertionError(f"at most {max(map(coverage, calls())):.0%} of a call is covered")


def test_stages_are_as_long_as_they_were_measured(collector: tuple[Collector, str]) -> None:
    spans = (
        Span(Stage.DELIVER, 0.0, 0.25),
        Span(Stage.VISION, 0.125, 0.375),  # model computation has precedence over the delivery that it overlaps
        Span(Stage.PREFILL, 0.5, 1.0),
        Span(Stage.DECODE, 1.5, 0.25),
        Span(Stage.DETOKENIZE, 1.75, 0.125),
        Span(Stage.DECODE, 1.875, 0.25),
    )
    finished = Finished("", (1, 2), FinishReason.STOP, 3, 1, {}, 1.5, spans)
    traces = Traces(collector[1])
    traces.observe(Call("0" * 16, "AnswerQuestion", "ok", 2.25, finished, "", ""))
    traces.close()
    assert collector[0].received.wait(10)
    (call,) = [span for span in collector[0].spans if span.name == "AnswerQuestion"]
    stages = {
        span.name: (
            span.start_time_unix_nano - call.start_time_unix_nano,
            span.end_time_unix_nano - call.start_time_unix_nano,
        )
        for span in collector[0].spans
        if span is not call
    }
    seconds = {"deliver": (0, 0.125), "vision": (0.125, 0.5), "prefill": (0.5, 1.5), "decode": (1.5, 2.125)}
    assert stages == {name: (start * 1e9, end * 1e9) for name, (start, end) in seconds.items()}
    assert call.end_time_unix_nano - call.start_time_unix_nano == 2.25e9


def test_a_refused_call_is_an_error(stub: report_pb2_grpc.ReportServiceStub, collector: tuple[Collector, str]) -> None:
    with pytest.raises(grpc.RpcError):
        list(stub.AnswerQuestion(pb.AnswerQuestionRequest()))
    assert collector[0].received.wait(10)
    (call,) = collector[0].spans
    assert call.status.code == 2 and attributes(call)["echovlm.outcome"] == "invalid_argument"
    assert not call.parent_span_id


def test_a_collector_that_is_gone_delays_nothing(golden_bundle: Any) -> None:
    engine = ReportEngine.open(golden_bundle, threads=2)
    traces = Traces("http://127.0.0.1:1")
    server = ReportServer(engine, ServerOptions("127.0.0.1:0", grace_seconds=0.2), observers=[traces.observe])
    with grpc.insecure_channel(server.address) as channel:
        asked = pb.AnswerQuestionRequest(question=QUESTION)
        asked.options.sampling.max_new_tokens = 2
        for _ in range(3):
            list(report_pb2_grpc.ReportServiceStub(channel).AnswerQuestion(asked, timeout=5))
    server.stop()
    engine.close()
    started = time.monotonic()
    traces.close()
    assert time.monotonic() - started < 8
