"""Sampling: greedy by default, and each option does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from echovlm_edge.runtime.errors import InvalidInput
from echovlm_edge.runtime.request import Sampling
from echovlm_edge.runtime.sampling import Sampler, candidates

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)
NO_PROMPT = np.array([], np.int64)


def test_greedy_takes_the_best() -> None:
    assert Sampler(Sampling(), NO_PROMPT, 5).choose(LOGITS) == 1


def test_a_seed_repeats_itself_and_another_differs() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(Sampling(temperature=2.0, seed=seed), NO_PROMPT, 5)
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert draws(1) == draws(1) != draws(2)


def test_repetition_penalty_turns_away_from_the_prompts_tokens() -> None:
    assert Sampler(Sampling(repetition_penalty=2.0), np.array([1]), 5).choose(LOGITS) == 4
    negative = np.array([-1.0, -1.5], np.float32)
    assert Sampler(Sampling(repetition_penalty=2.0), np.array([0]), 2).choose(negative) == 1


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    assert candidates(LOGITS, Sampling(temperature=1.0, top_k=2))[0].tolist() == [1, 4]
    assert candidates(LOGITS, Sampling(temperature=1.0, top_p=0.01))[0].tolist() == [1]


@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=30),
    st.floats(0.05, 5),
    st.integers(0, 40),
    st.floats(0.01, 1),
)
def test_what_is_kept_is_a_distribution(logits: list[float], temperature: float, top_k: int, top_p: float) -> None:
    options = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, probabilities = candidates(np.array(logits, np.float32), options)
    assert len(tokens) >= 1 and probabilities.sum() == pytest.approx(1)
    assert (np.diff(probabilities) <= 1e-12).all()
    if top_k:
        assert len(tokens) <= top_k


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("temperature", -1),
        ("top_p", 0),
        ("top_k", -1),
        ("max_new_tokens", 0),
        ("repetition_penalty", 0),
        ("repetition_penalty", 1e-40),
    ],
)
def test_an_option_out_of_range_is_named(option: str, value: float) -> None:
    with pytest.raises(InvalidInput, match=option):
        Sampling(**{option: value})  # type: ignore[arg-type]
