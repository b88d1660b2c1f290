"""`check_invariants`: what this package promises of every program, checked on one of yours.

The numbers are those of the list in the docs.  A recorder is told of events, and so not of all:

- That nothing waits for what is there (2) while time passes (9) is for `assert_no_stall`, which
  looks on between them.
- That the same schedule gives the same events (8) is told by comparing `Recorder.lines`.
- Of a deadline, a policy, and the weights and timeouts of branches nobody outside is told.  So a
  start after a deadline is seen only once the step was stopped for it, whether a policy had to
  raise failures is not seen at all, and who comes first neither.
- An observer that submits branches is told of them later than they come: the order in the result
  is not compared.
"""

import asyncio
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import trio

from trio_parallel_steps import (
    BranchErrors,
    BranchNotDone,
    BranchStatus,
    Breached,
    Budget,
    BudgetExceeded,
    StepResult,
    StepTimeout,
)

from ._recorder import Left, Recorder, Seen

ENDED: Final = frozenset(BranchStatus) - {BranchStatus.QUEUED, BranchStatus.RUNNING}
STOPPED: Final = (BranchStatus.CANCELLED, BranchStatus.TIMED_OUT, BranchStatus.BREACHED)

# Each try is queued and started, and may be shed; who is stopped between two tries, or before the
# first, is not started.
IN_ORDER: Final = re.compile("q(sh?q)*(sh?)?e")
AGAIN: Final = re.compile(f"({IN_ORDER.pattern})+")  # a map's keys may come again, once forgotten


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
      told, and in the order of ending if it ran.
    - 5: The outcome is what the branch's own code saw, of functions in `Recorder.watch`.
    - 6: Nothing starts after its step was stopped, or cancelled from outside.
    - 7: No budget was used beyond its limits, unless its step was breached for that: for `budgets`,
      a mapping from each budget to its limits.
    - 10: Observers are told of each event once, in order.
    - 11: The first request to stop is the cause: of a branch that was told to stop alone, and of
      one that was breached.
    - 12: What the block raises is what has stopped the step, or the errors of its branches and its
      body, and none of the body's is lost: of blocks in `Recorder.watch_step`.

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
        *(said for seen in recorder._steps.values() for said in _of_step(seen)),
        *_outcomes(recorder),
        *(said for left in recorder._left for said in _raised(recorder, left)),
        *_usage(recorder, {} if budgets is None else budgets),
    ]
    if violations:
        raise InvariantBroken(sorted(violations, key=_number))


def _number(said: str) -> int:
    return int(said.partition(":")[0])


def _tokens(recorder: Recorder) -> Iterator[str]:
    for excess in recorder._excesses:
        if not excess.is_excused():
            yield f"1: {excess.said}: {excess.limiter!r}"
    for limiter in dict.fromkeys(seen.nursery.limiter for seen in recorder._steps.values()):
        how = limiter.statistics()
        if how.borrowed_tokens or how.tasks_waiting:
            yield f"3: at the end tokens are in use, or somebody waits: {limiter!r}"


def _of_step(seen: Seen) -> Iterator[str]:
    step = seen.nursery
    result = seen.result
    if result is None:
        yield f"3: {step.name!r} was not closed"
        return
    if set(result) != set(seen.queued) - seen.consumed:
        submitted = list(seen.queued)
        yield f"4: {submitted} were submitted to {step.name!r}, and the result has {list(result)}"
    order = [key for key in seen.order if key in result]
    if list(result.completion_order) != order:
        other = list(result.completion_order)
        yield f"4: {order} ended in {step.name!r}, and completion_order is {other}"
    if len(seen.breached_for) > 1:
        yield f"10: {step.name!r} was breached more than once: {seen.breached_for}"
    for key in seen.consumed:
        if not AGAIN.fullmatch(seen.told.get(key, "").replace("c", "")):
            yield f"10: {key!r} of {step.name!r} was told of out of order"
    for key, ended in result.items():
        for number, said in (*_ending(seen, key, ended), *_cause(seen, key, ended)):
            yield f"{number}: {key!r} of {step.name!r} {said}"


def _ending(seen: Seen, key: Any, ended: StepResult[Any]) -> Iterator[tuple[int, str]]:
    endings = seen.endings.get(key, [])
    if len(endings) != 1:
        yield 4, f"has {len(endings)} endings"
    elif endings[0].status is not ended.status or ended.status not in ENDED:
        yield 4, f"ended as {endings[0].status}, then as {ended.status}"
    elif endings[0] is not ended:
        yield 4, "has another result than the one that was told"
    if (ended.status is BranchStatus.SKIPPED) != (key not in seen.started):
        yield 4, f"is {ended.status} and was started, or was not"
    yield from _order(seen, key)


