"""How a client identifies itself, which server it trusts, and the gRPC credentials made from this."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from echovlm_edge.runtime.contracts.addresses import is_loopback_target
from echovlm_edge.runtime.contracts.errors import NotPossibleHere


@dataclass(frozen=True)
class Credentials:
    """How a client identifies itself, and which server it trusts; files are PEM.

    Attributes:
        server_ca: the authority that signed the server's certificate; None for a plain-text connection.
        certificate: the client's own chain, if the server asks for one.
        key: the private key of `certificate`.
        token: sent as a bearer token.
    """

    server_ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    token: str = field(default="", repr=False)

    @classmethod
    def read(
        cls, token_file: Path | None, server_ca: Path | None, certificate: Path | None = None, key: Path | None = None
    ) -> Credentials:
        """Make credentials whose token is read from a file, if one is given.

        Raises:
            NotPossibleHere: the file cannot be read.
        """
        return cls(server_ca, certificate, key, read_token(token_file))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of every call."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def check(self, address: str) -> None:
        """Check the credentials before a connection is made.

        Raises:
            NotPossibleHere: a file cannot be read or is no PEM file, or a token would be sent in plain text to another machine.
        """
        if not self.server_ca:
            for path, option in ((self.certificate, "--tls-certificate"), (self.key, "--tls-key")):
                if path:
                    raise NotPossibleHere(f"{option} {path} is used only with TLS: give the authority, --tls-ca, too.")
            if self.token and not is_loopback_target(address):
                raise NotPossibleHere(
                    f"The token would travel to {address} in plain text: give the server's certificate authority "
                    "(--tls-ca), so that the connection is encrypted."
                )
            return
        _check_authority(self.server_ca)
        if self.certificate or self.key:
            _check_pair(self.certificate, self.key)

    def channel(self) -> grpc.ChannelCredentials:
        """Return gRPC's credentials for a channel with TLS; call `check` first."""
        files = (self.server_ca, self.key, self.certificate)
        return grpc.ssl_channel_credentials(*(_read(path) if path else None for path in files))


PLAIN = Credentials()


def read_token(path: Path | None) -> str:
    """Read a bearer token from a file; empty without one.

    Raises:
        NotPossibleHere: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").strip() if path else ""
    except OSError as error:
        raise NotPossibleHere(f"The token file {path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError:
        raise NotPossibleHere(
            f"The token file {path} is not a text file: give the file that holds the token."
        ) from None


def channel_options(address: str) -> list[tuple[str, int]]:
    """Return the options of every channel to that address."""
    options = [("grpc.max_send_message_length", -1)]
    if is_loopback_target(address):
        options.append(("grpc.enable_http_proxy", 0))  # a proxy could read what is meant for this computer alone
    return options


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotPossibleHere(f"{path} cannot be read ({error.strerror}): give a PEM file.") from None


def _check_authority(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=_read(path).decode("ascii"))
    except (ssl.SSLError, ValueError):
        raise NotPossibleHere(
            f"--tls-ca {path} is no certificate: give the PEM file of the authority that signed the server's certificate."
        ) from None


def _check_pair(certificate: Path | None, key: Path | None) -> None:
    if not (certificate and key):
        raise NotPossibleHere("A client's certificate needs its key: give both --tls-certificate and --tls-key.")
    for path in (certificate, key):
        _read(path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError):
        raise NotPossibleHere(
            f"{certificate} and {key} are not a PEM certificate and the key that belongs to it, without a password."
        ) from None
