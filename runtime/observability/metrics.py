"""Prometheus metrics: calls by outcome, queue and stage times, tokens, slots, memory, hits."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from echovlm_edge.runtime.bundle.loads import RefusedBundle
from echovlm_edge.runtime.contracts.stages import OF_THE_ENGINE
from echovlm_edge.runtime.engine.caching.reuse import StoreStats
from echovlm_edge.runtime.engine.engine_info import EngineStats
from echovlm_edge.runtime.engine.scheduling.drafting import DraftingStats
from echovlm_edge.runtime.observability.ended_call import EndedCall

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """Counts every call, and reads the engine, the studies and the uploads when it is scraped."""

    def __init__(
        self,
        stats: Callable[[], EngineStats],
        studies: Callable[[], tuple[int, int]],
        uploads: Callable[[], tuple[int, int]] = lambda: (0, 0),
        refused: Callable[[], RefusedBundle | None] = lambda: None,
    ) -> None:
        """Register the metrics.

        Args:
            stats: returns the engine's counters and gauges.
            studies: returns how many studies are open, and the bytes of their pictures.
            uploads: returns how many uploaded files there are, and their bytes.
            refused: returns the bundle that should be loaded and is not.
        """
        self.registry = CollectorRegistry()
        registry = self.registry
        self._calls = Counter(
            "echovlm_calls",
            "Calls that ended, by method, outcome, client and the door that they came by.",
            ["method", "outcome", "client", "door"],
            registry=registry,
        )
        self._call_seconds = Histogram(
            "echovlm_call_seconds", "From a call's arrival to its end.", ["method"], buckets=SECONDS, registry=registry
        )
        self._first_token = Histogram(
            "echovlm_first_token_seconds",
            "From a call's arrival to its first token.",
            buckets=SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "echovlm_stage_seconds",
            f"One call's time in a stage, in chronological order: {', '.join(OF_THE_ENGINE)}.",
            ["stage"],
            buckets=SECONDS,
            registry=registry,
        )
        self._tokens_per_second = Histogram(
            "echovlm_decode_tokens_per_second",
            "One call's tokens per second of decoding.",
            buckets=(0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
            registry=registry,
        )
        self._stats, self._studies, self._uploads, self._refused = stats, studies, uploads, refused
        self.registry.register(self)

    def observe(self, call: EndedCall) -> None:
        """Count a call that ended."""
        self._calls.labels(call.method, call.outcome, call.client_name, call.door).inc()
        self._call_seconds.labels(call.method).observe(call.seconds)
        if done := call.finished:
            for stage, seconds in done.seconds.items():
                self._stages.labels(stage.value).observe(seconds)
            if done.first_token_seconds is not None:
                self._first_token.observe(done.first_token_seconds)
            decode = sum(span.seconds for span in done.spans if span.stage.value == "decode")
            if len(done.token_ids) > 1 and decode > 0:
                self._tokens_per_second.observe(len(done.token_ids) / decode)

    def collect(self) -> Iterator[Metric]:
        """Read the current values of the engine, the studies and the uploads."""
        stats = self._stats()
        scheduler = stats.scheduler
        studies, study_bytes = self._studies()
        uploads, upload_bytes = self._uploads()
        refused = self._refused()
        for name, text, value in (
            ("slots", "Sequences that can run on the decoder at once.", scheduler.slots),
            ("slots_busy", "Sequences that run on the decoder.", scheduler.busy),
            ("waiting", "Sequences that wait for a slot.", scheduler.waiting),
            ("parked", "Batch sequences that were preempted by interactive ones.", scheduler.parked),
            ("parked_bytes", "Memory of the parked sequences' keys and values.", scheduler.parked_bytes),
            ("studies", "Open studies.", studies),
            ("study_bytes", "Memory of the open studies' pictures.", study_bytes),
            ("uploads", "Uploaded files, including those that are still arriving.", uploads),
            ("upload_bytes", "Their memory.", upload_bytes),
            (
                "bundle_refused",
                "1 while the bundle that should be served is refused, and another one serves.",
                refused is not None,
            ),
        ):
            yield GaugeMetricFamily(f"echovlm_{name}", text, value)
        if refused:
            which = GaugeMetricFamily(
                "echovlm_refused_bundle_info",
                "Which bundle is refused, by its folder's name.",
                labels=["bundle"],
            )
            which.add_metric([refused.name], 1)
            yield which
        tokens = CounterMetricFamily("echovlm_tokens", "Prompt tokens read or reused, tokens written.", labels=["kind"])
        for kind, count in (
            ("prefilled", scheduler.prefilled_tokens),
            ("reused", scheduler.reused_tokens),
            ("written", scheduler.written_tokens),
        ):
            tokens.add_metric([kind], count)
        yield tokens
        yield CounterMetricFamily(
            "echovlm_decode_steps", "Decode steps, each for all sequences that are being written.", scheduler.steps
        )
        yield from _drafting(scheduler.drafting)
        yield from _store("prefix", "Cached keys and values of prompts", stats.prefixes)
        yield from _store("image", "Cached embeddings of images", stats.images)


def _drafting(stats: DraftingStats) -> Iterator[Metric]:
    drafts = CounterMetricFamily(
        "echovlm_drafted_tokens", "Tokens that were guessed, by source and result.", labels=["source", "result"]
    )
    for source, count in stats.drafted.items():
        accepted = stats.accepted[source]
        drafts.add_metric([source, "accepted"], accepted)
        drafts.add_metric([source, "rejected"], count - accepted)
    yield drafts
    yield CounterMetricFamily(
        "echovlm_saved_steps", "Decode steps that reports did not need as guessed tokens were right.", stats.saved_steps
    )
    yield GaugeMetricFamily("echovlm_reply_bytes", "Memory for the phrases of finished texts.", stats.reply_bytes)


def _store(name: str, what: str, stats: StoreStats) -> Iterator[Metric]:
    yield CounterMetricFamily(f"echovlm_{name}_hits", f"{what}: found.", stats.hits)
    yield CounterMetricFamily(f"echovlm_{name}_misses", f"{what}: not found.", stats.misses)
    yield GaugeMetricFamily(f"echovlm_{name}_bytes", f"{what}: memory.", stats.bytes)
