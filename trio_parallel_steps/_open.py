"""`open_branch_nursery`: a step's block, from entering it to what it raises.

It checks options and wires a core to a host; where the branches run is the host's business, and how
the block ends `_endings`'.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, TypedDict, final

import attrs

from ._branch import Branch, enclosing_branch, go_on
from ._breach import Breach, check_breach
from ._core import StepCore
from ._endings import conclude
from ._errors import Breached
from ._guarded import guard
from ._limiter import BranchLimiter, LimitLike, check_limit, limiter_over
from ._nursery import BranchNursery
from ._outcomes import ParallelResult, said
from ._parking import Wait
from ._policies import FAIL_FAST, EnginePolicy, Policy, engine_policy
from ._records import Cause
from ._resources import ResourceLimits, check_resources
from ._rules import CancelRule, Rules
from ._spending import Budget, check_budget
from ._util import NoPublicConstructor, check_all, check_seconds, check_str, expected
from .abc import Observer
from .hosts import CapacityLimiter, check_host, current_run, protected

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Any

    from ._admission import Pool
    from .hosts._abc import Host, Run


@attrs.frozen
class _Options:
    """What `open_branch_nursery` was given, checked."""

    limit: LimitLike
    name: str
    policy: EnginePolicy
    timeout: float
    move_on: bool
    budget: Budget | None
    breach: Breach | None
    cancel_rules: tuple[CancelRule, ...]
    drains: bool
    observers: tuple[Observer, ...]
    resources: ResourceLimits | None
    host: str | None
    redeliver: float


class NurseryOptions(TypedDict, total=False):
    """Options of `open_branch_nursery`, for functions that pass them on."""

    name: str | None
    policy: Policy
    fail_after: float
    move_on_after: float
    budget: Budget | None
    breach: Breach | None
    cancel_rules: Iterable[CancelRule]
    on_breach: str
    observers: Iterable[Observer]
    resources: ResourceLimits | None
    host: str | None
    redeliver: float


@final
class BranchNurseryManager(metaclass=NoPublicConstructor):
    """The async context manager that `open_branch_nursery` returns, for one use."""

    __slots__ = ("_host", "_nursery", "_opened_at", "_opened_at_unix", "_options")

    def __init__(self, options: _Options) -> None:
        self._options = options
        self._nursery: BranchNursery | None = None
        self._host: Host
        self._opened_at: float
        self._opened_at_unix: float

    @protected
    async def __aenter__(self) -> BranchNursery:
        if self._nursery is not None:
            raise RuntimeError(
                "a branch nursery can be opened once: call open_branch_nursery again"
            )
        options = self._options
        run = current_run(options.host)
        if options.breach is not None and options.breach.reason is not None:
            raise Breached(options.breach.reason)
        enclosing = enclosing_branch(run)
        if options.budget is not None:
            options.budget._check_thread()
        limiter, pool = _limiter(options.limit, run, enclosing)
        limiter._check_not_held(run)
        rules = Rules(options.cancel_rules) if options.cancel_rules else None
        core = StepCore(
            options.name,
            pool,
            options.policy,
            rules,
            list(options.observers),
            run,
            enclosing,
            options.timeout,
            options.budget,
            options.drains,
        )
        nursery = self._nursery = core.handle = BranchNursery._create(core, limiter)
        self._host = core.host = run.host(options.name, options.redeliver)
        self._opened_at = run.now()
        self._opened_at_unix = time.time()
        await self._host.enter(core, options.timeout)
        for used in pool.chain():
            used.steps[core] = None
        if options.breach is not None:
            options.breach._steps[core] = None
        if options.budget is not None:
            options.budget._attach(core)
        if core.observers:
            core.tell("step_opened", nursery)
        if options.resources is not None:
            guard(core, options.resources)
        return nursery

    @protected
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        nursery = self._nursery
        assert nursery is not None
        core = nursery._core
        left = _body_ended(core, exc)
        parent = enclosing_branch(core.run)
        if parent is not None and parent is core.parent:
            core.join = Wait(parent, core)
            if core.outstanding:
                core.join.begin()
        outside = await self._host.leave(left, traceback if left is exc else None)
        if core.guarding is not None:
            core.guarding.leave()
            core.guarding = None
        if core.join is not None and core.join.has_begun:
            try:
                await go_on(core.join)
            except BaseException as late:  # asyncio: cancelled while it waited for its token
                outside = outside or [late]
        # What is raised may become the value of the branch around, and keeps this frame: no cycles.
        core.join = core.parent = None
        del parent
        options = self._options
        if options.breach is not None:
            del options.breach._steps[core]
        if options.budget is not None:
            options.budget._detach(core)
        core.settle()
        result = nursery._result = ParallelResult(
            core.records,
            core.endings,
            core.name,
            core.succeeded_as_asked(),
            core.reason,
            core.peak,
            self._opened_at,
            self._opened_at_unix,
        )
        if core.observers:
            core.tell("step_closed", nursery, result)
        del core.host, core.handle, self._host
        raised = conclude(core, result, [*outside, *core.crashes], options.move_on)
        core.errors.clear()
        del outside, left
        if raised is None:
            return exc is not None
        if raised is exc:
            return False
        context = raised.__context__
        try:
            raise raised
        finally:
            raised.__context__ = context  # not the body's exception: the group holds it
            del raised, exc, traceback, context  # no cycles


def _limiter(
    limit: LimitLike, run: Run, enclosing: Branch[Any] | None
) -> tuple[BranchLimiter, Pool]:
    """Inside a branch, None is its own step's limiter, and a number a sub-cap of that one."""
    if isinstance(limit, CapacityLimiter):
        limit = limiter_over(limit, run)
    if isinstance(limit, BranchLimiter):
        return limit, limit._bind(run)
    step = None if enclosing is None else enclosing._step
    if step is None:
        limiter = BranchLimiter(run.default_limit() if limit is None else limit)
        return limiter, limiter._bind(run)
    if limit is None:
        return step.handle.limiter, step.pool
    limiter = BranchLimiter(limit)
    return limiter, limiter._bind(run, step.pool)


