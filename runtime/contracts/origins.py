"""Whose images these are: images of two patients are never taken together, and those of two studies only where that is asked for.

PatientID and StudyInstanceUID are compared by digests under a key of this process: no value is kept, logged or named.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

from echovlm_edge.runtime.contracts.errors import InvalidInput

PROCESS_KEY = secrets.token_bytes(32)  # digests of one process alone can be compared
DIGEST_BYTES = 16


@dataclass(frozen=True)
class Origin:
    """Digests of the identifiers in an image's header; empty where there are none: such an image may be anybody's."""

    patient: bytes = field(default=b"", repr=False)
    study: bytes = field(default=b"", repr=False)


ANYBODY = Origin()


def digest(tag: str, value: object, key: bytes = PROCESS_KEY) -> bytes:
    """A tag's value as it is compared: without the padding that files put around it. Empty where nothing is left."""
    text = str(value if value is not None else "").strip(" \0\t\r\n")
    return blake2b(f"{tag}\0{text}".encode(), digest_size=DIGEST_BYTES, key=key).digest() if text else b""


def refuse_mixed(images: Sequence[tuple[str, Origin]], allow_mixed_studies: bool) -> None:
    """Refuse images that do not belong together; each is given with the name that the sentence calls it by.

    Raises:
        InvalidInput: two patients' images, or two studies' where that is not allowed.
    """
    if found := _differ([(name, origin.patient) for name, origin in images]):
        raise InvalidInput(f"{found[0]} and {found[1]} differ in PatientID: send the images of one patient at a time.")
    if not allow_mixed_studies and (found := _differ([(name, origin.study) for name, origin in images])):
        raise InvalidInput(
            f"{found[0]} and {found[1]} differ in StudyInstanceUID: send the images of one study, or set "
            "allow_mixed_studies where one patient's studies are to be compared."
        )


def _differ(images: Sequence[tuple[str, bytes]]) -> tuple[str, str] | None:
    """The first that states the tag, and the first that states another value."""
    known = [(name, value) for name, value in images if value]
    for name, value in known[1:]:
        if value != known[0][1]:
            return known[0][0], name
    return None
