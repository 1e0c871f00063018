"""`echovlm-profile` on a real bundle, in process and against a server: figures that add up, in every format; errors of its user."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from echovlm_edge.runtime.bundle.cost_model import CostModel
from echovlm_edge.runtime.bundle.manifest import Bundle
from echovlm_edge.runtime.engine.engine_options import EngineOptions
from echovlm_edge.runtime.engine.report_engine import ReportEngine
from echovlm_edge.runtime.profiling import command, measure_command, schema
from echovlm_edge.runtime.profiling.measurement.measurer import InProcess, Measurer
from echovlm_edge.runtime.profiling.measurement.requests import frame, text_of
from echovlm_edge.runtime.profiling.workloads import Workload
from echovlm_edge.runtime.serving.transport.server import ReportServer, ServerOptions
from tests.support.dicom_files import png
from tests.support.running_server import running

STAGES = {"decode_images", "preprocess", "vision", "projector", "prompt", "prefill", "decode", "detokenize", "wait"}


@pytest.fixture(scope="module")
def measured(golden_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A small grid in every format."""
    folder = tmp_path_factory.mktemp("profile")
    files = {kind: folder / f"profile.{kind}" for kind in ("json", "trace")}
    options = [argument for kind, file in files.items() for argument in (f"--{kind}", str(file))]
    workload = [
        "--frames",
        "2",
        "--sizes",
        "112x84",
        "--prompt-tokens",
        "60",
        "--new-tokens",
        "12",
        "--clients",
        "1",
        "2",
    ]
    assert command.main(["--bundle", str(golden_bundle), "--runs", "5", *workload, *options]) == 0
    return files


def test_stages_account_for_every_run(measured: dict[str, Path]) -> None:
    profile = schema.read(measured["json"])
    one, two = profile.workloads
    assert (one.clients, len(one.runs)) == (1, 5) and (two.clients, len(two.runs)) == (2, 10)
    for figures in profile.workloads:
        assert set(figures.stages) >= STAGES
        assert sum(stage.share for stage in figures.stages.values()) == pytest.approx(1, abs=1e-6)
        for run in figures.runs:
            assert run.accounted <= 1.0001, run
            assert run.generated_tokens == 12 and len(run.gaps) == 11
            assert run.first_token is not None and run.first_token <= run.seconds
            assert sum(run.gaps) + run.stages["vision"] + run.stages["prefill"] <= run.seconds
            assert run.prompt_tokens - run.image_tokens == pytest.approx(60, abs=3)
        assert median(run.accounted for run in figures.runs) >= 0.98, (
            figures.runs
        )  # in one, another process may get in between
        assert figures.end_to_end.median <= figures.end_to_end.p99 <= figures.end_to_end.max
        assert figures.memory["resident"] >= figures.memory["own"] > 0
        # Frames are new for every run: nothing of them can be reused.
        assert all(run.reused_tokens < 40 and run.stages["vision"] > 0 for run in figures.runs)


def test_the_timeline_and_the_trace_tell_the_same_run(measured: dict[str, Path]) -> None:
    figures = schema.read(measured["json"]).workloads[0]
    typical = sorted(figures.runs, key=lambda run: run.seconds)[2]
    assert sum(span.seconds for span in figures.timeline) == pytest.approx(sum(typical.stages.values()), rel=1e-3)
    trace = json.loads(measured["trace"].read_text())["traceEvents"]
    names = {event["pid"]: event["args"]["name"] for event in trace if event["name"] == "process_name"}
    assert len(names) == 2
    for process, runs in zip(names, (5, 10), strict=True):
        tokens = [event for event in trace if event["name"] == "decode" and event["pid"] == process]
        assert len(tokens) == runs * 12 and all(event["dur"] > 0 for event in tokens)


def test_operators_are_joined_to_layers(measured: dict[str, Path]) -> None:
    operators = schema.read(measured["json"]).operators
    layers = {operator.layer for operator in operators if operator.part == "decoder"}
    assert {"layer 0, attention", "layer 0, DualPathMoE", "layer 1, DualPathMoE", "head"} <= layers
    assert {operator.phase for operator in operators if operator.part == "decoder"} == {"prefill", "decode"}
    blocks = [operator for operator in operators if operator.kind == "DualPathMoE"]
    assert {operator.layer for operator in blocks} == {name for name in layers if name.endswith("DualPathMoE")}
    (first,) = [block for block in blocks if (block.layer, block.phase) == ("layer 0, DualPathMoE", "decode")]
    assert (
        first.calls == (measure_command.OPERATOR_TOKENS - 1) * measure_command.OPERATOR_REQUESTS and first.seconds > 0
    )
    attention = {operator.layer for operator in operators if "Attention" in operator.kind}
    assert attention and all(layer.endswith("attention") for layer in attention)


