"""The demo's one step: run the jobs, watch the clock and the keyboard beside them.

1. Whatever ends the step, its result is kept: a breach and Ctrl-C give what there is so far.
2. Ctrl-C stops the branches one and all and lets them finish; a second one is Python's own again.
3. Nothing outlives the step: a worker thread looks for its cancellation before each file.
"""

import signal
from collections.abc import Sequence

import attrs
import trio

from trio_parallel_steps import (
    COLLECT,
    BranchNursery,
    Breached,
    ParallelResult,
    in_thread,
    open_branch_nursery,
)

from ._census import Counts, count_source
from ._jobs import SAMPLE_RULE, Job
from ._progress import Progress
from ._view import View, keep_fresh


class ToldToFail(Exception):
    """What ``--fail`` makes a branch raise."""


@attrs.frozen
class Finish:
    """How the step ended, and with what."""

    result: ParallelResult[str, Counts]
    counted: dict[str, Counts]  # by package; samples are not counted again
    packages: int  # that there were to count
    seconds: float
    interrupted: bool
    breached: bool

    @property
    def exit_code(self) -> int:
        if self.interrupted:
            return 130
        if self.breached:
            return 3
        return 0 if self.result.success else 1


def take_census(job: Job) -> Counts:
    """Read and count the job's files, in a worker thread."""
    if job.fails:
        raise ToldToFail("told to by --fail")
    counts = Counts()
    for file in job.package.files:
        trio.from_thread.check_cancelled()
        counts += count_source(file.read_bytes())
    return counts


async def run_jobs(
    jobs: Sequence[Job],
    limit: int | float | None,
    breach_after: float | None,
    progress: Progress,
    view: View,
) -> Finish:
    """Run them all, under `view`; a breach comes `breach_after` seconds from the start (0: before
    any of them runs), None for never."""
    interrupted = trio.Event()
    async with trio.open_nursery() as around:
        try:
            async with open_branch_nursery(
                limit,
                name="census",
                policy=COLLECT,
                cancel_rules=[SAMPLE_RULE],
                observers=[progress],
            ) as step:
                around.start_soon(keep_fresh, view)
                await around.start(stop_on_interrupt, step, interrupted)
                for job in jobs:
                    step.start_soon(job.key, in_thread(take_census), job, priority=job.priority)
                if breach_after == 0:
                    step.breach(breach_reason(breach_after))
                elif breach_after is not None:
                    around.start_soon(breach_later, step, breach_after)
        except Breached as breach:
            result, breached = breach.result, True
        else:
            result, breached = step.result, False
        seconds = progress.elapsed
        around.cancel_scope.cancel()
    assert isinstance(result, ParallelResult)  # only at a refused call has a Breached none
    census = [job.key for job in jobs if not job.sample]
    counted = {key: result[key].unwrap() for key in census if result[key].success}
    return Finish(result, counted, len(census), seconds, interrupted.is_set(), breached)


async def breach_later(step: BranchNursery, seconds: float) -> None:
    await trio.sleep(seconds)
    step.breach(breach_reason(seconds))


def breach_reason(seconds: float) -> str:
    return f"--breach-after {seconds:g}"


async def stop_on_interrupt(
    step: BranchNursery,
    interrupted: trio.Event,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    with trio.open_signal_receiver(signal.SIGINT) as signals:
        task_status.started()
        await anext(signals)
    interrupted.set()
    step.cancel_where(lambda key: True, "interrupted by Ctrl-C")
