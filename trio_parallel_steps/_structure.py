"""From what is in a pipeline file, plain dicts and lists, to its tables: by cattrs, strictly.

1. Nothing is converted: "3" is no int, 1 no bool.  Only "inf", which JSON has no number for, is
   one.
2. All faults of a file are told at once, each with the path to its key.
3. Names of functions and exceptions are looked up here, so that they are among the faults.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, reduce
from operator import eq, or_
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn, get_args, get_origin

import attrs
from cattrs import Converter
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn

from ._errors import ConfigError
from ._imported import call, exception, importing_from
from ._plan import Plan
from ._tables import (
    BranchTable,
    Call,
    LongBranch,
    PipelineTable,
    PlainBranch,
    PlainStep,
    StepTable,
    WideBranch,
    WideStep,
    nearest,
)
from ._util import is_number

Hook = Callable[[Any, Any], Any]

BARE = re.compile(r"[A-Za-z0-9_-]+")
INDEX = re.compile(r"\['([^']*)'\]")
ARGUMENT = re.compile(r"`([^`]*)` ")


def plan_of(content: Mapping[str, Any], path: str | Path) -> Plan:
    """The plan that the `content` of the file at `path` makes.  Imports the modules that it names.

    Raises `ConfigError`, with all that is wrong.

    >>> plan = plan_of({"steps": [{"name": "hello", "command": "echo hello"}]}, "hello.toml")
    >>> print(*plan.lines(), sep="\\n")
    hello
      hello: echo hello
    """
    file = Path(path)
    folder = file.absolute().parent
    with importing_from(folder):
        try:
            table = _Reader(folder).structure(content, PipelineTable)
        except Exception as error:  # what any fault of the file has become
            faults = list(_faults(error, ""))
            raise ConfigError(str(path), faults) from _raised_by_user(error)
    return Plan(file, table)


# ---------------------------------------------------------------- values


def _unfit(what: str, value: object) -> NoReturn:
    raise ValueError(f"must be {what}, got {value!r}")


def _scalar(kind: type, what: str) -> Hook:
    def structure(value: Any, _: Any) -> Any:
        return value if type(value) is kind else _unfit(what, value)

    return structure


def _number(value: Any, _: Any) -> Any:
    if value == "inf":
        return math.inf
    return value if is_number(value) else _unfit("a number", value)


def _enumerated(value: Any, kind: type[enum.Enum]) -> enum.Enum:
    values = [member.value for member in kind]
    if value not in values:
        _unfit(f"one of {', '.join(map(repr, values))}", value)
    return kind(value)


class _Reader(Converter):
    """Fills tables from the plain values of a file in `folder`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(forbid_extra_keys=True)
        error = type[Exception]
        self.register_structure_hook(bool, _scalar(bool, "a bool"))
        self.register_structure_hook(int, _scalar(int, "an int"))
        self.register_structure_hook(str, _scalar(str, "a str"))
        self.register_structure_hook(float, _number)
        self.register_structure_hook(Path, _text(folder.joinpath))
        self.register_structure_hook(Call, _text(partial(call, folder=folder)))
        self.register_structure_hook_factory(attrs.has, self._of_class)
        # Of these, what comes later is asked first.
        fits = self.register_structure_hook_func
        fits(_is_enum, _enumerated)
        fits(_of(tuple), self._list)
        fits(_of(Mapping), self._mapping)
        fits(lambda kind: NoneType in get_args(kind), self._given)
        fits(partial(eq, str | tuple[str, ...]), self._one_or_more(str))
        fits(partial(eq, error | tuple[error, ...]), self._one_or_more(error))
        fits(partial(eq, error), _text(partial(exception, folder=folder)))
        fits(partial(eq, StepTable), self._step)
        fits(partial(eq, BranchTable), self._branch)

    def _of_class(self, kind: type) -> Hook:
        fill: Hook = make_dict_structure_fn(kind, self)

        def structure(value: Any, _: Any) -> Any:
            return fill(value, kind) if isinstance(value, dict) else _unfit("a table", value)

        return structure

    def _list(self, value: Any, kind: Any) -> Any:
        if not isinstance(value, list):
            _unfit("a list", value)
        return tuple(self._each(enumerate(value), get_args(kind)[0]))

    def _mapping(self, value: Any, kind: Any) -> Any:
        if not isinstance(value, dict):
            _unfit("a table", value)
        return dict(zip(value, self._each(value.items(), get_args(kind)[1]), strict=True))

    def _each(self, items: Iterable[tuple[Any, Any]], kind: Any) -> list[Any]:
        """All of them, or all that is wrong with them."""
        done: list[Any] = []
        wrong: list[Exception] = []
        for place, value in items:
            try:
                done.append(self.structure(value, kind))
            except Exception as error:  # a fault of the file, to be told with the others
                error.add_note(IterableValidationNote("", place, kind))
                wrong.append(error)
        if wrong:
            raise IterableValidationError("", wrong, kind)
        return done

    def _given(self, value: Any, kind: Any) -> Any:
        """No null: a key that is to have its default is left out."""
        return self.structure(value, reduce(or_, (k for k in get_args(kind) if k is not NoneType)))

    def _one_or_more(self, kind: Any) -> Hook:
        def structure(value: Any, _: Any) -> Any:
            if not isinstance(value, str | list):
                _unfit("a str or a list of str", value)
            return self.structure(value, kind if isinstance(value, str) else tuple[kind, ...])

        return structure

    def _step(self, value: Any, _: Any) -> Any:
        return self.structure(value, WideStep if _has(value, "branches") else PlainStep)

    def _branch(self, value: Any, _: Any) -> Any:
        if _has(value, "branches"):
            return self.structure(value, WideBranch)
        return self.structure(value, LongBranch if _has(value, "steps") else PlainBranch)


