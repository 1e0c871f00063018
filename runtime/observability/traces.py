"""OpenTelemetry traces: a span for each call and one for each of its stages, made from what was measured anyway when the call ends.

Never anything of the request: an id, a method, an outcome, numbers of tokens. A client's own trace (W3C traceparent) goes on.
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
EXPORT_SECONDS = 2  # for one, attempts and all: the most that a dead collector holds up the end


class Traces:
    """Sends what it observes to a collector, in the background; a collector that is gone loses spans and delays no call."""

    def __init__(self, collector: str) -> None:
        """OTLP over gRPC to `collector`: http://HOST:PORT, or https:// for TLS."""
        self._provider = TracerProvider(resource=Resource.create({"service.name": SERVICE}))
        exporter = OTLPSpanExporter(
            endpoint=collector, insecure=not collector.startswith("https://"), timeout=EXPORT_SECONDS
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=EXPORT_MILLISECONDS))
        self._tracer = self._provider.get_tracer(SERVICE)

    def observe(self, call: EndedCall) -> None:
        """Trace a call that ended just now."""
        ended = time.time_ns()
        started = ended - round(call.seconds * 1e9)
        parent = TraceContextTextMapPropagator().extract({"traceparent": call.traceparent})
        span = self._tracer.start_span(
            call.method,
            parent,
            SpanKind.SERVER,
            {
                "rpc.system": "grpc",
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
        """Send what is left."""
        self._provider.shutdown()


def _tokens(done: Finished) -> dict[str, int]:
    return {
        "echovlm.prompt_tokens": done.prompt_tokens,
        "echovlm.image_tokens": done.image_tokens,
        "echovlm.reused_tokens": done.reused_tokens,
        "echovlm.generated_tokens": len(done.token_ids),
    }


def _runs(done: Finished, total: float) -> Iterator[tuple[Stage, float, float]]:
    """Stages in order, each moment once: start and seconds. Decoding is one run with all that lies between its tokens."""
    moments = list(pieces(done.spans, total))
    decode = [place for place, (stage, *_) in enumerate(moments) if stage is Stage.DECODE]
    first, last = (decode[0], decode[-1] + 1) if decode else (len(moments), len(moments))
    runs = [list(run) for _, run in groupby(moments[:first], lambda moment: moment[0])]
    if decode:
        runs.append(moments[first:last])
    for run in runs:
        stage, start, _ = run[0]
        yield stage, start, run[-1][1] + run[-1][2] - start
