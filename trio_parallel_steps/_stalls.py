"""The stall report: for a pool in which nothing moves though nothing of ours is at fault.

A branch that waits for a queued one through an event of the user's own, or under a token taken by
``async with``, is invisible to the engine, and can wait for ever.  The report says who holds the
tokens and where their code stands, and who waits.  It reads tasks as a debugger does: nothing is
kept for it while all is well.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._explain import explain, in_seconds
from ._records import RUNNING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from ._admission import Pool
    from ._core import StepCore
    from ._records import Record
    from .hosts._abc import Run


def report(title: str, pool: Pool, run: Run, holders: Iterable[Hashable]) -> str:
    return "\n".join(
        [title, "in use:", *_in_use(pool, run, holders), "waiting:", *_waiting(pool), ""]
    )


def _in_use(pool: Pool, run: Run, holders: Iterable[Hashable]) -> Iterator[str]:
    for step in pool.steps:
        for record in step.records.values():
            if record.status is RUNNING and record._token is not None:
                assert record.started_at is not None
                seconds = in_seconds(run.now() - record.started_at)
                yield f"  {_name(step, record)}, since {seconds}"
                yield from _where(run, step.host.task_of(record))
    for task in holders:
        yield f"  a task that entered it: {task!r}"
        yield from _where(run, task)


def _where(run: Run, task: Any) -> Iterator[str]:
    for frame, line in run.await_frames(task) if task is not None else ():
        code = frame.f_code
        yield f'    File "{code.co_filename}", line {line}, in {code.co_qualname}'


def _waiting(pool: Pool) -> Iterator[str]:
    told = 0
    for step in pool.steps:
        for key, why in explain(step).items():
            told += step.records[key]._entry is not None
            yield f"  {_name(step, step.records[key])}: {why}"
    if pool.waiting > told:
        yield f"  tasks that would enter it: {pool.waiting - told}"


def _name(step: StepCore, record: Record) -> str:
    return f"{record.key!r} of step {step.name!r}"
