"""Who may send: by AE title, address and certificate, from a file that is read again when it changes."""

from __future__ import annotations

import logging
import ssl
import threading
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

from echovlm_edge.runtime.contracts.errors import NotPossibleHere

_log = logging.getLogger(__name__)
KEYS = {"ae_title", "address", "certificate"}
Network = IPv4Network | IPv6Network


@dataclass(frozen=True)
class Peer:
    """One sender.

    Attributes:
        name: of its table in the file.
        ae_title: that it calls itself by.
        networks: one of which its address is in; empty for any.
        certificate: common name or DNS name of its certificate; empty for none.
    """

    name: str
    ae_title: str
    networks: tuple[Network, ...] = ()
    certificate: str = ""

    def admits(self, ae_title: str, address: str, names: Sequence[str]) -> bool:
        """Tell whether an association with this AE title, address and certificate is this sender's."""
        if ae_title != self.ae_title or (self.certificate and self.certificate not in names):
            return False
        return self.is_at(address)

    def is_at(self, address: str) -> bool:
        """Tell whether this sender may be at an address."""
        return not self.networks or any(ip_address(address) in network for network in self.networks)


class Peers:
    """A TOML file with a table for each sender. Without a file everybody may send.

        [cart-7]
        ae_title = "CART7"
        address = "10.1.2.0/24"                  # or several in a list; without it any address
        certificate = "cart7.radiology.example"  # without it any certificate that the CA signed

    Raises:
        NotPossibleHere: the file cannot be read, or is not valid.
    """

    def __init__(self, path: Path | None) -> None:
        """Read the file."""
        self._path, self._lock = path, threading.Lock()
        self._stamp = self._stamped()
        self._peers = _read(path) if path else []

    def admit(self, ae_title: str, address: str, names: Sequence[str]) -> bool:
        """Tell whether somebody with this AE title, address and certificate may send."""
        if self._path is None:
            return True
        self._read_again(self._path)
        return any(peer.admits(ae_title.strip(), _plain(address), names) for peer in self._peers)

    def may_connect(self, address: str) -> bool:
        """Tell whether anybody at this address may send, before they have said who they are."""
        if self._path is None:
            return True
        self._read_again(self._path)
        return any(peer.is_at(_plain(address)) for peer in self._peers)

    def _read_again(self, path: Path) -> None:
        with self._lock:
            stamp = self._stamped()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            try:
                self._peers = _read(path)
                _log.info("read the peers file again: %d peers", len(self._peers))
            except NotPossibleHere as error:
                _log.error("the peers file has changed and cannot be used, the old one stays: %s", error)

    def _stamped(self) -> tuple[int, int] | None:
        try:
            status = self._path.stat() if self._path else None
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_ino) if status else None


def _plain(address: str) -> str:
    """Return an address without its zone, and one of IPv4 that a socket of IPv6 maps as itself."""
    return address.partition("%")[0].removeprefix("::ffff:")


def certificate_names(certificate: Mapping[str, Any] | None) -> list[str]:
    """List the common name and the DNS names of a certificate, as `ssl.SSLSocket.getpeercert` gives it."""
    if not certificate:
        return []
    subject = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return subject + [value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS"]


def tls_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """Make the context of a DICOM TLS listener by BCP 195: TLS 1.2 with forward secrecy and authenticated encryption, or 1.3.

    Raises:
        NotPossibleHere: a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _harden(context)
    _load(context, certificate, key, client_ca)
    if client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def tls_client_context(ca: Path | None, certificate: Path | None, key: Path | None) -> ssl.SSLContext:
    """Make the context of a connection to a destination, with this node's own certificate; raises as `tls_context`."""
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except OSError as error:
        raise NotPossibleHere(f"The certificates {ca} cannot be used ({error.strerror or error}).") from None
    _harden(context)
    if certificate and key:
        _load(context, certificate, key, None)
    return context


def _harden(context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")  # RFC 9325 4.2; those of TLS 1.3 are all as strong
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION


def _load(context: ssl.SSLContext, certificate: Path, key: Path, ca: Path | None) -> None:
    def refused() -> str:
        raise NotPossibleHere(f"The key {key} has a password: give one without.")

    try:
        context.load_cert_chain(certificate, key, password=refused)
        if ca:
            context.load_verify_locations(ca)
    except (OSError, ssl.SSLError) as error:
        raise NotPossibleHere(
            f"The certificate {certificate} with the key {key}{f' and the authority {ca}' if ca else ''} cannot be used "
            f"({error.strerror or 'they do not belong together'})."
        ) from None


def _read(path: Path) -> list[Peer]:
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NotPossibleHere(f"The peers file {path} cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise NotPossibleHere(f"The peers file {path} is not TOML ({error}).") from None
    peers = [_peer(path, name, table) for name, table in tables.items()]
    if not peers:
        raise NotPossibleHere(f"The peers file {path} has no peers: give each sender a table with an ae_title.")
    return peers


def _peer(path: Path, name: str, table: object) -> Peer:
    if not isinstance(table, dict) or not isinstance(table.get("ae_title"), str) or not table["ae_title"].strip():
        raise NotPossibleHere(f"The peers file {path} gives {name} no ae_title: each sender's table needs one.")
    if unknown := table.keys() - KEYS:
        raise NotPossibleHere(
            f"The peers file {path} has an unknown key, {name}.{min(unknown)}: use {', '.join(sorted(KEYS))}."
        )
    listed = table.get("address", [])
    try:
        networks = tuple(ip_network(one) for one in (listed if isinstance(listed, list) else [listed]))
    except ValueError:
        raise NotPossibleHere(
            f"The peers file {path} is wrong at {name}.address: give an IP address, or a network such as 10.1.2.0/24."
        ) from None
    return Peer(name, table["ae_title"].strip(), networks, str(table.get("certificate", "")))
