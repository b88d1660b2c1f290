"""`BranchNursery`: an open step as its users see it.

It checks arguments and says nothing else: what happens when is the core's (`_core`).
"""

from __future__ import annotations

import contextvars
import math
from typing import TYPE_CHECKING, Any, TypeVar, final

import attrs

from ._branch import Branch, enclosing_branch, new_branch, parking_event
from ._explain import explain
from ._guarded import guard
from ._limiter import check_weighs
from ._parking import check_no_circle
from ._records import Cause
from ._resources import ResourceLimits
from ._retry import Retry, check_retry
from ._tries import Tries
from ._util import (
    NoPublicConstructor,
    check_async_fn,
    check_int,
    check_key,
    check_number,
    check_seconds,
    check_str,
    expected,
)
from .hosts import protected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable

    from ._core import StepCore
    from ._limiter import BranchLimiter
    from ._outcomes import ParallelResult, StepResult

T = TypeVar("T")


@final
@attrs.frozen
class NurseryStatistics:
    """How a step stands."""

    queued: int
    running: int
    ended: int
    peak_in_flight: int
    stop_reason: str | None


@final
class BranchNursery(metaclass=NoPublicConstructor):
    """Where branches are submitted.  Made by `open_branch_nursery`.

    All branches end before its block does, whatever happens.  A breach, a deadline or a failed
    policy cancels the body too.  Branches are finite work: what should run beside them for ever
    belongs in a trio nursery of one's own.
    """

    __slots__ = ("__weakref__", "_core", "_limiter", "_result", "_run")

    def __init__(self, core: StepCore, limiter: BranchLimiter) -> None:
        self._core = core
        self._limiter = limiter
        self._run = core.run
        self._result: ParallelResult[Any, Any] | None = None

    @property
    def name(self) -> str:
        """The step's."""
        return self._core.name

    # ------------------------------------------------------------ branches

    @protected
    def start_soon(
        self,
        key: Hashable,
        async_fn: Callable[..., Awaitable[T]],
        *args: Any,
        priority: int = 0,
        weight: int = 1,
        memory_mb: float = 0.0,
        timeout: float = math.inf,
        retry: Retry | None = None,
    ) -> Branch[T]:
        """Submit a branch that calls ``async_fn(*args)``.

        Admitted at the next checkpoint, the best waiter first: among branches submitted without one
        between them, priority decides (higher first).  It runs in a copy of the caller's context.
        From inside a branch too: a sibling, with a token of its own.  After a stop: returns a
        Branch that is SKIPPED already.

        `weight` is how many tokens it takes, >= 1; one heavier than the limit runs alone.

        `memory_mb` reserves memory, in megabytes of 2**20 bytes: the branch is admitted once that
        fits beside what is reserved, and what is in use, under the step's `ResourceLimits` (without
        any, in what the host and the cgroups allow).  One that never fits runs alone.

        `timeout` is in seconds from admission; a branch that it stops ends as TIMED_OUT, which
        counts as a failure, with a `trio.TooSlowError` as its exception.  `retry` says whether it
        is tried again; between tries it is QUEUED.

        Raises ValueError for a duplicate key, TypeError for what is known not to be an async
        function (a function that turns out not to be one when called fails its branch), and
        RuntimeError once the block has been left.

        Branches may share a trio task: its identity, and locks left held, are not the branch's
        own.  Its name is ``step/branch`` meanwhile.
        """
        core = self._core
        self._run.check_thread()
        if core.closed:
            raise RuntimeError(f"{self!r} is closed: its block has been left")
        check_key(key)
        check_async_fn(async_fn)
        if priority != 0 or type(priority) is not int:
            check_int("priority", priority)
        if weight != 1 or type(weight) is not int:
            check_weighs(core.pool, "weight", check_int("weight", weight, 1))
        if memory_mb != 0 or type(memory_mb) is bool:
            what = "a finite number of megabytes >= 0"
            check_number("memory_mb", memory_mb, what, lambda megabytes: 0 <= megabytes < math.inf)
        if timeout != math.inf:
            check_seconds("timeout", timeout)
        if retry is not None:
            check_retry(retry)
        if key in core.records:
            raise ValueError(f"duplicate key {key!r}")
        if memory_mb and core.guarding is None:
            guard(core, ResourceLimits(), watches_memory=True)
        now = self._run.now()
        return self._submit(key, async_fn, args, priority, weight, timeout, retry, now, memory_mb)

    def _submit(
        self,
        key: Hashable,
        async_fn: Callable[..., Awaitable[T]],
        args: tuple[Any, ...],
        priority: int,
        weight: int,
        timeout: float,
        retry: Retry | None,
        now: float,
        memory_mb: float = 0.0,
    ) -> Branch[T]:
        context = contextvars.copy_context()
        core = self._core
        branch = new_branch(core, key, async_fn, args, priority, weight, timeout, context, now)
        if retry is not None:
            branch._tries = Tries(retry, context.copy())
        if memory_mb and core.guarding is not None:
            core.guarding.reserve(branch, memory_mb)
        core.submit(branch)
        return branch

    def __getitem__(self, key: Hashable) -> Branch[Any]:
        branch: Any = self._core.records[key]
        return branch  # type: ignore[no-any-return]

    @protected
    def cancel(self, key: Hashable, reason: str | None = None) -> bool:
        """As `Branch.cancel`; KeyError for an unknown key."""
        return self[key].cancel(reason)

    @protected
    def cancel_where(
        self, predicate: Callable[[Any], bool], reason: str | None = None
    ) -> list[Any]:
        """Cancel the live branches whose key the predicate accepts, queued ones included.

        Asks the predicate about every live key before it cancels any.  Returns the keys that this
        call told to stop.
        """
        if not callable(predicate):
            raise TypeError(expected("predicate", "a function of a key", predicate))
        if reason is not None:
            check_str("reason", reason)
        self._run.check_thread()
        chosen = [
            key
            for key, record in tuple(self._core.records.items())
            if record._step is not None and predicate(key)
        ]
        return [key for key in chosen if self[key].cancel(reason)]

    # ------------------------------------------------------------ the step

    @protected
    def breach(self, reason: str) -> None:
        """Stop the step as a whole.

        Synchronous: running branches are cancelled, queued ones skipped, nothing starts any more;
        the block raises `Breached`.
        """
        check_str("reason", reason)
        self._run.check_thread()
        if not self._core.closed:
            self._core.stop(Cause.BREACH, reason)

    @protected
    def pause(self, reason: str) -> None:
        """Nothing new of this step is admitted; what runs goes on.  The last reason stands."""
        check_str("reason", reason)
        self._run.check_thread()
        self._core.pause(reason)

    @protected
    def resume(self) -> None:
        """Lift `pause`."""
        self._run.check_thread()
        self._core.resume()

    def completed(self) -> AsyncIterator[StepResult[Any]]:
        """Results in the order of ending, skipped ones included.

        Each call is an independent iterator from the first result on; it ends when it has caught up
        and nothing is outstanding.  Breaking out needs no ``aclose``; a cancelled ``__anext__``
        loses nothing.  Each step of it is a checkpoint.

        A branch that iterates is parked while it waits for the next ending.  RuntimeError in a
        branch of the same nursery, or nested in one, or where branches would wait in a circle.

        >>> import trio
        >>> from trio_parallel_steps import open_branch_nursery
        >>> async def main():
        ...     async with open_branch_nursery(1) as nursery:
        ...         for key in "abc":
        ...             nursery.start_soon(key, trio.lowlevel.checkpoint)
        ...         print([result.key async for result in nursery.completed()])
        >>> trio.run(main)
        ['a', 'b', 'c']
        """
        self._run.check_thread()
        completed = _Completed(self._core)
        completed._check_no_circle(enclosing_branch(self._run))
        return completed

    def explain(self) -> dict[Any, str]:
        """For each branch that waits, what it waits for: its admission ('limit: 4 of 4 in use',
        'paused: memory', 'rate: 0.3 s', 'retry: 1.5 s'), or, parked, other branches.

        >>> import trio, trio.testing
        >>> from trio_parallel_steps import open_branch_nursery
        >>> async def main():
        ...     async with open_branch_nursery(1) as nursery:
        ...         for key in "ab":
        ...             nursery.start_soon(key, trio.sleep_forever)
        ...         await trio.testing.wait_all_tasks_blocked()
        ...         print(nursery.explain())
        ...         nursery.cancel_where("ab".__contains__)
        >>> trio.run(main)
        {'b': 'limit: 1 of 1 in use'}
        """
        self._run.check_thread()
        return explain(self._core)

    def statistics(self) -> NurseryStatistics:
        """How the step stands now."""
        core = self._core
        queued = core.outstanding - core.running
        return NurseryStatistics(queued, core.running, len(core.endings), core.peak, core.reason)

    @property
    def limiter(self) -> BranchLimiter:
        """The pool that the step's branches are admitted from."""
        return self._limiter

    @property
    def result(self) -> ParallelResult[Any, Any]:
        """Complete once the block has been left, also by an exception; RuntimeError before."""
        if self._result is None:
            raise RuntimeError(f"{self!r} is open: there is no result before its block is left")
        return self._result

    def __repr__(self) -> str:
        core = self._core
        queued = core.outstanding - core.running
        return (
            f"<BranchNursery {core.name!r}: {queued} queued, {core.running} running, "
            f"{len(core.endings)} ended>"
        )


class _Completed:
    __slots__ = ("_core", "_position")

    def __init__(self, core: StepCore) -> None:
        self._core = core
        self._position = 0

    def __aiter__(self) -> _Completed:
        return self

    def _check_no_circle(self, waiter: Branch[Any] | None) -> None:
        core = self._core
        if waiter is not None:
            check_no_circle(
                waiter,
                lambda record: record._step is core,
                "completed()",
                f"the branches of step {core.name!r}",
            )

    @protected
    async def __anext__(self) -> StepResult[Any]:
        core = self._core
        if self._position == len(core.endings) and core.outstanding:
            waiter = enclosing_branch(core.run)
            self._check_no_circle(waiter)
            event = parking_event(core.run, waiter, core, core.listeners)
            try:
                await event.wait()
            finally:
                if event in core.listeners:  # cancelled before the next ending
                    core.listeners.remove(event)
        else:
            await core.run.checkpoint()
        if self._position == len(core.endings):
            raise StopAsyncIteration
        record = core.endings[self._position]
        self._position += 1
        return record.result
