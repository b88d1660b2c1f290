"""`hedged`: a nested step that asks a slow call again."""

from __future__ import annotations

import math
from contextvars import copy_context
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, TypeVar

from ._branch import enclosing_branch
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
    finds no token free waits for it; outside, nothing limits them.  An attempt that fails starts no
    other; `BranchErrors` if all that were started have failed.

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
        attempt = partial(async_fn, **kwargs) if kwargs else async_fn
        limit = math.inf if enclosing_branch(current_run()) is None else None
        name = getattr(async_fn, "__name__", "hedged")
        asking = _Asking(attempt, args, after, attempts)
        try:
            async with open_branch_nursery(limit, name=name, policy=FIRST_SUCCESS) as nursery:
                asking.ask(nursery)
        finally:
            asking.stop()
        outputs: dict[int, T] = nursery.result.outputs
        return next(outputs[key] for key in nursery.result.completion_order if key in outputs)

    return wraps(async_fn)(hedged_fn)


class _Asking:
    """Starts an attempt, and again after some time, until it is stopped."""

    def __init__(
        self,
        attempt: Callable[..., Awaitable[Any]],
        args: tuple[Any, ...],
        after: float,
        attempts: int,
    ) -> None:
        self._attempt = attempt
        self._args = args
        self._after = after
        self._attempts = attempts
        self._asked = 0
        self._run = current_run()
        self._context = copy_context()
        self._timer: Timer | None = None

    def ask(self, nursery: BranchNursery) -> None:
        self._timer = None
        if nursery._core.cause is not None:  # all that is left is to unwind
            return
        self._context.run(nursery.start_soon, self._asked, self._attempt, *self._args)
        self._asked += 1
        if self._asked < self._attempts and self._after != math.inf:
            due = self._run.now() + self._after
            self._timer = self._run.call_at(due, lambda: self.ask(nursery))

    def stop(self) -> None:
        """The block has been left."""
        if self._timer is not None:
            self._timer.cancel()
