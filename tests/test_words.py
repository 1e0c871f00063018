"""Words that readers of this code base stumbled over: they stay out of the product and of the tests' names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("runtime", "export", "plugins", "benchmarks", "demo", "deploy", "proto", "docs")
TEXTS = {".py", ".pyi", ".cpp", ".hpp", ".proto", ".sh", ".md", ".toml", ".service", ".html", ".css", ".js", ".txt"}
# An underscore counts as a space: `give_way` is found like "give way", also where a comment breaks the line in between.
GAP = r"[\s_#/*]+"
PHRASES = (
    "anew",
    "mend(?:s|ed|ing|able)?",
    "gone on with",
    "in company",
    "g(?:ive|ives|iving|ave) way",
    "referees?",  # reference
    "turn by turn",  # alternating
    "for want of",  # without, because there is no
    "seen before",  # cached
    "as many as (?:there|you) may",  # the maximum
    "to the bit",  # identical, bit-identical
    "(?:first|second)-level cache",  # L1, L2
    "what was told",
)
ARCHAIC = re.compile(rf"(?<![a-z])(?:{'|'.join(PHRASES).replace(' ', GAP)})(?![a-z])", re.IGNORECASE)
# The key of `echovlm-doctor --json` is part of what its callers read.
STAYS = {("runtime/doctor/command.py", "mend")}


def archaic(text: str) -> list[str]:
    """Find the phrases in a text, spaces and all as they stand."""
    return ARCHAIC.findall(text)


@pytest.mark.parametrize(
    "text",
    [
        "made anew",
        "def give_way():",
        "# it gives\n    # way",
        "_MENDABLE",
        "goes to the mend.",
        "in company",
        "gone on with",
        "the referee of",
        "equal to the\n# bit",
        "a first-level cache",
    ],
)
def test_a_phrase_is_found_however_it_is_spelled(text: str) -> None:
    assert archaic(text)


@pytest.mark.parametrize(
    "text",
    ["recommended", "an amendment", "giveaway", "the companion", "goes on", "renew", "refereed", "to the bitter end"],
)
def test_other_words_are_left_alone(text: str) -> None:
    assert not archaic(text)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_product_does_without_archaic_words(folder: str) -> None:
    for file in (ROOT / folder).rglob("*"):
        name = file.relative_to(ROOT).as_posix()
        if file.suffix not in TEXTS or not file.is_file():
            continue
        found = [phrase for phrase in archaic(file.read_text(encoding="utf-8")) if (name, phrase) not in STAYS]
        assert not found, f"{name}: write plain words for {found}"


def test_names_of_tests_do_without_archaic_words() -> None:
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                assert not archaic(node.name), f"{file.name}: {node.name}"
