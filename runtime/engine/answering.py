"""From the scheduler's progress to a call's events: stages, text, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass

from echovlm_edge.runtime.contracts.errors import fresh
from echovlm_edge.runtime.contracts.request import Event, Finished, FinishReason, Stage, StageStarted
from echovlm_edge.runtime.contracts.text_form import ChoiceProbability
from echovlm_edge.runtime.engine.clock import Clock
from echovlm_edge.runtime.engine.generation import (
    POLL_SECONDS,
    Generation,
    Joined,
    Left,
    Prefilled,
    Progress,
    Queued,
    Scored,
    Written,
)
from echovlm_edge.runtime.engine.text.stop_text import StopText
from echovlm_edge.runtime.engine.text.written_text import WrittenText
from echovlm_edge.runtime.engine.tokens.choice_scoring import normalized
from echovlm_edge.runtime.prompting.prompt import Prompt


@dataclass(frozen=True)
class Ending:
    """How a text ended.

    Attributes:
        finish: why.
        first_token: seconds to the first token; None without one.
        reused: tokens of the prompt that were cached.
        choices: how likely each of the form's choices was, in their order.
    """

    finish: FinishReason = FinishReason.CANCELLED
    first_token: float | None = None
    reused: int = 0
    choices: tuple[ChoiceProbability, ...] = ()


def answer(
    generation: Generation, clock: Clock, text: WrittenText, stop: StopText, choices: tuple[str, ...]
) -> Generator[Event, None, Ending]:
    """Yield a generation's events up to its end or a stop text; returns how it ended.

    Args:
        generation: was given to the scheduler.
        clock: gets the spans of the stages.
        text: gets the tokens; it is empty, and ends at `stop`.
        stop: the stop texts of `text`.
        choices: the texts of the generation's choices.

    Raises:
        Exception: whatever ended the generation.
    """
    finish, first_token, reused, scores = FinishReason.CANCELLED, None, 0, tuple[ChoiceProbability, ...]()
    waiting_since: float | None = None
    ended = False
    while not ended:
        written = list[Written]()
        for progress in next_progress(generation, clock):
            match progress:
                case Exception():
                    raise fresh(progress)
                case Left():
                    ended = True
                case Queued():
                    waiting_since = time.perf_counter()
                    yield StageStarted(Stage.QUEUE)
                case Joined():
                    reused = progress.reused
                    if waiting_since is not None:
                        clock.add(Stage.QUEUE, waiting_since, time.perf_counter() - waiting_since)
                    yield StageStarted(Stage.PREFILL)
                case Prefilled():
                    clock.add(Stage.PREFILL, progress.started, progress.seconds)
                case Scored(log_probabilities):
                    shares = normalized(log_probabilities).tolist()
                    scores = tuple(map(ChoiceProbability, choices, log_probabilities, shares))
                case Written():
                    written.append(progress)
        for token in written:
            clock.add(Stage.DECODE, token.started, token.seconds)
            finish = token.finish or finish
            ended = ended or token.finish is not None
            text.push(token)
            if stop.reached:  # tokens after it are no part of the answer
                ended, finish = True, FinishReason.STOP
                break
        if written:
            first_token = first_token or clock.elapsed()
            clock.lap(Stage.DETOKENIZE)
            if delta := text.take():
                yield delta
    if rest := text.finish():
        clock.lap(Stage.DETOKENIZE)
        yield rest
    return Ending(finish, first_token, reused, scores)


def next_progress(generation: Generation, clock: Clock) -> list[Progress]:
    """Wait for a generation's next progress.

    A stopped generation ends here at once, because the scheduler may be busy for a while before it releases it.
    """
    while not (happened := generation.outbox.take(POLL_SECONDS)):
        if generation.stopped():
            happened = [Left()]
            break
    clock.lap(Stage.WAIT)
    return happened


def finished(
    clock: Clock, prompt: Prompt | None, ending: Ending = Ending(), text: str = "", tokens: tuple[int, ...] = ()
) -> Finished:
    """Return a call's last event, with its times up to now; by default that of a call that was cancelled before its first token."""
    clock.lap(Stage.DETOKENIZE)
    lengths = (len(prompt.token_ids), len(prompt.image_rows)) if prompt else (0, 0)
    seconds, first_token = clock.seconds(), ending.first_token
    return Finished(
        text,
        tokens,
        ending.finish,
        *lengths,
        seconds,
        first_token,
        tuple(clock.spans),
        ending.reused,
        choices=ending.choices,
    )
