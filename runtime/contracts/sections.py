"""Generated text to sections: findings and impression, by the headings the model writes in English or Chinese."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from echovlm_edge.runtime.contracts.tasks import Language

# Ultrasound findings: …; Ultrasound impression: …   /   超声所见：…；超声提示：…
_FINDINGS = r"ultrasound\s+findings?|findings?|超声所见|超声描述|检查所见"
_IMPRESSION = r"ultrasound\s+impressions?|impressions?|超声诊断|超声提示|诊断意见|诊断提示|超声印象"
HEADING_WORDS = rf"{_FINDINGS}|{_IMPRESSION}"
HEADINGS = {  # findings and impression, as a text in sections has them
    Language.EN: ("Ultrasound findings:", "Ultrasound impression:"),
    Language.ZH: ("超声所见：", "超声提示："),
}
_HEADING = re.compile(
    rf"(?:(?P<findings>{_FINDINGS})|(?P<impression>{_IMPRESSION}))(?:\s*[:：]|[ \t]*(?=\n))", re.IGNORECASE
)
_START = re.compile(r"(?:^|[\s;；。.,，、！!？?*#}\])）】」”\"])$")
_LINE_START = re.compile(r"(?:^|\n)[ \t*#]*$")


@dataclass(frozen=True)
class Sections:
    """The two parts of a report; empty where the text has no such heading."""

    findings: str = field(default="", repr=False)
    impression: str = field(default="", repr=False)


def split_sections(text: str) -> Sections:
    """Split a report at its headings.

    The first heading of each kind counts, and only at the text's start or after white space or a sign that ends a
    sentence, so that a word like "findings:" within a clause is left alone; a heading alone on its line needs no colon.
    Text before the first heading belongs to neither section; the whole text stays in the result beside them.
    """
    return Sections(**{name: text[start:end] for name, (start, end) in section_ranges(text).items()})


def section_ranges(text: str) -> dict[str, tuple[int, int]]:
    """Find the sections that `split_sections` returns in the text, by name: the first character, and one past the last.

    It can be asked of a text that is not finished, as often as it grows.
    """
    headings = [match for match in _HEADING.finditer(text) if _opens_section(match, text)]
    firsts: dict[str, re.Match[str]] = {}
    for match in headings:
        firsts.setdefault(match.lastgroup or "", match)
    ordered = sorted(firsts.items(), key=lambda item: item[1].start())
    ends = [*(match.start() for _, match in ordered[1:]), len(text)]
    return {name: _trimmed(text, match.end(), end) for (name, match), end in zip(ordered, ends, strict=False)}


def _opens_section(match: re.Match[str], text: str) -> bool:
    before = _START if match.group().endswith((":", "：")) else _LINE_START
    return before.search(text[: match.start()]) is not None


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Leave out the white space and separators around a section, and the braces that some prompts ask for."""
    start, end = _stripped(text, start, end, " \t\r\n;；*#")
    if end - start > 1 and text[start] == "{" and text[end - 1] == "}":
        return _stripped(text, start + 1, end - 1, None)
    return start, end


def _stripped(text: str, start: int, end: int, letters: str | None) -> tuple[int, int]:
    """Narrow a range as `str.strip` narrows a text."""
    part = text[start:end]
    start += len(part) - len(part.lstrip(letters))
    return start, start + len(part.strip(letters))
