"""A stall on trio in virtual time fails its test, and does not hang: every task waits, and no
deadline is left to jump to.

Threads and processes may be what is waited for, and run in real time: they have a while.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest import mock
from weakref import WeakKeyDictionary

import trio
from trio.testing import MockClock

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
