"""`assert_no_stall`: time must not pass while something could be admitted.

It looks when no task can run.  If the next time a task runs the clock has gone on, all that waited
did so in vain: for a token that was there, in a step whose limiter has room.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias, final

import trio

from trio_parallel_steps import BranchLimiter, BranchNursery, ParallelResult
from trio_parallel_steps.abc import Observer

Limiter: TypeAlias = BranchLimiter | trio.CapacityLimiter


class Stalled(AssertionError):
    """Virtual time went on while somebody waited for what was there."""


@final
class StallWatch(Observer):
    """What `assert_no_stall` gives: an observer for the steps that are to be watched too."""

    def __init__(self, limiters: tuple[Limiter, ...]) -> None:
        self._limiters = limiters
        self._open: dict[BranchNursery, None] = {}
        self.stalls: list[str] = []
        """what was seen, one line each"""

    def step_opened(self, step: BranchNursery) -> None:
        """Watch it."""
        self._open[step] = None

    def step_closed(self, step: BranchNursery, result: ParallelResult[Any, Any]) -> None:
        """No more."""
        self._open.pop(step, None)

    def admissible(self) -> list[str]:
        """Who waits now for what is there."""
        return [*self._waiting_at_limiters(), *self._waiting_in_steps()]

    def _waiting_at_limiters(self) -> Iterator[str]:
        for limiter in self._limiters:
            how = limiter.statistics()
            if getattr(how, "paused", None) is None and how.tasks_waiting:
                free = how.total_tokens - how.borrowed_tokens
                if free >= 1:
                    yield f"{how.tasks_waiting} wait, and {free} tokens are free: {limiter!r}"

    def _waiting_in_steps(self) -> Iterator[str]:
        for step in self._open:
            for key, why in step.explain().items():
                if why.removeprefix("to go on: ") == "the next checkpoint":
                    yield f"{key!r} of {step.name!r} waits for nothing: {step.limiter!r}"


class _Watching(trio.abc.Instrument):
    def __init__(self, watch: StallWatch) -> None:
        self._watch = watch
        self._ran_at = trio.current_time()
        self._suspects: list[str] = []

    def before_io_wait(self, timeout: float) -> None:
        try:
            if not trio.lowlevel.current_statistics().tasks_runnable:
                self._suspects = self._watch.admissible()
        except Exception as exc:  # trio drops an instrument that raises, and says so in a log only
            self._watch.stalls.append(repr(exc))

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        now = trio.current_time()
        if self._suspects:
            if now > self._ran_at:
                self._watch.stalls += [
                    f"from {self._ran_at:.6g} to {now:.6g} s: {suspect}"
                    for suspect in self._suspects
                ]
            self._suspects = []
        self._ran_at = now


@contextmanager
def assert_no_stall(*limiters: Limiter) -> Iterator[StallWatch]:
    """In a trio run in virtual time: time does not pass while something is admissible.

    Watches the limiters it is given (all branches and tasks there must take one token each, and no
    `Rate` may hold them), and the steps that have what it gives among their observers.  Raises
    `Stalled`, an AssertionError, as the block is left, if none but the block's own error is raised.

    >>> import trio
    >>> from trio.testing import MockClock
    >>> from trio_parallel_steps import run_branches
    >>> async def main():
    ...     with assert_no_stall() as watch:
    ...         await run_branches(
    ...             {"a": lambda: trio.sleep(1), "b": lambda: trio.sleep(1)}, 1, observers=[watch]
    ...         )
    >>> trio.run(main, clock=MockClock(autojump_threshold=0))
    """
    for limiter in limiters:
        if not isinstance(limiter, Limiter):
            raise TypeError(
                f"`limiters` must be BranchLimiters or trio.CapacityLimiters, got {limiter!r}"
            )
    watch = StallWatch(limiters)
    watching = _Watching(watch)
    trio.lowlevel.add_instrument(watching)
    try:
        yield watch
    finally:
        trio.lowlevel.remove_instrument(watching)
    if watch.stalls:
        raise Stalled("\n".join(watch.stalls))
