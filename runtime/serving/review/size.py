"""A size that the pictures have no room for."""

from __future__ import annotations

from echovlm_edge.runtime.facts import Kind
from echovlm_edge.runtime.serving.review.reviewed import Reviewed

ROUNDING = 1.05  # sizes are rounded, and calipers are put on edges


def exceeds_the_pictures(reviewed: Reviewed) -> str | None:
    """Compare sizes with the longest line in the pictures; unless every picture has a scale, nothing is known."""
    reaches = [picture.source.examination.reach_mm for picture in reviewed.pictures]
    known = [reach for reach in reaches if reach is not None]
    sizes = [size for fact in reviewed.facts.of(Kind.SIZE) if isinstance(size := fact.value, float)]
    if not known or len(known) < len(reaches) or not sizes or max(sizes) <= ROUNDING * max(known):
        return None
    return reviewed.say(
        f"The text gives a size of {max(sizes):g} mm, the pictures show at most {max(known):.0f} mm.",
        f"文本中的大小{max(sizes):g}mm超出图像所示范围（最大{max(known):.0f}mm）。",
    )
