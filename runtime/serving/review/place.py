"""A side or an organ that contradicts the files or the region that was asked about."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.tasks import Region
from echovlm_edge.runtime.facts import Kind, Organ, Side
from echovlm_edge.runtime.serving.review.reviewed import Reviewed

# Organs whose side the file's laterality is about. A liver's lobes are not sides of the body, and nodes are named wherever they lie.
_PAIRED = {Organ.BREAST, Organ.THYROID, Organ.KIDNEY, Organ.OVARY, Organ.TESTIS, Organ.VESSEL}
_CHINESE = {Side.LEFT: "左", Side.RIGHT: "右"}

# What a report about a region may be about; only a text about none of these contradicts it.
_UPPER_ABDOMEN = {Organ.LIVER, Organ.GALLBLADDER, Organ.KIDNEY, Organ.SPLEEN, Organ.PANCREAS, Organ.VESSEL}
_PELVIS = {Organ.UTERUS, Organ.OVARY, Organ.BLADDER, Organ.FETUS, Organ.PROSTATE}
_NECK = {Organ.THYROID, Organ.LYMPH_NODE, Organ.VESSEL, Organ.SUPERFICIAL}
_ORGANS = {
    Region.BREAST: {Organ.BREAST, Organ.LYMPH_NODE, Organ.SUPERFICIAL},
    Region.THYROID: _NECK,
    Region.LIVER: _UPPER_ABDOMEN,
    Region.KIDNEY: {Organ.KIDNEY, Organ.BLADDER, Organ.PROSTATE, Organ.VESSEL},
    Region.GYNECOLOGY: _PELVIS,
    Region.HEART: {Organ.HEART, Organ.VESSEL},
    Region.VESSEL: {Organ.VESSEL, Organ.HEART},
}
# BodyPartExamined, PS3.16 annex L; parts that hold many organs are left out.
_BODY_PARTS = {
    "BREAST": _ORGANS[Region.BREAST],
    "THYROID": _ORGANS[Region.THYROID],
    "LIVER": _ORGANS[Region.LIVER],
    "KIDNEY": _ORGANS[Region.KIDNEY],
    "HEART": _ORGANS[Region.HEART],
    **dict.fromkeys(("UTERUS", "OVARY", "GYNECOLOGY"), _PELVIS),
    **{part: {*_ORGANS[Region.VESSEL], *_NECK} for part in ("CAROTID", "CAROTID ARTERY", "VESSEL")},
    "PROSTATE": {Organ.PROSTATE, Organ.BLADDER},
    "BLADDER": {Organ.BLADDER, *_PELVIS, Organ.KIDNEY},
    **{part: {Organ.TESTIS} for part in ("TESTIS", "SCROTUM")},
}


def contradicts_the_side(reviewed: Reviewed) -> str | None:
    """Compare the sides that a text names with the laterality of the files; without one on every picture nothing is known."""
    shown = {picture.source.examination.laterality for picture in reviewed.pictures}
    if len(shown) != 1 or not shown <= {"left", "right"}:
        return None
    side = Side(shown.pop())
    named = {fact.side for fact in reviewed.facts.of(Kind.SIDE) if fact.organ in _PAIRED or fact.organ is None}
    other = Side.RIGHT if side is Side.LEFT else Side.LEFT
    if other not in named or side in named:
        return None
    return reviewed.say(
        f"The text names the {other.value} side, the files say {side.value}.",
        f"文本描述为{_CHINESE[other]}侧，而图像文件标明为{_CHINESE[side]}侧。",
    )


def contradicts_the_organ(reviewed: Reviewed) -> str | None:
    """Compare the organs that a text names with the region that was asked about and the files' body parts."""
    named = {fact.organ for fact in reviewed.facts.of(Kind.ORGAN) if fact.organ}
    parts = {picture.source.examination.body_part for picture in reviewed.pictures}
    region = reviewed.asked.region if not reviewed.asked.words.strip() else None
    if named and region and not named & _ORGANS[region]:
        return reviewed.say(
            f"The text is about another organ than the region that was asked about ({region.value}).",
            "文本描述的器官与所要求的检查部位不符。",
        )
    if named and parts and parts <= _BODY_PARTS.keys() and not any(named & _BODY_PARTS[part] for part in parts):
        return reviewed.say(
            "The text is about another organ than the body part that the files name.",
            "文本描述的器官与图像文件标明的检查部位不符。",
        )
    return None
