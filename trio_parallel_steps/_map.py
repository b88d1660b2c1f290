"""`map_branches`: a step whose branches come from an input of any length, and go as their results
are consumed."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable
from contextlib import AbstractAsyncContextManager
from inspect import iscoroutine, iscoroutinefunction
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, final

from ._feed import Feed
from ._inputs import AsyncInput, SyncInput
from ._open import NurseryOptions, open_branch_nursery
from ._util import NoPublicConstructor, check_async_fn, expected
from .hosts import current_run, protected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Hashable
    from types import TracebackType

    from ._limiter import LimitLike
    from ._nursery import BranchNursery
    from ._outcomes import StepResult

T = TypeVar("T")


@final
class _Results(Generic[T], metaclass=NoPublicConstructor):
    """The iterator.  Any number of tasks may share it: each result goes to one of them."""

    __slots__ = ("_feed", "_is_exhausted", "_name")

    def __init__(self, feed: Feed) -> None:
        self._feed: Feed | None = feed  # until the block has been left
        self._is_exhausted = False
        self._name = feed.core.name

    def __aiter__(self) -> _Results[T]:
        return self

    @protected
    async def __anext__(self) -> StepResult[T]:
        feed = self._feed
        if feed is None:
            await current_run().checkpoint()
            return self._end()
        run = feed.core.run
        run.check_thread()
        if not feed.is_ready():
            await feed.wait()
        elif not run.may_pass():
            await run.pass_by()
        if feed.core.is_stopping():
            await run.checkpoint()  # the body has been cancelled: here, if not before
        while not (feed.is_closed or feed.is_ready()):  # another task was quicker, or it was no end
            await feed.wait()
        result = None if feed.is_closed else feed.consume()
        return self._end() if result is None else result

    def _end(self) -> StepResult[T]:
        feed = self._feed
        self._is_exhausted = self._is_exhausted or (feed is not None and not feed.is_closed)
        if self._is_exhausted:
            raise StopAsyncIteration
        raise RuntimeError(f"{self!r}: its block has been left, and with it what was unconsumed")

    def _close(self) -> None:
        feed = self._feed
        assert feed is not None
        self._is_exhausted = feed.is_exhausted and not feed.core.records
        self._feed = None

    def __repr__(self) -> str:
        if self._feed is None:
            return f"<results of {self._name!r}: closed>"
        core = self._feed.core
        unconsumed = len(core.records) - core.outstanding
        return f"<results of {self._name!r}: {core.running} running, {unconsumed} unconsumed>"


@final
class _Map(Generic[T], metaclass=NoPublicConstructor):
    """The async context manager that `map_branches` returns, for one use."""

    __slots__ = ("_async_fn", "_in_order", "_items", "_key", "_manager", "_results")

    def __init__(
        self,
        manager: AbstractAsyncContextManager[BranchNursery],
        async_fn: Callable[[Any], Awaitable[T]],
        items: Iterable[Any] | AsyncIterable[Any],
        key: Callable[[Any], Hashable] | None,
        in_order: bool,
    ) -> None:
        self._manager = manager
        self._async_fn = async_fn
        self._items: Any = items
        self._key = key
        self._in_order = in_order
        self._results: _Results[T] | None = None

    @protected
    async def __aenter__(self) -> AsyncIterator[StepResult[T]]:
        if self._results is not None:
            raise RuntimeError("the block of a map can be entered once: call map_branches again")
        nursery = await self._manager.__aenter__()
        core = nursery._core
        feed = Feed(core, self._async_fn, self._key, self._in_order)
        source = AsyncInput if isinstance(self._items, AsyncIterable) else SyncInput
        feed.input = source(feed, self._items)
        self._items = None
        results: Any = _Results._create(feed)
        self._results = results
        core.feed = feed
        feed.input.start()
        return results  # type: ignore[no-any-return]

    @protected
    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        results = self._results
        assert results is not None
        feed = results._feed
        assert feed is not None
        try:
            feed.close(stop=exc is None)
            return await self._manager.__aexit__(exc_type, exc, traceback)
        finally:
            results._close()
            feed.core.feed = None
            del feed.input
            del exc, traceback, feed  # no cycles


def map_branches(
    async_fn: Callable[[Any], Awaitable[T]],
    items: Iterable[Any] | AsyncIterable[Any],
    limit: LimitLike = None,
    *,
    key: Callable[[Any], Hashable] | None = None,
    in_order: bool = False,
    **nursery_options: Unpack[NurseryOptions],
) -> AbstractAsyncContextManager[AsyncIterator[StepResult[T]]]:
    """A block whose target iterates over the results of ``async_fn(item)`` for each of `items`, as
    they come, for inputs of any length.

    `items` is an iterable, sync or async, perhaps endless.  An item is pulled when its branch could
    be admitted, one ahead of what has been, and never under a token.  What runs and what waits to
    be consumed are never more than `limit` together: while `limit` results are unconsumed, nothing
    is admitted, so a slow consumer holds the input back, and memory is bounded.  A limit that is
    shared, or changed meanwhile, counts as its ``total_tokens`` stand; math.inf is no bound.

    Results come in the order of ending, or with `in_order` in that of the input; then those that
    wait for an earlier one count as unconsumed.  Each step of the iterator is a checkpoint, a
    cancelled one loses nothing, and a branch that waits in it is parked.  Tasks may share it: each
    result goes to one of them.  It ends once all have been consumed, or after a stop of the step
    that leaves the body alone.  Once the block has been left it raises RuntimeError if anything was
    left in it.

    `key` makes a branch's key from its item; the default is the item's index.  Keys are unique
    among what is queued, running or unconsumed.

    Leaving the block cancels what runs and waits for it, then closes the input if it is a generator
    (under a cancellation, as any cleanup: what it awaits is cancelled unless it is shielded).  An
    error of the input or of `key` counts as one of the body, a duplicate key as a ValueError of
    `key`.

    The other options, and what is raised, are `open_branch_nursery`'s.  The ``.result`` of errors,
    and what observers are given at the end, hold only what was unconsumed; of the exceptions that
    were consumed, those that fill 100 in all are kept for the policy to raise, and a note says how
    many are not.

    >>> import trio
    >>> async def square(x):
    ...     await trio.sleep(0)
    ...     return x * x
    >>> async def main():
    ...     async with map_branches(square, range(4), 2, in_order=True) as results:
    ...         return [result.output async for result in results]
    >>> trio.run(main)
    [0, 1, 4, 9]
    """
    check_async_fn(async_fn)
    if iscoroutine(items):
        items.close()  # it will never be awaited, and the error says so already
    if not isinstance(items, AsyncIterable | Iterable) and not hasattr(items, "__getitem__"):
        raise TypeError(expected("items", "an iterable or an async iterable", items))
    if key is not None and (not callable(key) or iscoroutinefunction(key)):
        raise TypeError(expected("key", "a function of an item, or None", key))
    if not isinstance(in_order, bool):
        raise TypeError(expected("in_order", "a bool", in_order))
    manager = open_branch_nursery(limit, **nursery_options)
    block: Any = _Map._create(manager, async_fn, items, key, in_order)
    return block  # type: ignore[no-any-return]
