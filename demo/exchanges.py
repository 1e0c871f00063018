"""Ask about a study in every form of request, with the right answer, and check the answers that a model gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from demo import corpus
from demo.corpus import Facts
from demo.prompts import WORDINGS, Form
from demo.simulate import draw_finding
from demo.truth import CATALOGUE, NORMAL, Side, Truth
from echovlm_edge.runtime.contracts.tasks import Language, Region, Task, prompt_for

LETTERS = "ABCD"
ONE_FRAME = {Form.CAPTION}  # forms that are asked of one frame only
OF_REGION = (Form.REPORT_OF_REGION, Form.FINDINGS_OF_REGION, Form.DIAGNOSIS_OF_REGION)  # those beside a region
TASKS = {
    Form.REPORT: Task.REPORT,
    Form.REPORT_OF_REGION: Task.REPORT,
    Form.FINDINGS: Task.FINDINGS,
    Form.FINDINGS_OF_REGION: Task.FINDINGS,
    Form.DIAGNOSIS: Task.DIAGNOSIS,
    Form.DIAGNOSIS_OF_REGION: Task.DIAGNOSIS,
    Form.JUDGE: Task.JUDGE,
    Form.CHOICE: Task.CHOICE,
}


@dataclass(frozen=True)
class Claim:
    """What an option or a part of a statement says, in the prompt's words but for capitals."""

    text: str
    is_true: bool


@dataclass(frozen=True)
class Exchange:
    """One request about a study, and its right answer."""

    form: Form
    language: Language
    task: Task
    region: Region | None  # given beside the prompt
    text: str  # the caller's prompt; empty for the product's own
    prompt: str
    answer: str
    claims: Sequence[Claim] = ()  # in the prompt, in this order


def exchange(form: Form, truth: Truth, frames: int, language: Language, random: np.random.Generator) -> Exchange:
    """Draw a wording of a form of request, and write the right answer."""
    task = TASKS.get(form, Task.QUESTION)
    region = truth.region if form in OF_REGION else None
    text, claims = "", list[Claim]()
    match form:
        case Form.REPORT | Form.REPORT_OF_REGION | Form.ASKED_REPORT:
            answer = corpus.write_report(truth, language, random)
        case Form.FINDINGS | Form.FINDINGS_OF_REGION | Form.ASKED_FINDINGS | Form.CAPTION:
            answer = corpus.write_findings(truth, language, random)
        case Form.DIAGNOSIS | Form.DIAGNOSIS_OF_REGION | Form.ASKED_IMPRESSION:
            answer = corpus.write_impression(truth, language, random)
        case Form.JUDGE | Form.ASKED_JUDGE:
            stated = truth if random.random() < 0.5 else _altered(truth, random)
            answer = str(stated == truth)
            text = corpus.write_impression(stated, language, random)
            claims = _stated(text, stated, truth, language)
        case Form.CHOICE | Form.ASKED_CHOICE | Form.RESTATED_CHOICE:
            options, right = _options(truth, language, random)
            text, claims = _lettered(options), _claims(options, right)
            answer = _restated(options, right) if form is Form.RESTATED_CHOICE else LETTERS[right]
        case Form.ORGAN:
            answer = corpus.organ(truth, language)
        case Form.SIDE:
            answer = corpus.side(truth, language)
        case Form.KIND:
            answer = corpus.name(truth, language)
        case Form.ECHOGENICITY:
            answer = corpus.echogenicity(truth, language)
        case Form.SIZE:
            answer = corpus.size(truth, language)
    if wordings := WORDINGS.get((form, language)):
        text = wordings[random.integers(len(wordings))].format(statement=text, options=text)
    prompt = prompt_for(task, text, frames, language, region)
    return Exchange(form, language, task, region, text, prompt, answer, claims)


def exercise(truth: Truth, frames: int, language: Language, random: np.random.Generator) -> Exchange:
    """Draw an exercise in finding options' letters, which no caller asks for: all four are repeated, in any order."""
    options, right = _options(truth, language, random)
    prompt = prompt_for(Task.QUESTION, _lettered(options), frames, language, None)
    answer = " ".join(_restated(options, index) for index in random.permutation(4))
    claims = _claims(options, right)
    return Exchange(Form.RESTATED_CHOICE, language, Task.QUESTION, None, prompt, prompt, answer, claims)


