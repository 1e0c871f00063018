"""What a cart writes around the picture: the depth ruler, the body mark with the probe's place, and the side's letter."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from demo.truth import Side
from echovlm_edge.runtime.tasks import Region

FRAME = 280  # pixels on each side
# The picture's corner. At half size the ruler fills one column of 14-pixel patches and the annotations one row.
LEFT, TOP = 28, 28
PICTURE = FRAME - LEFT - 4  # pixels from the probe's face to the deepest sample
_MARK = (222, 250)  # the body mark's two halves begin here; each is 28 wide: a patch at half size
_OUTLINE, _PROBE, _LETTER = 110, 255, 255


@lru_cache(maxsize=256)
def marks(region: Region, side: Side | None, depth_mm: int) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Flat indices int64 [n] of the annotated pixels of a frame, and their gray values uint8 [n]."""
    picture = Image.new("L", (FRAME, FRAME))
    draw = ImageDraw.Draw(picture)
    _ruler(draw, depth_mm)
    _body_mark(draw, region, side)
    flat = np.asarray(picture).reshape(-1)
    return (at := np.flatnonzero(flat)), flat[at]


def _ruler(draw: ImageDraw.ImageDraw, depth_mm: int) -> None:
    """A tick every 10 mm, a longer one every 50."""
    draw.line([(20, TOP), (20, TOP + PICTURE - 1)], fill=150)
    for tick in range(depth_mm // 10 + 1):
        row = round(TOP + tick * 10 * (PICTURE - 1) / depth_mm)
        draw.rectangle([6 if tick % 5 == 0 else 12, row - 1, 20, row], fill=255)


def _body_mark(draw: ImageDraw.ImageDraw, region: Region, side: Side | None) -> None:
    """The body as it faces the reader, so that the patient's right is at the left, with the probe as a bright bar."""
    left, right = _MARK
    middle = right
    match region:
        case Region.BREAST:
            for start in (left, right):
                draw.ellipse([start + 1, 2, start + 25, 25], outline=_OUTLINE, width=2)
        case Region.THYROID:
            for start in (left + 6, right + 1):
                draw.ellipse([start, 2, start + 18, 25], outline=_OUTLINE, width=2)
            draw.rectangle([middle - 4, 13, middle + 2, 18], fill=_OUTLINE)
        case Region.LIVER:
            draw.polygon([(left + 2, 3), (right + 25, 3), (middle, 20), (left + 6, 25)], outline=_OUTLINE, width=2)
        case Region.KIDNEY:
            for start in (left + 5, right + 5):
                draw.ellipse([start, 1, start + 15, 26], outline=_OUTLINE, width=2)
        case Region.GYNECOLOGY:
            draw.polygon([(left, 2), (right + 27, 2), (middle + 5, 25), (middle - 6, 25)], outline=_OUTLINE, width=2)
        case Region.HEART:
            draw.ellipse([left + 9, 1, right + 17, 26], outline=_OUTLINE, width=2)
            draw.line([(middle, 1), (middle, 26)], fill=_OUTLINE, width=2)
            draw.line([(left + 9, 13), (right + 17, 13)], fill=_OUTLINE, width=2)
        case Region.VESSEL:
            for start in (left + 8, right + 10):
                draw.line([(start, 26), (start, 13), (start - 6, 1)], fill=_OUTLINE, width=2)
                draw.line([(start, 13), (start + 6, 1)], fill=_OUTLINE, width=2)
    if side is None:
        draw.rectangle([middle - 5, 9, middle + 4, 18], fill=_PROBE)
        return
    start = left if side is Side.RIGHT else right
    draw.rectangle([start + 6, 8, start + 21, 19], fill=_PROBE)
    # Carts write the side beside the mark too. Each letter has a place of its own.
    letter = "R" if side is Side.RIGHT else "L"
    draw.text((172 if side is Side.RIGHT else 200, 14), letter, fill=_LETTER, anchor="lm", font=_font())


@lru_cache(maxsize=1)
def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(22)
