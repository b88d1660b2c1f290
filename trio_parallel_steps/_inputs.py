"""Where a `Feed`'s items come from: an iterable, sync or async.

1. An item is pulled when the feed has room, and never by a task that holds a token.
2. A sync iterable is pulled in callbacks of the host's, in a context of its own: no task is needed.
   A few at a time, so that others get their turn.
3. An async iterable is pulled, and closed, in one task beside the branches, as scopes and context
   variables of a generator want it.
4. Of what is given, generators alone are closed: everything else is its owner's.
5. Code of the user's is called through `call` and `anext_of`, which KeyboardInterrupt may
   interrupt.  What it raises goes to the feed, and no further.
"""

from __future__ import annotations

from contextvars import copy_context
from inspect import isasyncgen, isgenerator
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

from .hosts import protected, unprotected

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterable,
        AsyncIterator,
        Awaitable,
        Callable,
        Iterable,
        Iterator,
    )

    from ._feed import Feed
    from .hosts._abc import Event

T = TypeVar("T")

END: Final = object()


class Input(Protocol):
    def start(self) -> None: ...
    def call(self, fn: Callable[..., T], *args: Any) -> T:
        """In the context that the input is pulled in."""

    def look(self) -> None:
        """There may be room, or no need to wait for it any more."""

    def close(self) -> None:
        """Pull no more."""

    def all_ended(self) -> None:
        """No branch is outstanding."""


@unprotected
def call(fn: Callable[..., T], *args: Any) -> T:
    return fn(*args)


@unprotected
async def anext_of(iterator: AsyncIterator[Any]) -> Any:
    return await iterator.__anext__()


class SyncInput:
    __slots__ = ("_context", "_feed", "_is_due", "_items", "_iterator")

    def __init__(self, feed: Feed, items: Iterable[Any]) -> None:
        self._feed = feed
        self._items: Iterable[Any] | None = items
        self._iterator: Iterator[Any] | None = None
        self._context = copy_context()
        self._is_due = False  # a callback has been asked for

    def start(self) -> None:
        self.look()

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        return call(fn, *args)

    def look(self) -> None:
        if not self._is_due and self._feed.has_room():
            self._is_due = True
            self._feed.core.host.soon(self._pull_some)

    @protected
    def _pull_some(self) -> None:
        self._context.run(self._pull_in_context)

    def _pull_in_context(self) -> None:
        self._is_due = False
        until = perf_counter() + self._feed.core.run.slice
        while self._feed.has_room():
            self._contain(self._pull)
            if perf_counter() > until:
                self.look()
                return

    def _pull(self) -> None:
        feed = self._feed
        if self._iterator is None:
            self._iterator = call(iter, self._items)
            self._items = None
        item = call(next, self._iterator, END)
        if item is END:
            feed.exhausted()
        else:
            feed.submit(feed.key_of(item), item, copy_context())

    def close(self) -> None:
        self._items = None

    def all_ended(self) -> None:
        if self._feed.is_closed and isgenerator(generator := self._iterator):
            self._iterator = None
            self._contain(lambda: self._context.run(call, generator.close))

    def _contain(self, pull: Callable[[], None]) -> None:
        try:
            pull()
        except Exception as exc:
            self._feed.raised(exc)
        except BaseException as exc:
            self._feed.core.crashed("the input", exc)


class AsyncInput:
    __slots__ = ("_all_ended", "_cancel", "_feed", "_is_pulling", "_items", "_iterator", "_room")

    def __init__(self, feed: Feed, items: AsyncIterable[Any]) -> None:
        self._feed = feed
        self._items = items
        self._iterator: AsyncIterator[Any] | None = None
        self._is_pulling = False
        self._room: Event | None = None
        self._all_ended: Event = feed.core.run.event()
        self._cancel: Callable[[], object]

    def start(self) -> None:
        self._cancel = self._feed.core.host.start_beside(self._run)

    def call(self, fn: Callable[..., T], *args: Any) -> T:
        return call(fn, *args)

    def look(self) -> None:
        if self._room is not None and (self._feed.has_room() or self._feed.is_over()):
            self._room.set()
            self._room = None

    def close(self) -> None:
        if self._is_pulling:
            self._cancel()
        self.look()

    def all_ended(self) -> None:
        if self._feed.is_over():
            self._all_ended.set()

    # ------------------------------------------------------------ its task

    @protected
    async def _run(self) -> None:
        try:
            await self._contain(self._pull_all)
        finally:
            await self._contain(self._close_generator)

    async def _pull_all(self) -> None:
        feed = self._feed
        run = feed.core.run
        iterator = self._iterator = call(aiter, self._items)
        while not feed.is_over():
            if not feed.has_room():
                self._room = run.event()
                await self._room.wait()
                continue
            await run.checkpoint()
            self._is_pulling = True
            try:
                item = await anext_of(iterator)
            except StopAsyncIteration:
                feed.exhausted()
                return
            finally:
                self._is_pulling = False
            feed.submit(feed.key_of(item), item, copy_context())

    async def _close_generator(self) -> None:
        if not isasyncgen(generator := self._iterator) or self._feed.is_exhausted:
            return
        core = self._feed.core
        try:
            if core.outstanding:
                await core.run.wait_shielded(self._all_ended)
        finally:
            await generator.aclose()

    async def _contain(self, async_fn: Callable[[], Awaitable[None]]) -> None:
        """But for a Cancelled, which goes on."""
        core = self._feed.core
        try:
            await async_fn()
        except Exception as exc:
            self._feed.raised(exc)
        except BaseException as exc:
            cancelled, rest = core.run.split_cancelled(exc)
            if isinstance(rest, Exception):
                self._feed.raised(rest)
            elif rest is not None:
                core.crashed("the input", rest)
            if cancelled is not None:
                self._note_cancelled()
                try:
                    raise cancelled from None
                finally:
                    del cancelled, rest  # no cycles

    def _note_cancelled(self) -> None:
        core = self._feed.core
        if core.host.is_cancelled():
            core.interrupted()
            core.cut = True
        if not self._feed.is_over():  # by someone else
            self._feed.raised(RuntimeError("the task that pulls the input was cancelled"))
