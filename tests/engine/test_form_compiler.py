"""Forms for a real vocabulary: its bytes, its special and stop tokens, and what is refused before any work."""

from __future__ import annotations

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.contracts.text_form import (
    DEEPEST_SCHEMA,
    LONGEST_PATTERN,
    LONGEST_SCHEMA,
    ChoiceForm,
    PatternForm,
    SchemaForm,
    SectionsForm,
    TextForm,
)
from echovlm_edge.runtime.engine.forms.form_compiler import CACHED, CompiledForm, FormCompiler
from echovlm_edge.runtime.engine.forms.form_state import FormState, allowed_tokens, is_allowed
from echovlm_edge.runtime.prompting.detokenize import TokenText
from tests.support import golden
from tests.support.forms import SCHEMAS, has_form

TOKENIZER = Tokenizer.from_file(str(golden.CHECKPOINT / "tokenizer.json"))
CONFIG = json.loads((golden.CHECKPOINT / "config.json").read_text())
SIZE = CONFIG["vocab_size"]
STOPS = {
    token
    for token in (TOKENIZER.token_to_id("<|im_end|>"), TOKENIZER.token_to_id("<|endoftext|>"))
    if token is not None
}
COMPILER = FormCompiler(TOKENIZER, SIZE, STOPS)
ANYTHING = PatternForm("(?s:.*)")
TEXT = TokenText(TOKENIZER)


def state(form: TextForm) -> FormState:
    return COMPILER.compile(form).begin()


def allowed(of: FormState) -> set[int]:
    return set(allowed_tokens(of.allowed(), SIZE).tolist())


def test_what_would_take_a_processor_for_hours_is_tried_elsewhere_and_refused() -> None:
    """Whether regular expressions have a text in common is found by trying."""
    together = [{"type": "string", "pattern": f"(.*a){{{count}}}"} for count in range(1, 20)]
    with pytest.raises(UnusableForm, match="too complex, so send a simpler one"):
        COMPILER.compile(SchemaForm(json.dumps({"allOf": together})))
    assert COMPILER.compile(SchemaForm(json.dumps({"allOf": together[:1]})))


def test_calls_that_come_together_compile_their_form_once() -> None:
    tried, together = list[str](), threading.Barrier(4)
    compiler = FormCompiler(TOKENIZER, SIZE, STOPS, lambda grammar, _: not tried.append(grammar))

    def call() -> CompiledForm:
        together.wait(60)
        return compiler.compile(PatternForm("[a-z]+"))

    with ThreadPoolExecutor(4) as threads:
        compiled = [each.result() for each in [threads.submit(call) for _ in range(4)]]
    assert len(tried) == 1 and all(each is compiled[0] for each in compiled)


def test_any_text_may_have_all_tokens_but_special_ones_and_padding() -> None:
    tokens = allowed(state(ANYTHING))
    special = {number for number, token in TOKENIZER.get_added_tokens_decoder().items() if token.special}
    assert tokens & special == STOPS, "the text may end at once"
    known = {number for number in range(SIZE) if TEXT.of(number)[1]}
    for number in known - tokens:
        piece = TEXT.of(number)[1]
        with pytest.raises(UnicodeDecodeError):  # no UTF-8 begins so
            (piece + b"\x80" * 3)[: len(piece) + 3].decode()
    assert not tokens - known - STOPS, "padding"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=30))
@settings(max_examples=60)
def test_the_tokenizer_s_own_tokens_of_a_text_are_allowed_one_by_one(text: str) -> None:
    form = state(ANYTHING)
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        if token in TOKENIZER.get_added_tokens_decoder():  # a special token's name
            return
        assert is_allowed(form.allowed(), token), text
        form.take(token)
    assert allowed(form) >= STOPS


@pytest.mark.parametrize("text", ["<|im_end|>", 'a "<|vision_start|>" b', "cafe\u0301"])
@pytest.mark.parametrize("as_json", [True, False])
def test_special_tokens_names_and_decomposed_characters_are_text_as_any_other(text: str, as_json: bool) -> None:
    form = state(SchemaForm(json.dumps({"const": text})) if as_json else PatternForm(re.escape(text)))
    written = b""
    while not form.ended:
        token = min(allowed(form))
        written += TEXT.of(token)[1]
        form.take(token)
    assert written.decode() == (json.dumps(text, ensure_ascii=False) if as_json else text)


