"""`in_thread`: a sync function as a branch."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from ._util import check_sync_fn
from .hosts import current_run, protected
from .hosts._abc import thread_check

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
T = TypeVar("T")


def in_thread(sync_fn: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """An async function that runs `sync_fn` in a worker thread.  A checkpoint.

    One thread per running branch: the step's limiter is the only cap.  Not interruptible: a stopped
    step waits for it, and a value it returns is SUCCEEDED.  To end sooner, call `check_cancelled`
    (on trio, `trio.from_thread.check_cancelled` is the same) in it now and then.

    >>> import trio
    >>> from trio_parallel_steps import run_branches
    >>> async def main():
    ...     return await run_branches({"sum": in_thread(lambda: sum(range(10)))})
    >>> trio.run(main).outputs
    {'sum': 45}
    """
    check_sync_fn(sync_fn, "thread")

    @protected
    async def run_in_thread(*args: P.args, **kwargs: P.kwargs) -> T:
        def call() -> T:
            return sync_fn(*args, **kwargs)

        return cast("T", await current_run().run_in_thread(call))

    # Not all callables have all of a function's names.
    return wraps(sync_fn)(run_in_thread)


def check_cancelled() -> None:
    """In a thread of `in_thread`: raises the event loop's own Cancelled, to be let pass, once the
    branch has been told to stop.

    RuntimeError in any other thread.
    """
    check = thread_check.get(None)
    if check is None:
        raise RuntimeError("not inside a thread of in_thread()")
    check()