def pool_here(limit: LimitLike, host: str | None) -> Pool:
    """What the branches of a step opened here would be admitted from."""
    run = current_run(host)
    return _limiter(limit, run, enclosing_branch(run))[1]


def _body_ended(core: StepCore, exc: BaseException | None) -> BaseException | None:
    """Tell the core how the body ended.  Returns what has to go through the host: Cancelled, and
    what no one collects."""
    core.body_ended()
    if exc is None:
        return None
    cancelled, error = core.run.split_cancelled(exc)
    if cancelled is not None:
        core.interrupted()
        core.cut = True
    if error is None:
        return cancelled
    if isinstance(error, Exception):
        if core.is_refused(error):
            return cancelled  # the block raises its own
        core.errors.append(error)
        core.stop(Cause.BODY, f"the body raised {said(error)}")
        return cancelled
    core.crashed("the body", error)
    return cancelled


def open_branch_nursery(
    limit: LimitLike = None,
    *,
    name: str | None = None,
    policy: Policy = FAIL_FAST,
    fail_after: float = math.inf,
    move_on_after: float = math.inf,
    budget: Budget | None = None,
    breach: Breach | None = None,
    cancel_rules: Iterable[CancelRule] = (),
    resources: ResourceLimits | None = None,
    on_breach: str = "cancel",
    observers: Iterable[Observer] = (),
    host: str | None = None,
    redeliver: float = math.inf,
) -> AbstractAsyncContextManager[BranchNursery]:
    """A block in which branches are submitted, run under `limit`, and all have ended when it ends.

    `limit` is how many branches may be in flight: an int >= 1, math.inf, or a `BranchLimiter` that
    is shared with other steps; None means ``min(10, 2 * usable_cpus())``.  Inside a branch, None
    means the limiter that the branch runs on, and a number is a sub-cap: its branches take a token
    of both.  A `BranchLimiter` opts out of the one around it, and so does a `trio.CapacityLimiter`,
    which is shared, first come first served, with whatever else borrows from it.  A branch lends
    its token while it waits for a nested block, or for another branch, so nesting can't stall.

    `fail_after` and `move_on_after` are seconds from entering the block; then all is cancelled, and
    the block raises `StepTimeout`, or goes on with what there is.  Only one of the two.

    A refusal of `budget` breaches the step, as tripping `breach` does.  `on_breach` is 'cancel' or
    'drain': then a breach admits nothing more, but lets running branches and the body end by
    themselves before the block raises.  Meanwhile `Branch.cancel`, an error of the body, a deadline
    or a cancellation from outside stop what runs as ever; the policy and the rules rest.

    `resources` says what the branches may use: `ResourceLimits`.  While more is used, nothing new
    is admitted, though one branch may always run; at the limit, its action comes.

    `host` is 'trio' or 'asyncio'; None asks sniffio once.  `redeliver`, on asyncio only, tells a
    branch that swallowed its cancellation again after that many seconds, and names it in a warning.

    Entering is not a checkpoint; leaving is a schedule point, and waits for all branches.

    Raises, as the block is left: `BranchErrors` if the policy failed or the body raised,
    `Breached` (its subclass `BudgetExceeded` if a budget refused), `StepTimeout`; each with the
    ``.result``.  A cancellation from outside goes through, and only the outermost stopped step
    raises its own.

    >>> import trio
    >>> async def square(x):
    ...     await trio.sleep(0)
    ...     return x * x
    >>> async def main():
    ...     async with open_branch_nursery(4) as nursery:
    ...         for x in range(3):
    ...             nursery.start_soon(x, square, x)
    ...     return nursery.result.outputs
    >>> trio.run(main)
    {0: 0, 1: 1, 2: 4}
    """
    if not isinstance(limit, BranchLimiter | CapacityLimiter | None):
        check_limit("limit", limit, "an int >= 1, math.inf, a Limit or a limiter")
    check_seconds("fail_after", fail_after)
    check_seconds("move_on_after", move_on_after)
    if fail_after != math.inf and move_on_after != math.inf:
        raise ValueError("only one of `fail_after` and `move_on_after` can be given")
    check_host(host)
    check_seconds("redeliver", redeliver)
    check_breach(breach)
    if check_str("on_breach", on_breach) not in ("cancel", "drain"):
        raise ValueError(expected("on_breach", "'cancel' or 'drain'", on_breach))
    return BranchNurseryManager._create(
        _Options(
            limit,
            "step" if name is None else check_str("name", name),
            engine_policy(policy),
            min(fail_after, move_on_after),
            move_on_after != math.inf,
            check_budget(budget),
            breach,
            check_all("cancel_rules", cancel_rules, CancelRule),
            on_breach == "drain",
            check_all("observers", observers, Observer),
            check_resources(resources),
            host,
            redeliver,
        )
    )
