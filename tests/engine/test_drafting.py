"""A drafted text is the text without drafts, to the token: whatever is guessed, however many write, wherever it ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import UnusableNumbers
from echovlm_edge.runtime.contracts.request import FinishReason, Priority, Sampling
from echovlm_edge.runtime.drafting.drafter import Source
from echovlm_edge.runtime.drafting.guess import Guess
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.drafting.reply_phrases import ReplyPhrases
from echovlm_edge.runtime.drafting.row_cost import RowCost
from echovlm_edge.runtime.engine.scheduling.scheduler import Scheduler
from tests.support.hashed_decoder import VOCABULARY, HashedDecoder, Known, followed, generation, scheduler
from tests.support.waiting import wait_for

LONG = bool(os.environ.get("ECHOVLM_LONG"))
LIED_STEPS = 100_000 if LONG else 3_000
NO_STOP: frozenset[int] = frozenset()
Text = tuple[list[int], FinishReason | None]


class Asked(NamedTuple):
    """A prompt and how to continue it."""

    prompt: list[int]
    sampling: Sampling


SAMPLINGS = st.builds(
    Sampling,
    st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.0, 0.2, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.1, 1.7]),
    seed=st.integers(0, 5),
)
ASKED = st.lists(
    st.builds(Asked, st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=30), SAMPLINGS),
    min_size=1,
    max_size=5,
)


def write(made: Scheduler, asked: Sequence[Asked], together: bool = True) -> list[Text]:
    """Write the texts, at once or one after another."""
    calls = [generation(one.prompt, one.sampling) for one in asked]
    if not together:
        return [(made.submit(call), followed(call))[1] for call in calls]  # type: ignore[func-returns-value]
    for call in calls:
        made.submit(call)
    return [followed(call) for call in calls]


def plain(backend: HashedDecoder, asked: Sequence[Asked], **options: object) -> list[Text]:
    """The texts without drafts, each alone."""
    made = scheduler(HashedDecoder(backend.seed), drafting=False, **options)  # type: ignore[arg-type]
    texts = write(made, asked, together=False)
    made.close()
    return texts


@given(ASKED, st.integers(0, 3), st.booleans(), st.sampled_from(["none", "knows", "lies", "table"]), st.booleans())
@settings(max_examples=60 if not LONG else 2000)
def test_any_text_is_that_without_drafts(
    asked: list[Asked], seed: int, packs_rows: bool, store: str, short: bool
) -> None:
    backend = HashedDecoder(seed, packs_rows)
    room = 36 if short else 200  # some texts end where their slot does
    expected = plain(backend, asked, max_sequence=room)
    texts = [[*one.prompt, *tokens] for one, (tokens, _) in zip(asked, expected, strict=True)]
    phrases = {
        "none": None,
        "knows": Known(texts),
        "lies": Known(texts, lies=True),
        "table": PhraseTable.build(texts, 1),
    }[store]
    made = scheduler(backend, phrases, slots=3, max_sequence=room, replies=ReplyPhrases(1 << 20))
    assert write(made, asked) == expected
    assert write(made, asked, together=False) == expected, "with what the client's replies said"
    made.close()


@pytest.mark.parametrize("packs_rows", [True, False])
def test_what_is_known_is_written_in_few_steps(packs_rows: bool) -> None:
    asked = [Asked([number, 7, 9], Sampling(64)) for number in range(1, 5)]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP)
    backend = HashedDecoder(packs_rows=packs_rows)
    known = PhraseTable.build([[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)], 1)
    made = scheduler(backend, known, stops=NO_STOP)
    assert write(made, asked) == expected
    stats = made.stats()
    assert stats.written_tokens == 4 * 64 and stats.steps < 45
    drafting = stats.drafting
    assert sum(drafting.accepted.values()) >= drafting.saved_steps > 3 * 30
    assert drafting.drafted[Source.BUNDLE] >= drafting.accepted[Source.BUNDLE] > 0
    made.close()


def test_a_store_that_lies_is_hardly_asked_and_changes_nothing() -> None:
    """A decoder of random text, and guesses that are wrong however sure they are."""
    asked = [
        Asked([3, 1 + number % 30], Sampling(500, temperature=1.5, seed=number)) for number in range(LIED_STEPS // 500)
    ]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP, max_sequence=600)
    backend, liar = HashedDecoder(), Known([], lies=True)
    made = scheduler(backend, liar, slots=1, stops=NO_STOP, max_sequence=600, cost=RowCost({1: 1.0, 8: 1.6}))
    assert write(made, asked, together=False) == expected
    assert sum(map(sum, backend.calls)) < 1.1 * made.stats().written_tokens
    assert liar.asked < 0.5 * LIED_STEPS
    made.close()


def test_a_source_that_was_wrong_is_believed_again_once_it_is_right() -> None:
    asked = [Asked([5, 6], Sampling(400))]
    ((text, _),) = plain(HashedDecoder(), asked, stops=NO_STOP, max_sequence=600)

    class Turns(Known):
        """Lies at first."""

        def following(self, tokens: Sequence[int]) -> object:  # type: ignore[override]
            self.lies = len(tokens) < 60
            return super().following(tokens)

    made = scheduler(HashedDecoder(), Turns([[5, 6, *text]]), stops=NO_STOP, max_sequence=600)
    assert write(made, asked) == [(text, FinishReason.LENGTH)]
    assert made.stats().drafting.accepted[Source.BUNDLE] > 30
    made.close()


def test_rows_that_cost_as_much_as_steps_are_not_drafted() -> None:
    asked = [Asked([5, 6], Sampling(60))]
    ((text, _),) = plain(HashedDecoder(), asked, stops=NO_STOP)
    backend = HashedDecoder()
    made = scheduler(backend, Known([[5, 6, *text]]), stops=NO_STOP, cost=RowCost({1: 1.0, 16: 16.0}))
    assert write(made, asked) == [(text, FinishReason.LENGTH)]
    assert sum(map(sum, backend.calls)) == 2 + 59, "the prompt, and a row for each token but the last"
    made.close()


@pytest.mark.parametrize("packs_rows", [True, False])
def test_a_cancelled_text_is_the_beginning_of_the_whole(packs_rows: bool) -> None:
    asked = [Asked([5, number], Sampling(150)) for number in range(1, 5)]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP)
    texts = [[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)]
    made = scheduler(HashedDecoder(packs_rows=packs_rows), Known(texts), stops=NO_STOP)
    turns = iter(range(10_000))
    calls = [
        generation(one.prompt, one.sampling, (lambda: next(turns) > 25) if number % 2 else (lambda: False))
        for number, one in enumerate(asked)
    ]
    for call in calls:
        made.submit(call)
    for number, (call, (text, finish)) in enumerate(zip(calls, expected, strict=True)):
        tokens, ended = followed(call)
        assert tokens == text[: len(tokens)] and ended == (None if number % 2 else finish)
    assert made.stats().busy == 0
    made.close()


def test_nan_in_rejected_rows_harms_nobody() -> None:
    """Where attention weighs what lies behind a sequence by zero: neither this sequence nor the slot's next one."""
    asked = [Asked([5, number], Sampling(80)) for number in range(1, 8)]
    poison = VOCABULARY + 7  # no text has it
    expected = plain(HashedDecoder(), asked, stops=NO_STOP)

    class Poisonous(Known):
        """Guesses a token that the decoder does not take."""

        def following(self, tokens: Sequence[int]) -> object:  # type: ignore[override]
            guess = super().following(tokens)
            return guess and type(guess)(guess.token if self.asked % 40 else poison, guess.share, guess.order)

    texts = [[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)]
    backend = HashedDecoder(packs_rows=False, poison=poison)
    made = scheduler(backend, Poisonous(texts), slots=2, stops=NO_STOP)
    assert write(made, asked) == expected
    drafting = made.stats().drafting
    assert drafting.accepted[Source.BUNDLE] > 0 and backend.poisoned >= 2
    made.close()


