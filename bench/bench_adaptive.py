"""How near do adaptive limits come to the best fixed one, with what latency and how many refusals?

Each limit in each simulated plant of `closed_loop`; a ratio is to the oracle, the best limit found
by search.  Throughput alone ranks nothing: more than the plant can do costs only latency, or
refusals.  ``--own SEED ...`` draws plants of our own, and tells the spread over seeds.  All is
deterministic: ``--event-log FILE`` is the same for every run of the same command.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TypeVar

from _harness import Cell, Report, Table, open_report
from closed_loop import Marks, Total, examined, marks, total
from plants import Case, own_cases, public_cases, smallest_of_each_family
from trio_parallel_steps import limits
from trio_parallel_steps.limits import (
    AIMDLimit,
    FixedLimit,
    Gradient2Limit,
    GradientLimit,
    Limit,
    VegasLimit,
    WindowedLimit,
)

J = TypeVar("J")
R = TypeVar("R")

DEFAULT = "KneeLimit"  # ours


def fixed(max_limit: int) -> Limit:
    return FixedLimit(min(10, max_limit))


def windowed(delegate: Callable[..., Limit], max_limit: int) -> Limit:
    return WindowedLimit(delegate(max_limit=max_limit))


LIMITS: dict[str, Callable[..., Limit]] = {
    **({DEFAULT: getattr(limits, DEFAULT)} if hasattr(limits, DEFAULT) else {}),
    "FixedLimit(10)": fixed,
    "AIMDLimit": AIMDLimit,
    "AIMDLimit, timeout 1 s": partial(AIMDLimit, timeout_s=1.0),
    "VegasLimit": VegasLimit,
    "VegasLimit, windowed": partial(windowed, VegasLimit),
    "GradientLimit": GradientLimit,
    "Gradient2Limit": Gradient2Limit,
    "Gradient2Limit, windowed": partial(windowed, Gradient2Limit),
}

Marked = Mapping[str, Sequence[Marks]]
"""by limit"""


def examine(job: tuple[str, Case], logged: bool = False) -> tuple[Marks, list[str]]:
    name, case = job
    log = [f"{name}: {case.id}"]
    limit = LIMITS[name](max_limit=case.max_limit)
    return marks(case, limit, log if logged else None), log


def examine_all(
    names: Sequence[str], cases: Sequence[Case], options: argparse.Namespace
) -> dict[str, list[Marks]]:
    jobs = [(name, case) for name in names for case in cases]
    marked: dict[str, list[Marks]] = {name: [] for name in names}
    examined_by = partial(examine, logged=options.event_log is not None)
    results = in_processes(examined_by, jobs, options.jobs)
    for (name, _), (mark, log) in zip(jobs, results, strict=True):
        marked[name].append(mark)
        if options.event_log is not None:
            with options.event_log.open("a") as file:
                file.writelines(f"{line}\n" for line in log)
    return marked


def in_processes(function: Callable[[J], R], jobs: Sequence[J], number: int) -> Iterable[R]:
    """What it says of each, in their order."""
    if number == 1:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(number) as pool:
        yield from pool.map(function, jobs)


# ---------------------------------------------------------------- tables


def but(families: str, marked: Iterable[Marks]) -> list[Marks]:
    return [mark for mark in marked if mark.family not in families.split()]


def only(families: str, marked: Iterable[Marks]) -> list[Marks]:
    return [mark for mark in marked if mark.family in families.split()]


def ratio(marked: Iterable[Marks]) -> Total | None:
    return total((mark.ratio for mark in marked), "min")


def inflation(marked: Iterable[Marks]) -> Total | None:
    return total((mark.inflation for mark in marked), "max")


def convergence(marked: Iterable[Marks]) -> Total | None:
    return total((mark.convergence for mark in marked), "max")


def limit_cv(marked: Iterable[Marks]) -> Total | None:
    return total((mark.limit_cv for mark in marked), "max")


def refused(marked: Iterable[Marks]) -> Total | None:
    """In percent."""
    return total((100 * mark.refusal for mark in marked), "max")


def mean(figures: Total | None) -> float | None:
    return None if figures is None else figures.mean


def worst(figures: Total | None) -> float | None:
    return None if figures is None else figures.worst


Measure = Callable[[Sequence[Marks]], float | None]

EXAM: dict[str, Measure] = {
    "ratio": lambda marked: mean(ratio(but("tiny", marked))),
    "worst": lambda marked: worst(ratio(but("tiny", marked))),
    "latency x": lambda marked: mean(inflation(but("tiny", marked))),
    "worst x": lambda marked: worst(inflation(but("tiny", marked))),
    "conv. s": lambda marked: mean(convergence(but("tiny", marked))),
    "worst s": lambda marked: worst(convergence(but("tiny", marked))),
    "limit CV": lambda marked: mean(limit_cv(but("tiny", marked))),
    "refused %": lambda marked: mean(refused(only("quota bucket", marked))),
    "tiny": lambda marked: mean(ratio(only("tiny", marked))),
}

# What our default has to reach on the public cases, and what it is hoped to.
GOALS: dict[str, tuple[str, str, Measure]] = {
    "mean ratio": (">= .93", ">= .955", EXAM["ratio"]),
    "worst ratio, no cliff": (
        ">= .85", ">= .92", lambda marked: worst(ratio(but("tiny cliff", marked))),
    ),
    "worst ratio, cliff": (">= .70", ">= .90", lambda marked: worst(ratio(only("cliff", marked)))),
    "mean latency x": ("<= 1.25", "<= 1.15", EXAM["latency x"]),
    "worst latency x, not mixed": (
        "<= 1.6", "<= 1.4", lambda marked: worst(inflation(but("tiny mixed", marked))),
    ),
    "worst latency x, mixed": (
        "<= 2.4", "<= 1.6", lambda marked: worst(inflation(only("mixed", marked))),
    ),
    "mean convergence, s": ("<= 6", "<= 3", EXAM["conv. s"]),
    "worst convergence, s": ("<= 40", "<= 12", EXAM["worst s"]),
    "quota: ratio": (">= .98", ">= .99", lambda marked: mean(ratio(only("quota", marked)))),
    "quota: refused, %": ("<= .5", "<= .2", lambda marked: mean(refused(only("quota", marked)))),
    "bucket: ratio": (">= .88", ">= .95", lambda marked: mean(ratio(only("bucket", marked)))),
    "tiny: ratio": (">= .75", ">= .85", EXAM["tiny"]),
}  # fmt: skip


def cell(figure: float | None) -> Cell:
    return "-" if figure is None else figure


def exam_table(title: str, marked: Marked) -> Table:
    rows = [
        [name, *(cell(measure(each)) for measure in EXAM.values())] for name, each in marked.items()
    ]
    return Table(title, ("", *EXAM), rows)


def family_table(title: str, marked: Marked) -> Table:
    families = list(dict.fromkeys(mark.family for each in marked.values() for mark in each))
    rows = [
        [name, *(cell(mean(ratio(only(family, each)))) for family in families)]
        for name, each in marked.items()
    ]
    return Table(f"{title}: mean ratio by family", ("", *families), rows)


def case_table(title: str, marked: Sequence[Marks]) -> Table:
    columns = ("", "ratio", "latency x", "conv. s", "limit CV", "refused %", "oracle's %")
    rows: list[list[Cell]] = []
    for mark in marked:
        refusals = 100 * mark.refusal, 100 * mark.oracle_refusal
        figures = mark.ratio, mark.inflation, cell(mark.convergence), mark.limit_cv, *refusals
        name = f"{mark.id} (not done)" if mark.truncated else mark.id
        rows.append([name, *figures, mark.limit_mean, str(mark.oracle_limit)])
    return Table(title, (*columns, "limit", "oracle"), rows)


def goal_table(title: str, marked: Sequence[Marks]) -> Table:
    rows = [
        [name, cell(measure(marked)), must, stretch]
        for name, (must, stretch, measure) in GOALS.items()
    ]
    return Table(title, ("", DEFAULT, "must", "stretch"), rows)


def spread_table(by_seed: Mapping[int, Marked]) -> Table:
    """Each figure's mean over the seeds, and its range."""
    rows: list[list[Cell]] = []
    for name in next(iter(by_seed.values())):
        row: list[Cell] = [name]
        for measure in EXAM.values():
            figures = [measure(marked[name]) for marked in by_seed.values()]
            row.append(spread([figure for figure in figures if figure is not None]))
        rows.append(row)
    return Table(f"Spread over the seeds {', '.join(map(str, by_seed))}", ("", *EXAM), rows)


