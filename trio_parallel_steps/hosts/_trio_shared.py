"""A user's own `trio.CapacityLimiter`: tokens borrowed from it as they come free, in its line.

Requests are system tasks, as a pool serves many steps: one may end while others go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from trio.lowlevel import spawn_system_task

if TYPE_CHECKING:
    from collections.abc import Callable


class Borrower:
    """What `trio.CapacityLimiter.statistics` shows."""

    __slots__ = ("__weakref__",)

    def __repr__(self) -> str:
        return "<a branch of trio_parallel_steps>"


class TrioSharedLedger:
    __slots__ = ("_asking", "_limiter", "_requests")

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._requests: list[trio.CancelScope] = []  # as they were made
        self._asking: set[Borrower] = set()  # those in line, or served just now

    def give(self, borrower: object) -> None:
        self._limiter.release_on_behalf_of(borrower)

    def set_total(self, total_tokens: int | float) -> None:
        self._limiter.total_tokens = total_tokens

    def in_use(self) -> tuple[int, int | float]:
        return self._limiter.borrowed_tokens, self._limiter.total_tokens

    def try_take(self) -> Borrower | None:
        borrower = Borrower()
        try:
            self._limiter.acquire_on_behalf_of_nowait(borrower)
        except trio.WouldBlock:
            return None
        return borrower

    def is_wanted_back(self) -> bool:
        statistics = self._limiter.statistics()
        if statistics.borrowed_tokens > statistics.total_tokens:
            return True
        return statistics.tasks_waiting > len(self._asking.difference(statistics.borrowers))

    def ask(self, number: int, granted: Callable[[object], None]) -> None:
        while len(self._requests) > number:
            self._requests.pop().cancel("no branch waits for it")
        while len(self._requests) < number:
            scope = trio.CancelScope()
            self._requests.append(scope)
            spawn_system_task(self._request, scope, granted, name="branches in line for a token")

    async def _request(self, scope: trio.CancelScope, granted: Callable[[object], None]) -> None:
        borrower = Borrower()
        is_served = False
        with scope:
            self._asking.add(borrower)
            try:
                await self._limiter.acquire_on_behalf_of(borrower)
                is_served = True
            finally:
                self._asking.discard(borrower)
        if scope in self._requests:
            self._requests.remove(scope)
        if is_served:
            granted(borrower)
