"""Another application entity's address, `AET@HOST:PORT`, and an association with it."""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass

from pynetdicom import AE
from pynetdicom.association import Association

_PEER = re.compile(r"(?P<tls>tls://)?(?P<title>[^@/\s\\]{1,16})@(?P<host>\[[^\]]+\]|[^:\[\]/\s]+):(?P<port>\d{1,5})")


@dataclass(frozen=True)
class PeerAddress:
    """An application entity: its title, where it listens, and whether it was given with `tls://`."""

    title: str
    host: str
    port: int
    encrypted: bool = False

    def associate(self, entity: AE, tls: ssl.SSLContext | None = None) -> Association | None:
        """Request an association; None if the host is not known, otherwise look whether it is established."""
        arguments = {"tls_args": (tls, self.host)} if tls else {}
        try:
            return entity.associate(self.host, self.port, ae_title=self.title, **arguments)  # type: ignore[arg-type]
        except OSError:  # the name has no address
            return None


def peer_address(text: str) -> PeerAddress | None:
    """Read `AET@HOST:PORT` or `tls://AET@HOST:PORT`, an IPv6 host in brackets; None if it is none."""
    found = _PEER.fullmatch(text)
    if not found or not 0 < int(found["port"]) < 65536:
        return None
    return PeerAddress(found["title"], found["host"].strip("[]"), int(found["port"]), bool(found["tls"]))
