"""When a client repeats a call, and how much time all attempts have."""

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
    """When a call is repeated: only if the server cannot have acted on it, or if it changes nothing.

    A call that was refused as busy (RESOURCE_EXHAUSTED with the server's delay) is repeated after that delay. One that found
    no server (UNAVAILABLE) is repeated after a pause that doubles from 0.1 s, with up to as much again at random, so that
    carts do not all return at once. A stream is repeated only before its first message. After UNAVAILABLE a call that changes a
    study is never repeated, as the server may have acted on it. A timeout covers all attempts and the pauses between them.

    Attributes:
        attempts: how often the call is made at most; 1 for no retry.
        longest_pause: in seconds; if the server asks for a longer one, the call fails.
    """

    attempts: int = 1
    longest_pause: float = 30.0


ONCE = Retries()


class Deadline:
    """The time by which a call has to end, with its uploads and retries."""

    def __init__(self, timeout: float | None) -> None:
        """Start the clock; `timeout` is in seconds, None for no limit."""
        self._at = None if timeout is None else time.monotonic() + timeout

    def seconds_left(self) -> float | None:
        """Return the seconds that are left, never negative; None for no limit."""
        return None if self._at is None else max(0.0, self._at - time.monotonic())

    def seconds_for_call(self) -> float | None:
        """Return the timeout of a call that is made now; None for no limit.

        Raises:
            DeadlineExceeded: there is no time left. A fast server might answer even a call whose timeout is 0.
        """
        left = self.seconds_left()
        if left == 0:
            raise DeadlineExceeded(OUT_OF_TIME)
        return left


class Attempts:
    """Counts one call's attempts."""

    def __init__(self, retries: Retries, deadline: Deadline) -> None:
        """Begin with the first attempt."""
        self._retries, self._deadline, self._made = retries, deadline, 1

    def pause_after(self, error: Any, *, or_unavailable: bool) -> float | None:
        """Return the seconds until the call is repeated; None if it is not."""
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            pause = retry_seconds_of(trailing(error))
            if pause is None:  # too large, or the server wants no retry
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
