"""What became of a unit, by what it raised.

1. Its own timeout, and a breach within it, are no failures of its code.
2. A pipeline's own timeout is none of what its steps raised.
3. Who is around it raises its breach anew, with a result of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from ._errors import Breached, BudgetExceeded, StepTimeout
from ._outcomes import BranchStatus

if TYPE_CHECKING:
    from ._outcomes import ParallelResult, StepResult
    from ._pipeline import PipelineResult


def as_told(result: StepResult[Any]) -> StepResult[Any]:
    exc = result.exception
    if result.status is not BranchStatus.FAILED:
        return result
    if _is_its_timeout(result):
        return attrs.evolve(result, status=BranchStatus.TIMED_OUT, reason=str(exc))
    if isinstance(exc, Breached):
        return attrs.evolve(result, status=BranchStatus.BREACHED, reason=exc.reason)
    return result


def _is_its_timeout(result: StepResult[Any]) -> bool:
    exc = result.exception
    if result.steps:
        return isinstance(exc, StepTimeout) and all(
            step.exception is not exc for step in result.steps
        )
    return is_timeout(exc, result.branches)


def is_timeout(exc: Exception | None, result: ParallelResult[Any, Any] | None) -> bool:
    """Is it the parallel step's own timeout?"""
    return result is not None and isinstance(exc, StepTimeout) and exc.result is result


def again(breached: Breached, result: ParallelResult[Any, Any] | PipelineResult) -> Breached:
    if isinstance(breached, BudgetExceeded):
        return breached.again(result)
    return Breached(breached.reason, result)
