"""Steps `golden`, `batches` and `study`: the service writes the same tokens whichever way it is asked."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from echovlm_edge.runtime.client.report_client import ReportClient
from echovlm_edge.runtime.doctor.acceptance.checks.questions import (
    TOGETHER,
    eight_questions,
    golden_check,
    golden_questions,
    same,
    tokens_of,
)
from echovlm_edge.runtime.doctor.acceptance.schema import Outcome
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped

# Every request is computed, and writes as many tokens as it may, so that there are many to compare.
COMPUTED = ("--prefix-mb", 0, "--image-mb", 0, "--debug-ignore-stop")


def golden(setting: Setting) -> Outcome:
    """Ask a server for the bundle's golden tokens; the server itself does not check them here."""
    questions = golden_questions(setting)
    if not questions:
        raise Skipped("The bundle has no golden tokens: build it again with this version, which gives it some.")
    with setting.server("golden", "--skip-golden") as served, ReportClient(served.address) as client:
        return Outcome(tuple(golden_check(question, tokens_of(client, question)) for question in questions))


def batches(setting: Setting) -> Outcome:
    """Ask eight requests one at a time, then all at a time."""
    questions = eight_questions(setting)
    with (
        setting.server("batches", *COMPUTED) as served,
        ReportClient(served.address) as client,
        ThreadPoolExecutor(TOGETHER) as clients,
    ):
        alone = [tokens_of(client, question) for question in questions]
        together = list(clients.map(lambda question: tokens_of(client, question), questions))
    found = zip(questions, alone, together, strict=True)
    return Outcome(tuple(same(setting, question, one, other) for question, one, other in found))


def study(setting: Setting) -> Outcome:
    """Ask directly, then about a study to which the images were added one by one and another one was withdrawn."""
    questions = [question for question in eight_questions(setting) if question.images]
    checks = []
    with setting.server("study", *COMPUTED) as served, ReportClient(served.address) as client:
        for number, question in enumerate(questions):
            direct = tokens_of(client, question)
            other = questions[number - 1].images[0]
            with client.study() as opened:
                withdrawn = opened.add(other)
                for image in question.images:
                    opened.add(image)
                opened.withdraw(withdrawn.number)
                checks.append(same(setting, question, direct, tokens_of(opened, question, ())))
    return Outcome(tuple(checks))
