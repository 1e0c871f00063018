"""Names of files as text that every log, message and terminal can take."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""Replace what cannot be printed by its escape: control characters, and bytes of a file's name that are not UTF-8 (`\udcfc`)."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_utf8(text: str) -> bool:
    """Return whether all of a file's name is UTF-8, which not every library can do without."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)
