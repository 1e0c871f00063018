"""`echovlm-serve`: loads a bundle and serves it, until it is told to stop; told to (SIGHUP), it loads the bundle anew beside it."""

from __future__ import annotations

import argparse
import ipaddress
import os
import resource
import signal
import socket
import sys
from contextlib import ExitStack, suppress
from pathlib import Path

from echovlm_edge.runtime import logs
from echovlm_edge.runtime.access import Access
from echovlm_edge.runtime.clients import ClientsFile, Everybody
from echovlm_edge.runtime.command import run_command
from echovlm_edge.runtime.decode_sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.engine import EngineOptions, ReportEngine
from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.messages import CallLimits
from echovlm_edge.runtime.metrics import Metrics
from echovlm_edge.runtime.server import DEFAULT_ADDRESS, ReportServer, ServerOptions, parse_address
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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="echovlm-serve", description="Serve a bundle over gRPC.")
    add = parser.add_argument
    add("--bundle", type=Path, required=True, help="folder that echovlm-build made, or a link to one")
    add(
        "--listen", default=DEFAULT_ADDRESS, metavar="HOST:PORT", help=f"port 0: a free one (default {DEFAULT_ADDRESS})"
    )
    add("--port-file", type=Path, metavar="F", help="write the port there once the server answers")
    add("--threads", type=int, metavar="N", help="default: one per core")
    add("--max-sequence", type=int, metavar="N", help="a smaller context than the bundle's, for less memory")
    add("--max-message-mb", type=int, default=64, metavar="N", help="largest request (default 64)")
    add("--grace", type=float, default=10.0, metavar="SECONDS", help="for running calls when told to stop (default 10)")
    add("--verify", action="store_true", help="check every file's hash before loading")
    load = parser.add_argument_group("load")
    add = load.add_argument
    add("--slots", type=int, default=8, metavar="N", help="reports written together (default 8)")
    add("--queue", type=int, default=32, metavar="N", help="calls that may wait beside them (default 32)")
    add("--prefix-mb", type=int, default=1024, metavar="N", help="memory for prompts seen before (default 1024)")
    add("--image-mb", type=int, default=256, metavar="N", help="memory for images seen before (default 256)")
    add("--max-studies", type=int, default=64, metavar="N", help="open at once (default 64)")
    add("--study-mb", type=int, default=1024, metavar="N", help="memory for their pictures (default 1024)")
    add("--study-minutes", type=float, default=30.0, metavar="M", help="unused for so long, it is over (default 30)")
    add("--hang-seconds", type=float, default=300.0, metavar="S", help="one step so long is a hang (default 300)")
    add("--decode-processes", type=int, default=2, metavar="N", help="that decode image files (default 2)")
    add("--decode-mb", type=int, default=4096, metavar="N", help="memory of each (default 4096)")
    add("--decode-seconds", type=float, default=20.0, metavar="S", help="for one file (default 20)")
    who = parser.add_argument_group("who may call")
    add = who.add_argument
    add("--clients", type=Path, metavar="F", help="TOML file of clients by token or certificate, and their quotas")
    add("--tls-certificate", type=Path, metavar="F", help="PEM chain of the server")
    add("--tls-key", type=Path, metavar="F", help="its key")
    add("--tls-client-ca", type=Path, metavar="F", help="whoever's certificate this did not sign is refused")
    add(
        "--insecure",
        action="count",
        default=0,
        help="say it twice to serve without TLS, or without asking who calls, on an address others can reach",
    )
    eyes = parser.add_argument_group("what is seen")
    add = eyes.add_argument
    add("--metrics", metavar="HOST:PORT", help="serve Prometheus metrics there")
    add("--log", choices=("plain", "json"), default="plain", help="lines on stderr (default plain)")
    return parser


def _check(chosen: argparse.Namespace) -> None:
    checks = {
        "--threads must be at least 1": chosen.threads is None or chosen.threads >= 1,
        "--max-sequence must be at least 1": chosen.max_sequence is None or chosen.max_sequence >= 1,
        "--max-message-mb must be between 1 and 2047": 1 <= chosen.max_message_mb <= 2047,  # gRPC's limit is an int32
        "--grace must be between 0 and 3600 seconds": 0 <= chosen.grace <= 3600,
        "--slots must be between 1 and 256": 1 <= chosen.slots <= 256,
        "--queue must be between 0 and 4096": 0 <= chosen.queue <= 4096,
        "--prefix-mb must be at least 0": chosen.prefix_mb >= 0,
        "--image-mb must be at least 0": chosen.image_mb >= 0,
        "--max-studies must be at least 0": chosen.max_studies >= 0,
        "--study-mb must be at least 0": chosen.study_mb >= 0,
        "--study-minutes must be above 0": chosen.study_minutes > 0,
        "--hang-seconds must be above 0": chosen.hang_seconds > 0,
        "--decode-processes must be between 1 and 64": 1 <= chosen.decode_processes <= 64,
        "--decode-mb must be at least 512": chosen.decode_mb >= 512,
        "--decode-seconds must be above 0": chosen.decode_seconds > 0,
    }
    for rule, holds in checks.items():
        if not holds:
            raise InvalidInput(f"{rule}, got {getattr(chosen, rule.split()[0].strip('-').replace('-', '_'))}.")


def tls_files(chosen: argparse.Namespace) -> TlsFiles | None:
    """The certificates, where they were given.

    Raises:
        InvalidInput: only some of them.
    """
    if chosen.tls_certificate and chosen.tls_key:
        return TlsFiles(chosen.tls_certificate, chosen.tls_key, chosen.tls_client_ca)
    if chosen.tls_certificate or chosen.tls_key or chosen.tls_client_ca:
        raise InvalidInput("TLS needs both --tls-certificate and --tls-key.")
    return None


def refuse_open_doors(chosen: argparse.Namespace) -> None:
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
    chosen = _parser().parse_args(arguments)
    logs.start(chosen.log == "json")
    return run_command(lambda: _serve(chosen))


def _serve(chosen: argparse.Namespace) -> int:
    parse_address(chosen.listen)
    _check(chosen)
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
        server = ReportServer(engine, options, access=access, decode=decode, observers=[metrics.observe])
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
