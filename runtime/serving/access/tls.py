"""Certificates: the server's own and the CA of its clients, reloaded when the files change."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TlsFiles:
    """PEM files: the server's certificate chain, its key, and the CA of its clients (None: clients need no certificate)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def all(self) -> list[Path]:
        """List the files."""
        return [self.certificate, self.key, *([self.client_ca] if self.client_ca else [])]


@dataclass(frozen=True)
class Certificates:
    """The contents of the files, checked with OpenSSL."""

    certificate: bytes = field(repr=False)
    key: bytes = field(repr=False)
    client_ca: bytes | None = field(repr=False)

    def credentials(self) -> grpc.ServerCredentials:
        """Make fixed server credentials."""
        pair = (self.key, self.certificate)
        return grpc.ssl_server_credentials([pair], self.client_ca, self.client_ca is not None)

    def context(self) -> ssl.SSLContext:
        """Make a context for HTTP, with the same certificates and the same demand for the clients'.

        Raises:
            ssl.SSLError, OSError: they are not certificates, or the key is another one's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with _in_memory(self.certificate) as certificate, _in_memory(self.key) as key:
            # Without a password, OpenSSL asks the terminal for an encrypted key's.
            context.load_cert_chain(certificate, key, password="")
        if self.client_ca is not None:
            with _in_memory(self.client_ca) as client_ca:
                context.load_verify_locations(client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        context.set_alpn_protocols(["http/1.1"])
        return context

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """Make a configuration for server credentials that can change."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.certificate)], self.client_ca)


class CertificateFiles:
    """The current certificates, which follow their files. Not safe for use from two threads at once."""

    def __init__(self, files: TlsFiles) -> None:
        """Read the files.

        Raises:
            NotPossibleHere: a file cannot be read, or certificate and key do not belong together.
        """
        self._files = files
        self.current = _checked(files, self._read())
        self._problem = ""

    def renewed(self) -> Certificates | None:
        """Read the files again; returns the certificates if they are new and valid. Invalid ones are logged once."""
        try:
            found = self._read()
            if found == self.current:
                self._problem = ""
                return None
            self.current = _checked(self._files, found)
        except NotPossibleHere as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("the certificates have changed and cannot be used, the old ones stay: %s", error)
            return None
        self._problem = ""
        return self.current

    def _read(self) -> Certificates:
        files = self._files
        return Certificates(
            _read(files.certificate), _read(files.key), _read(files.client_ca) if files.client_ca else None
        )


def _checked(files: TlsFiles, found: Certificates) -> Certificates:
    """Check certificates with OpenSSL and return their contents, so that later changes of the files have no effect.

    Raises:
        NotPossibleHere: the certificates cannot be used.
    """
    try:
        found.context()
    except (ssl.SSLError, OSError):
        names = ", ".join(map(str, files.all()))
        raise NotPossibleHere(f"{names} are not a PEM certificate and the key that belongs to it.") from None
    return found


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """Make a file that only this process has, because `ssl` takes only paths; yields its path."""
    with os.fdopen(os.memfd_create("pem"), "wb") as file:
        file.write(data)
        file.flush()
        yield f"/proc/self/fd/{file.fileno()}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotPossibleHere(f"{path} cannot be read ({error.strerror}).") from None
