"""The key of a call: what is called, in which version, with what.

1. A function is known by its module and qualified name, so it must have one of its own: a lambda,
   a function made inside another (which may hold values of its own) and a partial have none.
2. Arguments are bound to the signature, defaults included: f(1) and f(x=1) have one key.
3. The object of a bound method is an argument.
4. What can't be keyed is a TypeError: where it is the function, when it is wrapped; where it is an
   argument, at the call, by name.
"""

from __future__ import annotations

import inspect
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from .._canonical import canonical, stable_name, text
from .._util import check_async_fn, check_str

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Keyer:
    """Makes the keys of one function's calls."""

    __slots__ = ("_head", "_signature", "name")

    def __init__(self, async_fn: Callable[..., Any], version: str) -> None:
        check_async_fn(async_fn)
        check_str("version", version)
        # What is bound becomes an argument again, if it is no class.
        receiver = getattr(async_fn, "__self__", None)
        try:
            self._head = [stable_name(async_fn), version, canonical(receiver)]
        except TypeError as exc:
            raise TypeError(
                f"`async_fn` must be a function that can be known again, got {async_fn!r}: {exc}"
            ) from exc
        self.name: str = async_fn.__qualname__
        self._signature = inspect.signature(async_fn)

    def __call__(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        bound = self._signature.bind(*args, **kwargs)  # TypeError as of the call
        bound.apply_defaults()
        form = [*self._head]
        for name, value in bound.arguments.items():
            try:
                form.append([name, canonical(value)])
            except TypeError as exc:
                raise TypeError(f"`{name}` of {self.name}() can't be part of a key: {exc}") from exc
        return sha256(text(form).encode()).hexdigest()
