"""Decode image files as the engine does: first measure a file, then decode it to that size."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import psutil

from echovlm_edge.runtime.contracts.request import Frame, ImageInput
from echovlm_edge.runtime.imaging.decoder import NOBODY, Asker, ImageDecoder
from echovlm_edge.runtime.imaging.preprocess import PreprocessSettings

RESOLUTION = PreprocessSettings().resolution


def read(decoder: ImageDecoder, image: ImageInput, asker: Asker = NOBODY) -> list[Frame]:
    """Return a file's frames, resized for the model."""
    return decoder.decode(image, decoder.measure(image, RESOLUTION, asker), asker)


def asker(stopped: Callable[[], bool], client: str = "") -> Asker:
    """A caller that may be gone."""
    return Asker(client, stopped=stopped)


def bomb(width: int, height: int) -> bytes:
    """Make a PNG with this many white pixels, in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + width // 8)) for _ in range(height)) + packer.flush()
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes((1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