def test_a_choice_is_read_as_the_text_that_it_is() -> None:
    texts = "<|im_end|>", "caf\u00e9", "cafe\u0301"
    choices = COMPILER.compile(ChoiceForm(texts)).choices
    assert tuple(b"".join(TEXT.of(token)[1] for token in each).decode() for each in choices) == texts
    assert not STOPS & {token for each in choices for token in each}


def test_a_schema_does_not_say_how_it_is_written() -> None:
    with pytest.raises(UnusableForm, match="x-guidance"):
        SchemaForm('{"type": "object", "x-guidance": {"whitespace_pattern": "x"}}')


@given(SCHEMAS, st.data())
@settings(max_examples=30)
def test_masks_along_a_draft_are_those_without_it(schema: dict[str, object], data: st.DataObject) -> None:
    form = SchemaForm(json.dumps(schema))
    plain, tokens = state(form), list[int]()
    while len(tokens) < 12 and not plain.ended:
        tokens.append(data.draw(st.sampled_from(sorted(allowed(plain)))))
        plain.take(tokens[-1])
    plain, drafted = state(form), state(form)
    assert drafted.valid(tokens) == len(tokens)
    right = data.draw(st.integers(0, len(tokens)))
    draft = [*tokens[:right], *([tokens[0]] * 2 if right < len(tokens) else [])]
    drafted.expect(draft[: drafted.valid(draft)])
    for token in tokens:
        assert (drafted.allowed() == plain.allowed()).all()
        drafted.take(token)
        plain.take(token)


def test_what_is_too_complex_behind_a_wrong_guess_ends_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    form, plain = state(PatternForm("[ab]{3,9}")), state(PatternForm("[ab]{3,9}"))
    a, b = (TOKENIZER.encode(letter).ids[0] for letter in "ab")
    along = form._along

    def break_behind_a_guess(draft: list[int]) -> object:
        masks = along(draft)
        if draft:
            form._matcher.consume_token(SIZE - 1)  # as any other error, for good
        return masks

    monkeypatch.setattr(form, "_along", break_behind_a_guess)
    for token in (a, b, b, a):
        form.expect([a, a])
        assert (form.allowed() == plain.allowed()).all()
        form.take(token)
        plain.take(token)
    assert allowed(form) >= STOPS


@given(SCHEMAS, st.data())
@settings(max_examples=30)
def test_forced_tokens_are_a_text_that_the_form_has(schema: dict[str, object], data: st.DataObject) -> None:
    """Their text is certain: whoever chooses among the allowed tokens writes it too, divided as they may."""
    form = state(SchemaForm(json.dumps(schema)))
    for _ in range(10):
        forced = form.forced()
        assert form.valid(forced) == len(forced)
        choices = sorted(allowed(form))
        if forced:
            sure = b"".join(TEXT.of(token)[1] for token in forced)
            assert all(sure.startswith(TEXT.of(token)[1]) or TEXT.of(token)[1].startswith(sure) for token in choices)
        token = data.draw(st.sampled_from(choices))
        form.take(token)
        if form.ended:
            return


@pytest.mark.parametrize(
    "form", [ChoiceForm(("True", "False")), ChoiceForm(("A", "AB", "A. 囊肿 (?)")), PatternForm("a|bc")]
)
def test_a_form_s_own_texts_end_with_a_stop_token(form: TextForm) -> None:
    texts = form.texts if isinstance(form, ChoiceForm) else ("a", "bc")
    for text in texts:
        one = state(form)
        for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
            assert is_allowed(one.allowed(), token)
            one.take(token)
        assert allowed(one) >= STOPS
        one.take(min(STOPS))
        assert one.ended and has_form(text, form)


