"""Write the figures of the proofs into ``docs/reliability.md``: `reliability.py FILE`.

FILE has what `figures.add` was told.  Figures of one proof are added up, but the longest stays the
longest.
"""

import json
import platform
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import trio

PAGE: Final = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN: Final = "<!-- figures: begin -->"
END: Final = "<!-- figures: end -->"

Figures: TypeAlias = dict[str, dict[str, Any]]


def gathered(lines: Iterable[str]) -> Figures:
    """By proof."""
    found: Figures = defaultdict(dict)
    for line in lines:
        told = json.loads(line)
        proof = found[told.pop("proof")]
        for name, figure in told.items():
            if isinstance(figure, str):
                proof[name] = figure
            elif name.startswith("longest"):
                proof[name] = max(figure, proof.get(name, figure))
            else:
                proof[name] = figure + proof.get(name, 0)
    return found


def table(found: Figures) -> Iterator[str]:
    yield "| proof | figures |"
    yield "|---|---|"
    for proof, figures in found.items():
        told = ", ".join(
            f"{name.replace('_', ' ')} {figure:,}"
            if isinstance(figure, int | float)
            else f"{name.replace('_', ' ')} {figure}"
            for name, figure in figures.items()
        )
        yield f"| {proof} | {told} |"


def page(before: str, found: Figures, machine: str) -> str:
    head, _, rest = before.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not end:
        raise ValueError(f"{PAGE.name} has no place for figures")
    return "\n".join([f"{head}{BEGIN}", machine, "", *table(found), f"{END}{tail}"])
