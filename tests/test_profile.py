"""`echovlm-profile`: figures that add up, in a table, JSON, a trace and a page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from echovlm_edge.runtime import profile


def test_figures_add_up_in_every_format(
    golden_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {kind: tmp_path / f"profile.{kind}" for kind in ("json", "html", "trace")}
    options = [argument for kind, file in files.items() for argument in (f"--{kind}", str(file))]
    assert profile.main(["--bundle", str(golden_bundle), "--runs", "3", "--max-new-tokens", "12", *options]) == 0
    assert "prefill" in capsys.readouterr().out
    told = json.loads(files["json"].read_text())
    assert told["schema"] == 1 and told["runs"] == 3 and told["generated_tokens"] == 12
    stages = told["stages"]
    assert {"decode_images", "preprocess", "vision", "projector", "prefill", "decode", "token", "total"} <= set(stages)
    assert stages["token"]["median"] <= stages["token"]["p99"] <= stages["token"]["max"]
    assert told["tokens_per_second"] == pytest.approx(1 / stages["token"]["median"])
    parts = sum(seconds["median"] for name, seconds in stages.items() if name not in ("token", "first_token", "total"))
    assert 0.5 * stages["total"]["median"] < parts < 1.2 * stages["total"]["median"]
    events = json.loads(files["trace"].read_text())["traceEvents"]
    assert len([event for event in events if event["name"] == "decode"]) == 3 * 12
    page = files["html"].read_text()
    assert page.count("<rect") == 11 and "http" not in page


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert profile.main(["--bundle", str(tmp_path / "none")]) == 2
    assert "There is no bundle at" in capsys.readouterr().err
