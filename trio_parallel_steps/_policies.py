"""When does a step go on?  A policy is asked as branches end; pure: it sees results, never tasks.

A policy of this module also says what the engine can't know of a user's own: which endings it wants
to see, whether it can still be met, and whether the step did what it asked.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol, final

import attrs

from ._outcomes import BranchStatus, StepResult
from ._util import check_int, expected

if TYPE_CHECKING:
    from collections.abc import Callable

SUCCESS: Final = frozenset({BranchStatus.SUCCEEDED})
FAILURE: Final = frozenset({BranchStatus.FAILED, BranchStatus.TIMED_OUT})
ANY: Final = frozenset(BranchStatus)


@final
@attrs.frozen
class Tally:
    """How the step stands, counting the branch that just ended."""

    succeeded: int
    failed: int
    """FAILED, and TIMED_OUT by their own timeout"""
    ended: int
    outstanding: int
    """queued or running"""


@final
class Decision(enum.Enum):
    """What a policy says."""

    GO_ON = "go_on"
    SATISFIED = "satisfied"
    """stop the other branches; no error"""
    FAILED = "failed"
    """stop branches and body; BranchErrors"""


class Policy(Protocol):
    """Decides, when a branch ends, whether the step goes on.

    Pure; sees results, never tasks.  A failed policy stops branches and body; a satisfied one (a
    first success) stops the other branches only, and is asked no more.  One that raises stops the
    step as an exception of the body would.

    >>> import attrs, trio
    >>> from trio_parallel_steps import run_branches
    >>> @attrs.frozen
    ... class UntilSum:
    ...     goal: int
    ...     def on_end(self, key, result, tally):
    ...         big = result.success and result.output >= self.goal
    ...         return Decision.SATISFIED if big else Decision.GO_ON
    >>> async def n(x): return x
    >>> async def main():
    ...     branches = {x: lambda x=x: n(x) for x in range(9)}
    ...     return await run_branches(branches, 1, policy=UntilSum(3))
    >>> trio.run(main).stop_reason
    'policy satisfied by 3'
    """

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        """Whether the step goes on, now that this branch has ended."""


class EnginePolicy:
    """What the engine asks of a policy."""

    asked_on: ClassVar[frozenset[BranchStatus]] = ANY
    has_goal: ClassVar[bool] = False
    is_users_own: ClassVar[bool] = False

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        raise NotImplementedError  # pragma: no cover

    def in_reach(self, tally: Tally) -> bool:
        """Can it still be met, now that the body submits no more?"""
        return True

    def kept(self, tally: Tally) -> bool:
        """Did the step, which ran to its end, do what was asked?"""
        return True

    def raises(self, tally: Tally) -> bool:
        """Are the branches' exceptions to be raised, though it was something else that stopped the
        step?"""
        return False


@attrs.frozen
class _UsersOwn(EnginePolicy):
    is_users_own: ClassVar[bool] = True
    policy: Policy

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        decision = self.policy.on_end(key, result, tally)
        if not isinstance(decision, Decision):
            what = expected("on_end()", "a Decision", decision)
            raise TypeError(f"{what} from {self.policy!r}")
        return decision


@attrs.frozen(repr=False)
class _Tolerate(EnginePolicy):
    asked_on: ClassVar[frozenset[BranchStatus]] = FAILURE
    failures: int

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.GO_ON if tally.failed <= self.failures else Decision.FAILED

    def kept(self, tally: Tally) -> bool:
        return tally.failed <= self.failures

    def raises(self, tally: Tally) -> bool:
        return tally.failed > self.failures

    def __repr__(self) -> str:
        return "FAIL_FAST" if self.failures == 0 else f"tolerate({self.failures})"


@attrs.frozen(repr=False)
class _Collect(EnginePolicy):
    asked_on: ClassVar[frozenset[BranchStatus]] = frozenset()

    def kept(self, tally: Tally) -> bool:
        return tally.failed == 0

    def __repr__(self) -> str:
        return "COLLECT"


@attrs.frozen(repr=False)
class _Quorum(EnginePolicy):
    asked_on: ClassVar[frozenset[BranchStatus]] = SUCCESS
    has_goal: ClassVar[bool] = True
    successes: int

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.SATISFIED if tally.succeeded >= self.successes else Decision.GO_ON

    def in_reach(self, tally: Tally) -> bool:
        return tally.succeeded + tally.outstanding >= self.successes

    def __repr__(self) -> str:
        return "FIRST_SUCCESS" if self.successes == 1 else f"quorum({self.successes})"


@attrs.frozen(repr=False)
class _Until(EnginePolicy):
    has_goal: ClassVar[bool] = True
    done: Callable[[Any, StepResult[Any]], bool]

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.SATISFIED if self.done(key, result) else Decision.GO_ON

    def in_reach(self, tally: Tally) -> bool:
        return tally.outstanding > 0

    def __repr__(self) -> str:
        return f"until({getattr(self.done, '__qualname__', self.done)})"


FAIL_FAST: Final[Policy] = _Tolerate(0)
"""First failure: cancel the rest, wait for their cleanup, raise `BranchErrors`."""

COLLECT: Final[Policy] = _Collect()
"""Run all to their end, raise nothing; read the `ParallelResult`."""

FIRST_SUCCESS: Final[Policy] = _Quorum(1)
"""First success: cancel the rest.  `BranchErrors` if none succeeds."""


def quorum(successes: int) -> Policy:
    """Stop once that many (>= 1) branches have succeeded.

    Failures are collected.  Once the body has ended and the goal is out of reach, the step fails:
    `BranchErrors` of, for every branch without success, its exception or a `BranchNotDone`.

    >>> quorum(2)
    quorum(2)
    """
    return _Quorum(check_int("successes", successes, 1))


def tolerate(failures: int) -> Policy:
    """As COLLECT up to that many (>= 0) failures, then as FAIL_FAST.

    >>> tolerate(3)
    tolerate(3)
    """
    return _Tolerate(check_int("failures", failures, 0))


def until(done: Callable[[Any, StepResult[Any]], bool]) -> Policy:
    """Stop once ``done(key, result)`` is true of a branch that ended; failures are collected.

    If no branch was, the step fails as an unmet `quorum` does.

    >>> until(lambda key, result: result.success and result.output > 10)
    until(<lambda>)
    """
    if not callable(done):
        raise TypeError(expected("done", "a function of key and result", done))
    return _Until(done)


def engine_policy(policy: Policy) -> EnginePolicy:
    if isinstance(policy, EnginePolicy):
        return policy
    if isinstance(policy, type) or not callable(getattr(policy, "on_end", None)):
        raise TypeError(expected("policy", "a Policy: an object with on_end()", policy))
    return _UsersOwn(policy)
