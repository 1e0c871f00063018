"""What the rules are given: a finished text, what was asked, and what is known of the pictures."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from echovlm_edge.runtime.contracts.request import FinishReason, Picture
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task
from echovlm_edge.runtime.facts import Facts, read_facts

HAN = re.compile("[\u4e00-\u9fff]")
_LATIN = re.compile("[A-Za-z]{2,}")
_NAMES_A_LANGUAGE = re.compile("chinese|english|language|translat|中文|汉语|英文|英语|语言|翻译|双语", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What was asked of the model.

    Attributes:
        task: what is wanted.
        language: of the default prompt.
        region: that the default prompt names.
        words: the caller's own: a prompt in place of the default one, the question, the statement or the options; else empty.
    """

    task: Task
    language: Language = Language.EN
    region: Region | None = None
    words: str = field(default="", repr=False)

    @property
    def text_language(self) -> Language | None:
        """The language that the text should have; None where the caller's own words leave that open."""
        if not self.words.strip():
            return self.language
        if _NAMES_A_LANGUAGE.search(self.words):
            return None
        if HAN.search(self.words):
            return Language.ZH
        return Language.EN if len(_LATIN.findall(self.words)) >= 3 else None


@dataclass(frozen=True)
class Reviewed:
    """A finished text.

    Attributes:
        text: all of it.
        finish: why it ended.
        asked: what was asked.
        pictures: what the model was shown.
    """

    text: str = field(repr=False)
    finish: FinishReason
    asked: Asked
    pictures: tuple[Picture, ...] = ()

    @cached_property
    def facts(self) -> Facts:
        """The text's facts."""
        return read_facts(self.text)

    def say(self, english: str, chinese: str) -> str:
        """Choose the sentence in the language that was asked for."""
        return chinese if (self.asked.text_language or self.asked.language) is Language.ZH else english


Rule = Callable[[Reviewed], str | None]
