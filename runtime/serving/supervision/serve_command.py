"""`echovlm-serve`: load a bundle and serve it until a signal stops it; SIGHUP reloads the bundle while it serves."""

from __future__ import annotations

import resource
import signal
import sys
from contextlib import ExitStack
from dataclasses import replace

from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.observability import logs
from echovlm_edge.runtime.observability.metrics import Metrics
from echovlm_edge.runtime.observability.metrics_server import MetricsServer
from echovlm_edge.runtime.serving.supervision import from_settings
from echovlm_edge.runtime.serving.supervision.background import Reloads, in_background
from echovlm_edge.runtime.serving.supervision.process_end import end_process
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings, read_settings
from echovlm_edge.runtime.serving.supervision.served_engine import ServedEngine, WatchdogOptions
from echovlm_edge.runtime.serving.supervision.signals import Signals
from echovlm_edge.runtime.serving.supervision.systemd import ServiceManager
from echovlm_edge.runtime.serving.transport.server import ReportServer, parse_address

END_SECONDS = 5.0  # after the grace period, until the process ends even if a thread hangs


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _run(read_settings(arguments)))


def _run(chosen: ServeSettings | None) -> int:
    if chosen is None:
        return 0
    logs.start(chosen.log == "json")
    options, known = from_settings.checked(chosen)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would contain patients' data
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # connections take one each
    with Signals() as signals, ExitStack() as ending:
        manager = ServiceManager()
        decode = from_settings.decode_sandbox(chosen)
        ending.callback(decode.close)
        choice = from_settings.bundle_choice(chosen, decode)
        # In a thread, so that a signal is handled while it loads.
        loading = in_background(
            lambda: from_settings.served_engine(chosen, choice, decode, WatchdogOptions.replacements), "load"
        )
        if signals.stopped_before(loading):
            end_process(END_SECONDS, choice.stop, manager.stopping, ending.close)
        engine = loading.result()
        ending.callback(engine.close)
        metrics = Metrics(
            engine.stats,
            lambda: server.studies.counts(),
            lambda: server.uploads.counts(),
            lambda: engine.info.refused_bundle,
        )
        scraped = MetricsServer(*parse_address(chosen.metrics), metrics.registry) if chosen.metrics else None
        if scraped:
            ending.callback(scraped.close)
        observers = [metrics.observe]
        if traces := from_settings.traces(chosen):
            ending.callback(traces.close)
            observers.append(traces.observe)
        options = replace(options, slots=engine.stats().scheduler.slots)
        server = ReportServer(engine, options, access=known, observers=observers)
        if scraped:
            scraped.start()  # only now, because its metrics read the server's studies
        info = engine.info
        print(f"Serving {info.model} ({info.precision}, {info.target}) on {server.address}", flush=True)
        if server.http_address:
            print(f"HTTP on {server.http_address}", flush=True)
        manager.ready()
        reloads = Reloads(lambda: _reload(engine, manager))
        while signals.wait() == signal.SIGHUP:
            reloads.ask()
        end_process(chosen.grace + END_SECONDS, choice.stop, manager.stopping, server.stop, ending.close)


def _reload(engine: ServedEngine, manager: ServiceManager) -> None:
    manager.reloading()
    try:
        engine.swap()
    finally:
        manager.ready()


if __name__ == "__main__":
    sys.exit(main())
