"""The pictures that a bundle's weights were rounded with: an evaluation on the same pictures would flatter it.

They are named by the first 16 hexadecimal digits of the SHA-256 of their files, in the bundle's file
`calibration_pictures.txt`, one per line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set
from pathlib import Path

from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.contracts.errors import NotPossibleHere

CALIBRATION_PICTURES = "calibration_pictures.txt"
DIGITS = 16  # two of a million pictures share them with a probability of 3e-8


def picture_hash(data: bytes) -> str:
    """Name a picture by its file's bytes."""
    return hashlib.sha256(data).hexdigest()[:DIGITS]


def write_pictures(folder: Path, hashes: Iterable[str]) -> None:
    """Write the file into a bundle's folder, sorted."""
    (folder / CALIBRATION_PICTURES).write_text("".join(f"{one}\n" for one in sorted(set(hashes))), encoding="ascii")


def calibration_pictures(bundle: Bundle) -> frozenset[str]:
    """Return the names, by `picture_hash`, of the pictures that a bundle was calibrated with; none for a bundle without calibration."""
    if bundle.manifest.calibration is None:
        return frozenset()
    return frozenset(bundle.text(CALIBRATION_PICTURES).split())


def refuse_overlap(calibrated: Set[str], pictures: Iterable[str]) -> None:
    """Refuse to evaluate a bundle on pictures that it was calibrated with.

    Args:
        calibrated: the bundle's `calibration_pictures`; if there are none, `pictures` are not read.
        pictures: the evaluation's, by `picture_hash`.

    Raises:
        NotPossibleHere: some of them are among those of the bundle.
    """
    if calibrated and (shared := calibrated & set(pictures)):
        raise NotPossibleHere(
            f"The bundle was calibrated with {len(shared)} of these pictures, so that its results on them would be too good: evaluate it "
            "on others, or build it with --calibrate on others."
        )
