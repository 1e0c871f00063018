"""Make small pictures that a page holds inside itself, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from echovlm_edge.runtime.contracts.errors import UserError
from echovlm_edge.runtime.contracts.image_path import read_image
from echovlm_edge.runtime.contracts.request import FrameSelection
from echovlm_edge.runtime.imaging.image_file import decode_image

SIDE = 220  # pixels, at most
QUALITY = 65  # of JPEG
PICTURES = 4  # shown of a row


def thumbnails(names: Sequence[str], images: Path | None) -> dict[str, Any]:
    """Return what `cases.js` shows of a row's pictures: the first of them, and how many `more` there are.

    Args:
        names: the row's pictures, below `images`.
        images: their folder; without it none is shown.
    """
    if images is None:
        return {"pictures": [], "more": 0}
    shown = [small for name in names[:PICTURES] if (small := thumbnail(images / name))]
    return {"pictures": shown, "more": len(names) - len(shown)}


def thumbnail(path: Path) -> str | None:
    """Return a small JPEG of a picture, as the model is shown it, as a data URI; None for one that cannot be read now."""
    try:
        first, *_ = decode_image(read_image(path, FrameSelection(), True))
    except UserError:
        return None
    picture = Image.fromarray(first.pixels)
    picture.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
