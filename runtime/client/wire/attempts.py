"""When a client makes a call again, and how long it has for all of it."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

import grpc

from echovlm_edge.runtime.client.wire.refusals import OUT_OF_TIME, trailing
from echovlm_edge.runtime.contracts.errors import DeadlineExceeded
from echovlm_edge.runtime.contracts.statuses import retry_seconds_of


@dataclass(frozen=True)
class Retries:
    """When a call is made again: only where nothing of it can have happened, or where it changes nothing.

    A call that found no room (RESOURCE_EXHAUSTED with the server's delay) is made again after that delay. One that found
    no server (UNAVAILABLE) is made again after a pause that doubles, from 0.1 s, with up to as much again at random, so
    that carts do not come back all at once; a stream only before its first message, and never a call that changes a study,
    which may have been made although no answer came. A timeout covers all attempts and the pauses between them.

    Attributes:
        attempts: calls in all; 1 for no retry.
        longest_pause: a server that asks for more seconds than this is not waited for.
    """

    attempts: int = 1
    longest_pause: float = 30.0


ONCE = Retries()


class Deadline:
    """By when something is to be done: everything that belongs to it counts."""

    def __init__(self, timeout: float | None) -> None:
        """Begin; None for no end."""
        self._at = None if timeout is None else time.monotonic() + timeout

    def seconds_left(self) -> float | None:
        """Never negative; None for no end."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def seconds_for_call(self) -> float | None:
        """The timeout of a call that is made now; None for no end.

        Raises:
            DeadlineExceeded: there is no time left. A call without time could be answered all the same, if it is fast.
        """
        left = self.seconds_left()
        if left == 0:
            raise DeadlineExceeded(OUT_OF_TIME)
        return left


class Attempts:
    """Counts one call's attempts."""

    def __init__(self, retries: Retries, deadline: Deadline) -> None:
        """Begin with the first."""
        self._retries, self._deadline, self._made = retries, deadline, 1

    def pause_after(self, error: Any, *, or_unavailable: bool) -> float | None:
        """Seconds until the call is to be made again; None where it is not."""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            pause = retry_seconds_of(trailing(error))
            if pause is None:  # too large, or told not to come back
                return None
        elif error.code() is grpc.StatusCode.UNAVAILABLE and or_unavailable:
            pause = 0.1 * 2 ** (self._made - 1) * random.uniform(1, 2)
        else:
            return None
        left = self._deadline.seconds_left()
        if self._made >= self._retries.attempts or pause > self._retries.longest_pause:
            return None
        if left is not None and pause >= left:
            return None
        self._made += 1
        return pause
