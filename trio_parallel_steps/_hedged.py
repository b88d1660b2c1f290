"""`hedged`: a nested step that asks a slow call again."""

from __future__ import annotations

import math
from contextvars import copy_context
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

from ._open import open_branch_nursery
from ._policies import FIRST_SUCCESS
from ._util import check_async_fn, check_int, check_seconds
from .hosts import current_run, protected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._nursery import BranchNursery
    from .hosts._abc import Timer

T = TypeVar("T")


def hedged(
    async_fn: Callable[..., Awaitable[T]], *, after: float, attempts: int = 2
) -> Callable[..., Awaitable[T]]:
    """A function that calls `async_fn`, and calls it again, with the same arguments, each time that
    `after` seconds have passed without a success, `attempts` times in all.  The first success wins,
    and the others are cancelled.

    Each attempt is a branch of a nested step, so inside a branch it is under the same cap: one that
    finds no token free waits for it.  An attempt that fails starts no other; `BranchErrors` if all
    that were started have failed.

    For calls that are safe to repeat (J. Dean and L. A. Barroso, The Tail at Scale, 2013).

    >>> import trio
    >>> async def fetch(url):
    ...     await trio.sleep(0)
    ...     return url
    >>> trio.run(hedged(fetch, after=0.1), "a")
    'a'
    """
    check_async_fn(async_fn)
    check_seconds("after", after)
    check_int("attempts", attempts, 1)

    @protected
    async def hedged_fn(*args: Any, **kwargs: Any) -> T:
        async def attempt() -> T:
            return await async_fn(*args, **kwargs)

        name = getattr(async_fn, "__name__", "hedged")
        asking = None
        try:
            async with open_branch_nursery(name=name, policy=FIRST_SUCCESS) as nursery:
                asking = _Asking(nursery, attempt, after, attempts)
                asking.ask()
        finally:
            if asking is not None:
                asking.stop()
        outputs: dict[int, T] = nursery.result.outputs
        return next(outputs[key] for key in nursery.result.completion_order if key in outputs)

    return wraps(async_fn)(hedged_fn)


class _Asking:
    """Starts an attempt, and again after some time, until it is stopped."""

    def __init__(
        self,
        nursery: BranchNursery,
        attempt: Callable[[], Awaitable[Any]],
        after: float,
        attempts: int,
    ) -> None:
        self._nursery = nursery
        self._attempt = attempt
        self._after = after
        self._attempts = attempts
        self._asked = 0
        self._run = current_run()
        self._context = copy_context()
        self._timer: Timer | None = None

    def ask(self) -> None:
        self._timer = None
        self._context.run(self._nursery.start_soon, self._asked, self._attempt)
        self._asked += 1
        if self._asked < self._attempts and self._after != math.inf:
            self._timer = self._run.call_at(self._run.now() + self._after, self.ask)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
