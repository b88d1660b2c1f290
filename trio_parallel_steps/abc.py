"""What others may implement to be told of what happens: `Observer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._branch import Branch
    from ._limiter import BranchLimiter
    from ._nursery import BranchNursery
    from ._outcomes import ParallelResult, StepResult
    from ._resources import Pressure
    from ._spending import Budget


class Observer:
    """Subclass and override what you need.

    Called synchronously in the event loop's thread, so be quick; after the state has changed, in
    the order of events.  May call any synchronous method of the package; what that causes is
    delivered after the current event.  One that raises is reported once, as a RuntimeWarning, and
    dropped; it never disturbs a branch.  Changes of a limiter or budget are told to the observers
    of every open step that uses it.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> class Printer(Observer):
    ...     def branch_ended(self, branch, result):
    ...         print(branch.key, result.status.value)
    >>> async def main():
    ...     await run_branches({"a": trio.lowlevel.checkpoint}, observers=[Printer()])
    >>> trio.run(main)
    a succeeded
    """

    def step_opened(self, step: BranchNursery) -> None:
        """The step's block has been entered."""

    def branch_queued(self, branch: Branch[Any]) -> None:
        """A branch was submitted, or is queued again, to be tried once more."""

    def branch_started(self, branch: Branch[Any]) -> None:
        """A branch was admitted; its function is called next."""

    def branch_progressed(self, branch: Branch[Any], done: float, total: float | None) -> None:
        """A branch called `Branch.report`."""

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        """A branch ended, one that never ran included."""

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        """One branch was told to stop, by a call, a rule or a satisfied policy.  (A stop of the
        whole step is not told branch by branch.)"""

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        """The number of a limiter's tokens changed."""

    def usage_changed(self, budget: Budget) -> None:
        """A call of `Budget.spend`, `Budget.reserve` or `Reservation.settle` was granted; told once
        a call.  For a step that was given a parent of that budget, or another child of the parent,
        it is the parent's usage that has changed."""

    def breached(self, step: BranchNursery, reason: str) -> None:
        """The step was breached."""

    def pressure_changed(self, step: BranchNursery, pressure: Pressure) -> None:
        """A resource that the step limits is pressed harder than before, or less."""

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        """All branches of the step have ended, and its block is being left."""
