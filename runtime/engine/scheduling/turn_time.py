"""How long a turn of the decoder takes, learnt from the turns so far."""

from __future__ import annotations

from dataclasses import dataclass

KEPT = 0.9  # of what was learnt, at each turn


@dataclass
class TurnTime:
    """What turns take on this machine, as averages that fade.

    Attributes:
        step: seconds of a turn in which sequences write and no prompt is read; None until there was one.
        row: seconds that each row of a prompt adds to such a turn; None until there was one.
    """

    step: float | None = None
    row: float | None = None

    def learn(self, prompt_rows: int, seconds: float) -> None:
        """Take a turn into account in which sequences wrote and `prompt_rows` of a prompt were read."""
        if prompt_rows == 0:
            self.step = _faded(self.step, seconds)
        elif self.step is not None:
            self.row = _faded(self.row, max(0.0, seconds - self.step) / prompt_rows)


def _faded(average: float | None, value: float) -> float:
    return value if average is None else KEPT * average + (1 - KEPT) * value
