"""How likely each choice is: what reading it alone after the prompt gives, in any batch, and shares that add up to 1."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.backends import SlotMemory, SlotRows, new_cache
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, Priority, Sampling
from echovlm_edge.runtime.contracts.text_form import ChoiceForm
from echovlm_edge.runtime.engine.generation import Generation, Scored, Written
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.engine.tokens.choice_scoring import normalized
from tests.support.forms import small_compiler
from tests.support.hashed_decoder import STOP, VOCABULARY, HashedDecoder, Positions, generation, scheduler

COMPILER = small_compiler()
TEXTS = st.lists(st.text("abctrue09", min_size=1, max_size=20), min_size=1, max_size=5, unique=True)
PROMPTS = st.lists(st.integers(1, VOCABULARY - 1), min_size=1, max_size=20)


def softmax(logits: np.ndarray) -> list[float]:
    weights = [math.exp(float(logit)) for logit in logits]
    return [weight / sum(weights) for weight in weights]


def cold(prompt: list[int], choice: list[int]) -> float:
    """Read a prompt and a choice a token at a time, in a slot of their own."""
    backend = HashedDecoder()
    (slot,) = backend.new_slots(SlotMemory(1, 200))
    total, following = 0.0, [*choice, STOP]
    positions = [*range(0, 2 * len(prompt), 2), *(2 * len(prompt) + 5 + place for place in range(len(choice)))]
    for place, token in enumerate([*prompt, *choice]):
        angles = Positions().angles(np.full((3, 1), positions[place]))
        ((logits,),) = backend.turn([SlotRows(slot, place, backend.embed(np.array([token])), angles)])
        if place >= len(prompt) - 1:
            total += math.log(softmax(np.asarray(logits))[following[place - len(prompt) + 1]])
    return total


def asked(prompt: list[int], texts: list[str], priority: Priority = Priority.INTERACTIVE) -> Generation:
    form = COMPILER.compile(ChoiceForm(tuple(texts)))
    return generation(prompt, Sampling(30), form=form.begin(), choices=form.choices, priority=priority)


def scores(call: Generation) -> list[float]:
    found, ended = list[float](), False
    while not ended:
        for progress in call.outbox.take(60):
            if isinstance(progress, Exception):
                raise progress
            assert not (isinstance(progress, Written) and not found), "choices are read before the text is written"
            found = list(progress.log_probabilities) if isinstance(progress, Scored) else found
            ended = ended or (isinstance(progress, Written) and progress.finish is not None)
    return found


@given(st.lists(st.tuples(PROMPTS, TEXTS), min_size=1, max_size=4), st.booleans())
@settings(max_examples=25)
def test_it_is_that_of_a_cold_run_in_any_batch(calls: list[tuple[list[int], list[str]]], packs_rows: bool) -> None:
    made = scheduler(HashedDecoder(packs_rows=packs_rows), slots=3)
    given_form = [asked(*call) for call in calls]
    other = generation([3, 4, 5], Sampling(60))
    for call in (*given_form, other):
        made.submit(call)
    for call, (prompt, texts) in zip(given_form, calls, strict=True):
        tokens = COMPILER.compile(ChoiceForm(tuple(texts))).choices
        assert scores(call) == pytest.approx([cold(prompt, list(choice)) for choice in tokens], abs=1e-9)
    made.close()


def test_a_batch_call_is_preempted_between_choices() -> None:
    texts = ["abc", "true", "c", "a0a0", "b9", "uu", "re", "ttt"]
    made = scheduler(HashedDecoder(), slots=1)
    batch = asked([5, 6, 7], texts, Priority.BATCH)
    made.submit(batch)
    for _ in range(4):
        interactive = generation([3, 4, 5], Sampling(3))
        made.submit(interactive)
        while not any(isinstance(one, Written) and one.finish for one in interactive.outbox.take(60)):
            pass
    tokens = COMPILER.compile(ChoiceForm(tuple(texts))).choices
    assert scores(batch) == pytest.approx([cold([5, 6, 7], list(choice)) for choice in tokens], abs=1e-9)
    made.close()


@given(st.lists(st.floats(-2000, 0), min_size=1, max_size=32))
def test_shares_add_up_to_one(logs: list[float]) -> None:
    shares = normalized(logs)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    assert all(shares[one] >= shares[other] for one, a in enumerate(logs) for other, b in enumerate(logs) if a > b)


def test_choices_that_cannot_be_have_equal_shares() -> None:
    assert normalized([-math.inf, -math.inf]).tolist() == [0.5, 0.5]
    assert normalized([-math.inf, -3.0]).tolist() == [0.0, 1.0]


def test_a_bundle_s_choices_are_those_of_its_decoder_row_by_row(golden_bundle: Path) -> None:
    engine = ReportEngine.open(golden_bundle, threads=2)
    texts = ("True", "False", "It is a cyst.", "囊肿")
    request = GenerationRequest("Is it a cyst?", sampling=Sampling(40), form=ChoiceForm(texts))
    *_, done = engine.generate(request)
    again = [event for event in engine.generate(request) if isinstance(event, Finished)]  # its prompt is cached now
    assert isinstance(done, Finished) and done.text in texts
    assert [one.text for one in done.choices] == list(texts)
    assert sum(one.probability for one in done.choices) == pytest.approx(1)
    assert [one.log_probability for one in again[0].choices] == pytest.approx(
        [one.log_probability for one in done.choices], abs=1e-4
    )
    engine.close()
    other = ReportEngine.open(golden_bundle, threads=2)
    backend, prompt = other.model.backend, other.prompts.build("Is it a cyst?", [])
    tokenizer, stops = other.prompts.tokenizer, sorted(other.model.stop_token_ids)
    for one in done.choices:
        choice = tokenizer.encode(one.text, add_special_tokens=False).ids
        cache, total = new_cache(backend, 200), 0.0
        tokens = [*prompt.token_ids.tolist(), *choice]
        positions = [*prompt.positions[0].tolist(), *range(prompt.next_position, prompt.next_position + len(choice))]
        for place, token in enumerate(tokens):
            angles = other.model.rotary.angles(np.full((3, 1), positions[place]))
            logits = backend.decode(backend.embed(np.array([token])), angles, place, np.array([0]), cache)
            following = place + 1 - len(prompt.token_ids)
            if following >= 0:
                shares = softmax(np.asarray(logits)[0])
                total += math.log(
                    shares[choice[following]] if following < len(choice) else sum(shares[stop] for stop in stops)
                )
        assert one.log_probability == pytest.approx(total, abs=1e-3)
    other.close()