def test_a_draft_for_which_there_is_no_memory_ends_nothing() -> None:
    asked = [Asked([5, number], Sampling(40)) for number in range(1, 4)]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP)
    texts = [[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)]
    backend = HashedDecoder(fails=lambda rows: any(part.logits > 1 for part in rows))
    made = scheduler(backend, Known(texts), stops=NO_STOP)
    assert write(made, asked) == expected and write(made, asked[:1]) == expected[:1]
    assert any(max(call) > 2 for call in backend.calls), "nothing was drafted"
    made.close()


def test_a_source_that_fails_ends_no_text() -> None:
    class Failing(Known):
        def following(self, tokens: Sequence[int]) -> Guess | None:
            raise MemoryError

    asked = [Asked([5, number], Sampling(40)) for number in range(1, 4)]
    made = scheduler(HashedDecoder(), Failing([]), stops=NO_STOP)
    assert write(made, asked) == plain(HashedDecoder(), asked, stops=NO_STOP)
    made.close()


def test_numbers_that_are_none_end_a_text_where_they_do_without_drafts() -> None:
    """Its own token, not a rejected one, leads to them: a drafted text has the same tokens before."""
    asked = Asked([5, 1], Sampling(60))
    ((text, _),) = plain(HashedDecoder(), [asked], stops=NO_STOP)
    end = next(at for at in range(20, 60) if text[at] not in text[:at])
    backend = HashedDecoder(poison=text[end])
    made = scheduler(backend, Known([[*asked.prompt, *text]]), stops=NO_STOP)
    call = generation(*asked)
    made.submit(call)
    wait_for(lambda: made.stats().busy + made.stats().waiting == 0)
    told = call.outbox.take(1)
    assert [one.token_id for one in told if hasattr(one, "token_id")] == text[: end + 1]
    assert isinstance(told[-1], UnusableNumbers)
    made.close()


