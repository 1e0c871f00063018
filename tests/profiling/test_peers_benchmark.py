"""The comparison with other runtimes: same work is checked, medians and ratios come from the turns, and who is missing is named."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.peers import parity, process
from benchmarks.peers.__main__ import prepared
from benchmarks.peers.all_peers import PEERS
from benchmarks.peers.peer import IMAGE_MARK, Answer, CannotTakePart, Question, Task
from benchmarks.peers.report import BEGIN, END, Report, faults, markdown, measured, on_page

ROOT = Path(__file__).parents[2]
OURS, OTHER = "ours", "other"


def question(name: str, visual: int, text: int = 60) -> Question:
    return Question(name, "a.npy", "b.npy", (1, 2, 2), "Why?", f"{IMAGE_MARK}Why?", tuple(range(visual + text)), visual)


TASK = Task("folder", 2, 1024, 160, question("warm-up", 4), (question("W1", 391), question("W1-196", 196)), (1, 2, 3))


def result(speed: float, visual: int = 391) -> dict[str, Any]:
    """What a peer's process writes; `speed` divides every time."""
    counts = {"W1": visual, "W1-196": 196}
    return {
        "versions": {"engine": "1.2"},
        "load_seconds": 2 / speed,
        "peak_rss_gb": 2.5,
        "anonymous_rss_gb": 1.5,
        "answers": {
            name: {
                "visual_tokens": tokens,
                "prompt_tokens": tokens + 60,
                "vision_seconds": 0.5 / speed,
                "first_token_seconds": 1.0 / speed,
                "decode_seconds": 15.9 / speed,
                "written_tokens": 160,
            }
            for name, tokens in counts.items()
        },
    }


def report(**changes: Any) -> Report:
    turns = [{OURS: result(speed), OTHER: result(speed / 2)} for speed in (1.0, 1.25, 0.5)]
    figures = {"kl_divergence": 0.009, "kl_standard_error": 0.001, "top1_agreement": 0.66, "relative_error": 0.13}
    machine = {"cpu": "a cpu", "threads": 2, "read_gbps": 30.0, "int8_gops": 1800.0}
    return replace(Report(machine, 4, turns, {OURS: figures, OTHER: figures}), **changes)


def test_figures_are_medians_of_the_turns() -> None:
    ours, other = measured(report()).values()
    assert ours["decode_tokens_per_second"] == pytest.approx(10)
    assert ours["first_token_seconds W1"] == 1.0 and other["vision_seconds W1-196"] == 1.0
    assert ours["load_seconds"] == 2.0


def test_the_table_has_ratios_to_ours() -> None:
    lines = markdown(report()).splitlines()
    row = next(line for line in lines if line.startswith(f"| {OTHER} |"))
    assert "2.00 (2.00x)" in row and "5.0 (2.00x)" in row
    assert "x)" not in next(line for line in lines if line.startswith(f"| {OURS} |"))
    heads = next(line for line in lines if "first token, W1, s" in line)
    assert row.count("|") == heads.count("|")


def test_other_work_is_named_once() -> None:
    assert not faults(TASK, report().turns)
    turns = [{OURS: result(1), OTHER: result(1, visual=400)}] * 2
    found = faults(TASK, turns)
    assert found == ["other reports 400 visual tokens in W1, not 391", "other reports 460 prompt tokens in W1, not 451"]
    assert f"- Not the same work: {found[0]}." in markdown(report(faults=found))


def test_the_page_keeps_its_text(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n", encoding="utf-8")
    on_page(page, report())
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{BEGIN}\n4 decoder layers") and text.endswith(f"{END}\nafter\n")
    assert "old" not in text


def test_a_task_is_read_as_it_was_written(tmp_path: Path) -> None:
    TASK.write(tmp_path / "task.json")
    assert Task.read(tmp_path / "task.json") == TASK


@dataclass
class Fake:
    """A peer that has one version and reports what it is asked, or is not to be had."""

    name: str
    missing: str = ""
    python: str = sys.executable

    def prepare(self, folder: Path) -> None:
        if self.missing:
            raise CannotTakePart(self.missing)

    def versions(self) -> dict[str, str]:
        return {"engine": "1.2"}

    def load(self, task: Task) -> None:
        self.asked: list[tuple[str, int]] = []

    def ask(self, question: Question, new_tokens: int) -> Answer:
        self.asked.append((question.name, new_tokens))
        return Answer(question.visual_tokens, len(question.token_ids), 0.1, 0.2, 0.3, new_tokens)

    def logits(self, task: Task) -> NDArray[np.float32]:
        return np.zeros((4, 8), np.float32)


def test_a_peer_that_is_not_to_be_had_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, gone = Fake("here"), Fake("gone", "no wheel for this platform")
    present, missing = prepared(tmp_path, [gone, here])
    assert present == [here] and missing == {"gone": "no wheel for this platform"}
    assert "gone takes no part: no wheel" in capsys.readouterr().err
    assert "- gone took no part: no wheel for this platform" in markdown(report(missing=missing))


def test_the_warm_up_is_about_another_picture_and_the_first_question_writes_the_text() -> None:
    peer = Fake("peer")
    found = process.measure(peer, TASK)
    assert peer.asked == [("warm-up", process.WARM_TOKENS), ("W1", 160), ("W1-196", 1)]
    assert not faults(TASK, [{"peer": found}])
    assert found["peak_rss_gb"] >= found["anonymous_rss_gb"] > 0


def test_parity_is_of_the_expected_distribution() -> None:
    expected = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    assert parity.divergence(expected, expected)["kl_divergence"] == pytest.approx(0, abs=1e-12)
    found = parity.divergence(expected, -expected)
    assert found["kl_divergence"] > 0.5 and found["top1_agreement"] == 0 and found["relative_error"] == pytest.approx(2)


def test_a_peers_environment_needs_nothing_of_ours_but_numpy() -> None:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in ("echovlm_edge", "torch", "rich", "PIL"))
    program = f"import sys\n{blocked}import benchmarks.peers.process"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_requirements_are_pinned_and_names_differ() -> None:
    names = [peer.name for peer in PEERS]
    assert len({*names}) == len(names)
    for name in ("llama", "openvino"):
        lines = (ROOT / "benchmarks" / "peers" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
        assert all("==" in line for line in lines if not line.startswith("#"))
