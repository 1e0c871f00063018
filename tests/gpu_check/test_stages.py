"""The check's stages: each in a process of its own, so that one that fails, crashes or hangs is a sentence, and keeps what it had."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from benchmarks.gpu_check import __main__ as command
from benchmarks.gpu_check import one_stage, stages
from benchmarks.gpu_check.checks.device_tests import Collector
from benchmarks.gpu_check.figures import Results, StageEnd, TestFigures, read_results
from benchmarks.gpu_check.setting import Setting
from benchmarks.gpu_check.stages import Stage, run_stage
from echovlm_edge.runtime.contracts.command import run_command
from tests.support.odd_stages import ONE

ODD = "tests.support.odd_stages"


def odd(function: str, seconds: float = 60.0) -> Stage:
    return Stage("tests", "odd", f"{ODD}:{function}", seconds, stand_in=False)


def end(results: Results) -> StageEnd:
    return next(stage for stage in results.stages if stage.name == "tests")


@pytest.mark.parametrize(
    ("function", "state", "reason", "figures"),
    [
        ("works", "done", "", ONE),
        ("refuses", "failed", "The disk is full: make room.", ONE),
        ("leaves_out", "left out", "There is no PyTorch here.", None),
        ("fails", "failed", "KeyError: 'present.0\\nand more': see {log}.", ONE),
        ("crashes", "failed", "Its process ended by SIGABRT: see {log}.", ONE),
    ],
)
def test_however_a_stage_ends_it_is_a_sentence_and_what_it_had(
    tmp_path: Path, function: str, state: str, reason: str, figures: TestFigures | None
) -> None:
    before = Results(stages=(StageEnd("machine", "done", 1.0), StageEnd("tests", "done", 9.0)), tests=TestFigures(()))
    found = run_stage(odd(function), Setting(tmp_path), before, 60)
    assert (end(found).state, end(found).reason) == (state, reason.format(log=tmp_path / "tests.log"))
    assert found.tests == figures and found.stages[0] == before.stages[0]
    assert [file.name for file in tmp_path.iterdir()] == ["tests.log"], "what a stage leaves behind is read and removed"


def test_a_stage_that_hangs_is_stopped_and_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "LEAST_SECONDS", 0)
    limit = 1.0
    while True:  # until its process has kept something: how long it takes to start depends on the machine
        found = run_stage(odd("hangs", limit), Setting(tmp_path), Results(), 600)
        assert end(found).state == "failed"
        assert end(found).reason == f"It took longer than {limit:.0f} s and was stopped: see {tmp_path / 'tests.log'}."
        if found.tests == ONE:
            break
        limit *= 2


def test_without_time_a_stage_is_left_out(tmp_path: Path) -> None:
    found = run_stage(odd("works"), Setting(tmp_path), Results(), 3)
    assert (end(found).state, end(found).reason) == ("left out", "The time for the whole check was used up.")


def test_a_stage_without_its_packages_is_left_out(tmp_path: Path) -> None:
    stage = Stage("tests", "odd", f"{ODD}:works", 60, needs=("numpy", "no_such.module", "none"))
    part = one_stage.run(stage, Setting(tmp_path))
    assert (part.state, part.reason) == ("left out", "no_such.module, none cannot be imported here.")


@pytest.mark.skipif(one_stage.CUDA in ort.get_available_providers(), reason="this ONNX Runtime has the CUDA provider")
def test_a_stage_without_the_cuda_provider_is_left_out(tmp_path: Path) -> None:
    stage = Stage("tests", "odd", f"{ODD}:works", 60, provider=True, stand_in=False)
    assert "has no CUDA provider: install onnxruntime-gpu." in one_stage.run(stage, Setting(tmp_path)).reason
    assert one_stage.run(stage, Setting(tmp_path, rehearsal=True)).state == "done"


def test_the_tests_of_a_gpu_are_taken_with_their_reasons(tmp_path: Path) -> None:
    file = tmp_path / "test_three.py"
    file.write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 1 == 2, 'no tie'\n"
        "def test_none(): pytest.skip('no GPU here')\n"
        "@pytest.fixture\ndef broken(): raise ValueError('no stream')\n"
        "def test_broken(broken): pass\n"
    )
    kept: list[TestFigures] = []
    collector = Collector(kept.append)
    options = ["-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", str(tmp_path), "-q", "--no-header"]
    pytest.main([str(file), *options], plugins=[collector])
    found = {test.name.rpartition("::")[2]: (test.outcome, test.reason) for test in kept[-1].tests}
    assert found["test_good"] == ("passed", "")
    assert found["test_none"] == ("skipped", "no GPU here")
    assert found["test_bad"][0] == "failed" and "no tie" in found["test_bad"][1]
    assert found["test_broken"] == ("failed", "ValueError: no stream")
    assert [len(figures.tests) for figures in kept] == [1, 2, 3, 4], "each is kept as it ends"


def test_the_command_runs_what_is_asked_and_leaves_the_others_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tuple(
        Stage(name, name, f"{ODD}:{does}", 60, stand_in=False)
        for name, does in (("tests", "works"), ("eager", "leaves_out"))
    )
    monkeypatch.setattr(command, "STAGES", table)

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu_check", "--rehearse", "--folder", str(tmp_path), *options])
        return command.main()

    assert run("--skip", "eager") == 0
    results = tmp_path / "rehearsal" / "results.json"
    assert [stage.name for stage in read_results(results).stages] == ["tests"]
    assert run("--stage", "eager") == 0, "a stage that is left out is no failure"
    found = read_results(results)
    assert found.tests == ONE and {stage.name: stage.state for stage in found.stages} == {
        "tests": "done",
        "eager": "left out",
    }
    said = " ".join(capsys.readouterr().out.split())
    assert "There is no PyTorch here." in said and "Send back" in said
    assert "A rehearsal without a GPU" in (tmp_path / "rehearsal" / "results.md").read_text()
    monkeypatch.setattr(command, "STAGES", (odd("fails"),))
    assert run() == 1
    assert json.loads(results.read_text())["stages"][0]["state"] == "failed"


def test_without_a_gpu_the_command_says_how_to_rehearse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "compute_capability", lambda: None)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--folder", str(tmp_path)])
    assert run_command(command.main) == 2
    assert "no NVIDIA GPU here" in capsys.readouterr().err and not list(tmp_path.iterdir())
