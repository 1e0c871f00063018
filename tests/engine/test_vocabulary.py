"""The vocabulary of forms is read once for all engines that have it, and before a server serves."""

from __future__ import annotations

import gc
from contextlib import closing
from pathlib import Path
from weakref import ref

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from echovlm_edge.runtime.contracts.request import GenerationRequest, Sampling
from echovlm_edge.runtime.contracts.text_form import ChoiceForm
from echovlm_edge.runtime.engine.forms import vocabulary
from echovlm_edge.runtime.engine.forms.form_compiler import FormCompiler
from echovlm_edge.runtime.engine.forms.vocabulary import read_vocabulary
from echovlm_edge.runtime.imaging.sandbox.sandbox import DecodeSandbox, SandboxLimits
from echovlm_edge.runtime.serving.supervision.from_settings import bundle_choice, served_engine
from echovlm_edge.runtime.serving.supervision.serve_settings import ServeSettings
from tests.support import golden
from tests.support.forms import small_tokenizer
from tests.support.hashed_decoder import STOP, VOCABULARY

TOKENIZER = Tokenizer.from_file(str(golden.CHECKPOINT / "tokenizer.json"))


def test_it_is_read_once() -> None:
    one, other = (FormCompiler(small_tokenizer(), VOCABULARY, {STOP}) for _ in range(2))
    assert one.read_vocabulary() is other.read_vocabulary()
    assert FormCompiler(small_tokenizer(), VOCABULARY, {STOP, 1}).read_vocabulary() is not one.read_vocabulary()
    assert FormCompiler(small_tokenizer(), VOCABULARY + 2, {STOP}).read_vocabulary() is not one.read_vocabulary()


def test_it_leaves_with_the_last_engine() -> None:
    first = FormCompiler(small_tokenizer(), VOCABULARY + 3, {STOP})
    second = FormCompiler(small_tokenizer(), VOCABULARY + 3, {STOP})
    kept = ref(first.read_vocabulary())
    second.read_vocabulary()
    del first
    gc.collect()
    assert kept() is not None
    del second
    gc.collect()
    assert kept() is None


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40))
@settings(max_examples=60)
def test_a_choice_has_the_tokens_that_its_text_usually_has(text: str) -> None:
    tokens = read_vocabulary(TOKENIZER, TOKENIZER.get_vocab_size(), [0]).tokens
    expected = TOKENIZER.encode(text, add_special_tokens=False).ids
    if not set(expected) & set(TOKENIZER.get_added_tokens_decoder()):  # a special token's name
        assert tokens.tokenize_str(text) == expected


def test_a_server_has_read_it_before_it_serves(golden_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = ServeSettings(bundle=golden_bundle, listen="127.0.0.1:0", decode_processes=1)
    with closing(DecodeSandbox(SandboxLimits(processes=1))) as decode:
        engine = served_engine(settings, bundle_choice(settings, decode), decode, 0)
        try:
            monkeypatch.setattr(vocabulary, "_of_plain_text", None)  # whoever reads another one fails
            form = ChoiceForm(("True", "False"))
            request = GenerationRequest("Why?", form=form, sampling=Sampling(9))
            *_, last = engine.generate(request, lambda: False)
            assert last.text in form.texts  # type: ignore[union-attr]
        finally:
            engine.close()
