"""Values in canonical form: plain JSON, equal for equal values, different for different ones.

1. Everything carries its class: 1, 1.0, True and "1" differ, and so do a list and a tuple.
2. What has no order has none here: mappings and sets are sorted.
3. A value's class may be renamed or moved only with a change of its form.
4. What has no form of its own (an object, a generator, a lambda) is a TypeError: an address or a
   repr would differ from run to run, or be the same for what differs.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import sys
from decimal import Decimal
from fractions import Fraction
from functools import cache
from pathlib import Path, PurePath
from types import BuiltinFunctionType, EllipsisType, FunctionType, NoneType
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cattrs import Converter

NAMED: Final = (type, FunctionType, BuiltinFunctionType)


def canonical(value: object) -> Any:
    """Lists, strings and numbers of JSON; TypeError for what has no canonical form."""
    try:
        return _converter().unstructure(value)
    except RecursionError:
        raise TypeError("it is nested too deep, or holds itself") from None


def text(form: Any) -> str:
    return json.dumps(form, separators=(",", ":"))


def stable_name(named: Any) -> str:
    """Of a function or a class, the same in every run; TypeError if it has none."""
    name = getattr(named, "__qualname__", None)
    module = getattr(named, "__module__", None)
    if not isinstance(name, str) or not isinstance(module, str) or "<" in name:
        raise TypeError(f"{named!r} has no stable name: it must be defined at a module's top level")
    if module == "__main__":
        module = _main_module()
    return f"{module}:{name}"


def _main_module() -> str:
    """Every program has a ``__main__``: which one?"""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    return f"__main__ {getattr(main, '__file__', '') if spec is None else spec.name}"


@cache
def _converter() -> Converter:
    from cattrs import Converter  # loaded by those who need it

    converter = Converter()
    form = converter.unstructure
    converter.register_unstructure_hook_factory(lambda _: True, lambda cls: _hook(cls, form))
    for cls in (bytes, str, Path):  # these cattrs takes as they are, and what derives from them
        converter.register_unstructure_hook(cls, lambda value: _hook(type(value), form)(value))
    return converter


def _hook(cls: type, form: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Called once a class."""
    if cls in PLAIN:
        name, write = cls.__name__, PLAIN[cls]
        return lambda value: [name, write(value)]
    if cls in (list, tuple):
        return lambda value: [cls.__name__, *map(form, value)]
    if cls in (set, frozenset):
        return lambda value: [cls.__name__, *_sorted(map(form, value))]
    if cls is dict:
        return lambda value: ["dict", *_sorted([form(k), form(v)] for k, v in value.items())]
    if cls in (dt.datetime, dt.time):  # in the fold of a zone one text is two times
        return lambda v: [cls.__name__, v.isoformat(), v.fold, form(v.tzinfo)]
    if issubclass(cls, NAMED):
        return lambda value: ["name", stable_name(value)]
    name = f"{cls.__module__}:{cls.__qualname__}"
    if issubclass(cls, enum.Flag):
        return lambda value: [name, hex(value.value)]
    if issubclass(cls, enum.Enum):
        return lambda value: [name, value.name]
    if issubclass(cls, PurePath):
        return lambda value: [name, str(value)]
    if (fields := _fields(cls)) is not None:
        return lambda value: [name, *([field, form(getattr(value, field))] for field in fields)]
    return _refuse


def _fields(cls: type) -> list[str] | None:
    # Not if they are a base's: then it may hold more than they say.
    if "__attrs_attrs__" in vars(cls):
        return [field.name for field in attrs.fields(cls)]
    if "__dataclass_fields__" in vars(cls):
        return [field.name for field in dataclasses.fields(cls)]
    if issubclass(cls, tuple):
        return getattr(cls, "_fields", None)
    return None


def _sorted(forms: Iterable[Any]) -> list[Any]:
    return sorted(forms, key=text)


def _refuse(value: object) -> Any:
    cls = type(value)
    raise TypeError(f"{value!r} ({cls.__module__}.{cls.__qualname__}) has no canonical form")


PLAIN: Final[dict[type, Callable[[Any], Any]]] = {
    NoneType: lambda _: None,
    EllipsisType: lambda _: None,
    bool: bool,
    int: hex,  # of any length, where str() is not
    float: float.hex,
    complex: lambda value: [value.real.hex(), value.imag.hex()],
    str: str,
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    range: repr,
    Decimal: str,
    Fraction: str,
    UUID: str,
    dt.date: str,
    dt.timedelta: repr,
    dt.timezone: repr,
    ZoneInfo: str,
}
