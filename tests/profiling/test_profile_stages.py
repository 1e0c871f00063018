"""A stage has one name, and stages stand in chronological order: in profiles, tables, pages, bounds, the metrics and the docs."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from prometheus_client import generate_latest

from echovlm.v1 import report_pb2 as pb
from echovlm_edge.runtime.contracts.request import Finished, GenerationRequest, ImageInput, Sampling, Stage
from echovlm_edge.runtime.contracts.stages import NETWORK, ORDER, STAGES, UNACCOUNTED, words
from echovlm_edge.runtime.engine.clock import PRECEDENCE
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.observability.metrics import Metrics
from echovlm_edge.runtime.profiling.comparison.bounds import parse
from echovlm_edge.runtime.serving.messages import STAGES as ON_THE_WIRE
from tests.support.dicom_files import png
from tests.support.watched_engine import MakeEngine

ROOT = Path(__file__).parents[2]


def test_every_stage_of_the_engine_has_one_place_and_one_name() -> None:
    assert set(ORDER) == {stage.value for stage in Stage} | {NETWORK, UNACCOUNTED}
    assert set(PRECEDENCE) == set(ON_THE_WIRE) == set(Stage)
    assert len({words(name) for name in ORDER}) == len(ORDER) == len(STAGES)
    assert all(stage.meaning.endswith(".") for stage in STAGES.values())
    assert {*ON_THE_WIRE.values(), pb.STAGE_UNSPECIFIED} == set(pb.Stage.values())


def test_the_metric_names_every_stage_in_that_order(make_engine: MakeEngine) -> None:
    told = generate_latest(Metrics(make_engine()[0].stats, lambda: (0, 0)).registry).decode()
    (line,) = (line for line in told.splitlines() if line.startswith("# HELP echovlm_stage_seconds "))
    names = [name for name in ORDER if name not in (NETWORK, UNACCOUNTED)]
    assert line.endswith(f": {', '.join(names)}.")


def test_the_order_is_the_one_in_which_an_engine_ends_them(golden_bundle: Path) -> None:
    engine = ReportEngine.open(golden_bundle, options=EngineOptions(ignore_stop=True))
    try:
        images = tuple(ImageInput(png(width, 64)) for width in (64, 96))
        request = GenerationRequest("What is it?", images, Sampling(max_new_tokens=4))
        *_, done = engine.generate(request)
    finally:
        engine.close()
    assert isinstance(done, Finished)
    # A stage's pieces of several images alternate with other stages' pieces: what counts is when the last one ends.
    last = {span.stage.value: span.start + span.seconds for span in done.spans}
    ran = [name for name in ORDER if name in last and name != Stage.WAIT.value]
    assert {"decode_images", "preprocess", "vision", "projector", "prompt", "prefill", "decode", "detokenize"} <= set(
        ran
    )
    assert all(last[before] <= last[after] for before, after in pairwise(ran)), sorted(last, key=last.__getitem__)


def test_a_call_waits_for_its_slot_between_its_prompt_and_its_prefill() -> None:
    assert ORDER.index("prompt") < ORDER.index("queue") < ORDER.index("prefill")


def test_the_page_of_the_docs_names_every_stage_in_that_order() -> None:
    text = (ROOT / "docs/profiling.md").read_text(encoding="utf-8")
    section = text.split("## The stages")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE) == list(ORDER)
    for name in ORDER:
        assert f"| `{name}` | {words(name)} | {STAGES[name].meaning.rstrip('.')} |" in section


def test_every_stage_can_be_bounded_by_its_name() -> None:
    for name in ORDER:
        assert parse(f"{name}_p95<1s").figure == f"{name}_p95"
