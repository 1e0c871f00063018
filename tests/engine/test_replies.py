"""Tokens of replies: found by their own scope, prompt and text, within bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from echovlm_edge.runtime.backends.onnxruntime import HostKept, HostSlot
from echovlm_edge.runtime.contracts.request import (
    FinishReason,
    GenerationRequest,
    ImageInput,
    Priority,
    Sampling,
    Turn,
)
from echovlm_edge.runtime.engine.caching.reuse import BLOCK, StoreStats
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.engine.text.replies import ENTRY_BYTES, Replies
from tests.support.dicom_files import png
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
    assert kept_by(engine).bytes == 0
    answer = finish(
        engine, GenerationRequest("Why?", sampling=Sampling(4), earlier=(Turn("Where?", reply=first.text),))
    )
    assert answer.finish_reason is FinishReason.LENGTH and answer.reused_tokens == 0
    assert kept_by(engine).bytes > 0


def kept_by(engine: ReportEngine) -> StoreStats:
    """What is cached once the last reply was; it is cached after its text was delivered, and a batch call leaves nothing."""
    finish(engine, GenerationRequest("?", sampling=Sampling(1), priority=Priority.BATCH))
    return engine.stats().prefixes


def test_of_replies_about_the_same_images_the_newest_is_kept(make_engine: MakeEngine) -> None:
    """So that a study that is asked many things takes the memory of one reply."""
    engine, _ = make_engine()
    images = (ImageInput(png(112, 112)), ImageInput(png(112, 84)))
    for number in range(3):
        finish(engine, GenerationRequest(f"Question {number}?", images, Sampling(20)))
        assert kept_by(engine).entries == 1
    reused = finish(engine, GenerationRequest("And again?", images, Sampling(4))).reused_tokens
    assert reused >= 28 // 16 * 16
    finish(engine, GenerationRequest("And this?", images[:1], Sampling(20)))
    assert kept_by(engine).entries == 2, "that is about other images"


def test_the_end_of_a_text_copies_what_was_written_and_not_the_prompts_images_again(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everybody else who writes waits for the copy."""
    engine, _ = make_engine()
    copied, read = list[tuple[int, int]](), HostSlot.read

    def watched(slot: HostSlot, tokens: int, start: int = 0) -> HostKept:
        copied.append((start, tokens))
        return read(slot, tokens, start)

    monkeypatch.setattr(HostSlot, "read", watched)
    images = (ImageInput(png(112, 112)), ImageInput(png(112, 84)))
    first = finish(engine, GenerationRequest("Where?", images, Sampling(40)))
    turn = Turn("Where?", images, reply=first.text)
    second = finish(engine, GenerationRequest("Why?", earlier=(turn,), sampling=Sampling(40)))
    finish(engine, GenerationRequest("How?", images, Sampling(40)))
    kept_by(engine)
    ends = [(text.prompt_tokens + len(text.token_ids) - 1) // BLOCK * BLOCK for text in (first, second)]
    (_, of_images), *_ = copied
    assert copied[:3] == [(0, of_images), (of_images, ends[0]), (ends[0], ends[1])] and of_images > 0
    assert [start for start, _ in copied[3:]] == [of_images], "another question about the same images"


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
