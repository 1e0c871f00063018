"""Certificates: the server's own, those of the clients it trusts, read again when the files change."""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

from echovlm_edge.runtime.errors import NotPossibleHere

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the server's certificate chain and key, and who signs its clients' certificates (None: none are asked for)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def all(self) -> list[Path]:
        """Every file."""
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]


def server_credentials(files: TlsFiles) -> grpc.ServerCredentials:
    """Credentials that follow the files: a connection made after a change gets the new certificate.

    Raises:
        NotPossibleHere: a file cannot be read, or they do not belong together.
    """
    current = _configuration(files)
    lock = threading.Lock()
    stamp = _stamp(files)

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal stamp
        with lock:
            found = _stamp(files)
            if found == stamp:
                return None  # keeps what it has
            stamp = found
            try:
                renewed = _configuration(files)
            except NotPossibleHere as error:
                _log.error("the certificates have changed and cannot be used, the old ones stay: %s", error)
                return None
            _log.info("read the certificates again")
            return renewed

    return grpc.dynamic_ssl_server_credentials(
        current,
        fetch,  # type: ignore[arg-type]  # gRPC takes None for no change
        require_client_authentication=files.client_ca is not None,
    )


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    read = [_read(path) for path in files.all()]
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.certificate, files.key)
        if files.client_ca:
            context.load_verify_locations(files.client_ca)
    except (ssl.SSLError, OSError):
        names = ", ".join(map(str, files.all()))
        raise NotPossibleHere(f"{names} are not a PEM certificate and the key that belongs to it.") from None
    authority = read[2] if files.client_ca else None
    return grpc.ssl_server_certificate_configuration([(read[1], read[0])], authority)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotPossibleHere(f"{path} cannot be read ({error.strerror}).") from None


def _stamp(files: TlsFiles) -> list[int | None]:
    return [path.stat().st_mtime_ns if path.exists() else None for path in files.all()]
