"""What a step's function is called with, and what tells it from others.

1. By name it is offered the context and the run's budget; its first other parameter is the data.
2. To a journal it is what it says itself, or its name; what it is bound to counts, as far as that
   has a canonical form.
"""

from __future__ import annotations

import inspect
from functools import partial
from inspect import Parameter
from types import MethodType
from typing import TYPE_CHECKING, Any

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

OFFERED = ("context", "budget")
BY_PLACE = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.VAR_POSITIONAL)
BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
ANY_NUMBER = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


@attrs.frozen
class Wants:
    """What a function is called with."""

    data: bool
    context: bool = False
    budget: bool = False
    data_as: str | None = None
    """the name of the parameter, if others may come before it"""

    def arguments(self, data: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if not self.data:
            return (), {}
        return ((data,), {}) if self.data_as is None else ((), {self.data_as: data})


def wanted(fn: Callable[..., Any]) -> Wants:
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # some callables of extensions have none
        return Wants(data=True)
    bound = fn.keywords if isinstance(fn, partial) else {}  # it has these already
    named = {p.name: p.kind for p in parameters if p.name in OFFERED and p.kind in BY_NAME}
    named = {name: kind for name, kind in named.items() if name not in bound}
    others = [p for p in parameters if p.name not in named]
    takes_data = bool(others) and others[0].kind in BY_PLACE
    if takes_data and others[0].kind is Parameter.VAR_POSITIONAL:
        takes_data = Parameter.POSITIONAL_OR_KEYWORD not in named.values()  # which come before
    for parameter in others[takes_data:]:
        if parameter.default is Parameter.empty and parameter.kind not in ANY_NUMBER:
            raise TypeError(
                f"`fn` must be a function of data, and of `context` and `budget` if it wants them, "
                f"but {fn!r} needs {parameter.name!r} too"
            )
    by_name = bool(named) and takes_data and others[0].kind in BY_NAME
    data_as = others[0].name if by_name else None
    return Wants(takes_data, "context" in named, "budget" in named, data_as)


def identity(fn: Callable[..., Any]) -> Any:
    """What tells a function from others: what it says itself (`command` does), or its name."""
    from ._canonical import canonical  # with what it needs, for who has a journal

    if isinstance(fn, partial):
        return [identity(fn.func), canonical(fn.args), canonical(fn.keywords)]
    described = getattr(fn, "described", None)
    if described is not None:
        return canonical(described)
    if isinstance(fn, MethodType):
        return [identity(fn.__func__), _identity_of_object(fn.__self__)]
    if not hasattr(fn, "__qualname__"):
        return _identity_of_object(fn)
    return f"{fn.__module__}:{fn.__qualname__}"


def _identity_of_object(value: Any) -> Any:
    """By what it holds, if that has a canonical form; else by its class."""
    from ._canonical import canonical

    try:
        return canonical(value)
    except TypeError:
        kind = type(value)
        return f"{kind.__module__}:{kind.__qualname__}"
