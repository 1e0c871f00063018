"""Define a generation: a prompt for the decoder, and the progress that the scheduler reports for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from echovlm_edge.runtime.backends import Floats
from echovlm_edge.runtime.contracts.request import FinishReason, Priority, Sampling
from echovlm_edge.runtime.engine.forms.form_state import FormState
from echovlm_edge.runtime.engine.tokens.likelihood import Likelihood
from echovlm_edge.runtime.prompting.prompt import Prompt

DELIVERY_SECONDS = 0.016  # a 60 Hz screen shows text no more often
POLL_SECONDS = 0.05  # between two checks whether the caller is still there


@dataclass(frozen=True)
class Queued:
    """All slots are taken: a generation has to wait."""


@dataclass(frozen=True)
class Joined:
    """A generation got its slot; `reused` of its prompt's tokens were cached."""

    reused: int


@dataclass(frozen=True)
class Prefilled:
    """The prompt has been prefilled: from `started`, by time.perf_counter, in `seconds`."""

    started: float
    seconds: float


@dataclass(frozen=True)
class Written:
    """One generated token; `finish` is set on the last one. Its decode step and sampling took `seconds` from `started`."""

    token_id: int = field(repr=False)
    started: float
    seconds: float
    finish: FinishReason | None
    likelihood: Likelihood | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Scored:
    """A form's choices were read: their log probabilities, in their order."""

    log_probabilities: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class Left:
    """A generation ended without a last token: it was stopped, or was only to be prefilled."""


Progress = Queued | Joined | Prefilled | Scored | Written | Left | Exception


class Outbox:
    """A generation's progress: the decoder's thread puts it in, and the call's thread takes out all that is there.

    With a fast model, waking the call's thread for every token would cost the decoder more time than the token itself. So a token
    wakes the thread only if it last took progress at least DELIVERY_SECONDS ago. The first token, the last token, and anything that
    ends or delays the generation wake it immediately. `Joined`, `Prefilled` and `Scored` do not wake it: it sees them with the next
    progress, or when it polls.
    """

    def __init__(self) -> None:
        """Start empty."""
        self._changed = threading.Condition()
        self._inside: list[Progress] = []
        self._urgent = False
        self._due = 0.0

    def put(self, progress: Progress) -> None:
        """Add the newest progress, and wake the call's thread if it is due."""
        with self._changed:
            self._inside.append(progress)
            match progress:
                case Joined() | Prefilled() | Scored():
                    return
                case Written(finish=None):
                    wakes = time.monotonic() >= self._due
                case _:
                    wakes = self._urgent = True
            if wakes:
                self._changed.notify()

    def take(self, timeout: float) -> list[Progress]:
        """Take all that is there, in order; waits up to `timeout` seconds for something, and returns nothing after that."""
        with self._changed:
            self._changed.wait_for(lambda: self._urgent, self._due - time.monotonic())
            self._changed.wait_for(lambda: self._inside, timeout)
            taken, self._inside, self._urgent = self._inside, [], False
            if any(isinstance(progress, Written) for progress in taken):
                self._due = time.monotonic() + DELIVERY_SECONDS
            return taken


@dataclass(eq=False)
class Generation:
    """A prompt to run through the decoder, and how to continue it.

    Attributes:
        prompt: tokens and positions.
        embed: `embed(start, stop)` makes the embeddings of the prompt's tokens `start` to `stop`, float32
            [stop - start, hidden_size], with the images' in their places; called for each chunk, so that nobody waits for all.
        blocks: names of the prompt's prefixes, see `reuse.block_names`.
        sampling: how tokens are chosen; None to prefill up to the last image only and cache that.
        stopped: asked before every chunk and token; once it returns True the generation is released.
        priority: its scheduling priority.
        client: the client whose share of the decoder it uses.
        scope: who may reuse its cached keys and values.
        continued: names the prefixes of the prompt followed by these written tokens, as `blocks` does, so that a later turn finds
            them; None to cache nothing of what is written.
        log_probabilities: how many of the likeliest tokens `Written.likelihood` has; None for no likelihood.
        form: what the text must look like, for this generation alone; None for any text.
        choices: each of the form's choices, as tokens; they are read before the text is written, see `Scored`.
        outbox: its progress, which ends with a `Written` whose `finish` is set, with `Left`, or with an exception.
    """

    prompt: Prompt
    embed: Callable[[int, int], Floats] = field(repr=False)
    blocks: Sequence[bytes] = field(repr=False)
    sampling: Sampling | None
    stopped: Callable[[], bool]
    priority: Priority = Priority.INTERACTIVE
    client: str = ""
    scope: str = ""
    outbox: Outbox = field(default_factory=Outbox)
    continued: Callable[[Sequence[int]], Sequence[bytes]] | None = field(default=None, repr=False)
    log_probabilities: int | None = None
    form: FormState | None = field(default=None, repr=False)
    choices: Sequence[Sequence[int]] = field(default=(), repr=False)

    @property
    def lasting(self) -> int:
        """How many leading tokens another prompt about the same images shares: those up to the last image's end."""
        rows = self.prompt.image_rows
        return int(rows[-1]) + 1 if len(rows) else 0

    @property
    def target(self) -> int:
        """How many tokens have to be prefilled."""
        return self.lasting if self.sampling is None else len(self.prompt.token_ids)
