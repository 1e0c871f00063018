"""The committed demo checkpoint: it looks, it is right on held-out studies, and it stays right when quantized."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch.multiprocessing import ProcessRaisedException

from demo import train
from demo.answers import Asked
from demo.evaluate import evaluate
from demo.prompts import Form
from demo.training.images import ImageOptions
from demo.training.run import Run
from demo.training.shards import Shard
from demo.training.texts import TextOptions
from echovlm_edge.export.source.checkpoint import Checkpoint

CHECKPOINT = Path("demo/checkpoint")
COUNT = 24  # studies of 1 to 4 frames, each in both languages; `demo.evaluate` is for figures
# One form of each kind: the default prompt, with a region, in own words, a question, and those that compare words with images.
FORMS, FRAMES = (Form.REPORT, Form.REPORT_OF_REGION, Form.ASKED_FINDINGS, Form.KIND, Form.JUDGE, Form.CHOICE), 4
SEED = 5000
TRAIN_TEXTS = train._train_texts
QUIET = Console(quiet=True)


@pytest.mark.parametrize(("precision", "turns"), [("fp32", 1), ("int8", 1), ("int4", 1), ("int4", 3)])
def test_answers_are_right_on_held_out_studies(build_bundle: Callable[..., Path], precision: str, turns: int) -> None:
    asked = Asked(SEED, COUNT, FRAMES, FORMS, turns=turns)
    found = evaluate(build_bundle(CHECKPOINT, precision=precision), asked, QUIET)
    scores = found.reports["both"]
    assert scores.region > 0.95 and scores.kind > 0.85 and scores.side > 0.9 and scores.size > 0.6
    assert len(found.wrong) <= 0.02 * sum(cell.answers for cell in found.cells), [one.text for one in found.wrong]


def test_with_a_grey_image_it_is_at_chance(build_bundle: Callable[..., Path]) -> None:
    """One of seven regions, one of some four findings in each, one of two sides: the prompt alone gives nothing away."""
    blind = evaluate(build_bundle(CHECKPOINT), Asked(SEED, COUNT, FRAMES, FORMS, blind=True), QUIET)
    scores = blind.reports["both"]
    assert scores.region < 0.35 and scores.kind < 0.4 and scores.side < 0.75


def test_it_is_small_and_in_the_published_layout() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) < 12e6
    assert Checkpoint(CHECKPOINT).config.decoder.num_experts == 4
    assert "no medical value" in (CHECKPOINT / "README.md").read_text(encoding="utf-8")


def test_training_resumes_where_it_was_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = train.TrainingOptions(
        images=ImageOptions(frames=24, steps=2, batch=4),
        texts=TextOptions(steps=3, studies=2, exchanges=2),
        save_every=1,
    )
    whole, cache = tmp_path / "whole", tmp_path / "cache"
    train.train(options, whole, cache, QUIET)
    with monkeypatch.context() as killing, pytest.raises(ProcessRaisedException, match="Killed"):
        killing.setattr(train, "_train_texts", _train_texts_until_killed)
        train.train(options, tmp_path / "resumed", cache, QUIET)
    assert torch.load(cache / "texts.pt", weights_only=True)["step"] == 2
    train.train(options, tmp_path / "resumed", cache, QUIET)
    for file in sorted(whole.glob("*.safetensors")):
        assert file.read_bytes() == (tmp_path / "resumed" / file.name).read_bytes()


class Killed(Exception):
    """Stands for a killed training."""


def _kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    learn, count = Run.learn, 0

    def killed(run: Run, loss: torch.Tensor) -> None:
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        learn(run, loss)

    monkeypatch.setattr(Run, "learn", killed)


def _train_texts_until_killed(shard: Shard, *arguments: Any) -> None:
    """Train the decoder in a process of its own, which is killed in its third step."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _kill_at(3, monkeypatch)
        TRAIN_TEXTS(shard, *arguments)
