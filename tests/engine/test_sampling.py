"""Sampling: greedy by default, and each option does what its name says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.errors import InvalidInput, UnusableNumbers
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.engine.tokens.sampling import Sampler, candidates

LOGITS = np.array([1.0, 3.0, 2.0, -1.0, 2.5], np.float32)
NO_PROMPT = np.array([], np.int64)
PINNED = {
    "all": [622, 902, 778, 235, 298, 878],
    "top_k": [605, 926, 815, 247, 321, 889],
    "top_p": [630, 914, 803, 247, 309, 889],
    "both, penalised": [642, 926, 778, 247, 309, 889],
}


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


def by_sorting(logits: np.ndarray, options: Sampling) -> tuple[list[int], dict[int, int]]:
    """The plain way: all tokens in rank order, those that stay and their weights, in Python's whole numbers."""
    ranked = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    nats = (np.max(logits) - logits.astype(np.float64)) / options.temperature
    weights = [int(weight) for weight in np.rint(np.exp(-nats) * 2**35)]
    ranked = ranked[: options.top_k or None]
    needed = options.top_p * float(sum(weights[token] for token in ranked))
    kept, reached = [], 0
    for token in ranked:
        if options.top_p < 1 and reached >= needed:
            break
        kept.append(token)
        reached += weights[token]
    return kept, {token: weights[token] for token in kept}


# Many are equal: ties are what implementations differ by.
logit_lists = st.lists(
    st.one_of(
        st.integers(-4, 4).map(float), st.floats(-30, 30, width=32), st.sampled_from([-np.inf, -1e30, 0.125, 0.1250001])
    ),
    min_size=1,
    max_size=60,
).filter(lambda logits: max(logits) > -np.inf)
sampled = st.builds(
    Sampling,
    temperature=st.floats(0.01, 10),
    top_k=st.integers(0, 70),
    top_p=st.one_of(st.just(1.0), st.sampled_from([0.1, 0.25, 0.5, 0.75]), st.floats(1e-6, 1)),
    seed=st.integers(0, 2**64 - 1),
)


@given(logit_lists, sampled)
@settings(max_examples=500)
def test_the_tokens_and_weights_are_those_of_sorting(logits: list[float], options: Sampling) -> None:
    values = np.array(logits, np.float32)
    kept, expected = by_sorting(values, options)
    tokens, weights = candidates(values, options)
    assert tokens.tolist() == sorted(kept)
    assert weights.tolist() == [expected[token] for token in sorted(kept)]
    sums = np.cumsum([expected[token] for token in sorted(kept)]).tolist()
    drawn = np.random.PCG64(options.seed).random_raw() * sums[-1] >> 64
    by_hand = next(token for token, total in zip(sorted(kept), sums, strict=True) if total > drawn)
    assert Sampler(options, NO_PROMPT, len(values)).choose(values) == by_hand


@pytest.mark.parametrize("top_k", [0, 50])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.999])
@pytest.mark.parametrize("temperature", [0.3, 10.0])
def test_a_whole_vocabulary(top_k: int, top_p: float, temperature: float) -> None:
    logits = np.random.default_rng(1).normal(0, 3, 152_064).astype(np.float32).round(2)
    options = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    kept, expected = by_sorting(logits, options)
    tokens, weights = candidates(logits, options)
    assert tokens.tolist() == sorted(kept) and weights.tolist() == [expected[token] for token in sorted(kept)]


@given(logit_lists, st.one_of(sampled, st.just(Sampling()), st.just(Sampling(repetition_penalty=1.7))), st.data())
@settings(max_examples=200)
def test_what_a_form_forbids_is_chosen_from_as_if_it_had_no_weight(
    logits: list[float], options: Sampling, data: st.DataObject
) -> None:
    possible = [token for token, logit in enumerate(logits) if logit > -np.inf]
    allowed = {data.draw(st.sampled_from(possible)), *data.draw(st.sets(st.integers(0, len(logits) - 1)))}
    mask = np.zeros(-(-len(logits) // 32), np.uint32)
    for token in allowed:
        mask[token // 32] |= np.uint32(1 << token % 32)
    array = np.array(logits, np.float32)
    without = np.where([token in allowed for token in range(len(logits))], array, -np.inf).astype(np.float32)
    with_form, plain = (Sampler(options, np.array([0]), len(logits)) for _ in range(2))
    for _ in range(5):
        token = with_form.choose(array, mask)
        assert token in allowed and token == plain.choose(without)


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    sampler = Sampler(Sampling(temperature=1.5, seed=3), NO_PROMPT, 5)
    counts = np.bincount([sampler.choose(LOGITS) for _ in range(20_000)], minlength=5)
    expected = np.exp(LOGITS / 1.5) / np.exp(LOGITS / 1.5).sum() * 20_000
    assert (abs(counts - expected) < 5 * np.sqrt(expected)).all()


def test_what_a_seed_gives_never_changes() -> None:
    """Reports that were written must be written again the same: these numbers are not to be updated."""
    logits = (np.arange(1000) * 7919 % 1000).astype(np.float32) / 100
    options = {
        "all": Sampling(temperature=1.0, seed=7),
        "top_k": Sampling(temperature=1.0, top_k=20, seed=7),
        "top_p": Sampling(temperature=1.0, top_p=0.5, seed=7),
        "both, penalised": Sampling(temperature=1.0, top_k=40, top_p=0.8, repetition_penalty=1.3, seed=7),
    }
    samplers = {name: Sampler(chosen, np.array([1, 2, 3]), 1000) for name, chosen in options.items()}
    assert {name: [sampler.choose(logits) for _ in range(6)] for name, sampler in samplers.items()} == PINNED


@pytest.mark.parametrize(
    "options", [Sampling(), Sampling(temperature=0.7), Sampling(temperature=0.7, top_k=2, top_p=0.5)]
)
@pytest.mark.parametrize("wrong", [[np.nan, 1, 2], [1, np.nan, 2], [-np.inf] * 3, [1, np.inf, 2], [np.nan] * 3])
def test_what_is_no_number_is_an_error_of_its_own(options: Sampling, wrong: list[float]) -> None:
    with pytest.raises(UnusableNumbers, match="no usable numbers"):
        Sampler(options, NO_PROMPT, 3).choose(np.array(wrong, np.float32))


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