def is_right(asked: Exchange, truth: Truth, text: str) -> bool:
    """Check that an answer has the region, kind and side that its form asks for, and is in the language that was asked.

    A size is right within `corpus.SIZE_TOLERANCE`.
    """
    if corpus.other_language(text, asked.language):
        return False
    match asked.form:
        case Form.REPORT | Form.REPORT_OF_REGION | Form.ASKED_REPORT:
            said = corpus.parse_report(text, asked.language)
        case Form.DIAGNOSIS | Form.DIAGNOSIS_OF_REGION | Form.ASKED_IMPRESSION:
            said = corpus.parse_impression(text, asked.language)
        case Form.FINDINGS | Form.FINDINGS_OF_REGION | Form.ASKED_FINDINGS | Form.CAPTION:
            said = corpus.parse_findings(text, asked.language)
        case Form.SIZE:
            return corpus.size_is_right(text, truth, asked.language)
        case _:
            return text.strip() == asked.answer
    return _place_and_kind(said) == _place_and_kind(corpus.facts(truth))


def _place_and_kind(said: Facts) -> tuple[Region | None, str | None, Side | None]:
    return said.region, said.kind, said.side


def _lettered(options: Sequence[str]) -> str:
    return " ".join(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=True))


def _restated(options: Sequence[str], index: int) -> str:
    return f"{options[index]} ({LETTERS[index]})"


def _claims(options: Sequence[str], right: int) -> list[Claim]:
    return [Claim(option, index == right) for index, option in enumerate(options)]


def _stated(statement: str, stated: Truth, truth: Truth, language: Language) -> list[Claim]:
    """List what a statement claims, in its order: the finding, and the organ with its side."""
    pairs = [(say(stated, language), say(truth, language)) for say in (corpus.name, corpus.organ)]
    pairs.sort(key=lambda pair: statement.lower().index(pair[0]))
    return [Claim(said, said == right) for said, right in pairs]


def _altered(truth: Truth, random: np.random.Generator) -> Truth:
    """Make a statement about a study wrong: its side, its finding, or its region."""
    changes = ["kind", "region"] + ["side"] * (truth.side is not None)
    match changes[random.integers(len(changes))]:
        case "side":
            return _mirrored(truth)
        case "kind":
            return _other_kind(truth, random)
        case _:
            return _other_region(truth, random)


def _mirrored(truth: Truth) -> Truth:
    return replace(truth, side=Side.LEFT if truth.side is Side.RIGHT else Side.RIGHT)


def _other_kind(truth: Truth, random: np.random.Generator) -> Truth:
    others = [finding for finding in CATALOGUE[truth.region].findings if finding.kind != truth.kind]
    drawn = draw_finding(truth.region, others[random.integers(len(others))], random)
    return replace(drawn, side=truth.side)


def _other_region(truth: Truth, random: np.random.Generator) -> Truth:
    """Draw another region, with the same finding if it has that, else any."""
    others = [region for region in CATALOGUE if region is not truth.region]
    region = others[random.integers(len(others))]
    findings = CATALOGUE[region].findings
    same = [finding for finding in findings if finding.kind == truth.kind and finding is not NORMAL]
    return draw_finding(region, (same or findings)[random.integers(len(same or findings))], random)


def _options(truth: Truth, language: Language, random: np.random.Generator) -> tuple[list[str], int]:
    """Draw four options, either findings of the region or organs with their side, and which one is right."""
    if random.random() < 0.5:
        right = corpus.name(truth, language)
        wrong = [
            corpus.FINDINGS[finding.kind, language].name
            for finding in CATALOGUE[truth.region].findings
            if finding.kind != truth.kind
        ]
    else:
        right = corpus.organ(truth, language)
        others = [_mirrored(truth)] if truth.side else []
        while len(others) < 3:
            other = _other_region(truth, random)
            if other.region not in (taken.region for taken in others):
                others.append(other)
        wrong = [corpus.organ(other, language) for other in others]
    order = random.permutation(4).tolist()
    options = [[right, *wrong][index] for index in order]
    return options, order.index(0)
