"""Run the report service on many computers: `python deploy/ray_serve.py --bundle FOLDER …` on any node of a Ray cluster.

Its own options are below; all others are those of `echovlm-serve`, and apply to every replica. docs/operations.md, "A department",
describes the whole set-up.
"""

from __future__ import annotations

import argparse
import logging
import sys

from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere, UserError
from echovlm_edge.runtime.contracts.extras import install_hint

try:
    import ray

    from echovlm_edge.runtime.ray_serve import application
    from echovlm_edge.runtime.serving.supervision.from_settings import refuse_open_doors, server_options
    from echovlm_edge.runtime.serving.supervision.serve_settings import (
        ServeSettings,
        read_settings,
        with_absolute_paths,
    )
    from echovlm_edge.runtime.serving.supervision.signals import Signals
except ModuleNotFoundError as missing:
    print(
        f"error: deploy/ray_serve.py needs {missing.name}, which is not installed: {install_hint('ray,serve')}, on every node.",
        file=sys.stderr,
    )
    sys.exit(UserError.exit_code)


def _replicas(text: str) -> tuple[int, int]:
    fewest, _, most = text.partition("-")
    counts = int(fewest), int(most or fewest)
    if not 1 <= counts[0] <= counts[1]:
        raise ValueError(text)
    return counts


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deploy/ray_serve.py",
        description="Serve a bundle from the nodes of a Ray cluster.",
        epilog="All other options are echovlm-serve's: echovlm-serve --help lists them.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--replicas", type=_replicas, default=(1, 1), metavar="N[-M]", help="engines: N, up to M under load (default 1)"
    )
    parser.add_argument("--cpus", type=int, default=2, metavar="N", help="cores of each (default 2)")
    parser.add_argument("--gpus", type=float, default=0.0, metavar="N", help="GPUs of each (default 0)")
    parser.add_argument(
        "--plain-port",
        type=int,
        default=9000,
        metavar="PORT",
        help="Ray Serve's own port, without TLS, on every node (default 9000)",
    )
    parser.add_argument(
        "--local", action="store_true", help="a cluster of this computer alone, as long as this command runs"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    own, others = _parser().parse_known_args(arguments)
    return run_command(lambda: _run(own, read_settings(others)))


def _run(own: argparse.Namespace, asked: ServeSettings | None) -> int:
    if asked is None:
        return 0
    settings = with_absolute_paths(asked)
    address = settings.listen if settings.tls_certificate else f"[::]:{own.plain_port}"
    refuse_open_doors(settings.model_copy(update={"listen": address}))
    server_options(settings)
    if settings.http:
        raise InvalidInput("--http is for one server: calls of Ray's replicas come by gRPC alone.")
    if settings.metrics or settings.port_file:
        raise InvalidInput("--metrics and --port-file are for one server: Ray's nodes have metrics of their own.")
    fewest, most = own.replicas
    _connect(own.local, most * own.cpus)
    try:
        application.start(settings, application.Replicas(fewest, most, own.cpus, own.gpus), own.plain_port)
        print(f"Serving {settings.bundle} with {fewest} to {most} replicas on {address} of every node", flush=True)
        if own.local:
            Signals().wait()
    finally:
        if own.local:
            ray.shutdown()
    return 0


def _connect(local: bool, cpus: int) -> None:
    if local:
        ray.init("local", num_cpus=cpus, include_dashboard=False, namespace="serve", logging_level=logging.WARNING)
        return
    try:
        ray.init("auto", namespace="serve", logging_level=logging.WARNING)
    except ConnectionError:
        raise NotPossibleHere(
            "No Ray cluster runs on this computer: start one with `ray start --head`, or say --local."
        ) from None


if __name__ == "__main__":
    sys.exit(main())
