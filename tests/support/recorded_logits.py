"""Record the logits of every token of every generation, as bytes: what a test of bits compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from echovlm_edge.runtime.backends import Logits
from echovlm_edge.runtime.contracts.request import Sampling
from echovlm_edge.runtime.engine.scheduling import scheduler
from echovlm_edge.runtime.engine.tokens.sampling import Sampler

Rows = list[bytes]  # one for each token, vocab_size float32


class RecordedLogits:
    """Logits of all generations since `record`, by their sampling: requests that are told apart need seeds of their own."""

    def __init__(self) -> None:
        self.generations: list[tuple[Sampling, Rows]] = []

    def of(self, sampling: Sampling) -> Rows:
        """The rows of the one generation that was sampled so."""
        (rows,) = (rows for asked, rows in self.generations if asked == sampling)
        return rows


def record(patch: pytest.MonkeyPatch) -> RecordedLogits:
    """Record until `patch` is undone. A generation keeps its sampler while it is parked."""
    recorded = RecordedLogits()

    class Recording(Sampler):
        def __init__(self, options: Sampling, prompt_ids: NDArray[np.int64], *others: Any) -> None:
            super().__init__(options, prompt_ids, *others)
            self._rows: Rows = []
            recorded.generations.append((options, self._rows))

        def choose(self, logits: Logits, *others: Any) -> int:
            self._rows.append(np.asarray(logits).tobytes())
            return super().choose(logits, *others)

    patch.setattr(scheduler, "Sampler", Recording)
    return recorded
