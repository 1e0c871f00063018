"""What a decoder call of so many rows costs on this machine."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

TABLE = 128  # rows that are looked up, more are extrapolated


class RowCost:
    """Seconds of a call by its rows, between and beyond what was measured on straight lines; more rows never cost less.

    Attributes:
        most: the most rows that were measured.
    """

    def __init__(self, measured: Mapping[int, float]) -> None:
        """Take what calls of some numbers of rows took, in seconds; at least one number."""
        rows = sorted(measured)
        self.most = rows[-1]
        seconds = np.maximum.accumulate([measured[each] for each in rows])
        self._slope = float(seconds[-1] - seconds[-2]) / (rows[-1] - rows[-2]) if len(rows) > 1 else 0.0
        every = np.arange(TABLE)
        beyond = np.maximum(0, every - rows[-1]) * self._slope
        costs = np.interp(every, rows, seconds) + beyond
        more = every - every[:, None]  # [rows, rows]
        steps = np.where(more > 0, (costs - costs[:, None]) / np.maximum(more, 1), np.inf).min(1)
        self._seconds, self._least_steps = costs.tolist(), steps.tolist()

    def __call__(self, rows: int) -> float:
        """Return the seconds of a call of so many rows."""
        if rows < TABLE:
            return self._seconds[rows]
        return self._seconds[-1] + (rows - TABLE + 1) * self._slope

    def least_step(self, rows: int) -> float:
        """Return the least that each further row adds to a call of so many: of any number of further ones, by their average."""
        return self._least_steps[rows] if rows < TABLE - 1 else self._slope
