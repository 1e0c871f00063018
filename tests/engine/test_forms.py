"""A text in a form: the same alone, among others, drafted or not; and at its end in its form, or at its limit."""

from __future__ import annotations

import os
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.contracts.request import FinishReason, Priority, Sampling
from echovlm_edge.runtime.contracts.text_form import ChoiceForm, PatternForm, SchemaForm, TextForm
from echovlm_edge.runtime.drafting.drafter import Source
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable
from echovlm_edge.runtime.engine.generation import Generation
from echovlm_edge.runtime.engine.scheduling.scheduler import Scheduler
from tests.support.forms import FORMS, has_form, small_compiler, small_tokenizer
from tests.support.hashed_decoder import VOCABULARY, HashedDecoder, Known, followed, generation, scheduler

LONG = bool(os.environ.get("ECHOVLM_LONG"))
COMPILER, TOKENIZER = small_compiler(), small_tokenizer()
Text = tuple[list[int], FinishReason | None]


@dataclass(frozen=True)
class Asked:
    """A prompt, how to continue it, and the form of that."""

    prompt: list[int]
    sampling: Sampling
    form: TextForm | None

    def generation(self, priority: Priority = Priority.INTERACTIVE) -> Generation:
        compiled = COMPILER.compile(self.form) if self.form else None
        form = {"form": compiled.begin(), "choices": compiled.choices} if compiled else {}
        return generation(self.prompt, self.sampling, priority=priority, **form)


SAMPLINGS = st.builds(
    Sampling,
    st.integers(1, 60),
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.8]),
    repetition_penalty=st.sampled_from([1.0, 1.7]),
    seed=st.integers(0, 5),
)
PROMPTS = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=20)
ASKED = st.lists(st.builds(Asked, PROMPTS, SAMPLINGS, st.one_of(st.none(), FORMS, FORMS)), min_size=1, max_size=4)


def write(made: Scheduler, asked: list[Asked], together: bool = True) -> list[Text]:
    calls = [one.generation() for one in asked]
    if not together:
        return [(made.submit(call), followed(call))[1] for call in calls]  # type: ignore[func-returns-value]
    for call in calls:
        made.submit(call)
    return [followed(call) for call in calls]


@given(ASKED, st.integers(0, 3), st.booleans(), st.sampled_from(["none", "knows", "lies", "table"]))
@settings(max_examples=60 if not LONG else 2000)
def test_a_text_in_a_form_is_that_without_drafts(asked: list[Asked], seed: int, packs_rows: bool, store: str) -> None:
    plain = scheduler(HashedDecoder(seed), drafting=False)
    expected = write(plain, asked, together=False)
    plain.close()
    for one, (tokens, finish) in zip(asked, expected, strict=True):
        if one.form and finish is FinishReason.STOP:
            assert has_form(TOKENIZER.decode(tokens), one.form)
        assert finish is FinishReason.STOP or len(tokens) == one.sampling.max_new_tokens
    texts = [[*one.prompt, *tokens] for one, (tokens, _) in zip(asked, expected, strict=True)]
    phrases = {
        "none": None,
        "knows": Known(texts),
        "lies": Known(texts, lies=True),
        "table": PhraseTable.build(texts, 1),
    }[store]
    made = scheduler(HashedDecoder(seed, packs_rows), phrases, slots=3)
    assert write(made, asked) == expected
    made.close()


FIXED = SchemaForm(
    '{"type": "object", "properties": {"a": {"const": "b"}, "cd": {"type": "null"}}, "required": ["a", "cd"]}'
)


@pytest.mark.parametrize("packs_rows", [True, False])
def test_what_a_form_leaves_no_choice_about_takes_few_steps(packs_rows: bool) -> None:
    form = ChoiceForm(("abcdefabcdefabcdefabcdef",))
    asked = [Asked([3, number], Sampling(60), form) for number in range(1, 5)]
    made = scheduler(HashedDecoder(packs_rows=packs_rows), slots=4)
    texts = write(made, asked)
    assert [TOKENIZER.decode(tokens) for tokens, _ in texts] == list(form.texts) * 4
    stats = made.stats()
    assert stats.drafting.accepted[Source.FORM] > 20 and stats.drafting.saved_steps > 20
    made.close()


def test_a_form_that_leaves_no_room_for_the_end_says_so() -> None:
    made = scheduler(HashedDecoder())
    ((tokens, finish),) = write(made, [Asked([4, 5], Sampling(3), FIXED)])
    assert finish is FinishReason.LENGTH and len(tokens) == 3
    assert '{"a": "b"'.startswith(TOKENIZER.decode(tokens))
    made.close()


def test_a_text_in_a_form_is_parked_and_resumed() -> None:
    asked = [Asked([5, number], Sampling(50), PatternForm("[a-f ]{40,}")) for number in range(1, 4)]
    plain = scheduler(HashedDecoder(), drafting=False)
    expected = write(plain, asked, together=False)
    plain.close()
    made = scheduler(HashedDecoder(), slots=1)
    batch = [one.generation(Priority.BATCH) for one in asked[:2]]
    for call in batch:
        made.submit(call)
    for _ in range(5):
        assert write(made, asked[2:]) == expected[2:]
    assert [followed(call) for call in batch] == expected[:2]
    made.close()


def test_a_form_that_fails_ends_its_own_text_alone() -> None:
    """As where it becomes too complex: what can still be is unknown then."""
    asked = [Asked([5, 1], Sampling(40), PatternForm("[a-f]{30,}")), Asked([5, 2], Sampling(40), None)]
    plain = scheduler(HashedDecoder(), drafting=False)
    expected = write(plain, asked[1:])
    plain.close()
    made = scheduler(HashedDecoder(), drafting=False)
    failing, other = asked[0].generation(), asked[1].generation()
    assert failing.form
    taken, take = list[int](), failing.form.take

    def fail_at_the_tenth(token: int) -> None:
        taken.append(token)
        take(token if len(taken) < 10 else VOCABULARY - 1)  # no form allows padding

    failing.form.take = fail_at_the_tenth  # type: ignore[method-assign]
    made.submit(failing)
    made.submit(other)
    assert followed(other) == expected[0]
    with pytest.raises(UnusableForm, match="too complex"):
        followed(failing)
    made.close()


def test_without_a_form_no_mask_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("echovlm_edge.runtime.engine.tokens.sampling.allowed_tokens", refuse)
    monkeypatch.setattr("echovlm_edge.runtime.engine.tokens.sampling.is_allowed", refuse)
    made = scheduler(HashedDecoder())
    call = Asked([5, 2], Sampling(20), None).generation()
    made.submit(call)
    assert followed(call)[1]
    made.close()
