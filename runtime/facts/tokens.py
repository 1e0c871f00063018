"""Cut a report into words with a role: one pass of one pattern, whose repetitions are all bounded, so that time is linear in the text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from echovlm_edge.runtime.facts.words import SIDED_ORGANS, Role, vocabulary


class Token(NamedTuple):
    """A word of the text with its role, and what it means."""

    role: Role
    value: object = None


# Full-width letters, digits and signs to ASCII, other signs for the same to one. Not by Unicode's own normalization, which takes
# quadratic time on long runs of combining characters.
_PLAIN: dict[int, int | str] = {
    **{code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)},
    **{ord(sign): "x" for sign in "×✕╳"},
    **{ord(sign): "-" for sign in "‐‑–—−"},
    **{ord(sign): " " for sign in "\t\u3000\u00a0"},
    **{ord("㎜"): "mm", ord("㎝"): "cm", ord("∗"): "*", ord("～"): "~"},
    **{
        first + number: roman
        for first in (0x2160, 0x2170)
        for number, roman in enumerate(("i", "ii", "iii", "iv", "v", "vi"))
    },
}
_ROMAN = {"i": "1", "ii": "2", "iii": "3", "iv": "4", "v": "5", "vi": "6"}
_MILLIMETRES = {"mm": 1.0, "毫米": 1.0, "cm": 10.0, "厘米": 10.0}

_NUMBER, _UNIT = r"\d{1,4}(?:\.\d{1,3})?", "mm|cm|毫米|厘米"
_MEASURE = re.compile(rf"({_NUMBER})[ -]?({_UNIT})?")
# 12 mm; 1.2 x 0.8 cm; 12mm x 8mm. Not: the end of a range or after a sign like <; a speed, an area, a volume, mmHg.
_SIZE = (
    rf"(?<![\d<>≤≥~])(?<!\d[.,~至-])(?<!\d - )(?<!\dmm-)(?<!\dcm-)(?P<size>(?:{_NUMBER}[ -]?(?:{_UNIT})? ?[x*] ?){{0,2}}"
    rf"{_NUMBER}[ -]?(?:{_UNIT}))(?![a-z0-9/²³]|[-~至] ?\d)"
)


def _rads(name: str, prefix: str, highest: int) -> str:
    """Make the pattern of a category: BI-RADS 4A, BIRADS: category IVa, BI-RADS分类：4A类. A range such as 3-4a is none."""
    words = "category|categories|cat\\.?|class|grade|score|分类|分级|评分|类别"
    return (
        rf"(?<![a-z]){prefix}[ -]?rads[ -]?(?:us)?[ ]?(?:{words})?[ ]?(?:为|是|is|:|\()?[ ]?(?:category )?"
        rf"(?P<{name}>[0-{highest}]|i{{1,3}}|iv|vi?)[ -]?(?P<{name}_letter>[abc])?(?![a-z0-9.]\w|[a-z0-9]|类?[-/~至] ?[0-9iv])"
    )


_SIGNS = {
    **dict.fromkeys(",()[]{}", Token(Role.COMMA)),
    **dict.fromkeys(";。!\n\r.", Token(Role.END)),
    **dict.fromkeys("、&/", Token(Role.AND)),
    "?": Token(Role.QUESTION),
}
_WORDS = {
    **{word: (Token(role, value),) for word, (role, value) in vocabulary().items()},
    **{word: (Token(Role.SIDE, side), Token(Role.ORGAN, organ)) for word, (side, organ) in SIDED_ORGANS.items()},
}
_OTHER = Token(Role.OTHER)
# Each word by its beginning, a whole English word or one Chinese character; the longest first.
_STARTS: dict[str, list[str]] = {}
for _word in sorted(_WORDS, key=len, reverse=True):
    _STARTS.setdefault(_word.split()[0] if _word.isascii() else _word[0], []).append(_word)

_TOKEN = re.compile(
    rf"{_SIZE}|{_rads('birads', 'bi', 6)}|{_rads('tirads', 'ti', 6)}|(?<![a-z])tr(?P<tr>[1-5])(?![a-z0-9+])"
    r"|(?P<number>\d{1,20}(?:\.\d{1,20})?)|(?P<word>[a-z]{1,40})|(?P<sign>[^\w ])|(?P<other>\w)| {1,40}"
)
_JOINED = re.compile(r"(?<=[a-z])-(?=[a-z])|(?<= ) ")  # well-defined, two spaces


def tokens(text: str) -> Iterator[Token]:
    """Cut a text into tokens, the unknown words among them; numbers and signs without a meaning are left out."""
    plain = _JOINED.sub(lambda found: " " if found.group() == "-" else "", text.translate(_PLAIN).lower())
    at = 0
    while found := _TOKEN.match(plain, at):
        said, at = found.group(), found.end()
        match found.lastgroup:
            case "size":
                yield Token(Role.SIZE, largest_mm(said))
            case "birads" | "birads_letter":
                yield Token(Role.BIRADS, _category(found, "birads"))
            case "tirads" | "tirads_letter":
                yield Token(Role.TIRADS, _category(found, "tirads"))
            case "tr":
                yield Token(Role.TIRADS, found["tr"])
            case "word" | "other":
                known = _longest(plain, found.start(), said)
                yield from _WORDS.get(known, (_OTHER,))
                at = max(at, found.start() + len(known))
            case "sign" if said in _SIGNS:
                yield _SIGNS[said]


def _longest(text: str, at: int, start: str) -> str:
    """Return the longest word of the vocabulary that begins here with `start`, empty for none."""
    for word in _STARTS.get(start, ()):
        end = at + len(word)
        if text.startswith(word, at) and not (word.isascii() and text[end : end + 1].isalpha() and text[end].isascii()):
            return word
    return ""


def largest_mm(said: str) -> float:
    """Return the largest of a size's measures in mm; one without a unit has that of the next."""
    largest, scale = 0.0, 1.0
    for number, unit in reversed(_MEASURE.findall(said)):
        scale = _MILLIMETRES[unit] if unit else scale
        largest = max(largest, float(number) * scale)
    return largest


def _category(found: re.Match[str], name: str) -> str:
    return _ROMAN.get(found[name], found[name]) + (found[f"{name}_letter"] or "")
