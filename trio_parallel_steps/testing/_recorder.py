"""`Recorder`: an observer that writes down what steps say, and looks at them at each event.

What it writes is stable: times count from the first event, keys and reasons are as they print, and
no identity or real time is in it; so two runs under the same schedule give the same lines.

It works on asyncio too, but that a step is cancelled from outside is to be seen on trio only.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar, final

import attrs
import trio

from trio_parallel_steps import (
    Branch,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Budget,
    ParallelResult,
    StepResult,
    current_branch,
)
from trio_parallel_steps.abc import Observer

P = ParamSpec("P")
T = TypeVar("T")


@final
@attrs.frozen
class Event:
    """One thing that a step said."""

    seconds: float
    """since the first event"""
    step: str
    """its name; of a limiter or a budget, its repr's first word"""
    what: str
    """as the hook of `trio_parallel_steps.abc.Observer` is called"""
    key: Hashable = None
    """of the branch, if it is about one"""
    details: str = ""

    def __str__(self) -> str:
        where = self.step if self.key is None else f"{self.step}/{self.key}"
        details = f": {self.details}" if self.details else ""
        return f"{self.seconds:.6g} s  {where} {self.what}{details}"


@attrs.define(eq=False)
class Seen:
    """What was seen of one step."""

    nursery: BranchNursery
    queued: dict[Hashable, None] = attrs.field(factory=dict)
    started: dict[Hashable, int] = attrs.field(factory=dict)
    endings: dict[Hashable, list[StepResult[Any]]] = attrs.field(factory=dict)
    told: dict[Hashable, str] = attrs.field(factory=dict)
    """a letter each: queued, started, ended, cancel requested, shed"""
    told_to_stop: dict[Hashable, str] = attrs.field(factory=dict)
    """why, first"""
    result: ParallelResult[Any, Any] | None = None
    breached_for: list[str] = attrs.field(factory=list)
    order: list[Hashable] = attrs.field(factory=list)
    """of ending, of those that ran"""
    consumed: set[Hashable] = attrs.field(factory=set)
    """what a map has given to its iterator, and forgotten"""

    def live(self) -> list[Hashable]:
        return [key for key in self.started if key not in self.endings]


@attrs.frozen
class Excess:
    """More tokens were in use than there are, while those branches ran."""

    limiter: BranchLimiter
    said: str
    live: tuple[tuple[Seen, Hashable], ...]

    def is_excused(self) -> bool:
        """By branches that unwind after a stop: they go on without a token, if need be."""
        for seen, key in self.live:
            result = seen.result
            if result is None:
                return True  # it was not closed, which is told
            stopped = (BranchStatus.CANCELLED, BranchStatus.TIMED_OUT, BranchStatus.BREACHED)
            if key in seen.told_to_stop or "h" in seen.told[key]:
                return True
            if seen.breached_for or result.stop_reason is not None:
                return True
            if result[key].status in stopped:
                return True
        return False


@attrs.frozen
class Left:
    """How the block of a step was left."""

    nursery: BranchNursery
    body: BaseException | None
    """what its own code raised"""
    raised: BaseException | None


