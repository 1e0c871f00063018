"""Run the steps of an acceptance one by one: which of how many, how it ended, and about how long the rest takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.status import Status
from rich.text import Text

from echovlm_edge.runtime.doctor.acceptance.journal import Journal
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.schema import State, StepResult
from echovlm_edge.runtime.doctor.acceptance.setting import Setting
from echovlm_edge.runtime.doctor.acceptance.steps import Step, run_step

STYLES = {State.PASSED: "green", State.FAILED: "red", State.SKIPPED: "yellow"}


def run_steps(
    planned: Sequence[Step], setting: Setting, journal: Journal, redaction: Redaction, console: Console
) -> list[StepResult]:
    """Run the steps that have no result yet; returns all results, in order."""
    results: list[StepResult] = []
    for number, step in enumerate(planned, 1):
        found = journal.result(number, step.name)
        place = f"{number} of {len(planned)}, {step.name}"
        if found is None:
            with console.status(f"{place}: {step.what}; about {_left(planned, results)} left") as status:

                def say(words: str, before: str = place, status: Status = status) -> None:
                    status.update(f"{before}: {words}; about {_left(planned, results)} left when it began")

                found = run_step(step, replace(setting, say=say), redaction)
            journal.keep(number, found)
        else:
            place += " (before it was interrupted)"
        results.append(found)
        left = f" (about {_left(planned, results)} left)" if number < len(planned) else ""
        console.print(_line(place, found, left), soft_wrap=True)
    return results


def _line(place: str, found: StepResult, left: str) -> Text:
    ended = f" in {found.seconds:.0f} s" if found.state is not State.SKIPPED else ""
    reason = f": {found.reason}" if found.reason else ""
    return Text.assemble(f"{place}: ", (found.state.value, STYLES[found.state]), ended, left, reason)


def _left(planned: Sequence[Step], results: Sequence[StepResult]) -> str:
    """Estimate the time that is left: the guesses, in proportion to what the steps before took."""
    guessed = sum(step.guess for step in planned[: len(results)])
    took = sum(result.seconds for result in results)
    pace = took / guessed if guessed and took else 1.0
    *others, load = planned[len(results) :]
    seconds = pace * sum(step.guess for step in others) + load.guess
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
