"""Run a server of a real bundle in this process, with all features that tests switch on or off."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.observability.metrics import Metrics
from echovlm_edge.runtime.serving.access.identification import Access
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine, WatchdogOptions
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions


@dataclass(frozen=True)
class Running:
    """The parts of a running server that tests use."""

    server: ReportServer
    engine: ServedEngine
    metrics: Metrics
    stub: report_pb2_grpc.ReportServiceStub
    channel: grpc.Channel


SERVER, ENGINE, WATCHDOG = ServerOptions(grace_seconds=0.2), EngineOptions(), WatchdogOptions()


@contextmanager
def running(
    open_engine: Path | Callable[[], ReportEngine],
    options: ServerOptions = SERVER,
    *,
    engine_options: EngineOptions = ENGINE,
    watchdog: WatchdogOptions = WATCHDOG,
    access: Access | None = None,
) -> Iterator[Running]:
    """Serve a bundle, or what a function opens, on a free loopback port."""
    if isinstance(open_engine, Path):
        bundle = open_engine
        open_engine = lambda: ReportEngine.open(bundle, threads=2, options=engine_options)  # noqa: E731
    engine = ServedEngine(open_engine, watchdog)
    metrics = Metrics(engine.stats, lambda: server.studies.counts(), lambda: server.uploads.counts())
    server = ReportServer(engine, replace(options, listen="127.0.0.1:0"), access=access, observers=[metrics.observe])
    try:
        with grpc.insecure_channel(server.address) as channel:
            yield Running(server, engine, metrics, report_pb2_grpc.ReportServiceStub(channel), channel)
    finally:
        server.stop()
        engine.close()