@final
class Recorder(Observer):
    """An observer that writes down all that it is told: ``observers=[recorder]``.  Made by
    `recorder`.

    For `check_invariants`, and to compare runs: the same schedule gives the same `lines`.
    """

    def __init__(self, heaviest: int = 1) -> None:
        if type(heaviest) is not int or heaviest < 1:
            raise ValueError(f"`heaviest` must be an int >= 1, got {heaviest!r}")
        self.events: list[Event] = []
        """all of them"""
        self._heaviest = heaviest
        self._began: float | None = None
        self._steps: dict[BranchNursery, Seen] = {}
        self._open: dict[BranchNursery, Seen] = {}
        self._seen: dict[Branch[Any], Seen] = {}
        self._shrunk: set[BranchLimiter] = set()
        self._totals: dict[BranchLimiter, float] = {}
        self._usage: dict[Budget, dict[str, float]] = {}
        self._outcomes: list[tuple[Branch[Any], Any, BaseException | None]] = []
        self._left: list[Left] = []
        self._violations: list[str] = []
        self._excesses: list[Excess] = []

    def lines(self) -> list[str]:
        """The events, a line each, the same for the same schedule."""
        return [str(event) for event in self.events]

    def watch(self, async_fn: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
        """A function for a branch, that writes down too what its code returned or raised."""

        @wraps(async_fn)
        async def watched(*args: P.args, **kwargs: P.kwargs) -> T:
            branch: Any = current_branch()
            try:
                value = await async_fn(*args, **kwargs)
            except BaseException as exc:
                self._outcomes.append((branch, None, exc))
                raise
            self._outcomes.append((branch, value, None))
            return value

        return watched

    @asynccontextmanager
    async def watch_step(
        self, step: AbstractAsyncContextManager[BranchNursery]
    ) -> AsyncIterator[BranchNursery]:
        """A step's block, that writes down too what it raised:
        ``async with recorded.watch_step(open_branch_nursery(2, observers=[recorded])) as nursery:``
        """
        nursery = body = None
        try:
            async with step as nursery:
                try:
                    yield nursery
                except BaseException as exc:
                    body = exc
                    raise
        except BaseException as exc:
            if nursery is not None:
                self._left.append(Left(nursery, body, exc))
            raise
        self._left.append(Left(nursery, body, None))

    # ------------------------------------------------------------ what it is told

    def step_opened(self, step: BranchNursery) -> None:
        """A line."""
        if step in self._steps:
            self._violations.append(f"10: {step.name!r} was opened twice")
        self._steps[step] = self._open[step] = Seen(step)
        self._write(step, "step_opened")

    def branch_queued(self, branch: Branch[Any]) -> None:
        """A line."""
        seen = self._told(branch, "q")
        if seen is not None:
            seen.queued[branch.key] = None
            self._write(seen.nursery, "branch_queued", branch.key)

    def branch_started(self, branch: Branch[Any]) -> None:
        """A line."""
        seen = self._told(branch, "s")
        if seen is None:
            return
        seen.started[branch.key] = seen.started.get(branch.key, 0) + 1
        reason = seen.nursery.statistics().stop_reason
        if reason is None and seen.breached_for:
            reason = seen.breached_for[0]
        # On trio what starts a branch is the task that it will run in.
        if reason is None and _is_cancelled():
            reason = "cancelled from outside"
        if reason is not None:
            self._violations.append(
                f"6: {branch.key!r} of {seen.nursery.name!r} started after a stop: {reason}"
            )
        self._write(seen.nursery, "branch_started", branch.key)

    def branch_progressed(self, branch: Branch[Any], done: float, total: float | None) -> None:
        """A line."""
        seen = self._seen_of(branch)
        if seen is not None:
            said = f"{done:.6g} of {total if total is None else format(total, '.6g')}"
            self._write(seen.nursery, "branch_progressed", branch.key, said)

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        """A line."""
        seen = self._told(branch, "e")
        if seen is not None:
            if result.completion_index is not None:
                seen.order.append(branch.key)
            if branch.status is not result.status:
                self._violations.append(
                    f"10: {branch.key!r} of {seen.nursery.name!r} was told to be {result.status}, "
                    f"while it was {branch.status}"
                )
            why = result.reason if result.exception is None else repr(result.exception)
            said = result.status.value + ("" if why is None else f", {why}")
            self._write(seen.nursery, "branch_ended", branch.key, said)
            seen.endings.setdefault(branch.key, []).append(result)  # so far it had its token

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        """A line."""
        is_shed = reason.startswith("shed: ")
        seen = self._told(branch, "h" if is_shed else "c")
        if seen is not None:
            if not is_shed:
                seen.told_to_stop.setdefault(branch.key, reason)
            self._write(seen.nursery, "cancel_requested", branch.key, reason)

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        """A line."""
        self._write(None, "limit_changed", None, f"{limiter.name}: {old} to {new}, {reason}")

    def usage_changed(self, budget: Budget) -> None:
        """A line."""
        used = budget.used()
        most = self._usage.setdefault(budget, dict(used))
        for unit, amount in used.items():
            most[unit] = max(most.get(unit, amount), amount)
        said = ", ".join(f"{amount:.6g} {unit}" for unit, amount in used.items())
        self._write(None, "usage_changed", None, said)

    def breached(self, step: BranchNursery, reason: str) -> None:
        """A line."""
        self._steps[step].breached_for.append(reason)
        self._write(step, "breached", None, reason)

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        """A line."""
        if self._steps[step].result is not None:
            self._violations.append(f"10: {step.name!r} was closed twice")
        seen = self._steps[step]
        seen.result = result
        seen.consumed = {key for key in seen.queued if not _has(step, key)}
        self._open.pop(step, None)
        self._write(step, "step_closed", None, result.stop_reason or "")

    # ------------------------------------------------------------ inside

    def _told(self, branch: Branch[Any], letter: str) -> Seen | None:
        seen = self._seen_of(branch)
        if seen is not None:
            seen.told[branch.key] = seen.told.get(branch.key, "") + letter
            if seen.result is not None:
                self._violations.append(
                    f"10: {seen.nursery.name!r} was closed, and then told of {branch.key!r}"
                )
        return seen

    def _seen_of(self, branch: Branch[Any]) -> Seen | None:
        found = self._seen.get(branch)
        if found is None:
            for seen in reversed(self._steps.values()):
                if _has(seen.nursery, branch.key) and seen.nursery[branch.key] is branch:
                    found = self._seen[branch] = seen
                    break
        return found

    def _write(
        self, step: BranchNursery | None, what: str, key: Hashable = None, details: str = ""
    ) -> None:
        now = _now()
        if self._began is None:
            self._began = now
        name = "" if step is None else step.name
        self.events.append(Event(now - self._began, name, what, key, details))
        for seen in self._open.values():
            self._look_at(seen.nursery.limiter)

    def _look_at(self, limiter: BranchLimiter) -> None:
        total, borrowed = limiter.total_tokens, limiter.borrowed_tokens
        if total < self._totals.get(limiter, total):  # of one of trio's own, nobody tells
            self._shrunk.add(limiter)
        self._totals[limiter] = total
        if borrowed <= total:
            self._shrunk.discard(limiter)
        elif limiter not in self._shrunk and borrowed > self._heaviest:
            live = tuple((each, key) for each in self._steps.values() for key in each.live())
            self._excesses.append(Excess(limiter, f"{borrowed} of {total} in use", live))


def _has(step: BranchNursery, key: Hashable) -> bool:
    try:
        step[key]
    except KeyError:
        return False
    return True


def _now() -> float:
    if trio.lowlevel.in_trio_run():
        return trio.current_time()
    return asyncio.get_running_loop().time()


def _is_cancelled() -> bool:
    return trio.lowlevel.in_trio_run() and trio.current_effective_deadline() == -math.inf


def recorder(*, heaviest: int = 1) -> Recorder:
    """A new `Recorder`; `heaviest` is the largest ``weight`` of any branch that it will see.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> recorded = recorder()
    >>> async def main():
    ...     await run_branches({"a": trio.lowlevel.checkpoint}, name="step", observers=[recorded])
    >>> trio.run(main)
    >>> [event.what for event in recorded.events]
    ['step_opened', 'branch_queued', 'branch_started', 'branch_ended', 'step_closed']
    """
    return Recorder(heaviest)
