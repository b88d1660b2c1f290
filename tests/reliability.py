"""Write what the proofs have told into ``docs/reliability.md``: `reliability.py FIGURES`.

FIGURES is the file that `figures.add` has written to.  Figures of one proof are added up, but of
the longest, or the most, the largest is kept, and of words the last.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeAlias

import trio

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"

Figure: TypeAlias = float | str
Figures: TypeAlias = dict[str, dict[str, Figure]]


def gathered(lines: Iterable[str]) -> Figures:
    """By proof, and host, in the order in which they were told."""
    found: Figures = {}
    for line in lines:
        told = json.loads(line)
        proof, host = told.pop("proof"), told.pop("host", None)
        figures = found.setdefault(proof if host is None else f"{proof} on {host}", {})
        for name, figure in told.items():
            before = figures.get(name)
            if before is None or isinstance(before, str) or isinstance(figure, str):
                figures[name] = figure
            elif name.startswith(("longest", "most")):
                figures[name] = max(before, figure)
            else:
                figures[name] = before + figure
    return found


def rows(found: Figures) -> Iterator[str]:
    yield "| proof | figures |"
    yield "|---|---|"
    for proof, figures in found.items():
        told = [f"{name.replace('_', ' ')}: {_told(figure)}" for name, figure in figures.items()]
        yield f"| {proof} | {', '.join(told)} |"


def _told(figure: Figure) -> str:
    if isinstance(figure, str):
        return figure
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:,.1f}"


def rewritten(page: str, found: Figures, where: str) -> str:
    """The page, with these figures in place of the old ones."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} has no place for figures: {BEGIN} ... {END}")
    return "\n".join([head + begin, where, "", *rows(found), end + tail])


def where() -> str:
    return (
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, trio {trio.__version__}:"
    )


def main() -> None:
    (path,) = sys.argv[1:]
    found = gathered(Path(path).read_text().splitlines())
    PAGE.write_text(rewritten(PAGE.read_text(), found, where()))


if __name__ == "__main__":
    main()
