"""Attributes of a DICOM data set as they can be used: what is absent, empty, unreadable or of the wrong kind is None.

Reading one never fails: writers leave values empty that the standard wants, and a viewer shows their pictures nonetheless.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

LARGEST = 1e30  # no attribute means more; their products stay finite


def value(dataset: Dataset, keyword: str) -> object:
    """An attribute's value, the first where there are several; None where there is none that can be read."""
    found = _stored(dataset, keyword)
    if isinstance(found, MultiValue | list | tuple):
        found = found[0] if len(found) else None
    return None if found == "" else found


def number(dataset: Dataset, keyword: str) -> float | None:
    """A number up to LARGEST."""
    return _usable(value(dataset, keyword))


def whole(dataset: Dataset, keyword: str) -> int | None:
    """A whole number."""
    found = number(dataset, keyword)
    return int(found) if found is not None and found == int(found) else None


def numbers(dataset: Dataset, keyword: str) -> tuple[float, ...]:
    """All values, where they are numbers up to LARGEST; none where one of them is not."""
    found = _stored(dataset, keyword)
    several = list(found) if isinstance(found, MultiValue | list | tuple) else [found]
    usable = [_usable(one) for one in several]
    return () if None in usable else tuple(one for one in usable if one is not None)


def text(dataset: Dataset, keyword: str) -> str:
    """A text without the padding around it, in capitals as code strings are; empty where there is none."""
    found = value(dataset, keyword)
    return found.strip(" \0").upper() if isinstance(found, str) else ""


def table(dataset: Dataset, keyword: str) -> bytes:
    """Binary data; empty where there is none."""
    found = _stored(dataset, keyword)
    return found if isinstance(found, bytes) else b""


def items(dataset: Dataset, keyword: str) -> list[Dataset]:
    """A sequence's items."""
    found = _stored(dataset, keyword)
    try:
        return [item for item in found if isinstance(item, Dataset)] if found else []  # type: ignore[attr-defined]
    except MemoryError:
        raise
    except Exception:  # items are parsed when first looked at
        return []


def _stored(dataset: Dataset, keyword: str) -> object:
    try:
        return dataset.get(keyword, None)
    except MemoryError:
        raise
    except Exception:  # elements are parsed when first looked at, and raise whatever their bytes lead to
        return None


def _usable(found: object) -> float | None:
    try:
        converted = float(found)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return converted if abs(converted) <= LARGEST else None
