"""How long a turn of the decoder takes by its number of rows, learnt from the turns so far."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 0.97  # of what was learnt, after each turn
SPREAD = 4.0  # variance of the rows from which on a slope is believed


@dataclass
class TurnTime:
    """A line through recent turns, seconds = base + per_row * rows, by least squares with weights that fade.

    Turns are alike as long as a few rows are among them: memory is read once for all rows, and arithmetic grows with them.
    """

    weight: float = 0.0
    rows: float = 0.0  # means
    seconds: float = 0.0
    variance: float = 0.0
    covariance: float = 0.0

    def learn(self, rows: int, seconds: float) -> None:
        """Take one turn into account."""
        self.weight = self.weight * KEPT + 1
        share = 1 / self.weight
        apart, late = rows - self.rows, seconds - self.seconds
        self.rows += share * apart
        self.seconds += share * late
        self.variance = (1 - share) * (self.variance + share * apart * apart)
        self.covariance = (1 - share) * (self.covariance + share * apart * late)

    @property
    def per_row(self) -> float | None:
        """Seconds that one more row takes; None until turns of different sizes were seen."""
        if self.variance < SPREAD or self.covariance <= 0:
            return None
        return self.covariance / self.variance

    def of(self, rows: int) -> float:
        """Estimate the seconds of a turn of `rows`; 0 before the first."""
        return max(0.0, self.seconds + (self.per_row or 0.0) * (rows - self.rows))

    def rows_within(self, seconds: float) -> int | None:
        """Estimate how many rows a turn of at most `seconds` has; None where nothing is known."""
        if self.per_row is None:
            return None
        return max(0, int(self.rows + (seconds - self.seconds) / self.per_row))
