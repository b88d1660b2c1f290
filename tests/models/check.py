"""Check the model of admission beside this file with spin: what holds, and what each rule is for.

1. A configuration is a size of programs; spin explores all of these under all schedules.
2. A broken variant leaves out one rule.  It has to fail, and in the way that is written down here:
   so we know that the model can.
3. Every search is bounded, in seconds and in memory, and an incomplete one is a failure.
4. The exit code is 0 if every outcome is the one expected.

`check.py [NAME ...]` checks those only.  Needs spin and a C compiler, and tests/ on the path.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

import figures

MODEL: Final = Path(__file__).with_name("admission.pml")
SECONDS: Final = 600  # at most, for one search
MEGABYTES: Final = 4000  # at most, for one search
JOBS: Final = 2

HOLDS: Final = "holds"
DEADLOCK: Final = "invalid end state"
CYCLE: Final = "non-progress cycle"
# What spin says when an assertion fails ends with its text: the name of what does not hold.
CAP: Final = "assertion violated cap_is_kept"
BOOKS: Final = "assertion violated books_are_right"
CONSERVED: Final = "assertion violated work_is_conserved"
RESUMERS_FIRST: Final = "assertion violated resumers_are_first"


class Configuration(NamedTuple):
    name: str
    switches: str  # of the model, as for -D
    expected: str = HOLDS
    cycles: bool = False  # look for runs that never end, instead of states


class Outcome(NamedTuple):
    name: str
    switches: str
    expected: str
    outcome: str
    states: int
    transitions: int
    depth: int
    megabytes: float
    seconds: float

    def is_expected(self) -> bool:
        return self.outcome == self.expected


SMALLEST: Final = Configuration("two", "N=2 POOLS=2 WAITS=2 CUTS=1 STOPS=1")

CONFIGURATIONS: Final = [
    SMALLEST,
    Configuration("three", "N=3 POOLS=2 WAITS=1 CUTS=1 STOPS=1"),
    Configuration("three, one by one", "N=3 POOLS=2 WAITS=1 CUTS=1 STOPS=1 ONE_BY_ONE"),
    Configuration("three, of two tasks", "N=3 POOLS=2 WAITS=2 CUTS=1 AUX"),
    Configuration("three, of two tasks, stopped", "N=3 POOLS=1 WAITS=2 STOPS=1 AUX"),
    Configuration("three in three pools", "N=3 POOLS=3 WAITS=1"),
    Configuration("three in three pools, stopped", "N=3 POOLS=3 WAITS=0 STOPS=1"),
    Configuration("four", "N=4 POOLS=2 WAITS=1"),
    Configuration("four, stopped", "N=4 POOLS=2 WAITS=0 STOPS=1"),
    Configuration("four in one pool", "N=4 POOLS=1 WAITS=2 STOPS=1 CAP=3"),
    Configuration("five in one pool", "N=5 POOLS=1 WAITS=1"),
    Configuration("five of weight 1", "N=5 POOLS=2 WAITS=0 WEIGHT=1"),
    Configuration("five, a tree", "N=5 POOLS=2 WAITS=1 P1=0 P2=0 P3=1 P4=1"),
    Configuration("three end", "N=3 POOLS=2 WAITS=1", cycles=True),
]

BROKEN: Final = [
    Configuration("HOLD", "N=2 POOLS=1 OUTSIDE_ONLY", DEADLOCK),
    Configuration("LEND_INNERMOST", "N=2 OUTSIDE_ONLY", DEADLOCK),
    Configuration("RESUME_WITHOUT_TOKEN", "N=3 OUTSIDE_ONLY", CAP),
    Configuration("NO_WITHDRAWAL", "N=3 POOLS=1 WAITS=2 CUTS=1 AUX OUTSIDE_ONLY", DEADLOCK),
    Configuration("NO_CIRCLE_CHECK", "N=2 WAITS=2", DEADLOCK),
    Configuration("SHORT_CIRCLES_ONLY", "N=3 WAITS=3", DEADLOCK),
    Configuration("NOT_ALONE", "N=1", DEADLOCK),
    Configuration("OUTERMOST_ONLY", "N=2", CAP),
    Configuration("NO_RESUME_FIRST", "N=3", RESUMERS_FIRST),
    Configuration("NO_HEAD", "N=4 POOLS=1", RESUMERS_FIRST),
    Configuration("HEIR_UNCHECKED", "N=3", CAP),
    Configuration("BORROWERS_UNCHECKED", "N=3 WAITS=2 STOPS=1", BOOKS),
    Configuration("STOPPED_QUEUES", "N=2 STOPS=1 OUTSIDE_ONLY", DEADLOCK),
    Configuration("NO_UNBLOCK", "N=3 STOPS=1", CONSERVED),
    Configuration("ENDLESS_WAITS", "N=2 WAITS=1 CUTS=1 STOPS=1", CYCLE, cycles=True),
]


def missing() -> list[str]:
    """The programs that we need and that are not here."""
    return [name for name in ("spin", "cc") if shutil.which(name) is None]


def check(configuration: Configuration, into: Path) -> Outcome:
    """Build it in a directory of its own in `into`, run it there, and leave all there."""
    name, switches, expected, cycles = configuration
    work = into / name.replace(", ", "-").replace(" ", "-")
    work.mkdir(parents=True)
    if expected != HOLDS:
        switches = f"{name} {switches}"
    shutil.copy(MODEL, work)
    _run(["spin", *(f"-D{switch}" for switch in switches.split()), "-a", MODEL.name], work)
    # Nearly everything is shared, so that there is nothing to reduce.
    options = [
        "NOREDUCE",
        "NOFAIR",
        "COLLAPSE",
        f"MEMLIM={MEGABYTES}",
        "NP" if cycles else "SAFETY",
    ]
    # Compiling takes longer than a short search does.
    optimize = "-O1" if expected == HOLDS and configuration != SMALLEST else "-O0"
    _run(["cc", optimize, "-w", *(f"-D{option}" for option in options), "-o", "pan", "pan.c"], work)
    start = time.perf_counter()
    try:
        said = _run(["./pan", "-m100000", *(["-l"] if cycles else [])], work, SECONDS)
    except subprocess.TimeoutExpired:
        said = ""
    seconds = time.perf_counter() - start
    (work / "said.txt").write_text(said)

    def figure(pattern: str) -> float:
        found = re.search(pattern, said)
        return float(found[1]) if found else 0

    return Outcome(
        name,
        switches,
        expected,
        _outcome(said),
        int(figure(r"(\d+) states, stored")),
        int(figure(r"(\d+) transitions")),
        int(figure(r"depth reached (\d+)")),
        figure(r"([\d.]+)\s+total actual memory usage"),
        round(seconds, 2),
    )


def _run(command: Sequence[str], work: Path, seconds: float | None = None) -> str:
    done = subprocess.run(
        command,
        check=False,
        cwd=work,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}")
    return done.stdout


def _outcome(said: str) -> str:
    if not said:
        return "out of time"
    error = re.search(r"^pan:\d+: (.*?)\s+\(at depth \d+\)", said, re.MULTILINE)
    if error:
        return re.sub(r"\s+", " ", error[1])
    if "errors: 0" not in said or "not completed" in said or "depth too small" in said:
        return "incomplete"
    return HOLDS


def _row(outcome: Outcome) -> str:
    return (
        f"{outcome.name:30}{outcome.states:>11,}{outcome.transitions:>13,}{outcome.megabytes:>7.0f}"
        f"{outcome.seconds:>7.1f}  {outcome.outcome}"
        f"{'' if outcome.is_expected() else f', EXPECTED: {outcome.expected}'}"
    )


def check_all(configurations: Iterable[Configuration], into: Path, jobs: int) -> list[Outcome]:
    """Check them, `jobs` at once, and print a table as they end."""
    print(f"{'':30}{'states':>11}{'transitions':>13}{'MB':>7}{'s':>7}")  # noqa: T201
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for outcome in pool.map(lambda configuration: check(configuration, into), configurations):
            print(_row(outcome), flush=True)  # noqa: T201
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    everything = {configuration.name: configuration for configuration in CONFIGURATIONS + BROKEN}
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(everything))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to FILE")
    parser.add_argument("--into", type=Path, metavar="DIR", help="leave what spin writes in DIR")
    parser.add_argument("--jobs", type=int, default=JOBS, help=f"at once; default: {JOBS}")
    options = parser.parse_args()
    if unknown := set(options.names) - everything.keys():
        parser.error(f"NAME must be one of {', '.join(everything)}, got {', '.join(unknown)}")
    if lacks := missing():
        sys.exit(f"needs {' and '.join(lacks)} on the path (Debian: spin, gcc)")
    chosen = [everything[name] for name in options.names or everything]
    with tempfile.TemporaryDirectory() as scratch:
        outcomes = check_all(chosen, options.into or Path(scratch), options.jobs)
    if options.json is not None:
        rows = [outcome._asdict() for outcome in outcomes]
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    unexpected = sum(not outcome.is_expected() for outcome in outcomes)
    broken = sum(outcome.expected != HOLDS for outcome in outcomes)
    figures.add(
        "model",
        configurations=len(outcomes) - broken,
        states=sum(outcome.states for outcome in outcomes if outcome.expected == HOLDS),
        broken_variants_that_fail=broken,
        unexpected=unexpected,
    )
    sys.exit(f"{unexpected} unexpected of {len(outcomes)}" if unexpected else 0)


if __name__ == "__main__":
    main()
