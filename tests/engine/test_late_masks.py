"""A form whose masks are late delays nobody else: it sits out, its text stays the same, and at its limit it ends."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Event
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.request import FinishReason, Priority, Sampling
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, TextForm
from echovlm_edge.runtime.engine.forms import form_state, late_masks
from echovlm_edge.runtime.engine.forms.form_state import Mask
from echovlm_edge.runtime.engine.generation import Generation
from echovlm_edge.runtime.engine.scheduling import policy
from tests.support.forms import FORMS, small_compiler
from tests.support.hashed_decoder import HashedDecoder, Known, followed, generation, scheduler
from tests.support.waiting import wait_for

COMPILER = small_compiler()
LETTERS, WORD = PatternForm("[a-f]{30,}"), ChoiceForm(("abcdefabcdefabcdefabcdef",))
BACKENDS = pytest.mark.parametrize("packs_rows", [True, False])
Text = tuple[list[int], FinishReason | None]


def asked(
    number: int, form: TextForm | None, priority: Priority = Priority.INTERACTIVE, tokens: int = 40
) -> Generation:
    compiled = COMPILER.compile(form) if form else None
    return generation(
        [5, number],
        Sampling(tokens),
        priority=priority,
        client=f"client {number}",
        form=compiled.begin() if compiled else None,
    )


def alone(number: int, form: TextForm | None) -> Text:
    made = scheduler(HashedDecoder(), drafting=False)
    call = asked(number, form)
    made.submit(call)
    text = followed(call)
    made.close()
    return text


def held(call: Generation) -> Event:
    """Let a generation's masks wait for an event."""
    form, go = call.form, Event()
    assert form
    compute = form._compute

    def wait_and_compute(draft: Sequence[int]) -> Mask:
        assert go.wait(60)
        return compute(draft)

    form._compute = wait_and_compute  # type: ignore[method-assign]
    return go


@BACKENDS
@pytest.mark.parametrize("form", [LETTERS, WORD])
def test_others_write_while_a_mask_is_late(packs_rows: bool, form: TextForm) -> None:
    made = scheduler(HashedDecoder(packs_rows=packs_rows))
    slow, other, later = asked(1, form), asked(2, None), asked(3, None)
    go = held(slow)
    made.submit(slow)
    made.submit(other)
    assert followed(other) == alone(2, None)
    made.submit(later)
    assert followed(later) == alone(3, None)
    assert made.stats().busy == 1, "the late one's"
    go.set()
    assert followed(slow) == alone(1, form)
    made.close()


def test_other_forms_do_not_wait_for_one_that_was_slow() -> None:
    made = scheduler(HashedDecoder())
    slow, other = asked(1, LETTERS), asked(2, LETTERS)
    assert slow.form and not slow.form.slow
    slow.form._seconds = 0.5
    assert slow.form.slow
    go = held(slow)
    made.submit(slow)
    made.submit(other)
    assert followed(other) == alone(2, LETTERS)
    go.set()
    assert followed(slow) == alone(1, LETTERS)
    made.close()


@BACKENDS
def test_one_that_sits_out_can_be_parked(packs_rows: bool) -> None:
    made = scheduler(HashedDecoder(packs_rows=packs_rows), slots=1)
    slow, other = asked(1, LETTERS, Priority.BATCH), asked(2, None)
    go = held(slow)
    made.submit(slow)
    wait_for(lambda: made.stats().busy == 1)
    made.submit(other)
    assert followed(other) == alone(2, None)
    assert made.stats().parked + made.stats().busy == 1
    go.set()
    assert followed(slow) == alone(1, LETTERS)
    made.close()


def test_one_that_sits_out_can_leave() -> None:
    made = scheduler(HashedDecoder())
    gone = Event()
    slow = asked(1, LETTERS)
    slow.stopped = gone.is_set
    go = held(slow)
    made.submit(slow)
    wait_for(lambda: made.stats().written_tokens > 0)
    gone.set()
    assert followed(slow)[1] is None
    assert made.stats().busy == 0
    go.set()
    made.close()


def test_a_form_that_takes_too_long_ends_its_own_text_alone() -> None:
    made = scheduler(HashedDecoder())
    slow, other = asked(1, LETTERS), asked(2, LETTERS)
    assert slow.form
    slow.form._seconds = 1.1
    made.submit(slow)
    made.submit(other)
    assert followed(other) == alone(2, LETTERS)
    with pytest.raises(UnusableForm, match=r"takes too long to keep to: \d+ tokens took 1\.\d s"):
        followed(slow)
    made.close()


def test_the_limit_counts_what_masks_take() -> None:
    form = COMPILER.compile(LETTERS).begin()
    for _ in range(3):
        before = form._seconds
        form.expect([])
        form.take(int(form_state.allowed_tokens(form.allowed(), 40)[0]))
    assert form._seconds > before
    assert form.uncharged() == form._seconds and form.uncharged() == 0


def test_masks_are_charged_to_their_client() -> None:
    assert policy.mask_work(0.05, 0.005) == 10
    assert policy.mask_work(0.05, None) == 0
    made = scheduler(HashedDecoder())
    charged: dict[str, float] = {}
    slow, other = asked(1, LETTERS), asked(2, None)
    assert slow.form
    with mock.patch.object(
        made._waiting, "charge", lambda client, work: charged.update({client: charged.get(client, 0) + work})
    ):
        made._turn_time.step = 0.001
        slow.form._seconds = 0.9
        made.submit(slow)
        made.submit(other)
        written, others = len(followed(slow)[0]), len(followed(other)[0])
    assert charged["client 1"] > 2 + written + 10 and charged["client 2"] == 2 + others
    made.close()


@given(
    st.lists(st.one_of(st.none(), FORMS, FORMS), min_size=1, max_size=4),
    st.booleans(),
    st.sampled_from(["none", "knows", "lies"]),
)
@settings(max_examples=40)
def test_texts_are_the_same_however_late_masks_are(forms: list[TextForm | None], packs_rows: bool, store: str) -> None:
    """Without any patience most masks are late."""
    expected = [alone(number, form) for number, form in enumerate(forms, 1)]
    texts = [[5, number, *tokens] for number, (tokens, _) in enumerate(expected, 1)]
    phrases = {"none": None, "knows": Known(texts), "lies": Known(texts, lies=True)}[store]
    with mock.patch.multiple(late_masks, AT_MOST=0, OF_A_STEP=0, ALONE=0):
        made = scheduler(HashedDecoder(packs_rows=packs_rows), phrases, slots=3)
        calls = [asked(number, form) for number, form in enumerate(forms, 1)]
        for call in calls:
            made.submit(call)
        assert [followed(call) for call in calls] == expected
        made.close()


def test_a_step_is_repeated_with_its_draft() -> None:
    """What a form leaves no choice about takes few steps, however late its masks are."""
    with mock.patch.multiple(late_masks, AT_MOST=0, OF_A_STEP=0, ALONE=0):
        decoder = HashedDecoder()
        made = scheduler(decoder)
        call = asked(1, WORD, tokens=60)
        made.submit(call)
        written = len(followed(call)[0])
        made.close()
    assert made.stats().drafting.saved_steps > written // 2


def test_a_mask_that_is_there_is_not_computed_again() -> None:
    form = COMPILER.compile(LETTERS).begin()
    first = int(form_state.allowed_tokens(form.allowed(), 40)[0])
    form.take(first)
    draft = [first, first]
    form.expect(draft)
    coming = form.coming
    assert coming
    coming.result(60)
    assert form.ready and not form.busy
    form.expect(draft)
    form.expect(draft[:1])
    assert form.coming is None and form.ready
