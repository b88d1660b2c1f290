"""What a bad argument is told: the argument, what was expected, what was given.

A wrong type (bool included, where a number is wanted) is a TypeError, a wrong value a ValueError.
"""

import inspect
import math
import signal
from collections.abc import Callable, Hashable, Iterable
from types import BuiltinFunctionType, CoroutineType, FunctionType
from typing import Any, Final, TypeVar

T = TypeVar("T")

COROUTINE_FLAGS: Final = inspect.CO_COROUTINE | inspect.CO_ITERABLE_COROUTINE


class NoPublicConstructor(type):
    """Live objects are made by the engine: ``Class._create(...)``."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        raise TypeError(f"{cls.__module__}.{cls.__qualname__} has no public constructor")

    def _create(cls: type[T], *args: Any, **kwargs: Any) -> T:
        return type.__call__(cls, *args, **kwargs)  # type: ignore[no-any-return]


def expected(name: str, what: str, given: object) -> str:
    return f"`{name}` must be {what}, got {given!r}"


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_seconds(name: str, value: float) -> float:
    what = "a number of seconds >= 0, or math.inf"
    if not is_number(value):
        raise TypeError(expected(name, what, value))
    if not value >= 0:  # NaN too
        raise ValueError(expected(name, what, value))
    return float(value)


def check_tokens(name: str, value: float, what: str = "an int >= 1 or math.inf") -> int | float:
    if not is_number(value):
        raise TypeError(expected(name, what, value))
    if value != math.inf and not (isinstance(value, int) and value >= 1):
        raise ValueError(expected(name, what, value))
    return value


def check_int(name: str, value: int, minimum: int | None = None) -> int:
    what = "an int" if minimum is None else f"an int >= {minimum}"
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(expected(name, what, value))
    if minimum is not None and value < minimum:
        raise ValueError(expected(name, what, value))
    return value


def check_bool(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise TypeError(expected(name, "a bool", value))
    return value


def check_number(name: str, value: float, what: str, holds: Callable[[float], bool]) -> float:
    """`what` says in words what `holds` tests; NaN fails any comparison."""
    if not is_number(value):
        raise TypeError(expected(name, what, value))
    if not holds(value):
        raise ValueError(expected(name, what, value))
    return value


def check_str(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(expected(name, "a str", value))
    return value


def check_all(
    name: str, values: Iterable[T], kind: type[T], what: str | None = None
) -> tuple[T, ...]:
    what = what or f"an iterable of {kind.__name__}"
    try:
        listed = tuple(values)
    except TypeError:
        raise TypeError(expected(name, what, values)) from None
    for value in listed:
        if not isinstance(value, kind):
            raise TypeError(expected(name, what, value))
    return listed


def check_key(key: Hashable) -> None:
    try:
        hash(key)
    except TypeError:
        raise TypeError(expected("key", "hashable", key)) from None


def check_async_fn(async_fn: Callable[..., Any], name: str = "async_fn", *at: object) -> None:
    """Refuse what can be known not to be an async function; the rest shows when it is called.

    `at` is where in the argument it stands.
    """
    # The common case first: this runs once a branch.
    if type(async_fn) is FunctionType:
        code = async_fn.__code__.co_flags
        if code & COROUTINE_FLAGS or not code & inspect.CO_ASYNC_GENERATOR:
            return
    if at:
        name = f"{name}[{at[0]!r}]"
    if isinstance(async_fn, CoroutineType):
        async_fn.close()  # it will never be awaited, and the error says so already
        raise TypeError(
            f"`{name}` must be an async function, got a coroutine object: "
            f"pass {async_fn.__qualname__} itself and its arguments, don't call it"
        )
    if inspect.isawaitable(async_fn):
        raise TypeError(f"`{name}` must be an async function, got an awaitable: {async_fn!r}")
    if not callable(async_fn):
        raise TypeError(expected(name, "an async function", async_fn))
    if inspect.isasyncgenfunction(async_fn):
        raise TypeError(
            f"`{name}` must be an async function, got an async generator function, which yields: "
            f"{async_fn!r}"
        )
    if isinstance(async_fn, BuiltinFunctionType) or (
        isinstance(async_fn, type) and not hasattr(async_fn, "__await__")
    ):
        raise TypeError(not_async(async_fn, name))


def check_sync_fn(sync_fn: Callable[..., Any], place: str) -> None:
    if not callable(sync_fn):
        raise TypeError(expected("sync_fn", "a function", sync_fn))
    if inspect.iscoroutinefunction(sync_fn):
        what = f"a sync function: an async one needs no {place}"
        raise TypeError(expected("sync_fn", what, sync_fn))


def not_async(async_fn: object, name: str = "async_fn") -> str:
    return (
        f"`{name}` must be an async function, got {async_fn!r}, which is not: "
        "wrap it in in_thread(...) or in_process(...) to run it beside the event loop"
    )


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal has a number only
        return f"signal {number}"
