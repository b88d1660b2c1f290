"""What the benchmarks share: rotated rounds, tables with ratios, JSON, and where it ran.

1. Contestants run side by side in one process.  Every round starts with another of them, and
   the first round only warms up.
2. Garbage is collected before each measurement; the collector is on during it, as in real life.
3. A figure is the median over the rounds, a ratio is one of two medians of the same run.  Only
   ratios mean anything on another machine.
4. Nothing gates: the exit code is 0 whatever the figures say.
"""

import argparse
import asyncio
import datetime as dt
import gc
import json
import os
import platform
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Protocol, TypeVar

import attrs
import trio

Cell = str | float


class Named(Protocol):
    @property
    def name(self) -> str: ...


C = TypeVar("C", bound=Named)
T = TypeVar("T")


@attrs.frozen
class Table:
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    samples: Mapping[str, Sequence[float]] = attrs.field(factory=dict)  # for the JSON only


@attrs.frozen
class Report:
    """Prints its tables as they come, and keeps them for `--json`."""

    name: str
    question: str
    quick: bool
    options: argparse.Namespace
    _json: Path | None
    machine: Mapping[str, str]
    _tables: list[Table] = attrs.field(factory=list)

    def add(self, table: Table) -> None:
        self._tables.append(table)
        print(f"\n{table.title}\n\n{_text(table)}", flush=True)

    def save(self) -> None:
        """Several benchmarks may share a file: each has its own name in it."""
        if self._json is None:
            return
        content = json.loads(self._json.read_text()) if self._json.exists() else {}
        content[self.name] = {
            "question": self.question,
            "quick": self.quick,
            "machine": self.machine,
            "tables": [attrs.asdict(table) for table in self._tables],
        }
        self._json.write_text(json.dumps(content, indent=1) + "\n")


def open_report(
    doc: str | None, add_options: Callable[[argparse.ArgumentParser], object] = lambda parser: None
) -> Report:
    """Read the command line, with options of the benchmark's own; print what is asked and where it
    runs."""
    question = (doc or "").partition("\n\n")[0].replace("\n", " ")
    parser = argparse.ArgumentParser(description=question)
    parser.add_argument("--json", type=Path, metavar="FILE", help="add all figures to FILE")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes")
    add_options(parser)
    options = parser.parse_args()
    machine = _machine()
    print(question, "; ".join(f"{name} {value}" for name, value in machine.items()), sep="\n")
    name = Path(parser.prog).stem.removeprefix("bench_")
    return Report(name, question, options.quick, options, options.json, machine)


def run_in(host: str, main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    return trio.run(main) if host == "trio" else asyncio.run(main())


def rotated(contestants: Sequence[C], rounds: int, measure: Callable[[C], T]) -> dict[str, list[T]]:
    """What `measure` says of each contestant, round by round."""
    samples: dict[str, list[T]] = {contestant.name: [] for contestant in contestants}
    for turn in range(rounds + 1):
        first = turn % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            gc.collect()
            figure = measure(contestant)
            if turn > 0:
                samples[contestant.name].append(figure)
    return samples


def compared(
    title: str, unit: str, samples: Mapping[str, Sequence[float]], baselines: Iterable[str]
) -> Table:
    """A row a contestant: its median, its range and its ratio to each baseline."""
    medians = {name: median(figures) for name, figures in samples.items()}
    below = list(baselines)
    rows: list[list[Cell]] = []
    for name, figures in samples.items():
        spread = f"{_cell(min(figures))}-{_cell(max(figures))}"
        rows.append([name, medians[name], spread, *(medians[name] / medians[b] for b in below)])
    return Table(title, ("", unit, "range", *(f"x {b}" for b in below)), rows, samples)


def _text(table: Table) -> str:
    lines = [tuple(table.columns), *(tuple(map(_cell, row)) for row in table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def _cell(value: Cell) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def _machine() -> dict[str, str]:
    about = {
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "cpu": f"{_cpu_model()} x {os.cpu_count()}",
        "os": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }
    for distribution in ("trio-parallel-steps", "trio", "attrs", "anyio", "aiometer"):
        try:
            about[distribution] = version(distribution)
        except PackageNotFoundError:
            about[distribution] = "(not installed)"
    return about


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())
