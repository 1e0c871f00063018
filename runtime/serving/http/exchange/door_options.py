"""How to serve HTTP: values only, so that a server without this door needs none of its libraries."""

from __future__ import annotations

from dataclasses import dataclass, field

PARSED_AT_ONCE = (
    2  # bodies, each of which takes PARSING times its bytes besides them: measured 2.5, for one picture of 64 MB
)
PARSING = 3


@dataclass(frozen=True)
class StudyFile:
    """An image file that the console offers to try."""

    name: str
    data: bytes = field(repr=False)


@dataclass(frozen=True)
class HttpOptions:
    """Where the door is.

    Attributes:
        listen: HOST:PORT; port 0 takes a free one.
        names: under which clients may call it without TLS, besides addresses, localhost and the host of `listen`.
        console: whether its page is at `/`.
        study: files that the page offers to try.
    """

    listen: str
    names: tuple[str, ...] = ()
    console: bool = True
    study: tuple[StudyFile, ...] = ()
