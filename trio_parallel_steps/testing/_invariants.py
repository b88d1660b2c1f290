"""`check_invariants`: what this package promises of every program, checked on one of yours.

The numbers are those of the list in the docs.  The others: that nothing waits for what is there (2)
while time passes (9) is for `assert_no_stall`, and that the same schedule gives the same events (8)
is told by comparing `Recorder.lines`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import trio

from trio_parallel_steps import BranchStatus, Budget, BudgetExceeded, ParallelResult

from ._recorder import Recorder, Seen

ENDED = frozenset(BranchStatus) - {BranchStatus.QUEUED, BranchStatus.RUNNING}


class InvariantBroken(AssertionError):
    """A promise was not kept: by this package, which is a bug in it, or by what was checked."""

    def __init__(self, violations: list[str]) -> None:
        super().__init__("\n".join(violations))
        self.violations = violations
        """one sentence each, that starts with the number of the promise"""


def check_invariants(
    recorder: Recorder,
    *,
    budgets: Mapping[Budget, Mapping[str, float]] | None = None,
) -> None:
    """Check the promises of the package on all that a `Recorder` was told, once its steps are over.

    - 1: Never more tokens in use than there are (but after a shrink, of branches that unwind after
      a stop, and by one branch alone that is heavier than the limit).
    - 3: No token is in use at the end, and nobody waits.
    - 4: Every branch that was submitted is in its step's result once, with one ending, the one
      told.
    - 5: The outcome is what the branch's own code saw, of functions in `Recorder.watch`.
    - 6: Nothing starts after its step was stopped, or cancelled from outside.
    - 7: No budget was used beyond its limits, unless its step was breached for that: for `budgets`,
      a mapping from each budget to its limits.

    Raises `InvariantBroken`, an AssertionError, that names all that was not kept.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> from trio_parallel_steps.testing import recorder
    >>> recorded = recorder()
    >>> async def main():
    ...     await run_branches({"a": trio.lowlevel.checkpoint}, observers=[recorded])
    >>> trio.run(main)
    >>> check_invariants(recorded)
    """
    if not isinstance(recorder, Recorder):
        raise TypeError(f"`recorder` must be a Recorder, got {recorder!r}")
    violations = [
        *recorder._violations,
        *_tokens(recorder),
        *(said for seen in recorder._steps.values() for said in _endings(seen)),
        *_outcomes(recorder),
        *_usage(recorder, {} if budgets is None else budgets),
    ]
    if violations:
        raise InvariantBroken(sorted(violations))


def _tokens(recorder: Recorder) -> Iterator[str]:
    for excess in recorder._excesses:
        if not excess.is_excused():
            yield f"1: {excess.said}: {excess.limiter!r}"
    for limiter in dict.fromkeys(seen.nursery.limiter for seen in recorder._steps.values()):
        how = limiter.statistics()
        if how.borrowed_tokens or how.tasks_waiting:
            yield f"3: at the end tokens are in use, or somebody waits: {limiter!r}"


def _endings(seen: Seen) -> Iterator[str]:
    step = seen.nursery
    result: ParallelResult[Any, Any] | None = seen.result
    if result is None:
        yield f"3: {step.name!r} was not closed"
        return
    if list(result) != list(seen.queued):
        submitted = list(seen.queued)
        yield f"4: {submitted} were submitted to {step.name!r}, and the result has {list(result)}"
    for key, ended in result.items():
        told = seen.endings.get(key, [])
        if len(told) != 1:
            yield f"4: {key!r} of {step.name!r} has {len(told)} endings"
        elif told[0].status is not ended.status or ended.status not in ENDED:
            yield f"4: {key!r} of {step.name!r} ended as {told[0].status}, then as {ended.status}"
        if (ended.status is BranchStatus.SKIPPED) != (key not in seen.started):
            yield f"4: {key!r} of {step.name!r} is {ended.status} and was started, or was not"


def _outcomes(recorder: Recorder) -> Iterator[str]:
    last = {branch: (value, exc) for branch, value, exc in recorder._outcomes}
    for branch, (value, exc) in last.items():
        seen = recorder._seen_of(branch)
        if seen is None or seen.result is None:
            continue
        ended = seen.result[branch.key]
        if exc is None:
            right = ended.status is BranchStatus.SUCCEEDED and ended.output is value
        elif _is_cancelled(exc):
            right = ended.status in (
                BranchStatus.CANCELLED,
                BranchStatus.TIMED_OUT,
                BranchStatus.BREACHED,
            )
        elif isinstance(exc, Exception) and not isinstance(exc, BaseExceptionGroup):
            right = ended.exception is exc or (
                isinstance(exc, BudgetExceeded) and ended.status is BranchStatus.BREACHED
            )
        else:
            right = ended.status is not BranchStatus.SUCCEEDED
        if not right:
            saw = f"returned {value!r}" if exc is None else f"raised {exc!r}"
            got = repr(ended.output) if ended.exception is None else repr(ended.exception)
            yield f"5: {branch.key!r} {saw}, and is {ended.status}: {got}"


def _is_cancelled(exc: BaseException) -> bool:
    if isinstance(exc, BaseExceptionGroup):
        return all(map(_is_cancelled, exc.exceptions))
    return isinstance(exc, trio.Cancelled)


def _usage(recorder: Recorder, budgets: Mapping[Budget, Mapping[str, float]]) -> Iterator[str]:
    excused = any(seen.breached for seen in recorder._steps.values())
    for budget, limits in budgets.items():
        most = recorder._usage.get(budget, {})
        for unit, limit in limits.items():
            used = max(most.get(unit, 0), budget.used().get(unit, 0))
            if used > limit and not excused:
                yield f"7: {used} {unit} used, of {limit}: {budget!r}"