def test_parked_and_resumed_between_drafts() -> None:
    asked = [Asked([5, number], Sampling(120)) for number in range(1, 4)]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP)
    texts = [[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)]
    made = scheduler(HashedDecoder(), Known(texts), slots=1, stops=NO_STOP)
    batch = [generation(one.prompt, one.sampling, priority=Priority.BATCH) for one in asked[:2]]
    for call in batch:
        made.submit(call)
    for _ in range(5):
        assert write(made, asked[2:]) == expected[2:]
    assert [followed(call) for call in batch] == expected[:2]
    made.close()


def test_what_one_client_was_told_drafts_for_that_client_alone() -> None:
    replies = ReplyPhrases(1 << 20)
    asked = Asked([5, 6, 7], Sampling(100))
    made = scheduler(HashedDecoder(), stops=NO_STOP, replies=replies)

    def drafted(scope: str) -> int:
        before = made.stats().drafting.drafted[Source.CLIENT]
        call = generation(*asked, scope=scope)
        made.submit(call)
        assert len(followed(call)[0]) == 100
        return made.stats().drafting.drafted[Source.CLIENT] - before

    assert drafted("a") == 0
    wait_for(lambda: replies.of("a"))
    assert drafted("b") == 0 and drafted("a") > 50
    made.close()


def test_a_slot_of_rectangles_keeps_its_last_position() -> None:
    """Drafts of different lengths near the end of their slots: padding ends before."""
    asked = [Asked([*range(1, 4 + 3 * number)], Sampling(60)) for number in range(4)]
    expected = plain(HashedDecoder(), asked, stops=NO_STOP, max_sequence=40)
    texts = [[*one.prompt, *text] for one, (text, _) in zip(asked, expected, strict=True)]
    backend = HashedDecoder(packs_rows=False)
    made = scheduler(backend, Known(texts), stops=NO_STOP, max_sequence=40)
    assert write(made, asked) == expected
    assert max(chain.from_iterable(backend.calls)) > 2
    made.close()
