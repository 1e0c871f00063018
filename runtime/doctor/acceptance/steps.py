"""The steps of an acceptance, in order, and how one is run: whatever happens in it becomes its result."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from echovlm_edge.runtime.contracts.errors import NotPossibleHere, UserError
from echovlm_edge.runtime.doctor.acceptance.checks import device_tests, faults, load, machine_and_bundle, speed, tokens
from echovlm_edge.runtime.doctor.acceptance.privacy import Redaction
from echovlm_edge.runtime.doctor.acceptance.schema import STEP, Figure, Outcome, State, StepResult
from echovlm_edge.runtime.doctor.acceptance.setting import Setting, Skipped
from echovlm_edge.runtime.profiling.workloads import USUAL, Workload
from echovlm_edge.runtime.resources.jetson import in_power_mode

MODE_SEPARATOR = "/"  # of a power mode's name and a step's or figure's


@dataclass(frozen=True)
class Step:
    """One step; `guess` is its seconds, in proportion to the others', until times are known."""

    name: str
    what: str
    run: Callable[[Setting], Outcome]
    guess: float = 10.0
    figures: tuple[str, ...] = ()  # that it may measure


def steps(minutes: float, modes: Mapping[int, str] | None) -> tuple[Step, ...]:
    """List the steps.

    Args:
        minutes: of load.
        modes: power modes by number, in each of which is measured; None measures in the present one alone.
    """
    return (
        Step("doctor", "the machine, as echovlm-doctor examines it", machine_and_bundle.doctor, 2),
        Step("bundle", "every file's hash, and the signature", machine_and_bundle.bundle),
        Step("golden", "the bundle's golden tokens, by the service", tokens.golden),
        Step("batches", "eight requests at a time write what each writes alone", tokens.batches, 30),
        Step("study", "a study writes what a direct call writes", tokens.study, 30),
        Step("faults", "each fault has its documented status, and the service answers afterwards", faults.faults, 30),
        Step(device_tests.STEP, "the tests of --checks, each by itself", device_tests.device_tests, 60),
        *_profiles(modes),
        Step("load", f"{minutes:g} minutes of reports, eight at a time", load.load, 60 * minutes, load.FIGURES),
    )


def _profiles(modes: Mapping[int, str] | None) -> tuple[Step, ...]:
    if modes is None:
        return tuple(map(_profile, USUAL))
    if not modes:
        return (Step("power modes", "the profile in every power mode", _no_modes, 0), *map(_profile, USUAL))
    return tuple(_in_mode(number, modes, _profile(workload)) for number in modes for workload in USUAL)


def _profile(workload: Workload) -> Step:
    what = f"the profile of {workload.words}: alone and eight at a time"
    guess = 5.0 * (workload.encoded_frames + 1)
    figures = tuple(speed.figure_names(workload))
    return Step(workload.name, what, partial(speed.measure, workload=workload), guess, figures)


def _in_mode(number: int, modes: Mapping[int, str], step: Step) -> Step:
    prefix = f"{modes[number]}{MODE_SEPARATOR}"

    def run(setting: Setting) -> Outcome:
        try:
            with in_power_mode(number, modes):
                found = step.run(setting)
        except NotPossibleHere as error:
            raise Skipped(str(error)) from None
        return replace(found, figures=tuple(Figure(prefix + one.name, one.value) for one in found.figures))

    named = tuple(prefix + name for name in step.figures)
    return replace(step, name=prefix + step.name, what=f"{modes[number]}: {step.what}", run=run, figures=named)


def _no_modes(setting: Setting) -> Outcome:
    raise Skipped("This machine has no /etc/nvpmodel.conf, and so one power mode.")


def _ended(outcome: Outcome) -> tuple[State, str]:
    """Judge a step by its checks: it failed if one did, and was skipped if all were; the first of these says why."""
    found = {check.state: f"{check.what}: {check.detail}" for check in reversed(outcome.checks)}
    if State.FAILED in found:
        return State.FAILED, found[State.FAILED]
    if list(found) == [State.SKIPPED]:
        return State.SKIPPED, found[State.SKIPPED]
    return State.PASSED, ""


def run_step(step: Step, setting: Setting, redaction: Redaction) -> StepResult:
    """Run a step; what it raises is its result's reason, and a traceback goes into its log."""
    started = time.monotonic()
    outcome, state, reason = Outcome(), State.FAILED, ""
    try:
        outcome = step.run(setting)
        state, reason = _ended(outcome)
    except Skipped as skipped:
        state, reason = State.SKIPPED, str(skipped)
    except UserError as error:
        reason = str(error)
    except Exception as error:
        log = setting.logs / f"{step.name.replace(MODE_SEPARATOR, '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as lines:
            lines.write(traceback.format_exc())
        reason = f"It ended with an error of its own ({type(error).__name__}): see logs/{log.name}, and report it."
    result = StepResult(step.name, step.what, state, time.monotonic() - started, reason, outcome)
    return STEP.validate_python(redaction.value(STEP.dump_python(result, mode="json")))
