"""One sequence's drafts: sources in order, what they are trusted with, and a text that remembers itself."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.drafting.drafter import Drafter, Source
from echovlm_edge.runtime.drafting.guess import Guess
from echovlm_edge.runtime.drafting.own_text import ORDERS, OwnText
from echovlm_edge.runtime.drafting.trust import Trust

STOP = 99


class Says:
    """Always guesses the same token."""

    def __init__(self, token: int, share: float = 0.9) -> None:
        self.guess, self.asked = Guess(token, share, 1), 0

    def following(self, tokens: Sequence[int]) -> Guess | None:
        self.asked += 1
        return self.guess


def test_a_text_that_repeats_itself_is_drafted_from_itself() -> None:
    drafter = Drafter([[1, 2, 3, 4, 5], [1, 2]], {}, {STOP})
    while drafter.guess(0.0) is not None and len(drafter.draft) < 3:
        pass
    assert drafter.tokens == [3, 4, 5] and {one.source for one in drafter.draft} == {Source.PROMPT}


def test_no_text_is_drafted_from_before_an_image_to_behind_it() -> None:
    assert Drafter([[1, 2], [3], [1, 2]], {}, {STOP}).guess(0.0) is None


def test_sources_are_asked_in_order_until_one_is_sure() -> None:
    client, bundle = Says(7), Says(8)
    drafter = Drafter([[1, 2]], {Source.CLIENT: client, Source.BUNDLE: bundle}, {STOP})
    for _ in range(6):  # both are right and wrong in turn, until the first is trusted
        drafter.guess(0.0)
        drafter.wrote([7])
    before = bundle.asked
    assert drafter.guess(0.0) is not None and drafter.draft[0].source is Source.CLIENT and bundle.asked == before


def test_nothing_is_drafted_behind_the_end() -> None:
    drafter = Drafter([[1, 2]], {Source.BUNDLE: Says(STOP)}, {STOP})
    assert drafter.guess(0.0) is not None and drafter.guess(0.0) is None
    assert [one.token for one in drafter.wrote([STOP])] == [STOP] and drafter.draft == []


def test_what_was_accepted_is_what_agrees_up_to_the_first_that_does_not() -> None:
    drafter = Drafter([[1, 2]], {Source.BUNDLE: Says(7)}, {STOP})
    for _ in range(4):
        drafter.guess(0.0)
    assert drafter.tokens == [7] * 4
    assert [one.token for one in drafter.wrote([7, 7, 3])] == [7, 7]
    drafter.guess(0.0)
    drafter.cut(0)
    assert drafter.tokens == [] and drafter.wrote([5]) == []


@given(st.lists(st.booleans(), max_size=200), st.floats(0.01, 1))
def test_trust_is_a_probability_and_follows_what_happens(held: list[bool], share: float) -> None:
    trust = Trust()
    for accepted in held:
        trust.learn(share, accepted)
        trust.fade(1)
        assert 0 <= trust.probability(share) < 1
    for _ in range(30):
        trust.learn(0.9, True)
    assert trust.probability(0.9) > 0.6
    for _ in range(60):
        trust.learn(0.9, False)
    assert trust.probability(0.9) < 0.4
    trust.fade(1000)
    assert abs(trust.probability(0.9) - Trust().probability(0.9)) < 0.01


@given(st.lists(st.integers(0, 3), max_size=60))
def test_own_text_gives_what_followed_the_last_time(text: list[int]) -> None:
    own = OwnText()
    for end, token in enumerate(text):
        guess = own.following(text[:end])
        followed = {
            order: [text[at] for at in range(order, end) if text[at - order : at] == text[end - order : end]]
            for order in ORDERS
            if end >= order
        }
        longest = next((order for order in ORDERS if followed.get(order)), None)
        assert (guess is None) == (longest is None)
        if guess is not None and longest is not None:
            assert guess.order == longest and guess.token == followed[longest][-1] and 0 < guess.share < 1
        own.append(token)
