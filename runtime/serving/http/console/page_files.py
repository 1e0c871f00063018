"""The console's own files: read once, served by their exact names, with headers that let them do nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from importlib.resources import files
from importlib.resources.abc import Traversable

from echovlm_edge.runtime.serving.http.exchange.exchange import Exchange

FOLDER = "page"
START = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # what /v1/pictures answers
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",  # no text becomes markup or code
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # kept, and asked for again by its ETag
}


@dataclass(frozen=True)
class PageFile:
    """One file.

    Attributes:
        path: of the URL.
        media_type: of the file.
        data: its bytes.
        tag: the ETag.
    """

    path: str
    media_type: str
    data: bytes = field(repr=False)
    tag: str

    async def send(self, exchange: Exchange) -> None:
        """Answer a GET or HEAD; one that has the file already gets its headers alone."""
        headers = {**HEADERS, "ETag": self.tag}
        if self.tag in [known.strip().removeprefix("W/") for known in exchange.header("if-none-match").split(",")]:
            await exchange.unchanged(headers)
        else:
            await exchange.answer(self.data, self.media_type, 200, **headers)


def page_files() -> list[PageFile]:
    """Read the files; the page itself is at `/`, the others below `/console/`."""
    return [_read(name, file) for name, file in sorted(_walk("", files(__package__) / FOLDER))]


def _read(name: str, file: Traversable) -> PageFile:
    data = file.read_bytes()
    kind = MEDIA_TYPES["." + name.rpartition(".")[2]]
    path = "/" if name == START else f"/console/{name}"
    return PageFile(path, kind, data, f'"{sha256(data).hexdigest()[:32]}"')


def _walk(prefix: str, folder: Traversable) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _walk(f"{prefix}{entry.name}/", entry)
        else:
            yield prefix + entry.name, entry
