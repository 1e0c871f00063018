"""Forms for tests: a tokenizer for the decoder without weights, whether a text has a form, and generated forms."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from echovlm_edge.runtime.contracts.sections import split_sections
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, SectionsForm, TextForm
from echovlm_edge.runtime.engine.forms.form_compiler import FormCompiler
from tests.support.hashed_decoder import STOP, VOCABULARY

SIGNS = ["<|end|>", *'{}[]":,Ġ.-0123456789abcdeftrunls', "tr", "ue", '":Ġ', "ab", "00"]


def small_tokenizer() -> Tokenizer:
    """Make a tokenizer of VOCABULARY tokens, of which STOP ends a text: enough for small JSON, with texts of several divisions."""
    assert len(SIGNS) <= VOCABULARY and SIGNS[STOP] == "<|end|>"
    tokenizer = Tokenizer(models.BPE(vocab={sign: number for number, sign in enumerate(SIGNS)}, merges=[("t", "r")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(SIGNS[STOP], special=True, normalized=False)])
    return tokenizer


def small_compiler() -> FormCompiler:
    return FormCompiler(small_tokenizer(), VOCABULARY, {STOP}, lambda *_: True)  # tests make thousands of forms


def has_form(text: str, form: TextForm) -> bool:
    """Check a finished text by other means than those that wrote it."""
    match form:
        case ChoiceForm(texts):
            return text in texts
        case PatternForm(pattern):
            return re.fullmatch(pattern, text) is not None
        case SchemaForm(schema):
            value, known = json.loads(text), json.loads(schema)
            jsonschema.validate(value, known, format_checker=jsonschema.FormatChecker())
            return "\n" not in text
        case SectionsForm():
            sections = split_sections(text)
            return bool(sections.findings and sections.impression)


WORDS = st.text("abcdeftruls", min_size=1, max_size=6)
NAMES = st.lists(WORDS, min_size=1, max_size=4, unique=True)
SCALARS: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(lambda low, size: {"type": "integer", "minimum": low, "maximum": low + size}, st.integers(-99, 99), st.integers(0, 500)),
    st.builds(lambda low, size: {"type": "number", "minimum": low, "maximum": low + size}, st.integers(-9, 9), st.integers(1, 50)),
    st.builds(lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more}, st.integers(0, 3), st.integers(0, 8)),
    st.builds(lambda words: {"enum": words}, st.lists(st.one_of(WORDS, st.integers(-9, 99), st.booleans()), min_size=1, max_size=4)),
    st.builds(lambda word: {"const": word}, WORDS),
    st.just({"type": "string", "pattern": "^[a-f]{1,4}$"}),
)  # fmt: skip


def _object(properties: dict[str, Any], required: int) -> dict[str, Any]:
    names = list(properties)[: required % (len(properties) + 1)]
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def _array(items: dict[str, Any], least: int, more: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": least, "maxItems": least + more}


SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.builds(_object, st.dictionaries(WORDS, inner, min_size=1, max_size=4), st.integers(0, 4)),
        st.builds(_array, inner, st.integers(0, 2), st.integers(0, 2)),
        st.builds(lambda several: {"anyOf": several}, st.lists(inner, min_size=1, max_size=3)),
    ),
    max_leaves=6,
)
PATTERNS = st.sampled_from(["[a-f]{2,5}", "(ab|00)+", "-?[0-9]{1,3}( [a-f]+)?", "true|false|null", "(a|b)*c.{0,3}"])
FORMS: st.SearchStrategy[TextForm] = st.one_of(
    st.builds(lambda texts: ChoiceForm(tuple(texts)), st.lists(WORDS, min_size=1, max_size=6, unique=True)),
    st.builds(lambda schema: SchemaForm(json.dumps(schema)), SCHEMAS),
    st.builds(PatternForm, PATTERNS),
)
