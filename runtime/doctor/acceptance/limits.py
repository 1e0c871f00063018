"""Limits: a TOML file of the steps that must pass and of each figure's least or most; and the judgement by them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import InvalidInput
from echovlm_edge.runtime.doctor.acceptance.schema import Figure, Judged, State, StepResult

CORRECTNESS = files("echovlm_edge.runtime.doctor.acceptance").joinpath("correctness.toml")
_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_STRICT)
class Limit:
    """What a figure may be, in its own unit."""

    least: float | None = None
    most: float | None = None

    @property
    def words(self) -> str:
        """Describe it: `at least 4, at most 9`."""
        ends = (("at least", self.least), ("at most", self.most))
        return ", ".join(f"{name} {end:g}" for name, end in ends if end is not None)

    def holds(self, value: float) -> bool:
        """Tell whether a value is within it."""
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)


@dataclass(frozen=True, config=_STRICT)
class Limits:
    """The steps that must pass and not be skipped, and the limits of figures by their names."""

    required: tuple[str, ...]
    figures: dict[str, Limit]


_LIMITS = TypeAdapter(Limits)


def read_limits(path: Path | None, steps: Iterable[str], figures: Iterable[str]) -> Limits:
    """Read a file of limits, or that of correctness alone.

    Args:
        path: the file; None for the default one.
        steps: the names of all steps; `figures` likewise of all figures that they may measure.

    Raises:
        InvalidInput: it cannot be read, or names what does not exist.
    """
    named = path or "The default limits"
    try:
        text = path.read_text(encoding="utf-8") if path else CORRECTNESS.read_text(encoding="utf-8")
        limits = _LIMITS.validate_python({"required": (), "figures": {}} | tomllib.loads(text))
    except OSError as error:
        raise InvalidInput(f"The limits {named} cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{named} is not TOML ({error}): see docs/acceptance.md.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InvalidInput(f"{named} is wrong at {where} ({first['msg']}): see docs/acceptance.md.") from None
    for kind, given, known in (("step", limits.required, tuple(steps)), ("figure", limits.figures, tuple(figures))):
        if unknown := next((name for name in given if name not in known), None):
            raise InvalidInput(f"{named} names the {kind} {unknown}, which there is not: there are {', '.join(known)}.")
    return limits


def judge(steps: Sequence[StepResult], limits: Limits) -> tuple[tuple[Judged, ...], tuple[str, ...]]:
    """Judge what was measured; returns each figure with its limit, and a sentence for each reason not to pass."""
    measured = {figure.name: figure for step in steps for figure in step.outcome.figures}
    judged = [_judged(name, measured.get(name), limits.figures.get(name)) for name in (*measured, *limits.figures)]
    judged = list(dict.fromkeys(judged))
    failures = [f"The step {step.name} failed: {step.reason}" for step in steps if step.state is State.FAILED]
    failures += [
        f"The step {step.name} must pass, and was skipped: {step.reason}"
        for step in steps
        if step.state is State.SKIPPED and step.name in limits.required
    ]
    failures += [
        f"{one.name} is {'not measured' if one.value is None else f'{one.value:.4g}'}, its limit is {one.limit}."
        for one in judged
        if one.state is State.FAILED
    ]
    return tuple(judged), tuple(failures)


def _judged(name: str, figure: Figure | None, limit: Limit | None) -> Judged:
    value = figure.value if figure else None
    if limit is None:
        return Judged(name, value, "", State.SKIPPED)
    held = value is not None and limit.holds(value)
    return Judged(name, value, limit.words, State.PASSED if held else State.FAILED)
