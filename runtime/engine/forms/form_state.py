"""The form of one text as it is written: which tokens may follow, here and along a draft."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from echovlm_edge.runtime.contracts.errors import UnusableForm
from echovlm_edge.runtime.engine.forms.mask_threads import MaskThreads

if TYPE_CHECKING:
    from llguidance import LLMatcher

TOO_COMPLEX = (
    "The answer's form became too complex while the text was written: send a simpler schema or regular expression."
)
TOO_SLOW = (
    "The answer's form takes too long to keep to: {tokens} tokens took {seconds:.1f} s of a processor. Send a simpler schema or "
    "regular expression: fewer alternatives, and fewer repetitions such as .* and {{0,100}} within each other."
)
# Seconds of a processor that a form's masks may take: at once, and for each token. A report's forms take 0.4 ms at most on average
# (`python -m benchmarks.form_masks`), on a cart's processor four times that.
SLOW_AT, MOST_AT = (0.02, 0.002), (1.0, 0.005)
Mask = NDArray[np.uint32]  # [ceil(vocab_size / 32)], a bit for each token


class FormState:
    """What may follow in one text. One thread uses it; masks are computed on another while the decoder runs.

    Attributes:
        stops: what ends it.
        ended: whether a stop token was taken: the text has its form.
        coming: the masks that are being computed, while they are.
    """

    def __init__(
        self, new_matcher: Callable[[], LLMatcher], first: Mask, stops: Collection[int], threads: MaskThreads
    ) -> None:
        """Start before the text, where `first` says which tokens may come."""
        self._new_matcher, self._matcher, self._taken = new_matcher, new_matcher(), list[int]()
        self._threads, self.stops = threads, frozenset(stops)
        self._masks, self._draft, self._row = first[None], list[int](), 0
        self.coming: Future[NDArray[np.uint32]] | None = None
        self.ended = False
        self._seconds = self._charged = 0.0

    @property
    def ready(self) -> bool:
        """Whether `allowed` returns at once."""
        return self._row < len(self._masks) if self.coming is None else self.coming.done()

    @property
    def busy(self) -> bool:
        """Whether masks are being computed; all that asks for more would wait for them."""
        return self.coming is not None and not self.coming.done()

    @property
    def slow(self) -> bool:
        """Whether it has taken longer than those of a report's forms."""
        return self._seconds > SLOW_AT[0] + SLOW_AT[1] * len(self._taken)

    def uncharged(self) -> float:
        """Return the seconds of a processor that it took since the last call."""
        seconds, self._charged = self._seconds - self._charged, self._seconds
        return seconds

    def forced(self) -> list[int]:
        """Return tokens that most likely follow, because the form leaves hardly a choice; a stop token if nothing else may follow.

        Their text is certain, how it is divided into tokens is not: they are drafted, and verified as other drafts.
        """
        self._settle()
        if self._matcher.is_stopped():
            return [min(self.stops)]
        if self.slow:  # the decoder waits meanwhile
            return []
        started = time.thread_time()
        forced = self._matcher.compute_ff_tokens()
        self._recover()
        self._seconds += time.thread_time() - started
        return forced

    def valid(self, tokens: Sequence[int]) -> int:
        """Return how many of the tokens may follow, each after those before."""
        self._settle()
        if self._matcher.is_stopped():
            return int(tokens[:1] != [] and tokens[0] in self.stops)
        valid = self._matcher.validate_tokens(list(tokens))
        self._recover()
        return valid

    def expect(self, draft: Sequence[int]) -> None:
        """Begin to compute the masks for the next token and for those after each token of a draft that is `valid`.

        Those of a step that is repeated are there already.
        """
        self._settle()
        if self._row < len(self._masks) and list(draft) == self._draft[self._row : self._row + len(draft)]:
            return
        self._draft, self._row = list(draft), 0
        self.coming = self._threads.submit(self.slow, partial(self._timed, self._draft))

    def allowed(self) -> Mask:
        """Return which tokens may be next; waits for them unless they are `ready`.

        Raises:
            UnusableForm: the form is too complex here, or has taken too long.
        """
        if self.coming is None:
            self.expect(())
        self._settle()
        if self._seconds > MOST_AT[0] + MOST_AT[1] * len(self._taken):
            raise UnusableForm(TOO_SLOW.format(tokens=len(self._taken), seconds=self._seconds))
        mask: Mask = self._masks[self._row]
        if self._matcher.is_error() or not mask.any():
            raise UnusableForm(TOO_COMPLEX)
        return mask

    def take(self, token: int) -> None:
        """Go on behind the next token, one that is allowed."""
        self._settle()
        self._matcher.consume_token(token)
        self._taken.append(token)
        self.ended = token in self.stops
        drafted = self._draft[self._row : self._row + 1] == [token]
        self._row = self._row + 1 if drafted else len(self._masks)

    def _settle(self) -> None:
        """Wait for the masks that are being computed: the matcher is theirs until then."""
        if self.coming is not None:
            self._masks, self.coming = self.coming.result(), None

    def _recover(self) -> None:
        """Forget what a guess has led to: a form that is too complex behind it may not be so in the text."""
        if self._matcher.is_error():
            self._matcher = self._new_matcher()
            self._matcher.consume_tokens(self._taken)

    def leave(self) -> None:
        """Compute nothing more: nobody asks for it."""
        if self.coming is not None:
            self.coming.cancel()

    def _timed(self, draft: Sequence[int]) -> NDArray[np.uint32]:
        started = time.thread_time()
        try:
            return self._compute(draft)
        finally:
            self._seconds += time.thread_time() - started

    def _compute(self, draft: Sequence[int]) -> NDArray[np.uint32]:
        masks = self._along(draft)
        if draft and self._matcher.is_error():
            self._recover()
            masks = self._along(())
        return masks

    def _along(self, draft: Sequence[int]) -> NDArray[np.uint32]:
        masks = np.zeros((len(draft) + 1, self._masks.shape[1]), np.uint32)
        taken = 0
        for mask, token in zip(masks, [*draft, -1], strict=True):
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
            if token < 0 or token in self.stops or not self._matcher.try_consume_tokens([token]):
                break
            taken += 1
        self._matcher.rollback(taken)
        return masks


def is_allowed(mask: Mask, token: int) -> bool:
    """Return whether a token may be next."""
    return bool(mask[token >> 5] >> np.uint32(token & 31) & 1)


def allowed_tokens(mask: Mask, vocab_size: int) -> NDArray[np.int64]:
    """Return the tokens that may be next, int64 [n], by their ids."""
    bits = np.unpackbits(mask.astype("<u4", copy=False).view(np.uint8), bitorder="little", count=vocab_size)
    return np.flatnonzero(bits)
