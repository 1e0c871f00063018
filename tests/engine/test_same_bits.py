"""A report's logits have the bits that they have cold and alone: reused, preempted, drafted, and in any mixture of turns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from echovlm_edge.runtime.contracts.request import GenerationRequest, ImageInput, Priority, Sampling, Turn
from echovlm_edge.runtime.engine.caching.reuse import BLOCK
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.engine.scheduling import policy
from tests.conftest import BuildBundle
from tests.support.dicom_files import png
from tests.support.pauses import Pauses
from tests.support.recorded_logits import RecordedLogits, Rows, record
from tests.support.waiting import wait_for
from tests.support.watched_engine import Call, MakeEngine, finish

IMAGES = (ImageInput(png(112, 84)), ImageInput(png(84, 140)))
TOKENS = 100  # so that a text passes the 64 positions between two corrections of attention's running maximum


def request(seed: int, prompt: str, images: tuple[ImageInput, ...] = IMAGES, tokens: int = TOKENS) -> GenerationRequest:
    return GenerationRequest(prompt, images, Sampling(tokens, seed=seed))


REPORT = request(1, "Describe the lesion. " * 40)
OTHER_REPORT = request(2, "Write findings and impression.")
QUESTION = request(3, "Is it a cyst?")
WRITERS = [request(10 + n, "Describe it. " * (3 + 20 * n), IMAGES[: n % 3], 250) for n in range(8)]
READ_BETWEEN = [request(20 + n, "Compare both. " * 90 * n, tokens=3) for n in range(1, 4)]


@pytest.fixture(scope="module", params=[("int8", "float32"), ("int8", "float16"), ("int4", "int8")], ids="-".join)
def bundle(build_bundle: BuildBundle, request: pytest.FixtureRequest) -> Path:
    """Quantized weights and a type of KV cache. In fp32 bundles linear layers are ONNX Runtime's, whose sums depend on the batch."""
    precision, kv_cache = request.param
    return build_bundle(precision=precision, kv_cache=kv_cache)


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> RecordedLogits:
    return record(monkeypatch)


def cold(make_engine: MakeEngine, bundle: Path, request: GenerationRequest, *before: GenerationRequest) -> Rows:
    """The logits of a report by itself, of which nothing is kept but the tokens of earlier turns."""
    with pytest.MonkeyPatch.context() as patch:
        alone = record(patch)
        engine, _ = make_engine(EngineOptions(1, 0, 0, ignore_stop=True), bundle)
        for asked in before:
            finish(engine, asked)
        assert finish(engine, request).reused_tokens == 0
        assert len(alone.of(request.sampling)) == request.sampling.max_new_tokens
        return alone.of(request.sampling)


def test_with_a_reused_prefix(make_engine: MakeEngine, bundle: Path, logits: RecordedLogits) -> None:
    """After another report about the same images; and a question after that."""
    engine, _ = make_engine(EngineOptions(1, ignore_stop=True), bundle)
    finish(engine, OTHER_REPORT)
    for asked in (REPORT, QUESTION):
        reused = engine.stats().scheduler.reused_tokens
        finish(engine, asked)
        assert engine.stats().scheduler.reused_tokens > reused
        assert logits.of(asked.sampling) == cold(make_engine, bundle, asked)


def test_after_preemption(make_engine: MakeEngine, bundle: Path, logits: RecordedLogits) -> None:
    """Parked twice, with another batch report, in whose slot it may continue."""
    engine, backend = make_engine(EngineOptions(2, ignore_stop=True), bundle)
    pauses = Pauses(backend, 0, 10, 20, 60, 70)
    batch = [Call(engine, replace(asked, priority=Priority.BATCH)) for asked in (WRITERS[2], REPORT)]
    with pauses.before(0):
        wait_for(lambda: present(engine) == 2)
    for wave, (step, later) in enumerate(((10, 20), (60, 70))):
        with pauses.before(step):
            assert engine.stats().scheduler.parked == 0
            interactive = [Call(engine, request(30 + 2 * wave + n, "Why?", (), 20)) for n in range(2)]
            wait_for(lambda: present(engine) == 4)
        with pauses.before(later):
            assert engine.stats().scheduler.parked == 2
        for call in interactive:
            call.result()
    batch[1].result()
    assert logits.of(REPORT.sampling) == cold(make_engine, bundle, REPORT)
    batch[0].stop.set()


def test_while_others_write_and_prompts_are_read(
    make_engine: MakeEngine, bundle: Path, logits: RecordedLogits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # However fast this machine is: else a slow one reads so few rows a turn that the writers end before the report begins.
    monkeypatch.setattr(policy, "rows_beside", lambda written, time, most_seconds: 48)
    engine, backend = make_engine(EngineOptions(12, ignore_stop=True), bundle)
    pauses = Pauses(backend, 0, 40, 60, 80)
    writers = [Call(engine, asked) for asked in WRITERS]
    with pauses.before(0):
        wait_for(lambda: present(engine) == len(WRITERS))
    calls = list[Call]()
    for step, asked in zip((40, 60, 80), READ_BETWEEN, strict=True):
        with pauses.before(step):
            coming = [asked] if calls else [REPORT, asked]
            expected = present(engine) + len(coming)
            calls += [Call(engine, one) for one in coming]
            wait_for(lambda expected=expected: present(engine) == expected)  # type: ignore[misc]
    for call in calls:
        call.result()
    assert max(backend.steps) >= len(WRITERS) + 1, "all others were writing"
    assert logits.of(REPORT.sampling) == cold(make_engine, bundle, REPORT)
    for call in writers:
        call.stop.set()


def test_with_drafts(make_engine: MakeEngine, bundle: Path, logits: RecordedLogits) -> None:
    """Of several reports in one step, from what they said the first time."""
    engine, backend = make_engine(EngineOptions(4, ignore_stop=True), bundle, drafting=True)
    asked = [REPORT, *WRITERS[:2]]
    finish(engine, replace(REPORT, sampling=replace(REPORT.sampling, seed=99)))
    wait_for(lambda: engine._scheduler._drafting._replies.of(""))  # type: ignore[union-attr]
    calls = [Call(engine, one) for one in asked]
    for call in calls:
        call.result()
    drafting = engine.stats().scheduler.drafting
    assert drafting.saved_steps > TOKENS // 4 and max(backend.chunks) > 1
    assert logits.of(REPORT.sampling) == cold(make_engine, bundle, REPORT)


def present(engine: ReportEngine) -> int:
    """How many generations are on their way."""
    stats = engine.stats().scheduler
    return stats.busy + stats.waiting + stats.parked


def test_in_a_conversation(make_engine: MakeEngine, bundle: Path, logits: RecordedLogits) -> None:
    """The reply's own keys and values are those that reading its tokens computes."""
    engine, _ = make_engine(EngineOptions(1, ignore_stop=True), bundle)
    # The model is random: of its replies, one without a special token, as all are that a trained model writes.
    reports = (request(40 + n, "Write a report. " * n) for n in range(1, 30))
    replies = ((report, finish(engine, report)) for report in reports)
    report, reply = next(pair for pair in replies if engine.prompts.special_ids.isdisjoint(pair[1].token_ids))
    asked = replace(QUESTION, images=(), earlier=(Turn(report.prompt, IMAGES, reply=reply.text),))
    assert finish(engine, asked).reused_tokens == (reply.prompt_tokens + TOKENS - 1) // BLOCK * BLOCK
    assert logits.of(asked.sampling) == cold(make_engine, bundle, asked, report)
