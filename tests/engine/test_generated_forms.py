"""Thousands of generated forms, written by a real bundle at random: every finished text is in its form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echovlm_edge.runtime.contracts.request import Finished, FinishReason, GenerationRequest, Sampling
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.contracts.text_form import SectionsForm, TextForm
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from tests.support.forms import FORMS, has_form

COUNT, AT_ONCE = (10_000 if os.environ.get("ECHOVLM_LONG") else 320), 8
ANY_FORM = st.one_of(FORMS, FORMS, FORMS, st.sampled_from([SectionsForm(language) for language in Language]))
TEMPERATURES = st.sampled_from([0.0, 0.7, 1.5])


@pytest.fixture(scope="module")
def engines(golden_bundle: Path) -> Iterator[tuple[ReportEngine, ReportEngine]]:
    """One that drafts, and one that does not."""
    opened = [
        ReportEngine.open(golden_bundle, threads=2, options=EngineOptions(drafting=drafting))
        for drafting in (True, False)
    ]
    yield opened[0], opened[1]
    for engine in opened:
        engine.close()


finished: list[FinishReason] = []


@given(st.lists(st.tuples(ANY_FORM, TEMPERATURES, st.integers(0, 99)), min_size=AT_ONCE, max_size=AT_ONCE))
@settings(max_examples=COUNT // AT_ONCE, suppress_health_check=list(HealthCheck), derandomize=True)
def test_every_finished_text_is_in_its_form(
    engines: tuple[ReportEngine, ReportEngine], calls: list[tuple[TextForm, float, int]]
) -> None:
    """Eight at once with drafting, of which one is written again alone and without."""

    def write(engine: ReportEngine, call: tuple[TextForm, float, int]) -> Finished:
        form, temperature, seed = call
        sampling = Sampling(150, temperature, seed=seed)
        *_, done = engine.generate(GenerationRequest("Describe it.", sampling=sampling, form=form))
        assert isinstance(done, Finished)
        return done

    with ThreadPoolExecutor(AT_ONCE) as threads:
        texts = list(threads.map(lambda call: write(engines[0], call), calls))
    for (form, *_), done in zip(calls, texts, strict=True):
        finished.append(done.finish_reason)
        if done.finish_reason is FinishReason.STOP:
            assert has_form(done.text, form), (form, done.text)
        else:
            assert done.finish_reason is FinishReason.LENGTH and len(done.token_ids) == 150
    assert write(engines[1], calls[0]).token_ids == texts[0].token_ids


def test_most_of_them_finished() -> None:
    if finished:  # the other test ran in this process
        assert finished.count(FinishReason.STOP) > len(finished) / 2
