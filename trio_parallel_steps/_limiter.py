"""`BranchLimiter`: an admission pool that steps and plain tasks share.

1. It is bound to the run of an event loop while anything of that run uses it, and to none while
   idle: its pool is made anew for each run.
2. A task that enters it by ``async with`` waits in the same queue as branches do, at priority 0.
3. A grant that comes too late, as the waiter has been cancelled, is given back.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, TypeAlias, cast, final

import attrs

from ._admission import Pool, Token
from ._branch import enclosing_branch
from ._explain import in_seconds
from ._foreign import ForeignPool
from ._meter import DROPPED, OK, Meter, outcome_of
from ._rate import Gate, Rate
from ._records import QUEUED, RUNNING, SKIPPED
from ._stalls import report
from ._util import check_int, check_str, check_tokens, expected
from .hosts import CapacityLimiter, current_run, protected
from .limits import Limit

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from types import TracebackType

    from ._guarding import Guarding
    from ._queue import Entry
    from .hosts._abc import Run
    from .limits import Sample

EXPECTED: Final = "an int >= 1, math.inf or a Limit"


@final
@attrs.frozen
class LimiterStatistics:
    """How a `BranchLimiter` stands."""

    total_tokens: int | float
    borrowed_tokens: int
    tasks_waiting: int
    """queued branches, and tasks that wait to enter"""
    paused: str | None
    """the reason, or None"""
    admitted: int
    """so far, in this run of the event loop"""


class _Entrant:
    """A task that waits to enter: a waiter, and in the pool's eyes a step of its own."""

    __slots__ = ("_entry", "_priority", "_token", "_wake", "held", "status")

    depth = 0
    paused: str | None = None
    guarding: Guarding | None = None
    _weight = 1

    def __init__(self, wake: Callable[[], object]) -> None:
        self.status = QUEUED
        self.held: list[Entry] = []
        self._priority = 0
        self._entry: Entry | None = None
        self._token: Token | None = None
        self._wake = wake

    @property
    def _step(self) -> _Entrant:
        return self

    def granted(self, waiter: _Entrant) -> None:
        self.status = RUNNING
        self._wake()


