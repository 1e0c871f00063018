"""Wait for the embeddings of a call's images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet

from echovlm_edge.runtime.contracts.errors import Stopped, fresh
from echovlm_edge.runtime.contracts.request import Stage
from echovlm_edge.runtime.engine.clock import Clock
from echovlm_edge.runtime.engine.encoder import Embedded
from echovlm_edge.runtime.engine.generation import POLL_SECONDS


def embedded(asked: Sequence[Embedded | Future[Embedded]], stopped: Callable[[], bool], clock: Clock) -> list[Embedded]:
    """Wait for images' embeddings, and record the spans of the stages that computed them."""
    return [image if isinstance(image, Embedded) else _result(image, stopped, clock) for image in asked]


def _result(future: Future[Embedded], stopped: Callable[[], bool], clock: Clock) -> Embedded:
    image = _waited_for(future, stopped)
    clock.lap(Stage.WAIT)
    began = image.started
    for stage, end in image.ends.items():
        clock.add(stage, began, end - began)
        began = end
    return image


def _waited_for(future: Future[Embedded], stopped: Callable[[], bool]) -> Embedded:
    while True:
        try:
            error = future.exception(timeout=POLL_SECONDS)
        except NotYet:
            if stopped():
                raise Stopped from None
            continue
        if isinstance(error, Exception):
            raise fresh(error)  # a copy, as other calls wait for the same image
        return future.result()