def _order(seen: Seen, key: Any) -> Iterator[tuple[int, str]]:
    told = seen.told.get(key, "")
    if not IN_ORDER.fullmatch(told.replace("c", "")) or told.count("c") > 1:
        names = {"q": "queued", "s": "started", "e": "ended", "c": "cancel_requested", "h": "shed"}
        yield 10, f"was told of out of order, or more than once: {[names[each] for each in told]}"


def _cause(seen: Seen, key: Any, ended: StepResult[Any]) -> Iterator[tuple[int, str]]:
    first = seen.told_to_stop.get(key)
    if first is not None and ended.status in (*STOPPED, BranchStatus.SKIPPED):
        alone = (BranchStatus.CANCELLED, BranchStatus.SKIPPED)
        if ended.status not in alone or ended.reason != first:
            yield 11, f"was told to stop: {first}, and is {ended.status}: {ended.reason}"
    elif ended.status is BranchStatus.BREACHED and ended.reason not in seen.breached_for:
        yield 11, f"is {ended.status}: {ended.reason}, and its step was not"


def _outcomes(recorder: Recorder) -> Iterator[str]:
    last = {branch: (value, exc) for branch, value, exc in recorder._outcomes}
    for branch, (value, exc) in last.items():
        seen = recorder._seen_of(branch)
        if seen is None or seen.result is None:
            continue
        ended = branch.result
        errors = [leaf for leaf in _leaves(exc) if not _goes_through(leaf)]
        if exc is None:
            right = ended.status is BranchStatus.SUCCEEDED and ended.output is value
        elif ended.status is BranchStatus.BREACHED and isinstance(exc, BudgetExceeded):
            right = True  # the refusal was the breach
        elif errors:
            same = list(map(id, _leaves(ended.exception))) == list(map(id, errors))
            is_last = not seen.told[branch.key].replace("c", "").endswith("qe")  # try of several
            right = same and (ended.status is BranchStatus.FAILED or not is_last)
        else:
            right = ended.status in STOPPED
        if not right:
            saw = f"returned {value!r}" if exc is None else f"raised {exc!r}"
            got = repr(ended.output) if ended.exception is None else repr(ended.exception)
            yield f"5: {branch.key!r} {saw}, and is {ended.status}: {got}"


def _raised(recorder: Recorder, left: Left) -> Iterator[str]:
    seen = recorder._steps.get(left.nursery)
    result = None if seen is None else seen.result
    if seen is None or result is None:
        return
    raised, name = left.raised, left.nursery.name
    if any(map(_goes_through, _leaves(raised))):
        return
    of_body = [leaf for leaf in _leaves(left.body) if not _goes_through(leaf)]
    if raised is None:
        if of_body:
            yield f"12: the body of {name!r} raised {of_body}, and its block nothing"
        if result.stop_reason in seen.breached_for:
            yield f"12: {name!r} was breached: {result.stop_reason}, and raised nothing"
        return
    if not isinstance(raised, Breached | StepTimeout | BranchErrors):
        yield f"12: {name!r} raised {raised!r}"
        return
    if raised.result is not result:
        yield f"12: {name!r} raised {raised!r} with another result"
    if result.success:
        yield f"12: {name!r} raised {raised!r}, and is a success"
    if isinstance(raised, Breached) and seen.breached_for != [raised.reason]:
        yield f"12: {name!r} raised {raised!r}, and was breached for {seen.breached_for}"
    shown = _leaves(raised if isinstance(raised, BranchErrors) else raised.__cause__)
    endings = [ended for told in seen.endings.values() for ended in told]
    of_branches = [leaf for ended in endings for leaf in _leaves(ended.exception)]
    for leaf in shown:
        if not isinstance(leaf, BranchNotDone) and not _is_in(leaf, of_body + of_branches):
            yield f"12: {name!r} raised {leaf!r}, which no branch of it has, nor its body"
    for leaf in of_body:
        if not isinstance(leaf, Breached) and not _is_in(leaf, shown):
            yield f"12: {name!r} raised {raised!r}, and {leaf!r} of its body is lost"


def _leaves(exc: BaseException | None) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in _leaves(inner)]
    return [] if exc is None else [exc]


def _is_in(exc: BaseException, others: list[BaseException]) -> bool:
    return any(exc is other for other in others)


def _goes_through(exc: BaseException) -> bool:
    """It is never collected: Cancelled, KeyboardInterrupt, ..."""
    return isinstance(exc, trio.Cancelled | asyncio.CancelledError) or not isinstance(
        exc, Exception
    )


def _usage(recorder: Recorder, budgets: Mapping[Budget, Mapping[str, float]]) -> Iterator[str]:
    excused = any(seen.breached_for for seen in recorder._steps.values())
    for budget, limits in budgets.items():
        most = recorder._usage.get(budget, {})
        for unit, limit in limits.items():
            used = max(most.get(unit, 0), budget.used().get(unit, 0))
            if used > limit and not excused:
                yield f"7: {used} {unit} used, of {limit}: {budget!r}"
