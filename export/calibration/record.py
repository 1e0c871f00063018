"""Describe in bundle.json how each weight was rounded, in few lines: weights that differ in their layer only share one."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from echovlm_edge.export.calibration.passage.texts import Text
from echovlm_edge.export.calibration.rounding.mixed import bits_of
from echovlm_edge.export.calibration.rounding.rounded_weights import Rounded
from echovlm_edge.runtime.bundle.manifest import Calibration, RoundedLayers

LAYER = re.compile(r"\b(layers|blocks)\.(\d+)\.")


def describe(texts: Sequence[Text], made: Mapping[str, Rounded], values: Mapping[str, int]) -> Calibration:
    """Describe a calibration.

    Args:
        texts: what the model read.
        made: how each checkpoint tensor was rounded.
        values: how many values each tensor of the decoder's layers has.
    """
    layered = {name: count for name, count in values.items() if name in made}
    total = sum(layered.values())
    bits = sum(bits_of(made[name].precision) * count for name, count in layered.items()) / total
    return Calibration(
        pictures=len({picture.hash for text in texts for picture in text.pictures}),
        tokens=sum(len(text.token_ids) for text in texts),
        answers=any(text.answered for text in texts),
        bits=round(bits, 4),
        weights=tuple(_lines(made)),
    )


def _lines(made: Mapping[str, Rounded]) -> list[RoundedLayers]:
    groups: dict[tuple[str, str, int, int], dict[int | None, Rounded]] = defaultdict(dict)
    for name, rounded in made.items():
        found = LAYER.search(name)
        pattern = LAYER.sub(r"\1.*.", name)
        key = (pattern, rounded.method, rounded.bits, rounded.block_size)
        groups[key][int(found[2]) if found else None] = rounded
    return [_line(*key, group) for key, group in sorted(groups.items())]


def _line(weight: str, method: str, bits: int, block_size: int, group: Mapping[int | None, Rounded]) -> RoundedLayers:
    counts = [rounded.tokens for rounded in group.values()]
    numbers = [number for number in group if number is not None]
    everyones = [number for number in numbers if group[number].everyones]
    return RoundedLayers(
        weight,
        ranges(numbers),
        method,  # type: ignore[arg-type]
        bits,  # type: ignore[arg-type]
        block_size,
        (min(counts), max(counts)),
        ranges(everyones),
    )


def ranges(numbers: Sequence[int]) -> str:
    """Write numbers as ranges: `0-5 8`."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return " ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
