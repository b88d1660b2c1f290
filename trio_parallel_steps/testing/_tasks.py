"""Which tasks a program has, and where their code stands."""

import inspect
from collections.abc import Iterator
from types import FrameType
from typing import Any

import trio

from . import _scheduler


def tasks_from(main: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """The task, and those in its nurseries, and in theirs."""
    waiting = [main]
    while waiting:
        task = waiting.pop(0)
        yield task
        waiting += children(task)


def children(task: trio.lowlevel.Task) -> list[trio.lowlevel.Task]:
    """Those in its nurseries."""
    return [
        child
        for nursery in task.child_nurseries
        for child in sorted(nursery.child_tasks, key=_scheduler.spawned)
    ]


def position(task: trio.lowlevel.Task) -> str:
    """The innermost line that is the program's own."""
    if inspect.iscoroutine(task.coro) and inspect.getcoroutinestate(task.coro) == "CORO_CREATED":
        return "begins"
    found = ""
    for frame, line in _frames(task):
        top = frame.f_globals.get("__name__", "").partition(".")[0]
        if top not in ("outcome", "trio", "trio_parallel_steps"):
            file = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
            found = f"at {file}:{line} in {frame.f_code.co_name}"
    return found


def _frames(task: trio.lowlevel.Task) -> Iterator[tuple[FrameType, int]]:
    frame = None
    for frame, line in task.iter_await_frames():
        yield frame, line
    # A branch's coroutine is not awaited by its runner, which sends to it by itself.
    inner: Any = None if frame is None else frame.f_locals.get("coroutine")
    while inspect.iscoroutine(inner) and inner.cr_frame is not None:
        yield inner.cr_frame, inner.cr_frame.f_lineno
        inner = inner.cr_await
