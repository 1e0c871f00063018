"""What the steps ask a server: the bundle's golden prompts, and further ones about frames that are made here; never a patient's."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from echovlm_edge.runtime.bundle.golden_tokens import GoldenPicture, GoldenSample, read_golden_tokens
from echovlm_edge.runtime.client.report_client import ReportClient, Study
from echovlm_edge.runtime.contracts.request import ImageInput, Sampling
from echovlm_edge.runtime.doctor.acceptance.schema import Check, State
from echovlm_edge.runtime.doctor.acceptance.setting import Setting
from echovlm_edge.runtime.profiling.measurement.requests import FILLER, frame
from echovlm_edge.runtime.profiling.workloads import TRAINED_SIDE

TOGETHER = 8  # requests at a time
NEW_TOKENS = 24


@dataclass(frozen=True)
class Question:
    """A request; `golden` are the tokens that a text must begin with on every machine, empty where none are known."""

    name: str
    prompt: str
    images: tuple[ImageInput, ...]
    golden: tuple[int, ...] = ()


def golden_questions(setting: Setting) -> list[Question]:
    """Return the bundle's golden samples; none for a bundle that was built without."""
    return [_golden(sample) for sample in read_golden_tokens(setting.bundle)]


def eight_questions(setting: Setting) -> list[Question]:
    """Return the golden ones, and as many about frames of one and two pictures as make eight."""
    found = golden_questions(setting)[:TOGETHER]
    for number in range(TOGETHER - len(found)):
        pictures = tuple(frame(10 * number + place, TRAINED_SIDE, TRAINED_SIDE) for place in range(1 + number % 2))
        found.append(Question(f"frames {number + 1}", " ".join(FILLER.split()[number:]), pictures))
    return found


def tokens_of(
    asked: ReportClient | Study, question: Question, images: Sequence[ImageInput] | None = None
) -> tuple[int, ...]:
    """Ask, with other images where these are given; returns the tokens of the answer."""
    sampling = Sampling(max_new_tokens=len(question.golden) or NEW_TOKENS)
    shown = question.images if images is None else images
    return asked.ask(question.prompt, shown, sampling=sampling, include_token_ids=True).token_ids


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """Return the place of the first token that differs, counted from 1; None where all are equal."""
    if tuple(one) == tuple(other):
        return None
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False), 1) if a != b),
        min(len(one), len(other)) + 1,
    )


def golden_check(question: Question, written: Sequence[int]) -> Check:
    """Compare an answer with its golden tokens."""
    place = first_difference(question.golden, written[: len(question.golden)])
    if place is None:
        return Check(question.name, State.PASSED, f"{len(question.golden)} tokens")
    return Check(question.name, State.FAILED, f"Token {place} of {len(question.golden)} is not the golden one.")


def same(setting: Setting, question: Question, alone: Sequence[int], other: Sequence[int]) -> Check:
    """Compare two answers to a question: to the token, or where near ties may be decided otherwise, up to the first of them."""
    place = first_difference(alone, other)
    if place is None:
        return Check(question.name, State.PASSED, f"{len(alone)} tokens are equal")
    if setting.exact:
        return Check(question.name, State.FAILED, f"Token {place} differs from the one that is written alone.")
    if question.golden:
        return golden_check(question, other)
    differs = f"Token {place} differs, which near ties may with this target and precision: not judged."
    return Check(question.name, State.SKIPPED, differs)


def _golden(sample: GoldenSample) -> Question:
    return Question(sample.name, sample.prompt, tuple(map(_file, sample.pictures)), sample.tokens)


def _file(picture: GoldenPicture) -> ImageInput:
    file = io.BytesIO()
    Image.fromarray(picture.pixels()).save(file, "PNG")
    return ImageInput(file.getvalue(), "image/png", "golden picture")