def spread(figures: Sequence[float]) -> str:
    if not figures:
        return "-"
    return f"{fmean(figures):.3g} ({min(figures):.3g}-{max(figures):.3g})"


# ---------------------------------------------------------------- the command


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--own", type=int, nargs="+", metavar="SEED", help="plants of our own")
    parser.add_argument("--per", type=int, default=1, metavar="N", help="so many a family")
    parser.add_argument("--limit", nargs="+", choices=LIMITS, default=[*LIMITS], help="these only")
    parser.add_argument("--cases", action="store_true", help="a table of all cases for each limit")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes at work")
    parser.add_argument("--event-log", type=Path, metavar="FILE", help="write every event to FILE")


def add_tables(report: Report, title: str, cases: Sequence[Case]) -> Marked:
    marked = examine_all(report.options.limit, cases, report.options)
    report.add(exam_table(title, marked))
    report.add(family_table(title, marked))
    if report.options.cases:
        for name, each in marked.items():
            report.add(case_table(f"{title}: {name}", each))
    if DEFAULT in marked:
        report.add(goal_table(f"{title}: goals", marked[DEFAULT]))
    return marked


def main(report: Report) -> None:
    options = report.options
    if options.event_log is not None:
        options.event_log.write_text("")
    if not options.own:
        cases = public_cases()
        shown = smallest_of_each_family(cases) if report.quick else cases
        add_tables(report, f"{len(shown)} of {len(cases)} public cases", shown)
        return
    by_seed = {}
    for seed in options.own:
        drawn = own_cases(seed, options.per)
        cases = list(in_processes(examined, drawn, options.jobs))
        by_seed[seed] = add_tables(report, f"{len(cases)} cases of seed {seed}", cases)
    report.add(spread_table(by_seed))


if __name__ == "__main__":
    report = open_report(__doc__, add_options)
    main(report)
    report.save()
