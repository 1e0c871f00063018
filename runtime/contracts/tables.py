"""Tables in a terminal: names fold where it is narrow, figures are never cut."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table

NARROWEST_NAME = 12  # characters to which a column of names may fold


def names(heading: str) -> Column:
    """A column of names, which folds where the terminal is narrow."""
    return Column(heading, overflow="fold")


def figures(heading: str) -> Column:
    """A column of figures, right-justified; a long heading has line breaks."""
    return Column(heading, justify="right", no_wrap=True)


def words(heading: str) -> Column:
    """A column of short words that stay whole."""
    return Column(heading, no_wrap=True)


def new_table(title: str, *columns: Column) -> Table:
    """A table in the product's style."""
    return Table(*columns, box=box.SIMPLE, title=title or None, title_justify="left", padding=(0, 1), pad_edge=False)


def print_table(console: Console, table: Table) -> None:
    """Print a table with every figure whole: in a terminal too narrow for them, lines go over its edge rather than being cut."""
    for column in table.columns:
        cells = [column.header, *column.cells]
        longest = max(Measurement.get(console, console.options.update(width=1000), cell).maximum for cell in cells)
        column.min_width = longest if column.no_wrap else min(longest, NARROWEST_NAME)
    console.print(table, crop=False)


def readable_bytes(count: float) -> str:
    """Bytes in the unit that fits: `7.34 GB`, `21.0 MB`, `4.5 kB` (powers of 1000)."""
    if count >= 1e8:
        return f"{count / 1e9:,.2f} GB"
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
