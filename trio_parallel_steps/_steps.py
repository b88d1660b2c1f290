"""`Step`: one named unit of work, an async function.

1. What the function asks for by name, it gets: ``context`` and ``budget``; the data is its first
   other parameter, if it has one.
2. It changes a copy of the context of its own, one for each try, which counts once it has returned.
3. Where there is a cache or a journal, what it returned and what it did to the context are kept as
   one.
"""

from __future__ import annotations

import json
import math
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast, final, overload

import attrs

from ._config import ConcurrencyConfig, OnBranchFailure
from ._contexts import copied
from ._functions import Wants, identity, wanted
from ._merge import MergeStrategy
from ._retry import check_retry
from ._spending import Budget
from ._units import Around, Held, Unit, add_to_result, limit_here, start
from ._util import check_async_fn, check_seconds, check_str, expected
from .cache import Cache

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from ._outcomes import StepResult
    from ._parallel import ParallelStep
    from ._retry import Retry
    from .cache._keys import Keyer

T = TypeVar("T")


@final
class Step(Unit, Generic[T]):
    """One named unit: ``async def fn(data)``.  A parameter named ``context`` gets the context, one
    named ``budget`` the run's `Budget` (there always is one); a function without any other
    parameter is called without data.

    `timeout` is in seconds, for each try; `retry` says whether there is another one; `cache` keeps
    what it returned, and what it did to the context, under the function's name, `version`, data
    and context.  `version` also tells a journal that the function does something else now.

    The function may change its context at will: it is a copy, and counts once the function has
    returned.

    >>> import trio
    >>> async def count(data, context):
    ...     context["words"] = len(data.split())
    ...     return context["words"]
    >>> async def main():
    ...     return await Step("count", count).run("to be or not", context={})
    >>> trio.run(main).output
    4
    """

    __slots__ = ("_keyer", "cache", "fn", "retry", "timeout", "version", "_wants")

    fn: Callable[..., Awaitable[T]]
    timeout: float
    retry: Retry | None
    cache: Cache | None
    version: str

    def __init__(
        self,
        name: str,
        fn: Callable[..., Awaitable[T]],
        *,
        timeout: float = math.inf,
        retry: Retry | None = None,
        cache: Cache | None = None,
        version: str = "",
    ) -> None:
        super().__init__(name)
        check_async_fn(fn, "fn")
        self.fn = fn
        self.timeout = check_seconds("timeout", timeout)
        self.retry = check_retry(retry)
        self.cache = check_cache(cache)
        self.version = check_str("version", version)
        self._wants: Wants = wanted(fn)
        self._keyer: Keyer | None = None
        if cache is not None:
            self._check_keyable()

    async def run(self, data: Any = None, *, context: Any = None) -> StepResult[T]:
        """Run it alone.  A checkpoint.

        What it raises is in the result; what it does to the context is lost.

        >>> import trio
        >>> async def double(data):
        ...     return 2 * data
        >>> trio.run(Step("double", double).run, 21).output
        42
        """
        around, held = Around(Budget()), Held.of(context, self)
        async with around.open(limit_here(), name=self.name) as nursery:
            start(nursery, self.name, self, data, held, around)
        return cast("StepResult[T]", nursery.result[self.name])

    @staticmethod
    def parallel(
        branches: Mapping[str, Unit | Callable[..., Awaitable[Any]]],
        *,
        name: str = "parallel",
        merge_strategy: MergeStrategy
        | Callable[[Any, Mapping[str, Any]], Any] = MergeStrategy.NO_MERGE,
        on_branch_failure: OnBranchFailure = OnBranchFailure.PROPAGATE,
        concurrency: ConcurrencyConfig | None = None,
        max_concurrency: float | None = None,
        track_completion: bool | None = None,
        priorities: Mapping[str, int] | None = None,
        weights: Mapping[str, int] | None = None,
        context_include_keys: Iterable[str] | None = None,
        reduce: Callable[[dict[str, Any]], Any] | None = None,
        timeout: float = math.inf,
        cache: Cache | None = None,
    ) -> ParallelStep:
        """A `ParallelStep`, whose options these are.

        `max_concurrency` and `track_completion` are `ConcurrencyConfig.max_concurrent_branches` and
        ``completion_tracking``, for who needs no more; together with `concurrency` they are a
        TypeError.
        """
        from ._parallel import ParallelStep, short_form

        return ParallelStep(
            branches,
            merge_strategy,
            short_form(concurrency, max_concurrency, track_completion),
            name=name,
            on_branch_failure=on_branch_failure,
            priorities=priorities,
            weights=weights,
            context_include_keys=context_include_keys,
            reduce=reduce,
            timeout=timeout,
            cache=cache,
        )

    def __repr__(self) -> str:
        return f"<Step {self.name!r}>"

    # ------------------------------------------------------------ inside

    @property
    def _takes_context(self) -> bool:
        return self._wants.context

    @property
    def _key(self) -> Keyer:
        """What makes its keys in a cache; TypeError if there can be none."""
        from .cache._keys import Keyer  # with what it needs, for who has a cache

        if self._keyer is None:
            self._keyer = Keyer(self.fn, self.version)
        return self._keyer

    def _check_keyable(self) -> None:
        """TypeError if there can be no keys."""
        try:
            self._key  # noqa: B018
        except TypeError as exc:
            raise TypeError(
                str(exc).replace("`async_fn`", f"the function of step {self.name!r}")
            ) from None

    def _branch(
        self, name: str, data: Any, held: Held, around: Around
    ) -> tuple[Callable[..., Awaitable[Any]], tuple[Any, ...]]:
        wants, cache = self._wants, self.cache or around.cache
        if around.journal is not None:
            around = around.within(name)
            if wants.budget:  # of its own: what all its tries spend is recorded
                around = attrs.evolve(around, budget=Budget(around.budget))
            return _Journalled(self, data, held, around, cache).run, ()
        if cache is not None:
            return partial(self._cached, cache, data, held, around), ()
        if wants.context or wants.budget:
            return partial(self._try, data, held, around), ()
        return self.fn, (data,) if wants.data else ()

    async def _try(self, data: Any, held: Held, around: Around) -> T:
        wants = self._wants
        args, named = wants.arguments(data)
        if wants.budget:
            named["budget"] = around.budget
        if not wants.context:
            return await self.fn(*args, **named)
        context = held.copy()
        output = await self.fn(*args, context=context, **named)
        held.value = context
        return output

    async def _cached(self, cache: Cache, data: Any, held: Held, around: Around) -> T:
        args, named = self._wants.arguments(data)
        if self._wants.context:
            named["context"] = held.value
        if self._wants.budget:
            named["budget"] = None  # another each time

        own = Held(held.value)  # it counts once the cache has it, too

        async def call() -> tuple[T, Any]:
            output = await self._try(data, own, around)
            return output, own.copy() if self._wants.context else None

        (output, context), is_kept = await cache.fetch(self._key(args, named), call, self.name)
        if is_kept:
            add_to_result(True)
        if self._wants.context:
            held.value = copied(context) if is_kept else own.value
        return output

    def _described(self) -> Any:
        return {"step": identity(self.fn), "version": self.version}


