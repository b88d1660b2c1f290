"""`Recorder`: an observer that writes down what steps say, and looks at them at each event.

What it writes is stable: times count from the first event, keys and reasons are as they print, and
no identity or real time is in it; so two runs under the same schedule give the same lines.
"""

import math
from collections.abc import Awaitable, Callable, Hashable, Iterator
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
    told_to_stop: set[Hashable] = attrs.field(factory=set)
    result: ParallelResult[Any, Any] | None = None
    breached: bool = False

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
            result = seen.result or seen.nursery.result
            stopped = (BranchStatus.CANCELLED, BranchStatus.TIMED_OUT, BranchStatus.BREACHED)
            if key in seen.told_to_stop or seen.breached or result.stop_reason is not None:
                return True
            if result[key].status in stopped:
                return True
        return False


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
        self._shrunk: set[BranchLimiter] = set()
        self._usage: dict[Budget, dict[str, float]] = {}
        self._outcomes: list[tuple[Branch[Any], Any, BaseException | None]] = []
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

    # ------------------------------------------------------------ what it is told

    def step_opened(self, step: BranchNursery) -> None:
        """A line."""
        self._steps[step] = Seen(step)
        self._write(step, "step_opened")

    def branch_queued(self, branch: Branch[Any]) -> None:
        """A line."""
        seen = self._seen_of(branch)
        if seen is not None:
            seen.queued[branch.key] = None
            self._write(seen.nursery, "branch_queued", branch.key)

    def branch_started(self, branch: Branch[Any]) -> None:
        """A line."""
        seen = self._seen_of(branch)
        if seen is None:
            return
        seen.started[branch.key] = seen.started.get(branch.key, 0) + 1
        reason = seen.nursery.statistics().stop_reason
        if reason is None and trio.current_effective_deadline() == -math.inf:
            reason = (
                "cancelled from outside"  # what starts a branch is the task that it will run in
            )
        if reason is not None or seen.breached:
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
        seen = self._seen_of(branch)
        if seen is not None:
            why = result.reason if result.exception is None else repr(result.exception)
            said = result.status.value + ("" if why is None else f", {why}")
            self._write(seen.nursery, "branch_ended", branch.key, said)  # it has its token still
            seen.endings.setdefault(branch.key, []).append(result)

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        """A line."""
        seen = self._seen_of(branch)
        if seen is not None:
            seen.told_to_stop.add(branch.key)
            self._write(seen.nursery, "cancel_requested", branch.key, reason)

    def limit_changed(self, limiter: BranchLimiter, old: float, new: float, reason: str) -> None:
        """A line."""
        if new < old:
            self._shrunk.add(limiter)
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
        self._steps[step].breached = True
        self._write(step, "breached", None, reason)

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        """A line."""
        self._steps[step].result = result
        self._write(step, "step_closed", None, result.stop_reason or "")

    # ------------------------------------------------------------ inside

    def _seen_of(self, branch: Branch[Any]) -> Seen | None:
        for seen in reversed(self._steps.values()):
            try:
                if seen.nursery[branch.key] is branch:
                    return seen
            except KeyError:
                continue
        return None

    def _write(
        self, step: BranchNursery | None, what: str, key: Hashable = None, details: str = ""
    ) -> None:
        now = trio.current_time()
        if self._began is None:
            self._began = now
        name = "" if step is None else step.name
        self.events.append(Event(now - self._began, name, what, key, details))
        for limiter in self._limiters():
            self._look_at(limiter)

    def _limiters(self) -> Iterator[BranchLimiter]:
        """Of open steps."""
        seen = self._steps.values()
        yield from dict.fromkeys(each.nursery.limiter for each in seen if each.result is None)

    def _look_at(self, limiter: BranchLimiter) -> None:
        how = limiter.statistics()
        if how.borrowed_tokens <= how.total_tokens:
            self._shrunk.discard(limiter)
        elif limiter not in self._shrunk and how.borrowed_tokens > self._heaviest:
            live = tuple((each, key) for each in self._steps.values() for key in each.live())
            self._excesses.append(
                Excess(limiter, f"{how.borrowed_tokens} of {how.total_tokens} in use", live)
            )


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