def test_the_roofline_counts_what_the_model_reads(measured: dict[str, Path], golden_bundle: Path) -> None:
    profile = schema.read(measured["json"])
    points = {point.stage: point for point in profile.workloads[0].roofline}
    assert set(points) == {"vision", "projector", "prefill", "decode"}
    decoder = sum(file.bytes for file in Bundle(golden_bundle).manifest.part("decoder").files)
    # Eleven passes, each of nearly all of the decoder: less the experts not chosen, more the cache.
    assert 0.5 * 11 * decoder < points["decode"].read_bytes < 1.5 * 11 * decoder
    costs = CostModel.of(Bundle(golden_bundle).manifest)
    assert costs is not None
    assert (
        costs.prefill(1024, 0).operations > 2 * costs.prefill(512, 0).operations * 0.99
    )  # a long prompt attends to more


def test_seen_frames_cost_only_the_question(golden_bundle: Path) -> None:
    engine = ReportEngine.open(golden_bundle)
    try:
        measurer = Measurer(InProcess(engine), 2, 0)
        measurement = measurer.measure(Workload("Q", 2, 60, 4, 112, 84, seen=True))
    finally:
        engine.close()
    for measured in measurement.requests:
        assert "vision" not in measured.run.stages
        assert measured.run.reused_tokens >= measured.run.image_tokens // 16 * 16 > 0


def test_a_server_and_what_its_client_sees(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = ReportEngine.open(golden_bundle, options=EngineOptions(ignore_stop=True))
    server = ReportServer(engine, ServerOptions("127.0.0.1:0"))
    try:
        file = tmp_path / "server.json"
        workload = ["--frames", "1", "--sizes", "112x84", "--new-tokens", "24", "--runs", "5"]
        assert command.main(["--server", server.address, *workload, "--json", str(file)]) == 0
    finally:
        server.stop()
        engine.close()
    profile = schema.read(file)
    (figures,) = profile.workloads
    assert profile.conditions.where == f"server {server.address}" and not figures.memory
    assert median(run.accounted for run in figures.runs) >= 0.98
    for run in figures.runs:
        assert run.accounted <= 1.0001
        assert run.stages["network"] > 0 and {"decode_images", "preprocess", "vision", "prefill"} <= set(run.stages)
        assert run.generated_tokens == 24
    said = capsys.readouterr()
    assert "network" in said.out and "--debug-ignore-stop" not in said.err


def test_texts_that_end_early_are_noticed(brief_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(brief_bundle) as served:
        workload = ["--frames", "1", "--sizes", "112x84", "--new-tokens", "8", "--runs", "1"]
        assert command.main(["--server", served.server.address, *workload]) == 0
    assert "start the server with --debug-ignore-stop" in capsys.readouterr().err
    assert command.main(["--bundle", str(brief_bundle), *workload, "--quick"]) == 0
    assert "--debug-ignore-stop" not in capsys.readouterr().err, "in process texts have their full length"


def test_own_images_make_one_workload(golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = tmp_path / "frame.png"
    image.write_bytes(png(64, 64))
    given = ["--bundle", str(golden_bundle), "--image", str(image), "--prompt", "Why?", "--new-tokens", "3"]
    assert command.main([*given, "--runs", "1", "--quick"]) == 0
    assert "decode" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--bundle", "none"], "There is no bundle at none"),
        ([], "Give --bundle to measure in this process, or --server"),
        (["--bundle", "none", "--server", "127.0.0.1:1"], "Give --bundle to measure in this process, or --server"),
        (["--bundle", "none", "--runs", "0"], "--runs 0"),
        (["--bundle", "none", "--frames", "1", "--sizes", "big"], "big is no size of a frame"),
        (["--bundle", "none", "--workload", "W1", "--frames", "2"], "not both"),
        (["--bundle", "none", "--clients", "0"], "--clients 0 is too few"),
        (["--bundle", "none", "--assert", "soon"], "soon is no bound"),
        (["compare", "a.json", "b.json"], "a.json cannot be read"),
        (["page", "a.json", "--html", "a.html"], "a.json cannot be read"),
    ],
)
def test_errors_are_one_sentence(given: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(given) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ") and says in told and "\n" not in told


def test_too_long_for_the_context(golden_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--bundle", str(golden_bundle), "--prompt-tokens", "5000", "--quick"]) == 2
    assert "the context holds" in capsys.readouterr().err


def test_frames_are_pictures_of_their_own() -> None:
    assert len({frame(number, 112, 84).data for number in range(50)}) == 50


@pytest.mark.parametrize("tokens", [5, 17, 60])
def test_a_prompt_of_so_many_tokens(tokens: int) -> None:
    assert len(text_of(tokens, lambda text: len(text.split())).split()) == tokens