@attrs.frozen(eq=False)
class _Journalled:
    """A step in a run that has a journal."""

    step: Step[Any]
    data: Any
    held: Held
    around: Around
    cache: Cache | None

    async def run(self) -> Any:
        from ._journal import Entry

        journal, held, wants = self.around.journal, self.held, self.step._wants
        assert journal is not None
        key = json.dumps(self.around.path)
        entry = journal.get(key)
        if entry is not None:
            add_to_result(True)
            if entry.usage:
                self.around.budget.spend(**entry.usage)
            held.kept = journal.place(key)
        else:
            held.kept = None
            own = Held(held.value)  # it counts once it is recorded
            if self.cache is None:
                output = await self.step._try(self.data, own, self.around)
            else:
                output = await self.step._cached(self.cache, self.data, own, self.around)
            context = own.value if wants.context else None
            usage = self.around.budget.settled() if wants.budget else {}
            entry = Entry(output, context, usage)
            await journal.record(key, entry)
        if wants.context:
            held.value = entry.context
        return entry.output


def check_cache(cache: Any) -> Cache | None:
    if not isinstance(cache, Cache | None):
        raise TypeError(expected("cache", "a Cache or None", cache))
    return cache


@overload
def step(fn: Callable[..., Awaitable[T]]) -> Step[T]: ...
@overload
def step(
    fn: None = None,
    *,
    name: str | None = None,
    timeout: float = math.inf,
    retry: Retry | None = None,
    cache: Cache | None = None,
    version: str = "",
) -> Callable[[Callable[..., Awaitable[T]]], Step[T]]: ...
def step(
    fn: Any = None,
    *,
    name: str | None = None,
    timeout: float = math.inf,
    retry: Retry | None = None,
    cache: Cache | None = None,
    version: str = "",
) -> Any:
    """Decorator form of `Step`: ``@step`` or ``@step(name=..., timeout=..., retry=...)``.  The name
    is the function's, if none is given.

    >>> @step
    ... async def fetch(data):
    ...     return data
    >>> fetch
    <Step 'fetch'>
    """

    def made(fn: Callable[..., Awaitable[T]]) -> Step[T]:
        called = getattr(fn, "__name__", type(fn).__name__) if name is None else name
        return Step(called, fn, timeout=timeout, retry=retry, cache=cache, version=version)

    return made if fn is None else made(fn)
