"""Read the table of sentences and their facts, tests/facts/sentences.txt, which explains its own notation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from echovlm_edge.runtime.facts import Fact, Kind, Organ, Side

TABLE = Path(__file__).parents[1] / "facts" / "sentences.txt"
ECHOES = {"anechoic", "hypoechoic", "isoechoic", "hyperechoic", "mixed"}
MARGINS = {"circumscribed", "ill-defined"}


def sentences() -> Iterator[tuple[str, set[Fact]]]:
    """Iterate over the table: each sentence with its facts."""
    lines = [line for line in TABLE.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    for text, facts in zip(lines[::2], lines[1::2], strict=True):
        yield text, set(_facts(facts.removeprefix("=").strip()))


def _facts(notation: str) -> Iterator[Fact]:
    for place in filter(None, notation.split(";")):
        where, _, values = place.strip().partition(":")
        organ_name, _, side_name = where.partition("/")
        organ = None if organ_name == "-" else Organ(organ_name)
        side = Side(side_name) if side_name else None
        if organ:
            yield Fact(Kind.ORGAN, organ, None)
        if side:
            yield Fact(Kind.SIDE, organ, side)
        for value in filter(None, map(str.strip, values.split(","))):
            yield _fact(value, organ, side)


def _fact(value: str, organ: Organ | None, side: Side | None) -> Fact:
    if value[0].isdigit():
        return Fact(Kind.SIZE, organ, side, float(value))
    if value[1:2].isdigit():
        return Fact(Kind.BIRADS if value[0] == "b" else Kind.TIRADS, organ, side, value[1:])
    kind = Kind.ECHOGENICITY if value in ECHOES else Kind.MARGIN if value in MARGINS else Kind.LESION
    return Fact(kind, organ, side, value)
