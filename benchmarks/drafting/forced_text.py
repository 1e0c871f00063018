"""Make a decoder write given texts: the real one runs with all its cost, and then each row's likeliest token is the text's next one."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from echovlm_edge.runtime.backends import Backend, Logits, SlotRows

LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Call:
    """One call of the decoder.

    Attributes:
        began: in seconds, by time.perf_counter.
        written: tokens in the cache before those of this call, and tokens of this call, by slot: of each sequence that writes.
        prompts: whether it read a prompt too.
    """

    began: float
    written: Mapping[int, tuple[int, int]]
    prompts: bool


@dataclass(frozen=True)
class Steps:
    """What several steps in a row took and wrote."""

    steps: int
    seconds: float
    tokens: int
    rows: int


class ForcedText:
    """A backend, as `Backend` is, whose sequences write the texts that they are given by the marker in their prompt."""

    def __init__(self, inner: Backend, texts: Mapping[int, Sequence[int]], prompt_tokens: int) -> None:
        """Run `inner`.

        Args:
            inner: the real backend.
            texts: token ids by marker: the one token of a prompt that tells which text follows it. Each ends with a stop token.
            prompt_tokens: of each prompt, which are all as long.
        """
        self._inner, self._prompt = inner, prompt_tokens
        markers = inner.embed(np.array(list(texts)))
        self._texts = {row.tobytes(): text for row, text in zip(markers, texts.values(), strict=True)}
        self._of_slot: dict[int, Sequence[int]] = {}
        self.calls: list[Call] = []

    def __getattr__(self, name: str) -> Any:
        """Return what the real backend has."""
        return getattr(self._inner, name)

    def turn(self, rows: Sequence[SlotRows]) -> list[list[Logits]]:
        """Run the real decoder, then let the text's next token have the largest logit in every row."""
        began = time.perf_counter()
        found = [list(logits) for logits in self._inner.turn(rows)]
        written = dict[int, tuple[int, int]]()
        for part, logits in zip(rows, found, strict=True):
            slot = id(part.slot)
            if part.past < self._prompt:
                for row in part.embeddings:
                    if (text := self._texts.get(np.asarray(row, np.float32).tobytes())) is not None:
                        self._of_slot[slot] = text
            else:
                written[slot] = part.past, part.tokens
            if slot not in self._of_slot:  # the engine measures what rows cost before it has requests
                continue
            text, first = self._of_slot[slot], part.past + part.tokens - part.logits + 1 - self._prompt
            for place, row in enumerate(logits, first):
                np.asarray(row)[text[min(max(place, 0), len(text) - 1)]] = LARGEST
        self.calls.append(Call(began, written, len(written) < len(rows)))
        return found


def full_steps(calls: Sequence[Call], sequences: int) -> Steps:
    """Sum up the steps in which so many sequences wrote, and continued to write in the next call, and no prompt was read.

    A step lasts until the next one begins, so that drafting and sampling count too.
    """
    found = [pair for pair in pairwise(calls) if _goes_on(*pair, sequences)]
    return Steps(
        len(found),
        sum(after.began - step.began for step, after in found),
        sum(after.written[slot][0] - past for step, after in found for slot, (past, _) in step.written.items()),
        sum(tokens for step, _ in found for _, tokens in step.written.values()),
    )


def _goes_on(step: Call, after: Call, sequences: int) -> bool:
    return (
        not step.prompts
        and len(step.written) == sequences
        and all(slot in after.written and past < after.written[slot][0] for slot, (past, _) in step.written.items())
    )
