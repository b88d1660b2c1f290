"""`run_branches`: a step whose branches are all known; `run_branches_sync` brings its own loop."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from ._limiter import check_weighs
from ._open import NurseryOptions, open_branch_nursery, pool_here
from ._retry import Retry, check_retry
from ._util import check_async_fn, check_int, check_key, check_seconds, expected
from .hosts import loop_runner, protected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from ._limiter import LimitLike
    from ._nursery import BranchNursery
    from ._outcomes import ParallelResult

K = TypeVar("K", bound="Hashable")
T = TypeVar("T")


@protected
async def run_branches(
    branches: Mapping[K, Callable[[], Awaitable[T]]],
    limit: LimitLike = None,
    *,
    priorities: Mapping[K, int] | None = None,
    weights: Mapping[K, int] | None = None,
    branch_timeout: float = math.inf,
    retry: Retry | None = None,
    **nursery_options: Unpack[NurseryOptions],
) -> ParallelResult[K, T]:
    """Run them all under `limit`, and return when all have ended.  A checkpoint.

    `branches` maps keys to async functions without arguments; `priorities` (0 where not named) say
    who is admitted first, higher before lower; `weights` (1 where not named) how many tokens each
    takes; `branch_timeout` is in seconds, for each branch from its admission; `retry` is for each
    of them.  The other options, and what is raised, are `open_branch_nursery`'s.

    >>> import trio
    >>> async def fetch(n):
    ...     await trio.sleep(0)
    ...     return n
    >>> async def main():
    ...     return await run_branches({n: lambda n=n: fetch(n) for n in range(3)}, 2)
    >>> trio.run(main).outputs
    {0: 0, 1: 1, 2: 2}
    """
    if not isinstance(branches, Mapping):
        raise TypeError(expected("branches", "a mapping from key to async function", branches))
    _check_async_fns(branches)
    check_seconds("branch_timeout", branch_timeout)
    check_ints("priorities", priorities, branches)
    check_ints("weights", weights, branches, 1)
    check_retry(retry)
    manager = open_branch_nursery(limit, **nursery_options)
    if weights:
        pool = pool_here(limit, nursery_options.get("host"))
        for key, weight in weights.items():
            check_weighs(pool, f"weights[{key!r}]", weight)
    async with manager as nursery:
        _submit_all(nursery, branches, priorities or {}, weights or {}, branch_timeout, retry)
    return nursery.result


def _check_async_fns(branches: Mapping[Any, Callable[[], Awaitable[Any]]]) -> None:
    """All of them, so that no coroutine object given in place of a function is left unawaited."""
    first: TypeError | None = None
    for key, async_fn in branches.items():
        try:
            check_async_fn(async_fn, "branches", key)
        except TypeError as exc:
            first = first or exc
    if first is not None:
        raise first


def check_ints(
    name: str,
    numbers: Mapping[Any, int] | None,
    branches: Mapping[Any, Any],
    least: int | None = None,
) -> None:
    if numbers is None:
        return
    if not isinstance(numbers, Mapping):
        raise TypeError(expected(name, "a mapping from key to int", numbers))
    for key, number in numbers.items():
        check_key(key)
        check_int(f"{name}[{key!r}]", number, least)
    unknown = [key for key in numbers if key not in branches]
    if unknown:
        raise ValueError(f"`{name}` names keys that are not in `branches`: {unknown!r}")


def _submit_all(
    nursery: BranchNursery,
    branches: Mapping[Any, Callable[[], Awaitable[Any]]],
    priorities: Mapping[Any, int],
    weights: Mapping[Any, int],
    timeout: float,
    retry: Retry | None,
) -> None:
    now = nursery._run.now()
    for key, async_fn in branches.items():
        priority, weight = priorities.get(key, 0), weights.get(key, 1)
        nursery._submit(key, async_fn, (), priority, weight, timeout, retry, now)


def run_branches_sync(
    branches: Mapping[K, Callable[[], Awaitable[T]]],
    limit: LimitLike = None,
    **options: Any,
) -> ParallelResult[K, T]:
    """`run_branches` for scripts and notebooks: in an event loop of its own, trio's, or asyncio's
    with ``host='asyncio'``.

    Options and errors are `run_branches`'.  RuntimeError where an event loop runs in this thread
    already.

    >>> async def answer():
    ...     return 42
    >>> run_branches_sync({"life": answer}).outputs
    {'life': 42}
    """
    run = loop_runner(options.get("host"))
    return run(partial(run_branches, branches, limit, **options))  # type: ignore[no-any-return]
