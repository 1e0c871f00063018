"""What the soak found, and the bounds that must hold."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.table import Table

from benchmarks.soak.hostile import DEAF, HALF_OPEN
from echovlm_edge.runtime.contracts.tables import names, new_table, words

CLIENTS, HOSTILE, OVER_HTTP = 16, 2, 5  # two of the sixteen are hostile, five speak HTTP
# The bounds that must hold.
MAX_RSS_GROWTH, MAX_REFUSAL_P99, MIN_BATCH_GAIN, MAX_STUDY_RATIO = 0.05, 0.050, 2.5, 1.2
MAX_BESIDE_RATIO, MAX_BESIDE_SECONDS = 1.2, 0.100


@dataclass
class Soak:
    """The contents of `soak.json`; seconds and shares."""

    machine: str
    bundle: str
    minutes: float
    calls: dict[str, int] = field(default_factory=dict)
    wrong_texts: int = 0
    rss_growth: float = 0.0
    leaked_slots: float = 0.0
    refusal_p99: float = 0.0
    tokens_per_second_alone: float = 0.0
    tokens_per_second_of_8: float = 0.0
    study_first_token: float = 0.0
    text_first_token: float = 0.0
    study_equals_one_call: bool = False
    report_alone: float = 0.0
    report_beside_hostile: float = 0.0
    health_alone: float = 0.0
    health_beside_hostile: float = 0.0

    def checks(self) -> dict[str, tuple[str, bool]]:
        """List the checks: name, figure, and whether it holds."""
        gain = self.tokens_per_second_of_8 / max(self.tokens_per_second_alone, 1e-9)
        ratio = self.study_first_token / max(self.text_first_token, 1e-9)
        slower = self.report_beside_hostile / max(self.report_alone, 1e-9)
        later = self.health_beside_hostile - self.health_alone
        return {
            "texts that differ from the single client's": (str(self.wrong_texts), self.wrong_texts == 0),
            "leaked slots": (f"{self.leaked_slots:g}", self.leaked_slots == 0),
            "memory after warm-up": (f"{self.rss_growth:+.1%}", self.rss_growth <= MAX_RSS_GROWTH),
            "refusal of a full queue, p99": (f"{self.refusal_p99 * 1e3:.1f} ms", self.refusal_p99 <= MAX_REFUSAL_P99),
            "batched decode of 8 over one": (f"{gain:.2f}x", gain >= MIN_BATCH_GAIN),
            "first token of a study, relative to a text prompt": (f"{ratio:.2f}x", ratio <= MAX_STUDY_RATIO),
            "a study's text equals that of one call": (str(self.study_equals_one_call), self.study_equals_one_call),
            f"a report with {HALF_OPEN} half-open and {DEAF} unread connections": (
                f"{slower:.2f}x",
                slower <= MAX_BESIDE_RATIO and self.report_beside_hostile - self.report_alone <= MAX_BESIDE_SECONDS,
            ),
            "a health check with these connections": (f"{later * 1e3:+.1f} ms", later <= MAX_BESIDE_SECONDS),
        }


def table_of(found: Soak) -> Table:
    table = new_table(
        f"{found.bundle}, {CLIENTS} clients, {HOSTILE} of them hostile and {OVER_HTTP} by HTTP, {found.minutes:g} minutes, {found.machine}",
        names("what"),
        names("figure"),
        words("holds"),
    )
    for what, (figure, holds) in found.checks().items():
        table.add_row(what, figure, "yes" if holds else "[red]no[/red]")
    table.caption = ", ".join(f"{count} {name}" for name, count in sorted(found.calls.items()))
    return table
