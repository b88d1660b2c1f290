"""All that this package knows of trio's insides, and the versions of trio of which it knows it.

trio has no public way to choose which of the tasks that are ready goes first (trio#239).  It has
one for its own tests: with `_ALLOW_DETERMINISTIC_SCHEDULING` the tasks of a pass are sorted in the
order in which they were spawned, then shuffled by the generator `_r`, and run from the last to the
first.  In place of `_r` we put one whose shuffle is a choice.

To set up a trio run takes as long as a small program does.  So a `Loop` is one for many programs,
one after the other, in its main task:

1. Each begins with a context, run variables and numbers of tasks as in a run of its own, and with
   the clock at 0.
2. What a program leaves behind (a system task, an open scope, an async generator, an instrument)
   ends the loop: the next program gets another.
3. Between two of them no trio run is to be seen.
"""

import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from random import Random
from typing import Any, Final

import attrs
import trio

from ._clock import VirtualClock

SUPPORTED: Final = ((0, 31), (0, 35))
"""The oldest and the newest trio whose scheduler was read."""

_run: Any = trio._core._run


def check_version(version: str | None = None) -> None:
    """RuntimeError for a trio that is not known."""
    version = trio.__version__ if version is None else version
    match = re.match(r"(\d+)\.(\d+)", version)
    oldest, newest = (".".join(map(str, pair)) for pair in SUPPORTED)
    if match is None or not SUPPORTED[0] <= (int(match[1]), int(match[2])) <= SUPPORTED[1]:
        raise RuntimeError(
            f"trio_parallel_steps.testing chooses schedules through the insides of trio {oldest} "
            f"to {newest}, and this is trio {version}"
        )


class _Chooser(Random):
    """What trio takes for its random number generator."""

    shuffle_batch: Callable[[list[Any]], None]

    def shuffle(self, batch: Any) -> None:
        self.shuffle_batch(batch)


@contextmanager
def scheduled(order: Callable[[list[Any]], None]) -> Iterator[None]:
    """Let `order` put the tasks of each pass into an order, the first to run last."""
    kept = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    chooser = _Chooser(0)
    chooser.shuffle_batch = order
    _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = True, chooser
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r = kept


class Loop:
    """A trio run for one program after the other."""

    def __init__(self, instruments: Sequence[trio.abc.Instrument]) -> None:
        self.clock = VirtualClock(lambda: bool(self._runner.waiting_for_idle))
        self.is_clean = True
        self._program: Callable[[], Awaitable[None]] | None = None
        self._is_idle = False
        self._task: Any = None
        self._context = copy_context()
        self._runner = _run.setup_runner(self.clock, instruments, False, True)
        self._passes = _run.unrolled_run(
            self._runner, self._serve, (), host_uses_signal_set_wakeup_fd=True
        )
        self._sniffed, _run.sniffio_library.name = _run.sniffio_library.name, "trio"
        try:
            self._timeout = self._passes.send(None)
            self._go_on()
        finally:
            self._leave()
        self._fresh = self._left()

    def run(self, program: Callable[[], Awaitable[None]]) -> None:
        """Raises nothing of the program's, which keeps it to itself; a trio.TrioInternalError if it
        can't be ended."""
        runner, task = self._runner, self._task
        self._enter()
        try:
            self.clock.reset()
            runner._locals = {}
            task._counter = attrs.fields(_run.Task)._counter.default.factory()
            task.context = self._context.copy()
            self._program = program
            self._is_idle = False
            runner.reschedule(task)
            self._go_on()
            self.is_clean = self._left() == self._fresh
        except BaseException:
            self.is_clean = False
            raise
        finally:
            self._program = None
            self._leave()

    def close(self) -> None:
        """End it."""
        if self._passes.gi_frame is None:
            return  # it has crashed
        self._enter()
        self.clock.on_hang = _give_up
        self.clock.reset()
        try:
            self._is_idle = False
            if self._task in self._runner.tasks and self._task._next_send_fn is None:
                self._runner.reschedule(self._task)
            self._go_on()
        finally:
            self._leave()

    async def _serve(self) -> None:
        self._task = trio.lowlevel.current_task()
        while True:
            self._is_idle = True
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            if self._program is None:
                return
            await self._program()

    def _go_on(self) -> None:
        """Until the program is over, and nothing is left to be run."""
        runner = self._runner
        try:
            events = runner.io_manager.get_events(0)
            while True:
                self._timeout = self._passes.send(events)
                if self._is_idle and not runner.runq:
                    return
                events = runner.io_manager.get_events(self._timeout)
        except StopIteration:
            pass

    def _left(self) -> tuple[object, ...]:
        """What a program could leave behind."""
        runner, task = self._runner, self._task
        return (
            len(runner.tasks),
            task._cancel_status,
            len(task.child_nurseries),
            len(runner.asyncgens.alive),
            runner.ki_pending,
            len(runner.instruments["_all"]),
        )

    def _enter(self) -> None:
        _run.GLOBAL_RUN_CONTEXT.runner = self._runner
        self._sniffed, _run.sniffio_library.name = _run.sniffio_library.name, "trio"

    def _leave(self) -> None:
        _run.GLOBAL_RUN_CONTEXT.__dict__.clear()
        _run.sniffio_library.name = self._sniffed


def _give_up() -> None:
    raise RuntimeError("a system task that the program left behind does not end")


def spawned(task: trio.lowlevel.Task) -> int:
    """Grows from task to task."""
    return task._counter


def interrupt() -> None:
    """What trio does with Ctrl-C that was pressed while no task ran."""
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    runner.ki_pending = True
    runner.main_task._attempt_delivery_of_pending_ki()


def is_interrupt_pending() -> bool:
    """Was there no checkpoint to deliver it at?  Then it is taken back."""
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    pending, runner.ki_pending = runner.ki_pending, False
    return bool(pending)


def force(task: trio.lowlevel.Task, exc: Exception) -> None:
    """Raise it where the task waits, whatever it says to that."""
    if task._next_send_fn is None:
        trio.lowlevel.reschedule(task, _run.Error(exc))


def unshield(task: trio.lowlevel.Task) -> None:
    """Let a cancellation from further out reach the task."""
    status: Any = task._cancel_status
    while status is not None:
        status._scope.shield = False
        status = status._parent
