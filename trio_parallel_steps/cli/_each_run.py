"""What `each` runs: a branch for each item.

1. Items come as they are needed: a million lines on stdin are not read ahead.
2. A job's output, its line of the joblog and its ending are written in one go, as it ends.
3. The first cause to stop is the exit code: a failure, a signal, a timeout, a reader that has gone.
   Whatever it is, the process groups of what runs are ended before this process is.
"""

import math
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

import attrs
import trio

from trio_parallel_steps import (
    COLLECT,
    Branch,
    BranchStatus,
    Breached,
    CommandFailed,
    Retry,
    StepResult,
    command,
    map_branches,
    open_branch_nursery,
    usable_cpus,
)
from trio_parallel_steps.abc import Observer

from ._items import items
from ._job_options import JobOptions
from ._joblog import JobLog
from ._output import JobOutput, Lines, Sink, Whole, printable
from ._placeholders import fill
from ._signals import open_signals

TAIL = 4096  # bytes of output that an error keeps


@attrs.define(eq=False)
class Job:
    """A branch to be."""

    number: int
    item: str
    command: str
    output: JobOutput
    started: float = 0.0  # wall clock
    exit_code: int | None = None


@attrs.frozen
class EachOptions:
    timeout: float = math.inf
    step_timeout: float = math.inf
    retry: int = 0
    keep_order: bool = False
    null: bool = False


class EachRun(Observer):
    """One run of `each`: what its branches do, and what is written as they end."""

    def __init__(
        self,
        shared: JobOptions,
        own: EachOptions,
        template: str,
        done: Counter[str],
        joblog: JobLog | None = None,
    ) -> None:
        self._shared = shared
        self._own = own
        self._template = template
        self._done = Counter(done)  # commands, and how often each is not to be run again
        self._joblog = joblog
        self._scope = trio.CancelScope()
        self._jobs: dict[Any, Job] = {}  # that are not written yet
        self._sink = Sink(lambda: self.stop(1), stdout=2 if shared.json_file == "-" else 1)
        self.exit_code: int | None = None  # why it was stopped
        self.endings: Counter[str] = Counter()
        self.records: list[dict[str, Any]] = []
        self.error: str | None = None

    def stop(self, exit_code: int) -> None:
        if self.exit_code is None:
            self.exit_code = exit_code
            self._scope.cancel()

    # ------------------------------------------------------------ input

    async def jobs(self, files: Sequence[str]) -> AsyncGenerator[Job]:
        number = 0
        async with aclosing(self._items(files)) as found:
            async for item in found:
                number += 1
                filled = fill(self._template, item, number)
                if self._done[filled]:
                    self._done[filled] -= 1
                else:
                    output = Lines(self._sink, item, number) if self._shared.stream else Whole()
                    yield Job(number, item, filled, output)

    async def _items(self, files: Sequence[str]) -> AsyncGenerator[str]:
        async with aclosing(items(files, b"\0" if self._own.null else b"\n")) as found:
            try:
                async for item in found:
                    yield item
            except OSError as error:
                self.error = self.error or f"could not read stdin: {error}"
                self.stop(1)

    async def print_all(self, files: Sequence[str]) -> None:
        """The commands, not what they do."""
        async with aclosing(self.jobs(files)) as jobs:
            async for job in jobs:
                self._sink.write("stdout", os.fsencode(f"{job.command}\n"))
                if self.exit_code is not None:
                    break

    # ------------------------------------------------------------ the step

    async def run(self, files: Sequence[str]) -> None:
        async with trio.open_nursery() as around:
            await around.start(self._watch_signals)
            self._scope.deadline = trio.current_time() + self._own.step_timeout
            with self._scope:
                await self._run_map(files)
            if self._scope.cancelled_caught and self.exit_code is None:
                self.exit_code = 3  # its deadline
            around.cancel_scope.cancel()
        self._write_all()

    async def _run_map(self, files: Sequence[str]) -> None:
        limit = usable_cpus() if self._shared.limit is None else self._shared.limit
        try:
            async with map_branches(
                self._run_job,
                self.jobs(files),
                limit,
                name="each",
                key=lambda job: job.number,
                in_order=self._own.keep_order,
                policy=COLLECT,
                resources=self._shared.resources,
                observers=[self],
            ) as results:
                async for result in results:
                    if self._own.keep_order:
                        self._write(result.key)
        except Breached as breach:
            print(f"each: {breach.reason}", file=sys.stderr)
            self.stop(3)

    async def _run_job(self, job: Job) -> None:
        self._jobs[job.number] = job
        job.started = job.started or time.time()
        run = command(job.command, on_output=job.output, max_output_bytes=TAIL)

        async def attempt() -> None:
            job.output.begin()
            await run()

        if self._own.timeout == math.inf and not self._own.retry:
            await attempt()
            return
        retry = Retry(on=(CommandFailed, trio.TooSlowError), attempts=self._own.retry + 1)
        async with open_branch_nursery(policy=COLLECT) as nursery:
            nursery.start_soon(0, attempt, timeout=self._own.timeout, retry=retry)
        nursery.result[0].unwrap()

    async def _watch_signals(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with open_signals() as signals:
            task_status.started()
            async for number in signals:
                self.stop(128 + number)

    # ------------------------------------------------------------ endings

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self.endings[result.status.value] += 1
        job = self._jobs.get(result.key)
        if job is None:  # it was never begun
            return
        job.exit_code = exit_code_of(result)
        if not self._own.keep_order:
            self._write(job.number)
        if job.exit_code is not None and self._joblog is not None:
            with self._writing():
                self._joblog.add(
                    job.number,
                    job.started,
                    result.duration,
                    job.output.received,
                    job.exit_code,
                    job.command,
                )
        if self._shared.json_file is not None:
            self.records.append(
                {
                    "number": job.number,
                    "item": job.item,
                    "command": job.command,
                    "status": result.status.value,
                    "exit_code": job.exit_code,
                    "started": job.started,
                    "seconds": result.duration,
                    "feedback": result.feedback,
                }
            )
        if result.status is BranchStatus.FAILED:
            if not isinstance(result.exception, CommandFailed):
                told = str(result.exception).removeprefix("0 ")  # the key within `_run_job`
                said = os.fsencode(f"each: {printable(f'{job.item}: {told}')}\n")
                with self._writing():
                    self._sink.write("stderr", said)
            if not self._shared.keep_going:
                self.stop(1)

    def _write(self, number: Any) -> None:
        if (job := self._jobs.pop(number, None)) is not None:
            with self._writing():
                job.output.finish(self._sink)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """A full disk stops all."""
        try:
            yield
        except OSError as error:
            self.error = self.error or f"could not write: {error}"
            self.stop(1)

    def _write_all(self) -> None:
        """What was kept for its turn when all was stopped."""
        for number in sorted(self._jobs):
            self._write(number)


def exit_code_of(result: StepResult[Any]) -> int | None:
    """Negative if it was killed by that signal; None if it was stopped with the run."""
    error = result.exception
    if isinstance(error, CommandFailed):
        return error.exit_code
    if isinstance(error, trio.TooSlowError):
        return -signal.SIGTERM
    if error is not None:
        return 127  # it could not be started
    return 0 if result.success else None
