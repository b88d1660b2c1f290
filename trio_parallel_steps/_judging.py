"""What a policy makes of an ending.

1. It is asked once for each ending that it wants to see, while nothing has stopped the step; a
   user's own is asked afterwards too, whether it would have failed the step.
2. Whether it can still be met is judged once the body has ended, and submits no more.
3. One that raises stops the step as an exception of the body would.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._outcomes import said
from ._policies import Decision
from ._records import Cause

if TYPE_CHECKING:
    from ._core import StepCore
    from ._policies import Tally
    from ._records import Record


def judge(step: StepCore, record: Record, ask: bool) -> None:
    tally = step.tally()
    if ask:
        decision = _ask(step, record, tally)
        if decision is None:
            return
        if decision is Decision.SATISFIED:
            step.stop(Cause.SATISFIED, f"policy satisfied by {record.key!r}")
            return
        if decision is Decision.FAILED:
            why = record.result.feedback or f"{record.key!r} succeeded"
            step.stop(Cause.POLICY, f"policy failed: {why}")
            return
    judge_reach(step, tally)


def judge_reach(step: StepCore, tally: Tally) -> None:
    if not step.body_open and not step.policy.in_reach(tally):
        step.stop(Cause.POLICY, f"{step.policy!r} can no longer be met")


def ask_late(step: StepCore, record: Record) -> None:
    """Would it have failed the step, had nothing else stopped it?"""
    if step.cause is Cause.SATISFIED:
        return
    if _ask(step, record, step.tally()) is Decision.FAILED:
        step.failed_late = True


def _ask(step: StepCore, record: Record, tally: Tally) -> Decision | None:
    """What the policy says; None if it raised."""
    try:
        return step.policy.on_end(record.key, record.result, tally)
    except Exception as exc:
        step.policy_raised = True
        step.errors.append(exc)
        step.stop(Cause.BODY, f"the policy raised {said(exc)}")
    except BaseException as exc:
        step.crashed("the policy", exc)
    return None
