"""What a report states, as values."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field


class Kind(enum.Enum):
    """What a fact is about."""

    ORGAN = "organ"
    SIDE = "side"
    LESION = "lesion"
    ECHOGENICITY = "echogenicity"
    MARGIN = "margin"
    SIZE = "size"
    BIRADS = "birads"
    TIRADS = "tirads"


class Organ(enum.Enum):
    """An organ, or what an examination is named after."""

    BREAST = "breast"
    THYROID = "thyroid"
    LIVER = "liver"
    GALLBLADDER = "gallbladder"
    KIDNEY = "kidney"
    SPLEEN = "spleen"
    PANCREAS = "pancreas"
    HEART = "heart"
    UTERUS = "uterus"
    OVARY = "ovary"
    PROSTATE = "prostate"
    BLADDER = "bladder"
    TESTIS = "testis"
    VESSEL = "vessel"
    LYMPH_NODE = "lymph node"
    FETUS = "fetus"
    SUPERFICIAL = "superficial"


class Side(enum.Enum):
    """A side of the body; for liver and thyroid, a lobe."""

    LEFT = "left"
    RIGHT = "right"
    BOTH = "both"


# Organs that are two, or have a left and a right lobe. "Left" beside another organ names a part of it.
SIDED = frozenset(
    {
        *(Organ.BREAST, Organ.THYROID, Organ.LIVER, Organ.KIDNEY, Organ.OVARY, Organ.TESTIS),
        *(Organ.VESSEL, Organ.LYMPH_NODE, Organ.SUPERFICIAL),
    }
)


@dataclass(frozen=True)
class Fact:
    """One statement.

    Attributes:
        kind: what it is about.
        organ: where; None if the text does not name it or names one that is not in `Organ`.
        side: likewise; never BOTH, which is read as two facts.
        value: for LESION its name, as "nodule", or what there is none of, as "no nodule" ("lesion" is any focal lesion); for
            ECHOGENICITY "anechoic", "hypoechoic", "isoechoic", "hyperechoic" or "mixed"; for MARGIN "circumscribed" or
            "ill-defined"; for BIRADS and TIRADS a category such as "4a"; for SIZE the largest measure in mm; for ORGAN and SIDE
            empty.
    """

    kind: Kind
    organ: Organ | None
    side: Side | None
    value: str | float = field(default="", repr=False)


@dataclass(frozen=True)
class Facts:
    """A report's facts, each once, in the order in which it states them first."""

    stated: tuple[Fact, ...]

    def of(self, kind: Kind) -> Iterator[Fact]:
        """Iterate over the facts of one kind."""
        return (fact for fact in self.stated if fact.kind is kind)
