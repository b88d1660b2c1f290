"""What does a job cost in `trio-parallel-steps each`, beside GNU parallel and xargs -P?

Wall time of the whole command, its start included, with as many jobs at once as there are CPUs:
many `true`, which cost nothing themselves, and fewer files to be compressed by gzip.  Who is not
installed is left out.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import attrs

from _harness import Report, compared, open_report, rotated
from trio_parallel_steps import usable_cpus

CPUS = str(usable_cpus())


@attrs.frozen
class Runner:
    """Takes a command and items on its stdin, one a line."""

    name: str
    argv: Sequence[str]


@attrs.frozen
class Work:
    title: str
    command: Sequence[str]
    items: str


RUNNERS = (
    Runner("each", (sys.executable, "-m", "trio_parallel_steps.cli", "each", "--limit", CPUS)),
    Runner("GNU parallel", ("parallel", "-j", CPUS)),
    Runner("xargs -P", ("xargs", "-P", CPUS, "-n", "1")),
)


def measure(runner: Runner, work: Work) -> float:
    """Seconds."""
    # xargs has no shell, and takes words.
    command = work.command if runner.name == "xargs -P" else (" ".join(work.command),)
    began = perf_counter()
    subprocess.run(
        [*runner.argv, *command],
        input=work.items,
        text=True,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return perf_counter() - began


def files(folder: Path, number: int) -> str:
    """Real text: what is in the standard library, again and again."""
    library = Path(subprocess.__file__).parent
    sources = sorted(library.glob("*.py"), key=lambda path: path.stat().st_size)[-20:]
    paths = []
    for n in range(number):
        path = folder / f"{n}.txt"
        path.write_bytes(sources[n % len(sources)].read_bytes() * 2)
        paths.append(str(path))
    return "\n".join(paths) + "\n"


def main(report: Report, folder: Path) -> None:
    there = [runner for runner in RUNNERS if shutil.which(runner.argv[0])]
    for runner in RUNNERS:
        if runner not in there:
            print(f"\n{runner.name} is not installed")
    jobs, gzips = (200, 40) if report.quick else (1000, 200)
    rounds = 1 if report.quick else 3
    work = (
        Work(f"{jobs:,} true", ("true",), "".join(f"{n}\n" for n in range(jobs))),
        Work(f"gzip of {gzips} files", ("gzip", "-kf"), files(folder, gzips)),
    )
    baselines = [runner.name for runner in there[1:]]
    for each in work:
        title = f"{each.title}, {CPUS} at once, {rounds} rounds"
        samples = rotated(there, rounds, lambda runner, each=each: measure(runner, each))  # type: ignore[misc]
        report.add(compared(title, "s", samples, baselines))


if __name__ == "__main__":
    report = open_report(__doc__)
    with TemporaryDirectory() as folder:
        main(report, Path(folder))
    report.save()
