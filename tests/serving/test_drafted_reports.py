"""The demo's reports through the real server are those without drafts, token by token: alone, sixteen at a time, and with cancels."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.dicom_writer import dicom_bytes
from demo.simulate import simulate
from echovlm_edge.plugins.dual_path_moe.library import library_path
from echovlm_edge.runtime.client.wire.connection import Connection
from echovlm_edge.runtime.client.wire.requests import ReportRequest
from echovlm_edge.runtime.contracts.request import ImageInput, Sampling
from echovlm_edge.runtime.contracts.tasks import Language
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.conftest import BuildBundle
from tests.support.demo_reports import CHECKPOINT

STUDIES = 1000 if os.environ.get("ECHOVLM_LONG") else 6
TOGETHER = 16
CANCELLED = 3  # of so many calls, one
Report = tuple[str, list[int]]  # its text and token ids; no ids where the call was cancelled


@pytest.fixture(scope="module")
def demo_bundle(build_bundle: BuildBundle) -> Path:
    if library_path() is None:
        pytest.skip("only bundles with this project's operators are drafted for")
    return build_bundle(CHECKPOINT, precision="int4")


@contextmanager
def served(bundle: Path, drafting: bool) -> Iterator[tuple[ReportEngine, Connection]]:
    engine = ReportEngine.open(bundle, options=EngineOptions(TOGETHER, drafting=drafting))
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))
    try:
        with Connection(server.address) as client:
            yield engine, client
    finally:
        server.stop()


def requests() -> list[ReportRequest]:
    """A report in each language about each study; one in four is sampled."""
    made = list[ReportRequest]()
    for seed in range(STUDIES):
        study = simulate(seed)
        image = ImageInput(dicom_bytes(study.image, study.truth, study.seed))
        sampling = Sampling(160, temperature=0.7, seed=seed) if seed % 4 == 3 else Sampling(160)
        made += [
            ReportRequest(images=[image], language=language, sampling=sampling, include_token_ids=True)
            for language in Language
        ]
    return made


def report(client: Connection, request: ReportRequest, most_texts: int | None = None) -> Report:
    """Ask for a report; the call is cancelled after so many pieces of text."""
    text, events = "", client.generate(request)
    for event in events:
        if event.WhichOneof("event") == "text":
            text += event.text
            most_texts = None if most_texts is None else most_texts - 1
            if most_texts == 0:
                events.close()
                return text, []
        if event.WhichOneof("event") == "result":
            return text, list(event.result.token_ids)
    raise AssertionError("a stream without a result")


def test_every_token_is_the_one_without_drafts(demo_bundle: Path) -> None:
    asked = requests()
    with served(demo_bundle, drafting=False) as (_, client):
        expected = [report(client, request) for request in asked]
    with served(demo_bundle, drafting=True) as (engine, client):
        assert [report(client, request) for request in asked] == expected, "alone"
        alone = engine.stats().scheduler
        assert alone.drafting.saved_steps > 0
        with ThreadPoolExecutor(TOGETHER) as pool:
            most = [1 + number % 5 if number % CANCELLED == 0 else None for number in range(len(asked))]
            found = list(pool.map(lambda one: report(client, *one), zip(asked, most, strict=True)))
        for (text, tokens), (whole, ids) in zip(found, expected, strict=True):
            assert (text == whole and tokens == ids) if tokens else whole.startswith(text)
        assert engine.stats().scheduler.drafting.saved_steps > alone.drafting.saved_steps
