"""How to serve HTTP: values only, so that a server without this door needs none of its libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HttpOptions:
    """Where the door is.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        names: under which clients may call it without TLS, besides addresses, localhost and the host of `listen`.
    """

    listen: str
    names: tuple[str, ...] = ()