@final
class BranchLimiter:
    """An admission pool, shareable by any number of steps, with one queue for all of them: higher
    priority first, then deeper nesting, then first come.

    On trio it borrows from one `trio.CapacityLimiter`.  Names are that class's.  It is also a plain
    semaphore for any code: ``async with limiter:`` holds a token through every wait.

    Bound to one run of an event loop while not idle, else RuntimeError.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> async def main():
    ...     shared = BranchLimiter(2, name="database")
    ...     async with shared:
    ...         pass
    ...     await run_branches({"a": trio.lowlevel.checkpoint}, shared)
    ...     return shared
    >>> trio.run(main)
    <BranchLimiter 'database': 0 of 2 in use, 0 waiting>
    """

    __slots__ = (
        "__weakref__",
        "_foreign",
        "_holders",
        "_limit",
        "_name",
        "_paused",
        "_pool",
        "_rate",
        "_run",
        "_total_tokens",
    )

    def __init__(
        self,
        total_tokens: int | float | Limit,
        *,
        name: str | None = None,
        rate: Rate | None = None,
    ) -> None:
        self._limit = total_tokens if isinstance(total_tokens, Limit) else None
        self._total_tokens = check_limit("total_tokens", total_tokens)
        self._name = None if name is None else check_str("name", name)
        if not isinstance(rate, Rate | None):
            raise TypeError(expected("rate", "a Rate or None", rate))
        self._rate = rate
        self._foreign: CapacityLimiter | None = None  # of the user's own, from which it borrows
        self._paused: str | None = None
        self._run: Run | None = None
        self._pool: Pool | None = None
        self._holders: dict[Hashable, Token] = {}  # by task

    @property
    def name(self) -> str | None:
        """What it was named, for its repr."""
        return self._name

    @property
    def total_tokens(self) -> int | float:
        """Settable at run time; shrinking never cancels, it admits fewer."""
        return self._total_tokens if self._foreign is None else self._foreign.total_tokens

    @total_tokens.setter
    @protected
    def total_tokens(self, total_tokens: int | float) -> None:
        check_tokens("total_tokens", total_tokens)
        if self._limit is not None:
            raise RuntimeError(f"`total_tokens` is set by {self._limit!r}")
        self._check_thread()
        self._set_total(total_tokens, "total_tokens was set")

    def _set_total(self, total_tokens: int | float, reason: str) -> None:
        old, self._total_tokens = self.total_tokens, total_tokens
        if self._pool is not None and old != total_tokens:
            self._pool.set_cap(total_tokens)
            for step in self._pool.steps:
                step.announcer.tell(
                    step.observers, "limit_changed", self, old, total_tokens, reason
                )

    def _set_by_limit(self, value: int, sample: Sample) -> None:
        reason = getattr(self._limit, "reason", None) or _what_it_saw(sample)
        self._set_total(value, f"{type(self._limit).__name__}: {reason}")

    @property
    def borrowed_tokens(self) -> int:
        """How many are in use."""
        return 0 if self._pool is None else self._pool.in_use()[0]

    @property
    def available_tokens(self) -> int | float:
        """How many are not; negative after a shrink."""
        return self.total_tokens - self.borrowed_tokens

    def statistics(self) -> LimiterStatistics:
        """How it stands now."""
        waiting, admitted = (
            (0, 0) if (pool := self._pool) is None else (pool.waiting, pool.admitted)
        )
        return LimiterStatistics(
            self.total_tokens, self.borrowed_tokens, waiting, self._paused, admitted
        )

    def stall_report(self) -> str:
        """If nothing moves: who holds its tokens and where their code stands, and who waits for
        what, in lines for a person to read.

        What waits through this package can't stall; a branch that waits for a queued one through
        an event of one's own can.
        """
        pool = self._pool
        if self._run is None or pool is None:
            return f"{self!r}\n"
        self._check_thread()
        return report(repr(self), pool, self._run, self._holders)

    @protected
    def pause(self, reason: str) -> None:
        """Admit nothing more until `resume`; what runs goes on.  The last reason stands."""
        check_str("reason", reason)
        self._set_paused(reason)

    @protected
    def resume(self) -> None:
        """Lift `pause`."""
        self._set_paused(None)

    def _set_paused(self, reason: str | None) -> None:
        self._check_thread()
        self._paused = reason
        if self._pool is not None:
            self._pool.set_paused(reason)

    def _check_thread(self) -> None:
        if self._run is not None and self._pool is not None and not self._pool.is_idle():
            self._run.check_thread()

    def _bind(self, run: Run, parent: Pool | None = None) -> Pool:
        """The pool, in this run; a sub-cap has a parent."""
        if self._run is not run or self._pool is None:
            if self._pool is not None and not self._pool.is_idle():
                raise RuntimeError(f"{self!r} is in use by another run of an event loop")
            self._run = run
            self._holders = {}
            self._pool = self._new_pool(run, parent)
        return self._pool

    def _new_pool(self, run: Run, parent: Pool | None) -> Pool:
        if self._foreign is not None:
            return ForeignPool(run.shared_ledger(self._foreign), self._paused)
        ledger = run.ledger(self._total_tokens) if parent is None else None
        gate = None if self._rate is None else Gate(self._rate, run)
        pool = Pool(ledger, self._total_tokens, self._paused, parent, gate)
        if self._limit is not None:
            pool.meter = Meter(self._limit, pool, self._set_by_limit)
        return pool

    def _check_not_held(self, run: Run) -> None:
        """Who waits for a token of the pool that it holds one of may wait for ever."""
        if run.current_task() in self._holders:
            raise RuntimeError(f"this task holds a token of {self!r} already")

    def _check_not_run_on(self, run: Run, pool: Pool) -> None:
        branch = enclosing_branch(run)
        if branch is None or (step := branch._step) is None:
            return
        if step.pool.is_within(pool):
            raise RuntimeError(f"{self!r} is the one that branch {branch.key!r} runs on")
        if step.pool.root() is pool.root():
            raise RuntimeError(f"{self!r} is a sub-cap of one that branch {branch.key!r} runs on")

    @protected
    async def __aenter__(self) -> None:
        """Take a token, waiting for it if need be.  A checkpoint.

        Raises RuntimeError in a task that is in it already, and in a branch that runs on it or on
        one that it is a sub-cap of.
        """
        run = current_run()
        pool = self._bind(run)
        self._check_not_held(run)
        self._check_not_run_on(run, pool)
        event = run.event()
        entrant = _Entrant(event.set)
        pool.enter(entrant, entrant.depth)
        try:
            await event.wait()
        except BaseException:
            entrant.status = SKIPPED
            late, entrant._token = entrant._token, None
            if late is None:
                pool.forget(entrant)
            else:
                pool.not_begun()
                pool.give_back(late)
            raise
        token, entrant._token = entrant._token, None  # which refers to the entrant: no cycle
        assert token is not None
        self._holders[run.current_task()] = token
        for meter in pool.meters():
            meter.entered(token, run.now())

    @protected
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the token back.  Not a checkpoint.

        Raises what the `Limit` raises, if it has one.
        """
        run = current_run()
        token = self._holders.pop(run.current_task(), None)
        pool = self._pool
        if token is None or pool is None:
            raise RuntimeError(f"this task holds no token of {self!r}")
        how = OK if exc is None else outcome_of(exc)
        try:
            for meter in pool.meters():
                meter.ended(token, 1, run.now(), how)
        finally:
            pool.give_back(token)

    def __repr__(self) -> str:
        name = "" if self._name is None else f" {self._name!r}"
        paused = "" if self._paused is None else f", paused: {self._paused}"
        waiting = 0 if self._pool is None else self._pool.waiting
        return (
            f"<BranchLimiter{name}: {self.borrowed_tokens} of {self.total_tokens} in use, "
            f"{waiting} waiting{paused}>"
        )


def limiter_over(limiter: CapacityLimiter, run: Run) -> BranchLimiter:
    """One for all steps of the run that are given the same limiter."""
    over: BranchLimiter | None = run.limiters.get(id(limiter))
    if over is None:
        over = BranchLimiter(math.inf)
        over._foreign = limiter
        over._bind(run)
        run.limiters[id(limiter)] = over
    return over


def check_limit(name: str, limit: object, what: str = EXPECTED) -> int | float:
    """The number that it is, or says."""
    if isinstance(limit, Limit):
        return check_int(f"{name}.value", limit.value, 1)
    return check_tokens(name, cast("float", limit), what)


def _what_it_saw(sample: Sample) -> str:
    ended = "was turned away" if sample.outcome is DROPPED else "ended"
    return f"one {ended} after {in_seconds(sample.latency)}, {sample.in_flight} in flight"


def check_weighs(pool: Pool, name: str, weight: int) -> None:
    if weight != 1 and not pool.root().weighs():
        raise ValueError(expected(name, "1, as a trio.CapacityLimiter lends one token", weight))


LimitLike: TypeAlias = int | float | Limit | BranchLimiter | CapacityLimiter | None
"""What may be a limit: so many branches in flight (an int >= 1 or math.inf), a `Limit` that moves
that number by what it measures, a pool shared with other steps, a `trio.CapacityLimiter` shared
with the user's own trio code, or None for the default.
"""
