"""One prompt on its way through the decoder, and what the scheduler says of it on the way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.contracts.request import FinishReason, Priority, Sampling
from echovlm_edge.runtime.prompting.prompt import Prompt

DELIVERY_SECONDS = 0.016  # a screen shows no more often


@dataclass(frozen=True)
class Queued:
    """All slots are taken: a generation has to wait."""


@dataclass(frozen=True)
class Joined:
    """A generation got its slot; `reused` of its prompt's tokens were known already."""

    reused: int


@dataclass(frozen=True)
class Prefilled:
    """The prompt has been read: from `started`, by time.perf_counter, in `seconds`."""

    started: float
    seconds: float


@dataclass(frozen=True)
class Written:
    """One generated token; `finish` is set on the last one. Its step and choice took `seconds` from `started`."""

    token_id: int = field(repr=False)
    started: float
    seconds: float
    finish: FinishReason | None


@dataclass(frozen=True)
class Left:
    """A generation ended without a last token: it was stopped, or was only to be prefilled."""


Progress = Queued | Joined | Prefilled | Written | Left | Exception


class Outbox:
    """What happens to a generation, put in by the decoder's thread and taken out, all that is there, by the call's.

    A thread that wakes for every token of a fast model takes the decoder more time than the token. So tokens wake it no sooner
    than DELIVERY_SECONDS after it last took some; the first one, the last one, and what ends or delays it, at once. That a
    prompt is being read or was read waits for what comes next, or for the call's thread to look by itself.
    """

    def __init__(self) -> None:
        """Empty."""
        self._changed = threading.Condition()
        self._inside: list[Progress] = []
        self._urgent = False
        self._due = 0.0

    def put(self, progress: Progress) -> None:
        """Add the newest."""
        with self._changed:
            self._inside.append(progress)
            match progress:
                case Joined() | Prefilled():
                    return
                case Written(finish=None):
                    wakes = time.monotonic() >= self._due
                case _:
                    wakes = self._urgent = True
            if wakes:
                self._changed.notify()

    def take(self, timeout: float) -> list[Progress]:
        """All that is there, in order; waits up to `timeout` seconds for something, and then there is nothing."""
        with self._changed:
            self._changed.wait_for(lambda: self._urgent, self._due - time.monotonic())
            self._changed.wait_for(lambda: self._inside, timeout)
            taken, self._inside, self._urgent = self._inside, [], False
            if any(isinstance(progress, Written) for progress in taken):
                self._due = time.monotonic() + DELIVERY_SECONDS
            return taken


@dataclass(eq=False)
class Generation:
    """One prompt on its way through the decoder.

    Attributes:
        prompt: tokens and positions.
        embed: makes the embeddings of the prompt's tokens from one on [n - start, hidden_size], images in their places; called
            when it joins, with how many tokens are known.
        blocks: names of the prompt's beginnings: see `reuse.block_names`.
        sampling: how tokens are chosen; None to prefill up to the last image and keep that for later.
        stopped: asked before every chunk and token; then the generation leaves.
        priority: who goes first.
        client: whose turn it is counted as.
        scope: who finds what is kept of it.
        outbox: what happens to it, ended by a `Written` with its `finish` set, by `Left`, or by what went wrong.
    """

    prompt: Prompt
    embed: Callable[[int], Floats] = field(repr=False)
    blocks: Sequence[bytes] = field(repr=False)
    sampling: Sampling | None
    stopped: Callable[[], bool]
    priority: Priority = Priority.INTERACTIVE
    client: str = ""
    scope: str = ""
    outbox: Outbox = field(default_factory=Outbox)

    @property
    def lasting(self) -> int:
        """How many first tokens another prompt about the same images shares: those up to the last image's end."""
        rows = self.prompt.image_rows
        return int(rows[-1]) + 1 if len(rows) else 0

    @property
    def target(self) -> int:
        """How many tokens are to be prefilled."""
        return self.lasting if self.sampling is None else len(self.prompt.token_ids)
