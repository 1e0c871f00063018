"""How likely a token was: the model's own softmax, whatever it was chosen by and with whom, drafted or not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.engine.generation import Generation, Written
from echovlm_edge.runtime.engine.tokens.likelihood import Likelihood, likelihood
from tests.support.hashed_decoder import VOCABULARY, HashedDecoder, Known, generation, scheduler

NO_STOP: frozenset[int] = frozenset()
LOGITS = st.lists(st.sampled_from([-60.0, -1.5, 0.0, 0.25, 3.0, -math.inf]), min_size=1, max_size=12)


@given(LOGITS, st.data())
def test_it_is_the_logarithm_of_the_softmax_and_the_likeliest_are_first(
    logits: list[float], data: st.DataObject
) -> None:
    if max(logits) == -math.inf:
        logits[0] = 0.0
    token, count = data.draw(st.integers(0, len(logits) - 1)), data.draw(st.integers(0, 20))
    total = sum(math.exp(logit) for logit in logits)
    expected = [math.exp(logit) / total for logit in logits]
    found = likelihood(np.array(logits, np.float32), token, count)
    assert math.exp(found.log_probability) == pytest.approx(expected[token], abs=1e-12)
    ranked = sorted(range(len(logits)), key=lambda one: (-logits[one], one))[:count]
    assert [one for one, _ in found.alternatives] == ranked
    assert [math.exp(one) for _, one in found.alternatives] == pytest.approx([expected[one] for one in ranked])


def test_nothing_is_lost_far_from_zero() -> None:
    """Logits of which a float32 sum would overflow or round to nothing."""
    found = likelihood(np.array([30000.0, 29999.0, -30000.0], np.float32), 2, 2)
    assert found.log_probability == pytest.approx(-60000 - math.log(1 + math.exp(-1)))
    assert found.alternatives[0][1] == pytest.approx(-math.log(1 + math.exp(-1)))


def written(asked: Generation) -> list[tuple[int, Likelihood | None]]:
    tokens, ended = list[tuple[int, Likelihood | None]](), False
    while not ended:
        for progress in asked.outbox.take(60):
            if isinstance(progress, Exception):
                raise progress
            if isinstance(progress, Written):
                tokens.append((progress.token_id, progress.likelihood))
                ended = progress.finish is not None
    return tokens


@given(st.lists(st.integers(1, VOCABULARY - 1), min_size=2, max_size=4), st.sampled_from([0.0, 1.0]), st.booleans())
@settings(max_examples=20)
def test_it_is_the_same_alone_among_others_and_drafted(firsts: list[int], temperature: float, packs_rows: bool) -> None:
    sampling = Sampling(40, temperature, repetition_penalty=1.3, seed=3)
    prompts = [[first, 7, 9] for first in firsts]
    plain = scheduler(HashedDecoder(), drafting=False, stops=NO_STOP)
    alone = list[list[tuple[int, Likelihood | None]]]()
    for prompt in prompts:
        call = generation(prompt, sampling, log_probabilities=3)
        plain.submit(call)
        alone.append(written(call))
    texts = [[*prompt, *(token for token, _ in text)] for prompt, text in zip(prompts, alone, strict=True)]
    drafted = scheduler(HashedDecoder(packs_rows=packs_rows), Known(texts), stops=NO_STOP)
    calls = [generation(prompt, sampling, log_probabilities=3) for prompt in prompts]
    silent = generation(prompts[0], sampling)
    for call in (*calls, silent):
        drafted.submit(call)
    assert [written(call) for call in calls] == alone
    assert written(silent) == [(token, None) for token, _ in alone[0]], "nothing is computed that is not asked for"
    assert sum(drafted.stats().drafting.accepted.values()) > 0
    for one in (plain, drafted):
        one.close()
