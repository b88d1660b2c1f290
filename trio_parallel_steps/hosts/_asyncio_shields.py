"""Under asyncio, what is waited for whoever cancels the task that waits: a thread, or a token.

A cancellation is raised once the wait has ended; but if it is the step's, the value of a thread
stands: it is returned, and the task's next await, if there is one, is cancelled.
"""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

from .._records import running_record
from ._abc import thread_check

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager

    from ._abc import Event


def shield() -> AbstractContextManager[object]:
    """Keeps an anyio scope that is cancelled from cancelling this task anew each turn."""
    anyio = sys.modules.get("anyio")
    return nullcontext() if anyio is None else anyio.CancelScope(shield=True)


async def wait_shielded(event: Event) -> None:
    cancelled: asyncio.CancelledError | None = None
    while not event.is_set():
        try:
            with shield() if cancelled else nullcontext():
                await event.wait()
        except asyncio.CancelledError as exc:
            cancelled = exc
    if cancelled is not None:
        try:
            raise cancelled
        finally:
            del cancelled  # no cycles


async def run_in_thread(threads: Executor, sync_fn: Callable[[], Any]) -> Any:
    context = copy_context()
    told: list[str] = []  # why it is to stop
    context.run(thread_check.set, partial(_check_cancelled, told))
    loop = asyncio.get_running_loop()
    return await outlast(loop.run_in_executor(threads, context.run, sync_fn), told.append)


async def outlast(future: asyncio.Future[Any], tell: Callable[[str], object]) -> Any:
    """Wait for it whoever cancels this task, which is told to what runs.

    It is cancelled itself if it has obeyed.
    """
    task = asyncio.current_task()
    assert task is not None
    cancelled: asyncio.CancelledError | None = None
    try:
        while not future.done():
            try:
                with shield() if cancelled is not None else nullcontext():
                    await asyncio.wait([future])
            except asyncio.CancelledError as exc:
                cancelled = exc
                tell(str(exc))
        if cancelled is not None:
            if future.cancelled():
                raise cancelled
            if not _told_by_step(task):
                future.exception()  # it is not lost unseen: the cancellation goes before it
                raise cancelled
            task.uncancel()  # the value counts; the next await, if any, is cancelled
            task.cancel(*cancelled.args)
        return future.result()
    finally:
        del task, future, cancelled  # what is raised keeps this frame: no cycles


def _check_cancelled(told: list[str]) -> None:
    if told:
        raise asyncio.CancelledError(told[0])


def _told_by_step(task: asyncio.Task[Any]) -> bool:
    running = running_record.get(None)
    record = None if running is None else running()
    if record is None or record._place is not task or record._step is None:
        return False
    return record._cause is not None or record._step.is_stopping()
