"""OpenTelemetry traces: one span per call and one per stage, made at the call's end from what was measured anyway.

A span never contains anything of the request: only an id, a method, an outcome, and numbers of tokens. It continues a client's own
trace (W3C traceparent).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import groupby

from echovlm_edge.runtime.contracts.errors import NotPossibleHere
from echovlm_edge.runtime.contracts.extras import install_hint
from echovlm_edge.runtime.contracts.request import Finished, Stage
from echovlm_edge.runtime.engine.clock import pieces
from echovlm_edge.runtime.observability.ended_call import EndedCall

try:
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as missing:
    raise NotPossibleHere(f"Traces need {missing.name}, which is not installed: {install_hint('traces')}.") from None

SERVICE = "echovlm-serve"
EXPORT_MILLISECONDS = 1000  # between batches
EXPORT_SECONDS = 2  # for one batch with all its retries: the longest that a dead collector delays the end


class Traces:
    """Sends spans to a collector in the background; where the collector is gone, spans are lost and no call is delayed."""

    def __init__(self, collector: str) -> None:
        """Send OTLP over gRPC to `collector`: http://HOST:PORT, or https:// for TLS."""
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        exporter = OTLPSpanExporter(
            endpoint=collector, insecure=not collector.startswith("https://"), timeout=EXPORT_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MILLISECONDS))
        self._tracer = self._provider.get_tracer(SERVICE)

    def observe(self, call: EndedCall) -> None:
        """Make the spans of a call that just ended."""
        ended = time.time_ns()
        started = ended - round(call.seconds * 1e9)
        parent = TraceContextTextMapPropagator().extract({"traceparent": call.traceparent})
        span = self._tracer.start_span(
            call.method,
            parent,
            SpanKind.SERVER,
            {
                "rpc.system": call.door,
                "rpc.method": call.method,
                "echovlm.request_id": call.id,
                "echovlm.outcome": call.outcome,
            },
            start_time=started,
        )
        if call.finished:
            span.set_attributes(_tokens(call.finished))
            for stage, start, seconds in _runs(call.finished, call.seconds):
                begun = started + round(start * 1e9)
                self._tracer.start_span(stage.value, set_span_in_context(span), start_time=begun).end(
                    begun + round(seconds * 1e9)
                )
        if call.outcome not in ("ok", "cancelled"):
            span.set_status(StatusCode.ERROR, call.outcome)
        span.end(ended)

    def close(self) -> None:
        """Send the remaining spans."""
        self._provider.shutdown()


def _tokens(done: Finished) -> dict[str, int]:
    return {
        "echovlm.prompt_tokens": done.prompt_tokens,
        "echovlm.image_tokens": done.image_tokens,
        "echovlm.reused_tokens": done.reused_tokens,
        "echovlm.generated_tokens": len(done.token_ids),
    }


def _runs(done: Finished, total: float) -> Iterator[tuple[Stage, float, float]]:
    """Yield the stages in order, each moment once: stage, start and seconds. Decoding and all between its tokens is one stage."""
    moments = list(pieces(done.spans, total))
    decode = [place for place, (stage, *_) in enumerate(moments) if stage is Stage.DECODE]
    first, last = (decode[0], decode[-1] + 1) if decode else (len(moments), len(moments))
    runs = [list(run) for _, run in groupby(moments[:first], lambda moment: moment[0])]
    if decode:
        runs.append(moments[first:last])
    for run in runs:
        stage, start, _ = run[0]
        yield stage, start, run[-1][1] + run[-1][2] - start
