"""How a step's block ends: what is raised, once every branch and all cleanup has ended.

| what stopped the step       | the block                                                  |
|-----------------------------|------------------------------------------------------------|
| nothing, a satisfied policy | is left; nothing is raised                                 |
| a failed policy             | BranchErrors                                               |
| the body raised             | BranchErrors with the body's error in it                   |
| the deadline                | StepTimeout, or is left with ``move_on_after``             |
| a breach                    | Breached, or BudgetExceeded if a budget refused            |
| a cancellation from outside | Cancelled goes through, errors of cleanup beside it        |
| KeyboardInterrupt and such  | goes through in a group, errors beside it                  |

Errors met while being stopped are shown: in the group, or as the cause of Breached / StepTimeout.
What came from outside goes before all else: only the outermost stopped step raises its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._errors import BaseBranchErrors, BranchErrors, BranchNotDone, Breached, StepTimeout
from ._records import Cause

if TYPE_CHECKING:
    from ._core import StepCore
    from ._outcomes import ParallelResult, StepResult


def conclude(
    step: StepCore, result: ParallelResult[Any, Any], outside: list[BaseException], move_on: bool
) -> BaseException | None:
    """What the block raises.

    `outside` is what the host could not keep in the step: at most one Cancelled, and what is never
    collected.
    """
    if outside:
        return _with_errors(outside, step, result)
    cause = step.cause
    if cause is Cause.BREACH:
        assert step.reason is not None
        exceeded = step.exceeded
        breached = Breached(step.reason, result) if exceeded is None else exceeded.again(result)
        return _because(breached, step, result)
    if cause is Cause.DEADLINE and not move_on:
        message = f"{step.name!r}: {step.reason}"
        return _because(StepTimeout(message, result), step, result)
    if cause is Cause.POLICY:
        return _group([*step.errors, *_unmet(step, result)], step, result)
    if cause is Cause.DEADLINE:
        return _group([*step.errors, *_raised_by_policy(step, result)], step, result)
    return _group([*step.errors, *_shown(step, result)], step, result) if step.errors else None


def _group(
    errors: list[Exception], step: StepCore, result: ParallelResult[Any, Any]
) -> BranchErrors | None:
    if not errors:
        return None
    group = BranchErrors(f"errors in {step.name!r}", errors, result)
    _note(group, step)
    return group


def _note(group: BaseException, step: StepCore) -> None:
    left_out = 0 if step.feed is None else step.feed.left_out
    if left_out:
        group.add_note(f"{left_out} more, of branches whose results were consumed, are not kept")


def _because(
    exc: Breached | StepTimeout, step: StepCore, result: ParallelResult[Any, Any]
) -> BaseException:
    exc.__cause__ = _group([*step.errors, *_shown(step, result)], step, result)
    return exc


def _with_errors(
    outside: list[BaseException], step: StepCore, result: ParallelResult[Any, Any]
) -> BaseException:
    shown = [*step.errors, *_raised_by_policy(step, result)]
    crashes = [exc for exc in outside if step.run.split_cancelled(exc)[0] is None]
    if crashes and not step.run.groups_crashes:
        return crashes[0]
    if len(outside) == 1 and not shown and not crashes:
        return outside[0]
    group = BaseBranchErrors(f"errors in {step.name!r}", [*outside, *shown], result)
    _note(group, step)
    return group


def _raised_by_policy(step: StepCore, result: ParallelResult[Any, Any]) -> list[Exception]:
    return _errors(step, result) if step.policy_raises() else []


def _errors(step: StepCore, result: ParallelResult[Any, Any]) -> list[Exception]:
    return _with_consumed(step, list(result.errors.values()))


def _with_consumed(step: StepCore, errors: list[Exception]) -> list[Exception]:
    return errors if step.feed is None else step.feed.with_kept(errors)


def _shown(step: StepCore, result: ParallelResult[Any, Any]) -> list[Exception]:
    """Errors that the policy raises, or else those met while being stopped."""
    if step.policy_raises():
        return _errors(step, result)
    return [
        exception
        for record in step.ended_while_stopping()
        if (exception := record.exception) is not None
    ]


def _unmet(step: StepCore, result: ParallelResult[Any, Any]) -> list[Exception]:
    """What a failed policy raises."""
    if step.policy.has_goal:
        not_done = [_not_done(ended) for ended in result.values() if not ended.success]
        errors = _with_consumed(step, not_done)
    else:
        errors = _errors(step, result)
    return errors or [BranchNotDone(f"{step.name!r}: {step.reason}")]


def _not_done(ended: StepResult[Any]) -> Exception:
    return ended.exception or BranchNotDone(ended.feedback)
