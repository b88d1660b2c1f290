"""`in_process`: a sync function as a branch that can be killed."""

from __future__ import annotations

from functools import wraps
from importlib.util import find_spec
from typing import TYPE_CHECKING, ParamSpec, TypeVar, cast

from ._util import check_sync_fn
from .hosts import current_run, protected
from .hosts._calls import Call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

P = ParamSpec("P")
T = TypeVar("T")


def in_process(sync_fn: Callable[P, T]) -> Callable[P, Awaitable[T]]:
    """An async function that runs `sync_fn` in a worker process.  A checkpoint.

    One process per running branch: the step's limiter is the only cap.  A branch that is stopped
    kills its process at once, whatever that is doing, and ends when it is gone; children that the
    function has started are its own affair.  Idle processes are used again; none outlives the
    event loop's run.

    It needs trio-parallel (the extra ``process``): without it, in_process() is an ImportError.  The
    function, its arguments and what it returns are pickled, and TypeError says which of them can't
    be; so the function must be one that can be imported: no lambda, and not one that `in_process`
    decorates.  An error of the function's comes out as itself, with its traceback; a process that
    dies is a trio_parallel.BrokenWorkerError of its branch alone.  A worker imports the program's
    main module: what that runs must be under ``if __name__ == "__main__"``.

    >>> import math, trio
    >>> from trio_parallel_steps import COLLECT, open_branch_nursery
    >>> async def main():
    ...     async with open_branch_nursery(2, policy=COLLECT) as nursery:
    ...         nursery.start_soon("six", in_process(math.factorial), 3)
    ...         nursery.start_soon("too much", in_process(math.factorial), 10**9, timeout=0.5)
    ...     return nursery.result
    >>> result = trio.run(main)
    >>> result.outputs
    {'six': 6}
    >>> result["too much"].status.value
    'timed_out'
    """
    check_sync_fn(sync_fn, "process")
    if find_spec("trio_parallel") is None:
        raise ImportError(
            "in_process() needs trio-parallel: pip install 'trio-parallel-steps[process]'",
            name="trio_parallel",
        )

    @protected
    async def run_in_process(*args: P.args, **kwargs: P.kwargs) -> T:
        run = current_run()
        return cast("T", await run.run_in_process(Call(sync_fn, args, kwargs)))

    # Not all callables have all of a function's names.
    return wraps(sync_fn)(run_in_process)