def _text(make: Callable[[str], Any]) -> Hook:
    return lambda value, _: make(value if isinstance(value, str) else _unfit("a str", value))


def _of(origin: Any) -> Callable[[Any], bool]:
    return lambda kind: get_origin(kind) is origin


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, enum.Enum)


# ---------------------------------------------------------------- faults


def _faults(error: BaseException, path: str) -> Iterator[str]:
    match error:
        case BaseValidationError():
            for inner in error.exceptions:
                yield from _faults(inner, path + _step_into(inner))
        case ForbiddenExtraKeysError():
            known = [field.name for field in attrs.fields(error.cl)]
            is_table = error.cl.__module__ == PipelineTable.__module__
            where = f"of {error.cl.__doc__}" if is_table else "here"
            for key in sorted(error.extra_fields):
                yield f"`{_shown(path + _key(key))}` is no key {where}{nearest(key, known)}"
        case KeyError():
            yield f"`{_shown(path)}` is missing"
        case _:
            text = str(error)
            argument = ARGUMENT.match(text)
            if argument is None:
                yield f"`{_shown(path)}` {text}" if path else f"the file {text}"
            else:
                within = INDEX.sub(r".\1", argument[1])
                yield f"`{_shown(f'{path}.{within}')}` {text[argument.end() :]}"


def _step_into(error: BaseException) -> str:
    match getattr(error, "__notes__", []):
        case [*_, AttributeValidationNote(name=name)]:
            return _key(name)
        case [*_, IterableValidationNote(index=int(index))]:
            return f"[{index}]"
        case [*_, IterableValidationNote(index=key)]:
            return _key(str(key))
    return ""


def _key(name: str) -> str:
    return f".{name}" if BARE.fullmatch(name) else f".{name!r}"


def _shown(path: str) -> str:
    return path.removeprefix(".")


def _raised_by_user(error: BaseException) -> BaseException | None:
    """What a module of the user's raised, if one did: its traceback is worth having."""
    if not isinstance(error, BaseValidationError):
        return error.__cause__
    return next(filter(None, map(_raised_by_user, error.exceptions)), None)
