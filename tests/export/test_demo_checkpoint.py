"""The committed demo checkpoint: it looks, it is right on held-out studies, and it stays right when quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from demo import train
from demo.evaluate import evaluate
from echovlm_edge.export.checkpoint import Checkpoint

CHECKPOINT = Path("demo/checkpoint")
COUNT = 40  # studies, each in both languages; `demo.evaluate` is for figures
SEED = 5000
QUIET = Console(quiet=True)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_reports_are_right_on_held_out_studies(build_bundle: Callable[..., Path], precision: str) -> None:
    scores = evaluate(build_bundle(CHECKPOINT, precision=precision), SEED, COUNT, False, QUIET)["both"]
    assert scores.region > 0.95 and scores.kind > 0.85 and scores.side > 0.9 and scores.size > 0.6


def test_with_a_grey_image_it_is_at_chance(build_bundle: Callable[..., Path]) -> None:
    """One of seven regions, one of some four findings in each, one of two sides: the prompt alone gives nothing away."""
    blind = evaluate(build_bundle(CHECKPOINT), SEED, COUNT, True, QUIET)["both"]
    assert blind.region < 0.35 and blind.kind < 0.4 and blind.side < 0.75


def test_it_is_small_and_in_the_published_layout() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 12e6
    assert Checkpoint(CHECKPOINT).config.decoder.num_experts == 4
    assert "no medical value" in (CHECKPOINT / "README.md").read_text(encoding="utf-8")


def test_training_starts_and_goes_on_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = train.TrainingOptions(studies=500, vision_steps=2, vision_batch=4, steps=4, batch=4, save_every=1)
    whole = tmp_path / "whole"
    train.train(options, whole, tmp_path / "cache", QUIET)
    learn, count = train.Run.learn, 0

    def killed(run: train.Run, loss: object) -> None:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        learn(run, loss)  # type: ignore[arg-type]

    monkeypatch.setattr(train.Run, "learn", killed)
    with pytest.raises(KeyboardInterrupt):
        train.train(options, tmp_path / "resumed", tmp_path / "cache", QUIET)
    train.train(options, tmp_path / "resumed", tmp_path / "cache", QUIET)
    assert count == 7, "steps were done twice"
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()
