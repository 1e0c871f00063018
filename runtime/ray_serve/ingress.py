"""What every node's proxy adds to its gRPC server: the report service, health, and a port with TLS."""

from __future__ import annotations

import threading
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc

from echovlm.v1 import report_pb2_grpc
from echovlm_edge.runtime.serving.access.tls import CertificateFiles
from echovlm_edge.runtime.serving.supervision.from_settings import tls_files
from echovlm_edge.runtime.serving.supervision.serve_settings import read_settings

QUIET_SECONDS = 0.1


def add_report_service(servicer: Any, server: Any) -> None:
    """Add the report service to a proxy's gRPC server, and a port with TLS if there are certificates.

    Ray Serve calls this function before the server starts, because `grpc_servicer_functions` names it. Ray Serve's own port has no
    TLS. If the options in the proxy's environment name certificates, the server also listens with TLS on the address in `listen`, and
    the replicas refuse calls that come through the other port.

    Args:
        servicer: Ray Serve's own, which passes each call to the method of that name in a replica.
        server: the proxy's `grpc.aio` server.

    Raises:
        NotPossibleHere: the certificates cannot be used.
    """
    report_pb2_grpc.add_ReportServiceServicer_to_server(servicer, server)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    chosen = read_settings([])
    if chosen and (files := tls_files(chosen)):
        server.add_secure_port(chosen.listen, _followed(CertificateFiles(files)))


def _followed(files: CertificateFiles) -> grpc.ServerCredentials:
    """Make credentials that are reloaded when the files change. `ReportServer` opens a new server for that, but this one is Ray's.

    gRPC frees the old certificates although a handshake on another thread may be about to use them, which would crash the proxy.
    New handshakes wait in `fetch`, so a short sleep there lets the older handshake finish with the old certificates first.
    """
    lock = threading.Lock()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        with lock:
            renewed = files.renewed()
        if renewed is None:
            return None  # gRPC keeps the certificates it has
        time.sleep(QUIET_SECONDS)
        return renewed.configuration()

    return grpc.dynamic_ssl_server_credentials(
        files.current.configuration(),
        fetch,  # type: ignore[arg-type]  # gRPC takes None for no change
        require_client_authentication=files.current.client_ca is not None,
    )
