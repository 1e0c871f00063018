"""Who may call: clients by bearer token or by the name in their certificate, and the quotas of each."""

from __future__ import annotations

import hmac
import logging
import threading
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Protocol

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import NotPossibleHere, Unauthenticated

_STRICT = ConfigDict(extra="forbid")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, config=_STRICT)
class Client:
    """One client, as the clients file has it.

    Attributes:
        name: its name in logs and metrics.
        token_sha256: the SHA-256 of its bearer token, 64 hex digits.
        certificate: the common name or a DNS name of its certificate.
        group: clients of one group share their cached images and prompts, so that one can see from `reused_tokens` and from the
            time that another sent the same image; empty: the client shares with nobody.
        max_calls: generations at once; None for its `share` of all.
        max_studies: open studies at once; None for its `share` of all.
        operator: may see the load and the errors of all clients in the service's state; others see their own.
    """

    name: str = ""
    token_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = field(default="", repr=False)
    certificate: str = ""
    group: str = ""
    max_calls: Annotated[int, Field(ge=1)] | None = None
    max_studies: Annotated[int, Field(ge=0)] | None = None
    operator: bool = False

    @property
    def scope(self) -> str:
        """The name of the caches that its requests may reuse, its group's or its own."""
        return f"group {self.group}" if self.group else f"client {self.name}"

    @property
    def is_named(self) -> bool:
        """Whether it is in a clients file; otherwise it stands for all callers."""
        return bool(self.token_sha256 or self.certificate)

    def share(self, total: int) -> int:
        """Return how much of a `total` one client may take: three quarters, so that none takes everything by default.

        Callers without a token or certificate count as one client, which may take all.
        """
        return max(1, total * 3 // 4) if self.is_named else total


ANYBODY = Client("anybody")
_CLIENTS = TypeAdapter(dict[str, Client])


class Arrival(Protocol):
    """What is known about a call before its message is read; a `grpc.aio.ServicerContext` is one."""

    def invocation_metadata(self) -> Iterable[tuple[str, str | bytes]] | None:
        """The metadata that the client sent with the call."""
        ...

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """The properties of the client's certificate, by name."""
        ...

    def peer(self) -> str:
        """The connection's remote address, as gRPC writes it."""
        ...


class Everybody:
    """Accepts every caller, all as one client."""

    def identify(self, arrival: Arrival) -> Client:
        """Return the one client."""
        return ANYBODY


class ClientsFile:
    """A TOML file with a table for each client, reloaded when it changes; a changed file that cannot be read is ignored.

        [cart-7]
        token_sha256 = "9f86d0…"      # printf %s "$TOKEN" | sha256sum
        max_calls = 2

        [workstation]
        certificate = "workstation.radiology.example"

    Raises:
        NotPossibleHere: the file cannot be read, or is not valid.
    """

    def __init__(self, path: Path) -> None:
        """Read the file."""
        self._path = path
        self._lock = threading.Lock()
        self._read_at = self._stamp()
        self._clients = _read(path)

    def identify(self, arrival: Arrival) -> Client:
        """Identify the caller by its bearer token or certificate.

        Raises:
            Unauthenticated: the caller is not in the file.
        """
        self._read_again()
        return self.find(_bearer(arrival), _certificate_names(arrival))

    def find(self, token: str | None, certificate_names: Sequence[str]) -> Client:
        """Find the client with that token or with one of those certificate names; a certificate does not excuse a wrong token.

        Raises:
            Unauthenticated: there is no such client.
        """
        if token is not None:
            digest = sha256(token.encode()).hexdigest()
            matches = [client for client in self._clients if hmac.compare_digest(client.token_sha256, digest)]
            if not matches:
                raise Unauthenticated(
                    "The bearer token is unknown: ask the server's operator for a valid one.", "token"
                )
            return matches[0]
        for client in self._clients:
            if client.certificate and client.certificate in certificate_names:
                return client
        if certificate_names:
            raise Unauthenticated(
                "No client is registered under this certificate's names: ask the server's operator.", "certificate"
            )
        raise Unauthenticated(
            "The call has no credentials: send 'authorization: Bearer <token>' or a client certificate.", "none"
        )

    def _read_again(self) -> None:
        with self._lock:
            stamp = self._stamp()
            if stamp == self._read_at:
                return
            self._read_at = stamp
            try:
                self._clients = _read(self._path)
                _log.info("read the clients file again: %d clients", len(self._clients))
            except NotPossibleHere as error:
                _log.error("the clients file has changed and cannot be used, the old one stays: %s", error)

    def _stamp(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_ino


def _read(path: Path) -> list[Client]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotPossibleHere(f"The clients file {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:  # its text gives a line and column, and quotes nothing of the file
        raise NotPossibleHere(f"The clients file {path} is not TOML ({error}).") from None
    try:
        named = {name: {**table, "name": name} for name, table in tables.items() if isinstance(table, dict)}
        clients = list(_CLIENTS.validate_python(named).values())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise NotPossibleHere(f"The clients file {path} is wrong at {where} ({first['msg']}).") from None
    nobody = [name for name in tables if name not in named]
    nobody += [client.name for client in clients if not (client.token_sha256 or client.certificate)]
    if nobody or not clients:
        raise NotPossibleHere(
            f"The clients file {path} has {f'no credentials for {nobody[0]}' if nobody else 'no clients'}: "
            "give each client a table with a token_sha256 or a certificate."
        )
    return clients


def _bearer(arrival: Arrival) -> str | None:
    for key, value in arrival.invocation_metadata() or ():
        if key == "authorization":
            scheme, _, token = str(value).partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return None


def _certificate_names(arrival: Arrival) -> list[str]:
    properties = arrival.auth_context()
    found = [*properties.get("x509_common_name", ()), *properties.get("x509_subject_alternative_name", ())]
    return [name.decode(errors="replace") for name in found]
