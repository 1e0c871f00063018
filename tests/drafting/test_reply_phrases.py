"""Phrases of replies: each scope's own, within bounded memory, the oldest dropped first."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.drafting.reply_phrases import MOST_REPLIES, REPLY_BYTES, TOKEN_BYTES, ReplyPhrases
from tests.support.waiting import wait_for


def knows(replies: ReplyPhrases, scope: str, reply: list[int]) -> bool:
    """Whether a scope's phrases have this reply's."""
    phrases = replies.of(scope)
    guess = phrases.following(reply[:-1]) if phrases else None
    return guess is not None and guess.token == reply[-1]


def test_a_scope_has_its_own_replies_alone() -> None:
    replies = ReplyPhrases(1 << 20)
    assert replies.of("a") is None
    replies.put("a", [1, 2, 3])
    wait_for(lambda: knows(replies, "a", [1, 2, 3]))
    assert replies.of("b") is None
    replies.put("b", [4, 5, 6])
    wait_for(lambda: knows(replies, "b", [4, 5, 6]))
    assert not knows(replies, "a", [4, 5, 6]) and not knows(replies, "b", [1, 2, 3])


def test_nothing_is_kept_without_memory() -> None:
    replies = ReplyPhrases(0)
    replies.put("a", [1, 2, 3])
    assert replies.bytes == 0 and replies.of("a") is None


def test_the_oldest_replies_go() -> None:
    replies = ReplyPhrases(1 << 30)
    for number in range(MOST_REPLIES + 1):
        replies.put("a", [10_000 + number, 20_000 + number, number])
    assert replies.bytes == MOST_REPLIES * (3 * TOKEN_BYTES + REPLY_BYTES)
    replies.put("a", [1] * 2)
    wait_for(lambda: knows(replies, "a", [20_000 + 200, 200]))


def test_a_table_goes_with_the_replies_that_it_was_made_of() -> None:
    room = 8 * (3 * TOKEN_BYTES + REPLY_BYTES)
    replies = ReplyPhrases(room)
    for number in range(8):
        replies.put("a", [10 + number, 20 + number, number])
    wait_for(lambda: knows(replies, "a", [17, 27, 7]))
    for number in range(8):
        replies.put("b", [3, 4, number])
    wait_for(lambda: replies.of("b") is not None)
    for scope in "cd":
        for number in range(4):
            replies.put(scope, [5, 6, number])
    assert replies.of("a") is None, "three quarters of its replies are gone"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 30)), max_size=40))
@settings(max_examples=30)
def test_memory_is_bounded_whoever_says_how_much(said: list[tuple[str, int]]) -> None:
    limit = 40 * TOKEN_BYTES + 3 * REPLY_BYTES
    replies = ReplyPhrases(limit)
    for scope, length in said:
        replies.put(scope, list(range(length)))
        assert replies.bytes <= limit
