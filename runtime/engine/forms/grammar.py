"""Write a form as a grammar of llguidance."""

from __future__ import annotations

from echovlm_edge.runtime.contracts.sections import HEADING_WORDS, HEADINGS
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, SectionsForm, TextForm

# One way of writing each value: a model cannot write white space without end, and more of the text is without a choice.
# `lenient` would ignore keywords that are not supported.
JSON_OPTIONS = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "lenient": False,
    "coerce_one_of": False,
}
_SECTION = r" ?[\p{L}\p{N}](?s:.*)"  # begins with a word


def grammar_of(form: TextForm) -> str:
    """Return the grammar; whether any text has it shows when it is compiled.

    Raises:
        ValueError: llguidance does not read the schema, as with a number that no double holds.
    """
    from llguidance import LLMatcher  # 3 MB, for calls with a form alone

    match form:
        case ChoiceForm(texts):
            return LLMatcher.grammar_from_regex("|".join(map(_literal, texts)))
        case PatternForm(pattern):
            return LLMatcher.grammar_from_regex(pattern)
        case SectionsForm(language):
            findings, impression = HEADINGS[language]
            report = rf"{findings}{_SECTION}[\s;；。.]{impression}{_SECTION}"
            empty = rf"{findings} ?(?i:{HEADING_WORDS})\s*[:：\n](?s:.*)"  # findings that are another heading
            return LLMatcher.grammar_from_lark(f"start: REPORT\nREPORT: /{report}/ & ~/{empty}/")
        case SchemaForm(schema):
            return LLMatcher.grammar_from_json_schema(schema, overrides=JSON_OPTIONS)  # type: ignore[arg-type]


def _literal(text: str) -> str:
    """Return a regular expression that matches this text alone."""
    return "".join(one if one.isascii() and one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)
