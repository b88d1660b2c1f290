"""`Cache`: what users hold of one."""

from __future__ import annotations

import math
from functools import wraps
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from .._util import NoPublicConstructor, check_int, check_seconds, check_str, not_async
from ..hosts import current_run, protected, unprotected
from ._flights import Flights
from ._stores import MISSING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._stores import Store

P = ParamSpec("P")
T = TypeVar("T")


@final
class Cache(metaclass=NoPublicConstructor):
    """Keeps successes only.  Equal calls in flight run once: the others wait for the one that runs,
    and a branch that waits is parked, it lends its token.  If the one that runs is stopped or
    fails, the first that waits runs in its place: an error is never shared, nor kept.

    Made by `memory` or `sqlite`.  Usable in one event loop at a time.

    >>> import trio
    >>> from trio_parallel_steps.cache import Cache
    >>> cache = Cache.memory()
    >>> async def main():
    ...     return [await square(3), await square(x=3)]
    >>> @cache.wrap
    ... async def square(x):
    ...     print(f"squaring {x}")
    ...     return x * x
    >>> trio.run(main)
    squaring 3
    [9, 9]
    """

    __slots__ = ("_flights", "_store")

    def __init__(self, store: Store) -> None:
        self._store = store
        self._flights = Flights()

    @classmethod
    def memory(cls, maxsize: int = 1024, ttl: float = math.inf) -> Cache:
        """One in memory: the last `maxsize` values that were used, each for `ttl` seconds on the
        event loop's clock (between two event loops, real ones).

        It keeps the values themselves, not copies: who changes one changes it for all.  It needs
        cachetools (the extra ``cache``): without it this is an ImportError.

        >>> Cache.memory(maxsize=100, ttl=60.0)
        <Cache memory(100, 60.0), 0 in flight>
        """
        from ._memory import MemoryStore

        check_int("maxsize", maxsize, 1)
        return cls._create(MemoryStore(maxsize, check_seconds("ttl", ttl)))

    @classmethod
    def sqlite(cls, path: Any, ttl: float = math.inf) -> Cache:
        """One in a file, which processes may share and which outlives them: each value for `ttl`
        seconds of the wall clock.

        The file is made at the first call, where its folder must exist (else FileNotFoundError); a
        file that is not a cache's is a ValueError, and left as it is.  Values are pickled, so each
        reader has a copy, and so whoever can write the file can run code in this process.  What
        can't be kept (it can't be pickled, the disk is full) and an entry that can't be read are a
        `CacheWarning`, and the call goes on.  A power cut may cost the last values.

        >>> import pathlib, tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     cache = Cache.sqlite(pathlib.Path(folder, "answers.db"), ttl=3600.0)
        """
        from .._database import path_of
        from ._sqlite import SqliteStore

        return cls._create(SqliteStore(path_of("path", path), check_seconds("ttl", ttl)))

    def wrap(
        self, async_fn: Callable[P, Awaitable[T]], *, version: str = ""
    ) -> Callable[P, Awaitable[T]]:
        """A function that calls `async_fn` for what is not in the cache.  A checkpoint.

        Keyed by the function's module and qualified name, by `version` (change it when the
        function changes), and by the arguments, bound to its signature: plain values, containers,
        enums, dates, paths, named functions and classes, attrs classes and dataclasses, the object
        of a method included.  Values of different classes differ: 1 is not 1.0.

        TypeError at the call, naming the argument, for what has no key (an object, a generator, a
        lambda); and here for a function that has none: a lambda, a partial, or one that is defined
        in another function.  RuntimeError for a call that waits for itself, directly or through
        others, and while the cache is in use by another event loop.

        >>> Cache.memory().wrap(lambda: None)
        Traceback (most recent call last):
        TypeError: `async_fn` must be a function that can be known again, got ...
        """
        from ._keys import Keyer

        keyer = Keyer(async_fn, version)

        @protected
        async def cached(*args: P.args, **kwargs: P.kwargs) -> T:
            key = keyer(args, kwargs)
            value, _ = await self.fetch(key, lambda: async_fn(*args, **kwargs), keyer.name)
            return value

        return wraps(async_fn)(cached)

    @protected
    async def fetch(
        self, key: str, call: Callable[[], Awaitable[T]], name: str = "fetch"
    ) -> tuple[T, bool]:
        """The value of a key of one's own, and whether it came from the cache (or from an equal
        call in flight); else what `call` returns.  A checkpoint.  `name` is for messages.

        >>> import trio
        >>> async def main():
        ...     cache = Cache.memory()
        ...     first = await cache.fetch("six", lambda: six())
        ...     return first, await cache.fetch("six", lambda: six())
        >>> async def six():
        ...     return 6
        >>> trio.run(main)
        ((6, False), (6, True))
        """
        check_str("key", key)
        run = current_run()
        self._flights.bind(run, self)

        async def get_or_call() -> tuple[T, bool]:
            kept = await self._store.get(key, run)
            if kept is not MISSING:
                return kept, True
            value = await _users(call)
            await self._store.put(key, value, run)
            return value, False

        return await self._flights.fly(key, name, run, protected(get_or_call))

    def __repr__(self) -> str:
        return f"<Cache {self._store!r}, {len(self._flights)} in flight>"


@unprotected
async def _users(call: Callable[[], Awaitable[T]]) -> T:
    awaitable = call()
    if not isawaitable(awaitable):
        raise TypeError(not_async(call, "call"))
    return await awaitable
