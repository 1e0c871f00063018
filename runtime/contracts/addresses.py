"""Addresses: their parts, and which lead to this very computer, so that plain text sent there cannot be read on the way."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address

DEFAULT_ADDRESS = "127.0.0.1:50051"  # where a server listens unless it is told otherwise

_LOOPBACK = IPv4Network("127.0.0.0/8")
_SCHEME = re.compile(r"(dns:(///)?|ipv4:|ipv6:)")
_HOST_AND_PORT = re.compile(r"(\[(?P<bracketed>[^\[\]]*)\]|(?P<host>[^:\[\]]*))(:[0-9]{1,5})?")


def host_and_port(address: str) -> tuple[str, int] | None:
    """Split HOST:PORT or [IPV6]:PORT of a listening address into host and port; None if it is neither."""
    host, _, port = address.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return None
    return host.strip("[]"), int(port)


def is_loopback_host(host: str) -> bool:
    """Whether a host is localhost, in 127.0.0.0/8 or ::1. Names are not looked up: `127.evil.example` is a name."""
    if host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return address in _LOOPBACK if isinstance(address, IPv4Address) else address == IPv6Address("::1")


def is_loopback_target(target: str) -> bool:
    """Whether a gRPC target, HOST:PORT as gRPC itself splits it, is on this computer. What is not understood is not."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    found = _HOST_AND_PORT.fullmatch(_SCHEME.sub("", target, count=1) if _SCHEME.match(target) else target)
    if not found:  # an IPv6 address without brackets has no port: ::1:5005 is another one than ::1
        return is_loopback_host(target)
    return is_loopback_host(found["host"] if found["bracketed"] is None else found["bracketed"])
