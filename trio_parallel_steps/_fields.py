"""What has fields, and how it is copied with some of them set.

1. A mutable mapping has its keys.  An instance has its attributes if they are all that it is:
   attrs, dataclass and pydantic-like instances, `types.SimpleNamespace`, and plain objects that
   don't say themselves how they are copied.  All else is one value, immutable mappings too.
2. Fields are what is stored: ``init=False``, private and undeclared ones too; an unset one is left
   out, and so is what is derived, a ``cached_property`` or attrs' cached hash.
3. `rebuilt` writes to a copy only, and no constructor, converter or validator runs, as none runs
   for the deep copy that a branch gets.  What was derived is forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import fields as dataclass_fields, is_dataclass
from enum import Enum
from functools import cached_property
from types import MemberDescriptorType, SimpleNamespace
from typing import Any, Final

import attrs


class Gone(Enum):
    """The value of a field that is not there."""

    GONE = "gone"


GONE: Final = Gone.GONE
ATOMS: Final = frozenset({bool, bytes, complex, float, int, str, type(None), Gone})
LISTED: Final = frozenset({frozenset, list, set, tuple})
ATTRS_HASH: Final = "_attrs_cached_hash"
OWN_COPIES: Final = ("__copy__", "__deepcopy__", "__setstate__")
INHERITED: Final = ("__getstate__", "__new__", "__reduce__", "__reduce_ex__")


def fields(value: Any) -> Mapping[Hashable, Any] | None:
    """The fields of `value`, not to be written to; None if it has none by its kind."""
    kind = type(value)
    if kind is dict:
        return value  # type: ignore[no-any-return]
    if kind in ATOMS or kind in LISTED:
        return None
    if isinstance(value, MutableMapping):
        return value if isinstance(value, dict) else dict(value)
    known = declared(kind)
    if known is None:
        return None
    found: dict[Hashable, Any] = {
        name: part for name, part in _in_dict(value).items() if not _is_derived(kind, name)
    }
    if is_pydantic_like(kind):
        for more in ("__pydantic_extra__", "__pydantic_private__"):
            found |= getattr(value, more, None) or {}
    else:
        # A cached property of a slotted attrs class has a slot of its own.
        all_of_them = not attrs.has(kind)
        found |= {n: part for n, part in _in_slots(value) if all_of_them or n in known}
    return found


def declared(kind: type[Any]) -> frozenset[str] | None:
    """The names that the class gives to fields, or None if its instances have none."""
    if is_pydantic_like(kind):
        return frozenset(kind.model_fields)
    if attrs.has(kind):
        return frozenset(field.name for field in attrs.fields(kind))
    if is_dataclass(kind):
        return frozenset(field.name for field in dataclass_fields(kind))
    return frozenset() if issubclass(kind, SimpleNamespace) or _is_plain(kind) else None


def is_pydantic_like(kind: type[Any]) -> bool:
    return hasattr(kind, "model_fields") and hasattr(kind, "model_copy")


def rebuilt(value: Any, changed: Mapping[Hashable, Any]) -> Any:
    """A shallow copy with the fields of `changed` set, or deleted where they are GONE."""
    if isinstance(value, MutableMapping):
        return _rebuilt_mapping(value, changed)
    kind = type(value)
    left = dict(changed)
    if is_pydantic_like(kind):
        # It knows what it has been given, and where its extra fields are.
        update = {n: p for n, p in changed.items() if p is not GONE and not str(n).startswith("_")}
        new = value.model_copy(update=update)
        left = {name: part for name, part in changed.items() if name not in update}
        write, delete = setattr, delattr
    else:
        new = copy.copy(value)
        write, delete = object.__setattr__, object.__delattr__  # frozen ones too
    for derived in [name for name in _in_dict(new) if _is_derived(kind, name)]:
        if derived == ATTRS_HASH:
            object.__setattr__(new, derived, None)
        else:
            object.__delattr__(new, derived)
    for name, part in left.items():
        if part is not GONE:
            write(new, str(name), part)
        elif hasattr(new, str(name)):
            delete(new, str(name))
    return new


def _rebuilt_mapping(value: Any, changed: Mapping[Hashable, Any]) -> Any:
    # A shallow copy of a mapping that is no dict may share its items.
    new = copy.copy(value) if isinstance(value, dict) else copy.deepcopy(value)
    for key, part in changed.items():
        if part is not GONE:
            new[key] = part
        elif key in new:
            del new[key]
    return new


def _in_dict(value: Any) -> Mapping[str, Any]:
    return getattr(value, "__dict__", None) or {}


def _in_slots(value: Any) -> Iterator[tuple[str, Any]]:
    """Those that are set.  A class may answer for the others, so they are not asked by name."""
    for base in type(value).__mro__:
        if vars(base).get("__slots__"):
            for name, slot in vars(base).items():
                if isinstance(slot, MemberDescriptorType):
                    with suppress(AttributeError):
                        yield name, slot.__get__(value)


def _is_plain(kind: type[Any]) -> bool:
    """Are its instances what their ``__dict__`` and slots hold, and nothing else?"""
    return (
        (kind.__dictoffset__ != 0 or any("__slots__" in vars(base) for base in kind.__mro__))
        and all(getattr(kind, name) is getattr(object, name) for name in INHERITED)
        and not any(hasattr(kind, name) for name in OWN_COPIES)
    )


def _is_derived(kind: type[Any], name: str) -> bool:
    return name == ATTRS_HASH or isinstance(getattr(kind, name, None), cached_property)
