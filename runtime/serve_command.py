"""`echovlm-serve`: loads a bundle and serves it, until it is told to stop; told to (SIGHUP), it loads the bundle anew beside it."""

from __future__ import annotations

import os
import resource
import signal
import socket
import sys
from contextlib import ExitStack, suppress

from echovlm_edge.runtime import from_settings, logs
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.metrics import Metrics
from echovlm_edge.runtime.serve_settings import ServeSettings, read_settings
from echovlm_edge.runtime.server import ReportServer, parse_address
from echovlm_edge.runtime.serving import WatchdogOptions
from echovlm_edge.runtime.signals import Signals


def tell_systemd(state: str) -> None:
    """Say READY=1, RELOADING=1 or STOPPING=1 to a service manager that asked for it (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        suppress(OSError),
    ):  # the manager is gone: there is nobody to tell
        manager.sendto(state.encode(), address.replace("@", "\0", 1))


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _run(read_settings(arguments)))


def _run(chosen: ServeSettings | None) -> int:
    if chosen is None:
        return 0
    logs.start(chosen.log == "json")
    parse_address(chosen.listen)
    from_settings.refuse_open_doors(chosen)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory is patients'
    options, known = from_settings.server_options(chosen), from_settings.access(chosen)
    with ExitStack() as ending:
        decode = from_settings.decode_sandbox(chosen)
        ending.callback(decode.close)
        engine = from_settings.served_engine(chosen, decode, WatchdogOptions.replacements)
        ending.callback(engine.close)
        told = Signals()  # before the port file says that the server is there to be told
        metrics = Metrics(engine.stats, lambda: server.studies.counts())
        if chosen.metrics:
            scraped = metrics.serve(*parse_address(chosen.metrics))
            ending.callback(scraped.shutdown)
        observers = [metrics.observe]
        if traces := from_settings.traces(chosen):
            ending.callback(traces.close)
            observers.append(traces.observe)
        server = ReportServer(engine, options, access=known, observers=observers)
        info = engine.info
        print(f"Serving {info.model} ({info.precision}, {info.target}) on {server.address}", flush=True)
        tell_systemd("READY=1")
        while told.wait() == signal.SIGHUP:
            engine.swap()
        tell_systemd("STOPPING=1")
        server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
