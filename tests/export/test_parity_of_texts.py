"""How many greedy tokens agree: those before the first that the reference would not have written."""

from __future__ import annotations

import numpy as np
import pytest

from echovlm_edge.export.parity.parity import agreed_tokens, divergences


@pytest.mark.parametrize(
    ("best", "written", "agreed"),
    [([3, 1, 2], [3, 1, 2], 3), ([3, 1, 2], [3, 0, 2], 1), ([3, 1, 2], [0, 1, 2], 0)],
)
def test_tokens_agree_until_the_first_difference(best: list[int], written: list[int], agreed: int) -> None:
    logits = np.zeros((3, 4), np.float32)
    logits[np.arange(3), best] = 1
    assert agreed_tokens(logits, np.array(written)) == agreed


def test_divergence_of_each_row() -> None:
    """Of p = (1/2, 1/2) from q = (1/4, 3/4): log 2 - log 3 / 2 nats; of equal rows none."""
    expected, actual = np.zeros((40, 2), np.float32), np.zeros((40, 2), np.float32)
    actual[7] = np.log([0.25, 0.75])
    found = divergences(expected, actual)
    assert found[7] == pytest.approx(np.log(2) - np.log(3) / 2, rel=1e-6)
    assert np.delete(found, 7) == pytest.approx(0, abs=1e-12)
