"""Check that an engine writes its bundle's golden tokens, before it serves."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from echovlm_edge.runtime.bundle.golden_tokens import GoldenSample
from echovlm_edge.runtime.contracts.errors import InvalidInput, NotPossibleHere
from echovlm_edge.runtime.contracts.request import Finished, Frame, GenerationRequest, Priority, Sampling
from echovlm_edge.runtime.engine.report_engine import ReportEngine

MOST_SECONDS = 60.0  # for all samples; the published size takes some five on two cores
SCOPE = "golden tokens"  # nothing that is cached for them is reused for a client

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checked:
    """How many tokens were compared, of how many, in how many seconds."""

    tokens: int
    of: int
    seconds: float


def check_golden_tokens(
    engine: ReportEngine, most_seconds: float = MOST_SECONDS, clock: Callable[[], float] = time.monotonic
) -> Checked:
    """Ask an engine for its bundle's golden tokens; what it has not written after `most_seconds` is not compared.

    A sample that the engine's options do not admit, for its context is too short or its frames too small, is not compared either.

    Raises:
        NotPossibleHere: it writes another token.
    """
    started = clock()
    compared = sum(
        _compare(engine, sample, lambda: clock() - started > most_seconds) for sample in engine.golden_tokens
    )
    return Checked(compared, sum(len(sample.tokens) for sample in engine.golden_tokens), clock() - started)


def log_checked(checked: Checked) -> None:
    """Log what was compared, as a warning where that is not all."""
    if not checked.of:
        _log.warning(
            "the bundle has no golden tokens, so that nothing shows whether it computes rightly here: build it again"
        )
    elif checked.tokens < checked.of:
        _log.warning("only %d of %d golden tokens were compared in %.1f s", checked.tokens, checked.of, checked.seconds)
    else:
        _log.info("the bundle writes its %d golden tokens, in %.1f s", checked.of, checked.seconds)


def _compare(engine: ReportEngine, sample: GoldenSample, stopped: Callable[[], bool]) -> int:
    """Return how many tokens of a sample were compared."""
    settings = engine.settings
    if any(picture.height * picture.width > settings.max_pixels for picture in sample.pictures):
        return 0
    frames = tuple(Frame(picture.pixels(), sample.name, settings.resolution) for picture in sample.pictures)
    sampling = Sampling(max_new_tokens=len(sample.tokens))
    request = GenerationRequest(
        sample.prompt, sampling=sampling, frames=frames, priority=Priority.BATCH, scope=SCOPE, client=SCOPE
    )
    try:
        *_, last = engine.generate(request, stopped)
    except InvalidInput:  # the context that is served is shorter than the bundle's
        return 0
    assert isinstance(last, Finished)
    if stopped():
        return 0
    place = sample.first_difference(last.token_ids)
    if place is not None:
        written = last.token_ids[place] if place < len(last.token_ids) else "missing"
        raise NotPossibleHere(
            f"The bundle {engine.path} does not write its golden tokens on this machine: token {place + 1} of its {sample.name} is "
            f"{written}, not {sample.tokens[place]}; copy it or build it again, and if that does not help, do not use this machine."
        )
    return len(sample.tokens)
