"""What a text must look like: one of some texts, JSON of a schema, a regular expression's text, or a report's two sections."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.tasks import Language

MOST_CHOICES, LONGEST_CHOICE = 32, 200
LONGEST_SCHEMA, DEEPEST_SCHEMA, LONGEST_PATTERN = 64 << 10, 32, 4 << 10


@dataclass(frozen=True)
class ChoiceForm:
    """One of some texts, 1 to MOST_CHOICES of up to LONGEST_CHOICE characters.

    Raises:
        UnusableForm: there are none or too many, or one is empty, too long, or there twice.
    """

    texts: tuple[str, ...] = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a list that cannot be."""
        if not 1 <= len(self.texts) <= MOST_CHOICES:
            raise UnusableForm(f"A choice has from 1 to {MOST_CHOICES} texts, not {len(self.texts):,}.")
        for number, text in enumerate(self.texts, 1):
            if not text:
                raise UnusableForm(f"Choice {number} is empty: write it, or leave it out.")
            if len(text) > LONGEST_CHOICE:
                raise UnusableForm(f"Choice {number} has {len(text):,} characters, more than {LONGEST_CHOICE}.")
        if len(set(self.texts)) < len(self.texts):
            raise UnusableForm("A text is twice among the choices: send each once.")


@dataclass(frozen=True)
class SchemaForm:
    """JSON that a JSON schema allows, written without line breaks.

    Attributes:
        schema: as JSON; an object, of up to LONGEST_SCHEMA characters and DEEPEST_SCHEMA levels.

    Raises:
        UnusableForm: it is not that.
    """

    schema: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse what is no schema."""
        if len(self.schema) > LONGEST_SCHEMA:
            raise UnusableForm(f"The JSON schema has {len(self.schema):,} characters, more than {LONGEST_SCHEMA:,}.")
        try:
            parsed = json.loads(self.schema)
        except (ValueError, RecursionError):
            raise UnusableForm("The JSON schema is not JSON.") from None
        if not isinstance(parsed, dict):
            raise UnusableForm("The JSON schema is not a JSON object.")
        if "x-guidance" in parsed:
            raise UnusableForm("The JSON schema has x-guidance, which is not supported: how JSON is written is fixed.")
        if _is_deeper(parsed, DEEPEST_SCHEMA):
            raise UnusableForm(f"The JSON schema has more than {DEEPEST_SCHEMA} levels.")


@dataclass(frozen=True)
class PatternForm:
    """A text that a regular expression matches as a whole, in the syntax of Rust's regex crate, without look-around.

    Raises:
        UnusableForm: the pattern is empty or longer than LONGEST_PATTERN characters.
    """

    pattern: str = field(repr=False)

    def __post_init__(self) -> None:
        """Refuse a pattern without a bound."""
        if not 1 <= len(self.pattern) <= LONGEST_PATTERN:
            raise UnusableForm(
                f"A regular expression has from 1 to {LONGEST_PATTERN:,} characters, not {len(self.pattern):,}."
            )


@dataclass(frozen=True)
class SectionsForm:
    """A report's findings and then its impression, under the headings of a language."""

    language: Language


TextForm = ChoiceForm | SchemaForm | PatternForm | SectionsForm


@dataclass(frozen=True)
class ChoiceProbability:
    """One of a form's choices and how likely it is.

    Attributes:
        text: the choice.
        log_probability: natural logarithm of the probability that the model's text is this and no more: of its tokens, each after those
            before, and of a stop token after them. It is the model's own, as `TokenProbability`'s.
        probability: its share among the choices; together they are 1.
    """

    text: str = field(repr=False)
    log_probability: float = field(repr=False)
    probability: float = field(repr=False)


def _is_deeper(value: Any, levels: int) -> bool:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels < 0 or any(_is_deeper(one, levels - 1) for one in inside)
