"""The golden tokens of a bundle: a few prompts about small pictures, and the greedy tokens that every machine writes about them.

They are in the bundle's file `golden_tokens.json`; a bundle without that file has none. Another processor or a GPU sums in another order,
so that two tokens that are about equally likely may change places there: each text ends before its first near tie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.bundle.manifest import Bundle, reading

GOLDEN_TOKENS = "golden_tokens.json"
# Of a logit, in units of the largest: above it a bundle is wrong, however close its best two tokens are.
LARGEST_ERROR = 0.02
NEAR_TIE = 2 * LARGEST_ERROR  # of the best two logits' distance, in the same units: the errors of both

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class GoldenPicture:
    """A picture that `pixels` makes of three numbers."""

    height: Annotated[int, Field(gt=0, le=1024)]
    width: Annotated[int, Field(gt=0, le=1024)]
    seed: Annotated[int, Field(ge=0, lt=1 << 16)]

    def pixels(self) -> NDArray[np.uint8]:
        """Make the picture, RGB [h, w, 3]: speckle that darkens with depth, and a dark or bright disc.

        It is made in whole numbers, so that it is the same everywhere.
        """
        rows, columns = np.indices((self.height, self.width), dtype=np.int64)
        mixed = (rows * 73856093 ^ columns * 19349663 ^ self.seed * 83492791) & 0xFFFFFFFF
        mixed = (mixed ^ mixed >> 13) * 0x5BD1E995 & 0xFFFFFFFF
        grey = (mixed >> 25) + 64 * (self.seed % 3)
        shortest = min(self.height, self.width)
        down, across = self.height // 2 - rows, self.width * (2 + self.seed % 4) // 7 - columns
        disc = down**2 + across**2 < (shortest * (1 + self.seed % 3) // 8) ** 2
        grey = np.where(disc, grey * (self.seed % 2) * 3 // 2, grey * (2 * self.height - rows) // (2 * self.height))
        return np.repeat(np.minimum(grey, 255).astype(np.uint8)[..., None], 3, axis=2)


@dataclass(frozen=True, config=_STRICT)
class GoldenSample:
    """A prompt about pictures, and the tokens that are written before the first near tie."""

    name: str
    prompt: str = field(repr=False)
    pictures: tuple[GoldenPicture, ...]
    tokens: Annotated[tuple[int, ...], Field(min_length=1, max_length=64)]

    def first_difference(self, written: Sequence[int]) -> int | None:
        """Return the place of the first token that is not the one `written` there, or that is missing; None if all are."""
        places = (place for place, token in enumerate(self.tokens) if token not in written[place : place + 1])
        return next(places, None)


_SAMPLES = TypeAdapter(tuple[GoldenSample, ...])


def write_golden_tokens(folder: Path, samples: tuple[GoldenSample, ...]) -> None:
    """Write the file into a bundle's folder."""
    (folder / GOLDEN_TOKENS).write_bytes(_SAMPLES.dump_json(samples, indent=1))


def read_golden_tokens(bundle: Bundle) -> tuple[GoldenSample, ...]:
    """Return the samples of a bundle; none for one that was built without.

    Raises:
        NotPossibleHere: the file is damaged.
    """
    if not any(file.name == GOLDEN_TOKENS for file in bundle.manifest.files):
        return ()
    return read_samples(bundle.path / GOLDEN_TOKENS)


def read_samples(file: Path) -> tuple[GoldenSample, ...]:
    """Read a file of samples; raises as `read_golden_tokens`."""
    with reading(file):
        return _SAMPLES.validate_json(file.read_bytes())
