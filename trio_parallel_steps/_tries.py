"""Tries: a branch that is queued again after a failure, as its `Retry` says.

1. Between tries it is QUEUED, without a token: its timer puts it in the queue again, where it waits
   its turn like any other.
2. Stopped then, it ends as a running one that has lent its token would, with its last exception.
3. Past the timeout over all tries it has waited for too long: it ends as its last try would have.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Final

from . import _parking as parking
from ._errors import TooSlowError
from ._records import FAILED, QUEUED, TIMED_OUT, Cause

# What may have told a try to stop, and it is tried again all the same.
TRIED_AFTER: Final = (None, Cause.TIMEOUT, Cause.SHED)

if TYPE_CHECKING:
    from contextvars import Context

    from ._core import StepCore
    from ._outcomes import BranchStatus
    from ._records import Record
    from ._retry import Retry
    from .hosts._abc import Timer


class Tries:
    """How a branch that is tried again stands."""

    __slots__ = ("context", "due", "error", "retry", "shed", "status", "timer")

    def __init__(self, retry: Retry, context: Context) -> None:
        self.retry: Retry = retry
        self.context: Context = context  # that of the submission, which no try runs in
        self.shed: int = 0  # times; such a try is none that the retry counts
        self.error: Exception | None = None  # the last one
        self.status: BranchStatus = FAILED  # what it would have ended as
        self.due: float = -inf  # when the next try may be queued
        self.timer: Timer | None = None

    def failed(self, error: Exception, status: BranchStatus, due: float) -> None:
        self.error = error
        self.status = status
        self.due = due

    def outlast_timeout(self, record: Record) -> bool:
        """May it be tried again after a timeout of this try?"""
        return self.wait_after(TooSlowError(), record, 0.0) is not None

    def wait_after(self, error: Exception, record: Record, random: float) -> float | None:
        return self.retry.wait_after(error, record.attempts - self.shed, random)

    def stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


def is_tried_again(
    step: StepCore, record: Record, error: Exception, status: BranchStatus, now: float
) -> bool:
    """Its try has failed: queue it again after its back-off, if it may be tried again."""
    tries = record._tries
    assert tries is not None
    assert record.started_at is not None
    if step.cause is not None or record._cause not in TRIED_AFTER:
        return False
    wait = tries.wait_after(error, record, step.run.random())
    if wait is None or now + wait >= record.started_at + tries.retry.timeout:
        return False
    to_queue(step, record)
    tries.failed(error, status, now + wait)
    tries.timer = step.run.call_at(tries.due, lambda: queue_again(step, record))
    if step.guarding is not None:
        step.guarding.tried(record)
    if step.observers:
        step.tell("branch_queued", record)
    return True


def to_queue(step: StepCore, record: Record) -> None:
    """It has run, and is to run again.  (Who calls this puts it in the queue, at its time.)"""
    tries = record._tries
    assert tries is not None
    if record._token is None:
        parking.leave(step, record)
    step.running -= 1
    record.status = QUEUED
    record._cause = record._reason = None
    record._context = tries.context.copy()
    tries.stop_timer()  # of the try that was queued before


def queue_again(step: StepCore, record: Record) -> None:
    give_up_in_time(step, record)
    step.pool.enter(record, step.depth)


def give_up_in_time(step: StepCore, record: Record) -> None:
    """Unless it is tried again before."""
    tries = record._tries
    assert tries is not None
    assert record.started_at is not None
    tries.stop_timer()
    if tries.retry.timeout != inf:
        until = record.started_at + tries.retry.timeout
        tries.timer = step.run.call_at(until, lambda: give_up(step, record))


def give_up(step: StepCore, record: Record) -> None:
    tries = record._tries
    if tries is not None and record.status is QUEUED:
        if tries.error is None:  # it was shed, and has not failed yet
            record._reason = f"shed, and not tried again within {tries.retry.timeout} s"
            tries.error = TooSlowError(f"{record.key!r} was {record._reason}")
            tries.status = TIMED_OUT
        step.failed += 1
        end_between(step, record, tries.status, step.host.now())


def end_between(step: StepCore, record: Record, status: BranchStatus, now: float) -> None:
    """End it between two tries."""
    assert record._tries is not None
    record._value = record._tries.error
    token, record._token = record._token, None
    step.running += 1
    step.parked += 1
    for meter in step.meters:
        meter.in_flight += record._weight
    step.ran_between(record, status, now)
    record._token = token  # granted already: passed on once its place comes up
