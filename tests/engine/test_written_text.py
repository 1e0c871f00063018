"""The tokens of a text and their bytes are the text, however characters are split and wherever a stop text ends it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from echovlm_edge.runtime.contracts.token_probability import TokenProbability
from echovlm_edge.runtime.engine.generation import Written
from echovlm_edge.runtime.engine.text.stop_text import StopText
from echovlm_edge.runtime.engine.text.written_text import WrittenText
from echovlm_edge.runtime.engine.tokens.likelihood import Likelihood
from echovlm_edge.runtime.prompting.detokenize import TokenText
from tests.support.byte_tokenizer import END, byte_tokenizer

TEXT = TokenText(byte_tokenizer(["囊肿", "ab", "b结"]))
TOKENS = st.lists(
    st.one_of(st.integers(0, 258), st.text("ab囊肿结é😀", max_size=3).map(str.encode)).map(
        lambda one: [one] if isinstance(one, int) else list(one)
    ),
    max_size=8,
).map(lambda pieces: [token for piece in pieces for token in piece])


def push(text: WrittenText, token: int) -> None:
    text.push(Written(token, 0.0, 0.0, None, Likelihood(-1.0, ((token, -1.0), (END, -2.0)))))


@given(TOKENS, st.data())
def test_joined_bytes_are_the_text(tokens: list[int], data: st.DataObject) -> None:
    text, streamed, pieces = WrittenText(TEXT, StopText(())), list[TokenProbability](), ""
    for token in tokens:
        push(text, token)
        if data.draw(st.booleans()) and (delta := text.take()):
            pieces += delta.text
            streamed += delta.probabilities
    push(text, END)
    if rest := text.finish():
        pieces += rest.text
        streamed += rest.probabilities
    assert [one.token_id for one in text.probabilities] == [*tokens, END] == text.tokens
    assert pieces == text.text == b"".join(one.data for one in text.probabilities).decode(errors="replace")
    assert streamed == text.probabilities[: len(streamed)]
    assert not any(one.data for one in text.probabilities[len(streamed) :]), (
        "only tokens without text come with the result"
    )


@given(TOKENS, st.text("ab囊", min_size=1, max_size=2))
def test_what_a_stop_text_cuts_off_has_no_tokens(tokens: list[int], stop_text: str) -> None:
    stop, pieces = StopText([stop_text]), ""
    text = WrittenText(TEXT, stop)
    for token in tokens:
        push(text, token)
        if delta := text.take():
            pieces += delta.text
        if stop.reached:
            break
    if rest := text.finish():
        pieces += rest.text
    known = [one.token_id for one in text.probabilities]
    assert known == tokens[: len(known)]
    joined = b"".join(one.data for one in text.probabilities).decode(errors="replace")
    assert joined.startswith(text.text) and text.text == pieces and stop_text not in pieces
    if text.probabilities and stop.reached:
        before = b"".join(one.data for one in text.probabilities[:-1]).decode(errors="ignore")
        assert len(before) <= len(pieces), "each token begins in the text"


def test_a_piece_of_a_character_and_a_special_token_have_names() -> None:
    first, second = "é".encode()
    text = WrittenText(TEXT, StopText(()))
    for token in (first, second, END):
        push(text, token)
    delta = text.take()
    assert delta and delta.text == "é" and [one.text for one in delta.probabilities] == ["\ufffd", "\ufffd"]
    assert text.finish() is None
    assert (text.probabilities[-1].text, text.probabilities[-1].data) == ("<|im_end|>", b"")
    assert [one.text for one in text.probabilities[0].alternatives] == ["\ufffd", "<|im_end|>"]
    assert TEXT.of(100_000) == ("", b""), "padding"


def test_a_token_outside_the_byte_alphabet_is_its_own_text() -> None:
    tokenizer = Tokenizer(models.BPE(vocab={"a": 0, "囊": 1}, merges=[]))
    tokenizer.decoder = decoders.ByteLevel()
    stream = TokenText(tokenizer).stream()
    assert "".join(map(stream.push, (1, 0))) == "囊a" == tokenizer.decode([1, 0])
