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
    """Named in Ray Serve's `grpc_servicer_functions`, which calls it before the proxy's server starts.

    Ray Serve's own port has no TLS. Where the options (in the proxy's environment) name certificates, it listens on their `listen`
    too, with them; the replicas then refuse what comes by the other port.

    Args:
        servicer: a stand-in: Ray Serve passes every method on to a replica's method of that name.
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
    """Credentials that follow the files. The server is Ray's, so that another one cannot take over as `ReportServer` has it.

    gRPC frees the old certificates even where a handshake on another thread, which was told that they stay, is about to take
    them; that would end the proxy. New handshakes wait in `fetch`, so a moment's sleep there lets such a one take them first.
    """
    lock = threading.Lock()

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        with lock:
            renewed = files.renewed()
        if renewed is None:
            return None  # keeps what it has
        time.sleep(QUIET_SECONDS)
        return renewed.configuration()

    return grpc.dynamic_ssl_server_credentials(
        files.current.configuration(),
        fetch,  # type: ignore[arg-type]  # gRPC takes None for no change
        require_client_authentication=files.current.client_ca is not None,
    )
