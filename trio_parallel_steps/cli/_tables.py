"""What the demo says to people at its end: the totals, and the endings."""

from collections import Counter

from rich.table import Table

from ._census import total
from ._demo import Finish
from ._view import STYLES


def totals_table(finish: Finish) -> Table:
    """The totals over the packages that were counted, of all that there are."""
    totals = total(finish.counted)
    counts = totals.counts
    table = two_columns("Totals")
    table.add_row("packages", f"{totals.packages:,} of {finish.packages:,}")
    table.add_row("files", f"{counts.files:,}")
    table.add_row("unparsed files", f"{counts.unparsed:,}")
    table.add_row("lines", f"{counts.lines:,}")
    table.add_row("classes", f"{counts.classes:,}")
    table.add_row("functions", f"{counts.functions:,}")
    if totals.largest is not None:
        lines = finish.counted[totals.largest].lines
        table.add_row("largest", f"{totals.largest}, {lines:,} lines")
    return table


def endings_table(finish: Finish) -> Table:
    """How many branches ended how, samples included."""
    result = finish.result
    count = Counter(branch.status for branch in result.values())
    table = two_columns("Endings")
    for status, style in STYLES.items():
        if count[status]:
            table.add_row(status.value, f"{count[status]:,}", style=style)
    table.add_section()
    table.add_row("all", f"{len(result):,}")
    table.add_row("most at once", f"{result.peak_in_flight:,}")
    table.add_row("seconds", f"{finish.seconds:.1f}")
    return table


def two_columns(title: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table
