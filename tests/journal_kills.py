"""What is killed again and again to see what a journal keeps: a process that forks one child after
another, which all go on with one journal, and kills each after so many bytes of progress.

Every child first holds the files that its predecessors have left against the journal.  Its side
effects and what has been recorded go to two more files, a line each, by a write that a kill can't
tear.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

from trio_parallel_steps import (
    Branch,
    ConcurrencyConfig,
    ParallelStep,
    Pipeline,
    StepResult,
    abc,
    open_branch_nursery,
    run_branches_sync,
)
from trio_parallel_steps._journal import Entry, open_journal

KEYS = 5000


def log(path: Path, key: str, child: int) -> None:
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{key} {child}\n".encode())
    os.close(file)


def lines(path: Path) -> list[tuple[str, int]]:
    if not path.exists():
        return []
    pairs = [line.split() for line in path.read_text("utf-8").splitlines()]
    return [(key, int(child)) for key, child in pairs]


def output_of(key: str) -> bytes:
    return Random(key).randbytes(Random(key).choice([10, 1000, 40_000]))


async def go_on(folder: Path, child: int, progress: int) -> None:
    effects, recorded = folder / "effects", folder / "recorded"
    async with open_journal(folder / "journal", "kills", "1") as journal:
        for key, _ in lines(recorded):
            entry = journal.get(key)
            assert entry is not None, f"{key} was lost"
            assert entry.output == output_of(key)
        os.write(progress, b".")

        async def branch(key: str) -> None:
            log(effects, key, child)
            await journal.record(key, Entry(output_of(key)))
            log(recorded, key, child)
            os.write(progress, b".")

        async with open_branch_nursery(8) as nursery:
            for number in range(KEYS):
                if journal.get(str(number)) is None:
                    nursery.start_soon(str(number), branch, str(number))


STEPS = 3
BRANCHES = 400


class Recorded(abc.Observer):
    """Of branches that ran in this child."""

    def __init__(self, folder: Path, child: int, progress: int) -> None:
        self.file = folder / "recorded"
        self.child = child
        self.progress = progress

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        if result.success and not result.from_cache and str(branch.key).count("."):
            log(self.file, str(branch.key), self.child)
            os.write(self.progress, b".")


async def resume(folder: Path, child: int, progress: int) -> None:
    """The same with a pipeline."""

    def branch(key: str) -> Any:
        async def work(data: dict[str, int] | None) -> int:
            log(folder / "effects", key, child)
            return len(data or ())

        return work

    def step(number: int) -> ParallelStep:
        branches = {key: branch(key) for key in (f"{number}.{i}" for i in range(BRANCHES))}
        config = ConcurrencyConfig(8, adaptive_limits=False)
        return ParallelStep(branches, concurrency_config=config, name=f"step {number}")

    pipeline = Pipeline([step(number) for number in range(STEPS)])
    os.write(progress, b".")
    observers = [Recorded(folder, child, progress)]
    result = await pipeline.run(journal=folder / "journal", observers=observers)
    assert set(result.output.values()) == {BRANCHES}


def begin(folder: Path, host: str, child: int, what: str) -> tuple[int, int]:
    progress, told = os.pipe()
    pid = os.fork()
    if pid:
        os.close(told)
        return pid, progress
    os.close(progress)
    try:
        body = {"journal": go_on, "pipeline": resume}[what]
        result = run_branches_sync({"all": lambda: body(folder, child, told)}, host=host)
        os._exit(0 if result.success else 1)
    except BaseException as error:
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        os.write(2, f"child {child}: {error!r}\n".encode())
        os._exit(2)


def main(folder: Path, host: str, kills: int, seed: int, what: str) -> None:
    random = Random(seed)
    for child in range(kills):
        pid, progress = begin(folder, host, child, what)
        for _ in range(random.choice([0, 1, random.randint(2, 30)])):
            if not os.read(progress, 1):
                break
        until = perf_counter() + random.choice([0, random.random() / 200])
        while perf_counter() < until:
            pass
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(progress)
        if not os.WIFSIGNALED(status):
            sys.exit(f"child {child} ended by itself")
    if what == "pipeline":
        with Path(os.devnull).open("wb") as nowhere:
            run_branches_sync({"rest": lambda: resume(folder, kills, nowhere.fileno())}, host=host)


def run(folder: Path, host: str, kills: int, seed: int, what: str) -> None:
    """`main`, in a process of its own, which has nothing to say."""
    command = [sys.executable, __file__, str(folder), host, str(kills), str(seed), what]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (told.stdout, told.stderr, told.returncode) == ("", "", 0)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