@pytest.mark.parametrize(
    ("language", "text", "rest"),
    [
        (Language.EN, "Ultrasound findings: A cyst of 12 mm. Ultrasound impression: Cyst", "."),
        (Language.ZH, "超声所见：肝大小正常，结节：12mm。超声提示：结节", "。"),
    ],
)
def test_sections_begin_and_end_under_their_headings(language: Language, text: str, rest: str) -> None:
    form = state(SectionsForm(language))
    heading = text.split(":" if language is Language.EN else "：")[0]
    for token in TOKENIZER.encode(text, add_special_tokens=False).ids:
        written = allowed(form)
        assert token in written
        form.take(token)
    assert allowed(form) >= STOPS and has_form(text, SectionsForm(language)) and heading
    begun = state(SectionsForm(language))
    for token in TOKENIZER.encode(text[: len(text) // 2], add_special_tokens=False).ids:
        begun.take(token)
    assert not STOPS & allowed(begun), "without an impression it does not end"


REFUSED: dict[str, tuple[object, str]] = {
    "keyword": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "lenient": ({"x-guidance": {"lenient": True}, "not": {}}, "not"),
    "type": ({"type": "poem"}, "poem"),
    "nothing": ({"enum": []}, "/enum has no values"),
    "contradiction": ({"type": "integer", "minimum": 5, "maximum": 3}, "minimum"),
    "remote": ({"$ref": "http://x/y"}, "http://x/y"),
    "format": ({"type": "string", "format": "poem"}, "poem"),
    "ambiguous": ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_is_refused_by_name(name: str) -> None:
    schema, words = REFUSED[name]
    with pytest.raises(UnusableForm, match=words) as refused:
        COMPILER.compile(SchemaForm(json.dumps(schema)))
    sentence = str(refused.value)
    assert (
        sentence.startswith("The JSON schema")
        and sentence.endswith(".")
        and "\n" not in sentence
        and len(sentence) < 300
    )


@pytest.mark.parametrize(
    ("pattern", "words"),
    [("[", "unclosed"), ("(?=a)b", "look-around"), (r"\bfoo", "look-around"), (".*" * 2000, "too complex")],
)
def test_a_regular_expression_that_cannot_be_is_refused(pattern: str, words: str) -> None:
    with pytest.raises(UnusableForm, match=words) as refused:
        COMPILER.compile(PatternForm(pattern))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ChoiceForm(()), "from 1 to 32"),
        (lambda: ChoiceForm(tuple(map(str, range(33)))), "not 33"),
        (lambda: ChoiceForm(("a", "")), "Choice 2 is empty"),
        (lambda: ChoiceForm(("a", "a")), "twice"),
        (lambda: ChoiceForm(("a" * 201,)), "201 characters"),
        (lambda: COMPILER.compile(ChoiceForm(("囊肿🫀" * 30,))), "tokens, more than 32"),
        (lambda: SchemaForm("[1]"), "not a JSON object"),
        (lambda: SchemaForm("{"), "not JSON"),
        (lambda: SchemaForm("[" * 60_000), "not JSON"),
        (lambda: SchemaForm('{"a":' * (DEEPEST_SCHEMA + 2) + "1" + "}" * (DEEPEST_SCHEMA + 2)), "levels"),
        (lambda: SchemaForm(" " * (LONGEST_SCHEMA + 1)), "characters, more than"),
        (lambda: PatternForm(""), "not 0"),
        (lambda: PatternForm("a" * (LONGEST_PATTERN + 1)), "from 1 to"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_compiled(make: object, words: str) -> None:
    with pytest.raises(UnusableForm, match=words):
        make()  # type: ignore[operator]


def test_forms_are_cached_and_their_texts_are_apart() -> None:
    compiler = FormCompiler(TOKENIZER, SIZE, STOPS)
    form = ChoiceForm(("True", "False"))
    assert compiler.compile(form) is compiler.compile(ChoiceForm(("True", "False")))
    one, other = compiler.compile(form).begin(), compiler.compile(form).begin()
    first = allowed(one)
    one.take(TOKENIZER.encode("True").ids[0])
    assert allowed(other) == first != allowed(one)
    before = compiler.compile(form)
    for number in range(CACHED):
        compiler.compile(ChoiceForm((str(number),)))
    assert compiler.compile(form) is not before
    compiler.close()
