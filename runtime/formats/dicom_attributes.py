"""Read attributes of a DICOM data set; an absent, empty, unreadable or mistyped one is None.

Reading never fails: some writers leave required values empty, and viewers show their pictures nonetheless.
"""

from __future__ import annotations

import re

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import PersonName

LARGEST = 1e30  # larger values are not plausible; products of values up to this stay finite
ESCAPE = "\x1b"
_DESIGNATION = re.compile(ESCAPE + "[ -/]+[0-~]")


def value(dataset: Dataset, keyword: str) -> object:
    """Return an attribute's value, the first of several; None if there is no readable one."""
    found = _stored(dataset, keyword)
    if isinstance(found, MultiValue | list | tuple):
        found = found[0] if len(found) else None
    return None if found == "" else found


def number(dataset: Dataset, keyword: str) -> float | None:
    """Return an attribute as a number of at most LARGEST, or None."""
    return _usable(value(dataset, keyword))


def whole(dataset: Dataset, keyword: str) -> int | None:
    """Return an attribute as an integer, or None."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """Return all values of an attribute; empty unless all of them are numbers up to LARGEST."""
    found = _stored(dataset, keyword)
    several = list(found) if isinstance(found, MultiValue | list | tuple) else [found]
    usable = [_usable(one) for one in several]
    return () if None in usable else tuple(one for one in usable if one is not None)


def text(dataset: Dataset, keyword: str) -> str:
    """Return a text without padding, in capitals as code strings are; empty if there is none."""
    found = value(dataset, keyword)
    return found.strip(" \0").upper() if isinstance(found, str) else ""


def without_escapes(value: object) -> object:
    """Return an attribute's value without the escape sequences of ISO 2022 (PS3.5 6.1.2.5.3).

    pydicom decodes Chinese by ISO 2022 IR 58 right, but leaves the sequences in the text.
    """
    if isinstance(value, MultiValue | list):
        return [without_escapes(one) for one in value]
    if isinstance(value, PersonName) and ESCAPE in str(value):
        return PersonName(_DESIGNATION.sub("", str(value)))
    return _DESIGNATION.sub("", value) if isinstance(value, str) and ESCAPE in value else value


def table(dataset: Dataset, keyword: str) -> bytes:
    """Return binary data; empty if there is none."""
    found = _stored(dataset, keyword)
    return found if isinstance(found, bytes) else b""


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """Return a sequence's items; empty if there are none."""
    found = _stored(dataset, keyword)
    try:
        return [item for item in found if isinstance(item, Dataset)] if found else []  # type: ignore[attr-defined]
    except MemoryError:
        raise
    except Exception:  # pydicom parses items at their first use
        return []


def _stored(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword, None)
    except MemoryError:
        raise
    except Exception:  # pydicom parses elements at their first use, and damaged ones raise all kinds of exceptions
        return None


def _usable(found: object) -> float | None:
    try:
        converted = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if abs(converted) <= LARGEST else None
