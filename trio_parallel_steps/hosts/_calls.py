"""A call on its way to a worker process and back.

1. What can't be pickled is a TypeError that says what: the function with its arguments, or what it
   returned.
2. An error is never lost to pickling: where it can't be pickled, its text and traceback come back.
3. A worker that dies before it has taken the call is replaced, but not for ever.
"""

from __future__ import annotations

import pickle
import sys
from inspect import iscoroutine
from traceback import format_exception
from typing import TYPE_CHECKING, Any

from .._outcomes import said

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def pickler() -> Any:
    """What trio-parallel takes: cloudpickle, where that is installed."""
    return sys.modules.get("cloudpickle", pickle)


class Call:
    """A function and its arguments, pickled.  It is sent as bytes, at most `sends_left` times."""

    __slots__ = ("_pickled", "name", "sends_left")

    def __init__(
        self, sync_fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self.name: str = name_of(sync_fn)
        self.sends_left: int = 0
        try:
            self._pickled: bytes = pickler().dumps((sync_fn, args, kwargs))
        except Exception as exc:  # of the user's own __reduce__ too
            raise TypeError(
                f"{self.name} and its arguments must be picklable, to go to a worker process, "
                f"and are not: {said(exc)}"
            ) from exc

    def __reduce__(self) -> tuple[type[bytes], tuple[bytes]]:
        if self.sends_left <= 0:
            raise NotTaken
        self.sends_left -= 1
        return bytes, (self._pickled,)

    def answer(self, pickled: bytes) -> Any:
        """What the function returned; raises what it raised."""
        try:
            returned, value = pickle.loads(pickled)
        except Exception as exc:  # of the user's own classes
            raise TypeError(
                f"what {self.name} returned can't be unpickled here: {said(exc)}"
            ) from exc
        if returned:
            return value
        try:
            raise value
        finally:
            del value  # its traceback keeps this frame: no cycles


class NotTaken(Exception):
    """Worker after worker has died before it took the call."""


def name_of(sync_fn: Callable[..., Any]) -> str:
    name = getattr(sync_fn, "__qualname__", None)
    return repr(sync_fn) if name is None else f"{name}()"


# ---------------------------------------------------------------- in the worker


def call(pickled: bytes) -> bytes:
    """Make the call.  Its error is an answer too: trio-parallel would leave it in a cycle."""
    try:
        sync_fn, args, kwargs = pickle.loads(pickled)
        value = sync_fn(*args, **kwargs)
    except BaseException as exc:  # it is raised where the answer arrives
        return _pack_error(exc)
    if iscoroutine(value):
        value.close()  # it will never be awaited, and the error says so already
    try:
        return _pack(True, value)
    except Exception as exc:  # of the user's own __reduce__ too
        error = TypeError(
            f"what {name_of(sync_fn)} returned must be picklable, to come from a worker process, "
            f"and is not: {said(exc)}"
        )
        return _pack(False, error)


def _pack(returned: bool, value: Any) -> bytes:
    return pickler().dumps((returned, value))  # type: ignore[no-any-return]


def _pack_error(exc: BaseException) -> bytes:
    from tblib.pickling_support import install

    install(exc)  # with its traceback
    try:
        packed = _pack(False, exc)
        pickle.loads(packed)  # not all that can be pickled can be unpickled
    except Exception as why:
        error = RuntimeError(f"{said(exc)} (which can't be pickled: {said(why)})")
        error.add_note("".join(format_exception(exc)))
        return _pack(False, error)
    return packed
