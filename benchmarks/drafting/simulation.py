"""Count how many tokens a step would write with drafts from a table of phrases, without a model.

python -m benchmarks.drafting.simulation [--captions FILE…]

A held-out report is taken for what the model writes. A draft continues while the probability that all of it is accepted pays for one more
row of the decoder's step. Measured, 8 rows cost 1.24 times one with AVX-512 VNNI and 2.3 times one with AVX2.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console

from benchmarks.drafting.texts import Texts, add_captions, drafting_texts
from echovlm_edge.runtime.contracts.command import run_command
from echovlm_edge.runtime.contracts.tables import figures, names, new_table, print_table
from echovlm_edge.runtime.drafting.phrase_counts import ORDERS
from echovlm_edge.runtime.drafting.phrase_table import PhraseTable

ROW_COSTS = {"VNNI": 0.24 / 7, "AVX2": 1.3 / 7}  # of one more row, in steps of one row
MOST = 15  # drafted tokens of a step
FIRST_RATE = 1.5  # tokens for the time of a step of one row, until it is measured


@dataclass(frozen=True)
class Outcome:
    """What drafting would do.

    Attributes:
        tokens_per_step: that are written.
        rows_per_step: that are computed, one of them without a draft.
        ratio: of the tokens a second with and without drafting.
    """

    tokens_per_step: float
    rows_per_step: float
    ratio: float


@dataclass(frozen=True)
class Case:
    """A table, what is different about it, and how it drafts at each cost of a row."""

    what: str
    table: PhraseTable
    order: int = ORDERS

    def outcomes(self, texts: Texts) -> list[Outcome]:
        """Write the held texts at each of `ROW_COSTS`."""
        return [simulate(self.table, texts.held, cost, self.order) for cost in ROW_COSTS.values()]


def simulate(table: PhraseTable, held: list[list[int]], row_cost: float, order: int = ORDERS) -> Outcome:
    """Write texts with drafts from a table, by contexts of up to `order` tokens.

    The first pass over the texts measures the rate that the second one drafts for. A text's first token comes without a draft.
    """
    rate = FIRST_RATE
    for _ in range(2):
        tokens = steps = rows = 0
        for text in held:
            end = 1
            while end < len(text):
                draft = _draft(table, text[max(0, end - order) : end], rate * row_cost, order)
                accepted = 0
                while accepted < len(draft) and draft[accepted] == text[end + accepted]:
                    accepted += 1  # ends before the text does, since no draft continues after the token at the end
                written = min(accepted + 1, len(text) - end)
                end, tokens, steps, rows = end + written, tokens + written, steps + 1, rows + 1 + len(draft)
        rate = tokens / (steps + row_cost * (rows - steps))
    return Outcome(tokens / steps, rows / steps, rate)


def _draft(table: PhraseTable, context: list[int], least: float, order: int) -> list[int]:
    """Guess tokens while the probability that all are accepted is at least `least`."""
    text, draft, share = context, list[int](), 1.0
    while len(draft) < MOST and (guess := table.following(text[-order:])):
        share *= guess.share
        if share < least:
            break
        draft.append(guess.token)
        text = [*text, guess.token]
    return draft


def cases(texts: Texts) -> Iterator[Case]:
    """Vary one thing at a time: who shares a phrase, how many reports there are, and how long a context is."""
    for least in (1, 2, 3, 5):
        yield Case(f"phrases of {least} reports", PhraseTable.build(texts.store, least, texts.studies))
    drawn = random.Random(0).sample(range(len(texts.store)), len(texts.store))
    for count in (64, 300, 1000, 3000):
        if count < len(drawn):
            chosen = [texts.store[place] for place in drawn[:count]]
            yield Case(f"{count} reports, phrases of 1", PhraseTable.build(chosen, 1))
            yield Case(f"{count} reports, phrases of 3", PhraseTable.build(chosen, 3))
    table = PhraseTable.build(texts.store, 3, texts.studies)
    for order in range(2, ORDERS):
        yield Case(f"contexts of up to {order} tokens, phrases of 3", table, order)


def main() -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Count the tokens a step that drafts from phrases would write.")
    add_captions(parser)
    texts = drafting_texts(parser.parse_args().captions)
    measures = [f"{name},\n{what}" for name in ROW_COSTS for what in ("tokens\na step", "rows\na step", "ratio")]
    title = f"{len(texts.store):,} reports of {texts.name} in the store, {len(texts.held)} others written"
    shown = new_table(title, names("table"), figures("contexts"), *map(figures, measures))
    for case in cases(texts):
        found = [f"{value:.2f}" for one in case.outcomes(texts) for value in vars(one).values()]
        shown.add_row(case.what, f"{len(case.table):,}", *found)
    console = Console(width=110)
    print_table(console, shown)
    if texts.note:
        console.print(texts.note)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
