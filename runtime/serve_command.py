"""`echovlm-serve`: loads a bundle and serves it, until it is told to stop; told to (SIGHUP), it loads the bundle anew beside it."""

from __future__ import annotations

import ipaddress
import os
import resource
import signal
import socket
import sys
from contextlib import ExitStack, suppress

from echovlm_edge.runtime import logs
from echovlm_edge.runtime.access import Access
from echovlm_edge.runtime.clients import ClientsFile, Everybody
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.decode_sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.engine import EngineOptions, ReportEngine
from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.messages import CallLimits
from echovlm_edge.runtime.metrics import Metrics
from echovlm_edge.runtime.serve_settings import ServeSettings, read_settings
from echovlm_edge.runtime.server import ReportServer, ServerOptions, parse_address
from echovlm_edge.runtime.serving import ServedEngine, WatchdogOptions
from echovlm_edge.runtime.studies import StudyLimits
from echovlm_edge.runtime.tls import TlsFiles

GAVE_UP = 70  # exit code where engines hang again and again: sysexits' EX_SOFTWARE


class Signals:
    """SIGTERM, SIGINT and SIGHUP, which from now on end `wait` instead of the process.

    Over a socket: the kernel may hand a signal to a thread of gRPC's or ONNX Runtime's, and then nothing would wake a main
    thread that waits for a lock, where alone Python runs its handlers.
    """

    def __init__(self) -> None:
        self._woken, self._wakes = socket.socketpair()
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno())
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)

    def wait(self) -> signal.Signals:
        """The next one, or one that had come before."""
        return signal.Signals(self._woken.recv(1)[0])


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


def tls_files(chosen: ServeSettings) -> TlsFiles | None:
    """The certificates, where they were given.

    Raises:
        InvalidInput: only some of them.
    """
    if chosen.tls_certificate and chosen.tls_key:
        return TlsFiles(chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca)
    if chosen.tls_certificate or chosen.tls_key or chosen.tls_client_ca:
        raise InvalidInput("TLS needs both --tls-certificate and --tls-key.")
    return None


def refuse_open_doors(chosen: ServeSettings) -> None:
    """Others can reach the address: then it is served with TLS and to known clients only, unless it was said twice.

    Raises:
        InvalidInput: it is open, and was not.
    """
    host, _ = parse_address(chosen.listen)
    known = chosen.clients or chosen.tls_client_ca
    if _is_loopback(host) or (chosen.tls_certificate and known) or chosen.insecure >= 2:
        return
    lacks = "without TLS" if not chosen.tls_certificate else "to whoever asks"
    raise InvalidInput(
        f"{chosen.listen} can be reached by others, and would be served {lacks}: give --tls-certificate, --tls-key and "
        "--clients or --tls-client-ca, or say --insecure twice."
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(lambda: _run(read_settings(arguments)))


def _run(chosen: ServeSettings | None) -> int:
    if chosen is None:
        return 0
    logs.start(chosen.log == "json")
    parse_address(chosen.listen)
    refuse_open_doors(chosen)
    certificates = tls_files(chosen)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # what is in memory is patients'
    access: Access = ClientsFile(chosen.clients) if chosen.clients else Everybody()
    sandbox = SandboxLimits(chosen.decode_processes, chosen.decode_mb << 20, chosen.decode_seconds)
    with ExitStack() as ending:
        decode = DecodeSandbox(sandbox)
        ending.callback(decode.close)

        def open_engine() -> ReportEngine:
            return ReportEngine.open(
                chosen.bundle,
                threads=chosen.threads,
                max_sequence=chosen.max_sequence,
                verify=chosen.verify,
                options=EngineOptions(chosen.slots, chosen.prefix_mb << 20, chosen.image_mb << 20),
                decode=decode,
            )

        engine = ServedEngine(open_engine, WatchdogOptions(chosen.hang_seconds), lambda: os._exit(GAVE_UP))
        ending.callback(engine.close)
        options = ServerOptions(
            chosen.listen,
            chosen.port_file,
            chosen.grace,
            chosen.slots,
            chosen.queue,
            CallLimits(chosen.max_message_mb << 20),
            StudyLimits(chosen.max_studies, chosen.study_mb << 20, expires_after_seconds=60 * chosen.study_minutes),
            certificates,
        )
        told = Signals()  # before the port file says that the server is there to be told
        metrics = Metrics(engine.stats, lambda: server.studies.counts())
        if chosen.metrics:
            scraped = metrics.serve(*parse_address(chosen.metrics))
            ending.callback(scraped.shutdown)
        observers = [metrics.observe]
        if chosen.traces:
            from echovlm_edge.runtime.traces import Traces  # an extra: most do without it

            traces = Traces(chosen.traces)
            ending.callback(traces.close)
            observers.append(traces.observe)
        server = ReportServer(engine, options, access=access, decode=decode, observers=observers)
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
