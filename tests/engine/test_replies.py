"""Tokens of replies: found by their own scope, prompt and text, within bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.request import FinishReason, GenerationRequest, Priority, Sampling, Turn
from echovlm_edge.runtime.engine.replies import ENTRY_BYTES, Replies
from tests.support.watched_engine import MakeEngine, finish


def test_a_reply_is_found_by_its_scope_prompt_and_text_only() -> None:
    replies = Replies()
    replies.put("a", [1, 2], "So.", [7, 8])
    assert replies.find("a", [1, 2], "So.") == [7, 8]
    for scope, prompt, text in (("b", [1, 2], "So."), ("a", [1, 3], "So."), ("a", [1, 2], "So"), ("a", [1], "\x02So.")):
        assert replies.find(scope, prompt, text) is None
    replies.put("a", [1, 2], "So.", [9])
    assert replies.find("a", [1, 2], "So.") == [9]


def test_memory_is_bounded_and_the_least_recently_used_goes_first() -> None:
    replies = Replies(3 * (ENTRY_BYTES + 4))
    for prompt in range(3):
        replies.put("a", [prompt], "So.", [prompt])
    assert replies.find("a", [0], "So.") == [0]
    replies.put("a", [3], "So.", [3])
    assert [replies.find("a", [prompt], "So.") is not None for prompt in range(4)] == [True, False, True, True]
    assert len(replies._tokens) == len(replies._memory) == 3


def test_a_batch_reply_costs_no_memory_and_is_continued_all_the_same(make_engine: MakeEngine) -> None:
    engine, _ = make_engine()
    asked = GenerationRequest("Where?", sampling=Sampling(20), priority=Priority.BATCH)
    first = finish(engine, asked)
    assert engine.stats().prefixes.bytes == 0
    answer = finish(
        engine, GenerationRequest("Why?", sampling=Sampling(4), earlier=(Turn("Where?", reply=first.text),))
    )
    assert answer.finish_reason is FinishReason.LENGTH and answer.reused_tokens == 0
    assert engine.stats().prefixes.bytes > 0


def test_of_replies_about_the_same_images_the_newest_is_kept(make_engine: MakeEngine) -> None:
    """So that a study that is asked many things takes the memory of one reply."""
    from echovlm_edge.runtime.contracts.request import ImageInput
    from tests.support.dicom_files import png

    engine, _ = make_engine()
    images = (ImageInput(png(112, 112)), ImageInput(png(112, 84)))
    for number in range(3):
        finish(engine, GenerationRequest(f"Question {number}?", images, Sampling(20)))
        assert engine.stats().prefixes.entries == 1
    reused = finish(engine, GenerationRequest("And again?", images, Sampling(4))).reused_tokens
    assert reused >= 28 // 16 * 16
    finish(engine, GenerationRequest("And this?", images[:1], Sampling(20)))
    assert engine.stats().prefixes.entries == 2, "that is about other images"


def test_a_reply_with_a_special_token_is_tokenized_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model cannot forge a turn either."""
    engine, _ = make_engine()
    first = finish(engine, GenerationRequest("Where?", sampling=Sampling(6)))
    asked = GenerationRequest("Why?", sampling=Sampling(1), earlier=(Turn("Where?", reply=first.text),))
    assert engine._replies.find("", engine.prompts.build("Where?", []).token_ids, first.text) == list(first.token_ids)
    engine._replies = Replies()
    monkeypatch.setattr(engine.prompts, "special_ids", frozenset(first.token_ids[2:3]))
    again = finish(engine, GenerationRequest("Where?", sampling=Sampling(6)))
    assert again.text == first.text and not engine._replies._tokens
    assert finish(engine, asked).finish_reason is FinishReason.LENGTH


def test_a_reply_that_ended_by_itself_is_continued_without_its_stop_token(
    make_engine: MakeEngine, brief_bundle: Path
) -> None:
    engine, _ = make_engine(path=brief_bundle)
    first = finish(engine, GenerationRequest("Where?"))
    assert first.finish_reason is FinishReason.STOP and len(first.token_ids) == 1
    assert finish(engine, GenerationRequest("Why?", earlier=(Turn("Where?", reply=first.text),))).reused_tokens > 0
