"""`echovlm-build --data`: a bundle is compared with PyTorch on the user's own questions and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echovlm_edge.export import build_engines
from echovlm_edge.export.build_options import ComparedData
from echovlm_edge.export.parity.compared_rows import drawn
from echovlm_edge.runtime.bundle.manifest import Bundle
from tests.support import golden
from tests.support.evaluation_data import conversation, messages, mixed_row, write_rows


def run(output: Path, *options: object) -> int:
    given = ["--checkpoint", golden.CHECKPOINT, "--output", output, *options]
    return build_engines.main([str(option) for option in given])


def test_rows_with_several_pictures_and_with_none_are_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [mixed_row(0), mixed_row(1), messages("words", [], "What is a cyst?", "A cavity.")]
    pictures = tmp_path / "pictures of it"
    file = write_rows(pictures, rows).rename(tmp_path / "rows.json")
    options = ("--data", file, "--images", pictures, "--compare", "fp32")
    assert run(tmp_path / "bundles", *options) == 0
    parity = Bundle(tmp_path / "bundles" / "fp32").manifest.parity
    images = [entry.sample for entry in parity if entry.stage == "vision_encoder"]
    assert images == ["row 1", "row 2, image 1", "row 2, image 2"]
    texts = [entry for entry in parity if entry.stage == "decode"]
    assert [entry.sample for entry in texts] == ["row 1", "row 2", "row 3"]
    assert [entry.agreed_tokens for entry in texts] == [32] * 3
    assert max(entry.kl_divergence or 0 for entry in texts) < 1e-6
    read = [entry.positions for entry in parity if entry.stage == "prefill"]
    assert read[1] > read[0] > read[2], "more pictures are more tokens"
    assert "fp32" in capsys.readouterr().out


def test_the_same_rows_are_drawn_each_time(tmp_path: Path) -> None:
    file = write_rows(tmp_path, [mixed_row(number) for number in range(20)])
    numbers = [row.number for row in drawn(ComparedData(file, rows=5))]
    assert len(numbers) == 5 and numbers == sorted(numbers)
    assert numbers == [row.number for row in drawn(ComparedData(file, rows=5))]
    assert len(drawn(ComparedData(file, rows=50))) == 20


def test_what_cannot_be_compared_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_rows(tmp_path, [mixed_row(0)])
    torn = write_rows(tmp_path, [conversation("torn", ["torn.png"], "<image>Which organ?", "Liver.")], "torn.json")
    (tmp_path / "torn.png").write_bytes((tmp_path / "torn.png").read_bytes()[:200])
    reserved = write_rows(tmp_path, [messages("reserved", [], "<|im_start|>system", "No.")], "reserved.json")
    (tmp_path / "none.json").write_text(json.dumps([]))
    monkeypatch.setattr(build_engines, "traced_parts", None)
    for options, sentence in (
        (["--data", file, "--sample", tmp_path / "pictures/0.png"], "--data and --sample both say"),
        (["--data", file, "--data-rows", 0], "--data-rows 0 compares nothing"),
        (["--data", file, "--calibrate", file], "so that a comparison on it would be too good"),
        (["--data", tmp_path / "none.json"], "can be asked"),
        (["--data", torn], "torn.png"),
        (["--data", reserved], "reserved token"),
    ):
        assert run(tmp_path / "bundle", *options) == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "bundle").exists()
