"""Runs of trio for tests: `schedule`, by a seed, and what stalls.

A stall on trio in virtual time fails its test, and does not hang: every task waits, and no
deadline is left to jump to.

Threads and processes may be what is waited for, and run in real time: they have a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any, NoReturn
from unittest import mock
from weakref import WeakKeyDictionary

import trio
from trio.testing import MockClock

from trio_parallel_steps.hosts import _trio_runner

PATIENCE = 60.0  # seconds of real time


class Stalled(Exception):
    """Raised in the main task."""


def _fail() -> NoReturn:
    raise Stalled("every task waits, and no deadline is left")


@contextmanager
def stalls_fail(patience: float = PATIENCE) -> Iterator[None]:
    clocks: Any = MockClock
    jump = clocks._autojump
    idle: WeakKeyDictionary[MockClock, tuple[float, float]] = WeakKeyDictionary()

    def autojump(clock: MockClock) -> None:
        jump(clock)
        now = clock.current_time()
        then, since = idle.get(clock, (None, 0.0))
        if then != now:
            idle[clock] = now, time.monotonic()
        elif time.monotonic() - since > patience:
            del idle[clock]
            main_task: Any = trio.lowlevel.current_root_task()
            main_task._runner.main_task._attempt_abort(_fail)

    with mock.patch.object(MockClock, "_autojump", autojump):
        yield


@contextmanager
def schedule(seed: int) -> Iterator[None]:
    """The same seed, the same schedule."""
    scheduler: Any = trio._core._run
    kept = scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r
    scheduler._ALLOW_DETERMINISTIC_SCHEDULING = True
    scheduler._r = Random(seed)
    try:
        # How long a branch holds the thread in real time is no part of a schedule.
        with mock.patch.object(_trio_runner, "perf_counter", return_value=0.0):
            yield
    finally:
        scheduler._ALLOW_DETERMINISTIC_SCHEDULING, scheduler._r = kept
