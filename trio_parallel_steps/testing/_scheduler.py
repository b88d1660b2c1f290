"""All that this package knows of trio's insides, and the versions of trio of which it knows it.

trio has no public way to choose which of the tasks that are ready goes first (trio#239).  It has
one for its own tests: with `_ALLOW_DETERMINISTIC_SCHEDULING` the tasks of a pass are sorted in the
order in which they were spawned, then shuffled by the generator `_r`, and run from the last to the
first.  In place of `_r` we put one whose shuffle is a choice.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, Final

import trio

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


def awaits_idle() -> bool:
    """Does a task wait until no other can run?"""
    return bool(_run.GLOBAL_RUN_CONTEXT.runner.waiting_for_idle)


def spawned(task: trio.lowlevel.Task) -> int:
    """Grows from task to task."""
    return task._counter


def interrupt() -> None:
    """What trio does with Ctrl-C that was pressed while no task ran."""
    runner = _run.GLOBAL_RUN_CONTEXT.runner
    runner.ki_pending = True
    if runner.main_task is not None and runner.main_task_outcome is None:
        runner.main_task._attempt_delivery_of_pending_ki()


def unshield(task: trio.lowlevel.Task) -> None:
    """Let a cancellation from further out reach the task."""
    status: Any = task._cancel_status
    while status is not None:
        status._scope.shield = False
        status = status._parent
