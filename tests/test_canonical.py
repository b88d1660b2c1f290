"""The canonical form: equal for equal values, different for different ones, the same in any run."""

from __future__ import annotations

import datetime as dt
import enum
import itertools
import os
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from functools import partial
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import attrs
import pytest
from hypothesis import given, strategies as st

from trio_parallel_steps._canonical import canonical, stable_name, text


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


class Flags(enum.Flag):
    A = 1
    B = 2


@attrs.frozen
class Point:
    x: int
    y: Any = None


@attrs.frozen
class Place:
    x: int
    y: Any = None


@dataclass
class Named:
    x: int
    y: Any = None


Pair = namedtuple("Pair", "x y")

BERLIN = ZoneInfo("Europe/Berlin")
TWICE = dt.datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)

DIFFERENT: list[Any] = [
    *(None, ..., 0, 1, -1, 1.0, True, False, "1", b"1", bytearray(b"1"), 1j, "", b"", "None"),
    *(0.0, -0.0, float("nan"), float("inf"), Decimal(1), Decimal("1.0"), Fraction(1)),
    *(
        [],
        (),
        {},
        set(),
        frozenset(),
        [1],
        (1,),
        {1},
        frozenset({1}),
        {1: 1},
        [[1]],
        [1, 2],
        [2, 1],
    ),
    *({1: 2}, {"1": 2}, {1.0: 2}, {2: 1}, {1: {}}, range(1), range(0, 4, 2), "range(0, 1)"),
    *(Colour.RED, Colour.BLUE, Number.ONE, Flags.A, Flags.A | Flags.B),
    *(Point(1), Point(1.0), Point(1, Point(1)), Place(1), Named(1), Pair(1, None)),  # type: ignore[arg-type]
    *(
        dt.date(2026, 1, 2),
        dt.datetime(2026, 1, 2),  # noqa: DTZ001
        dt.time(1),
        dt.timedelta(1),
        "2026-01-02",
    ),
    *(dt.datetime(2026, 1, 2, tzinfo=dt.UTC), dt.datetime(2026, 1, 2, tzinfo=ZoneInfo("UTC"))),
    *(TWICE, TWICE.replace(fold=1)),
    *(Path("a"), PurePosixPath("a"), "a", UUID(int=1), int, float, len, os.path.join, Point, ["a"]),
    *(10**5000, 10**5000 + 1, "\ud800", "\U0001f600"),
]


def test_different_values_differ() -> None:
    forms: dict[str, Any] = {}
    for value in DIFFERENT:
        form = text(canonical(value))
        assert form not in forms, (value, forms[form])
        forms[form] = value


def test_every_form_carries_its_class() -> None:
    assert all(isinstance(canonical(value), list) for value in DIFFERENT)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2, 3: 4}, {3: 4, "b": 2, "a": 1}),
        ({"ab", "cd", 1}, {1, "cd", "ab"}),
        ({(1, "a"): {1, 2}}, {(1, "a"): {2, 1}}),
        (Point(1, {"a": 1, "b": 2}), Point(1, {"b": 2, "a": 1})),
        (float("nan"), -float("nan") * -1),
        (len, len),
    ],
)
def test_equal_values_are_equal(one: object, other: object) -> None:
    assert text(canonical(one)) == text(canonical(other))


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda each: st.lists(each) | st.tuples(each, each) | st.dictionaries(st.text(), each),
    max_leaves=8,
)


@given(values, values)
def test_forms_are_equal_exactly_if_values_are(one: Any, other: Any) -> None:
    assert (text(canonical(one)) == text(canonical(other))) == (_sorted(one) == _sorted(other))


def _sorted(value: Any) -> Any:
    """A repr in which the order of a dict does not count."""
    if isinstance(value, dict):
        return (
            "{" + ",".join(sorted(f"{key!r}:{_sorted(each)}" for key, each in value.items())) + "}"
        )
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({','.join(map(_sorted, value))})"
    return repr(value)


def generator() -> Any:
    yield 1


class Plain:
    def method(self) -> None: ...


@attrs.define
class Derived(Point):
    z: int = 0


class Undecorated(Point):
    """It may hold more than its base's fields."""


class Str(str):
    __slots__ = ()


def inner() -> Callable[[], None]:
    def function() -> None: ...

    return function


@pytest.mark.parametrize(
    "value",
    [
        *(object(), Plain(), generator(), lambda: None, inner(), partial(len), Plain().method),
        *(iter([]), Undecorated(1), Str("a"), ValueError("x"), memoryview(b""), DIFFERENT.__len__),
        *([object()], (object(),), {"a": object()}, Point(1, object()), Named(1, [object()])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_has_no_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"has no canonical form|has no stable name"):
        canonical(value)


def test_a_derived_class_has_its_own_fields() -> None:
    assert canonical(Derived(1, 2, 3)) != canonical(Derived(1, 2, 4))


def test_what_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(TypeError, match="it is nested too deep, or holds itself"):
        canonical(endless)


def test_the_form_is_the_same_in_another_process() -> None:
    """Whatever the seed of its hashes."""
    value = {"ab": {"x", "y", "z"}, 1: frozenset({1.5, "q"})}
    code = (
        "from trio_parallel_steps._canonical import canonical, text\n"
        f"print(text(canonical({value!r})))"
    )
    told = {
        subprocess.check_output(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": seed}, text=True
        ).strip()
        for seed in ("1", "2")
    }
    assert told == {text(canonical(value))}


def test_a_main_module_is_known_by_its_file(tmp_path: Path) -> None:
    """Else the functions of one script would be those of another."""
    code = (
        "from trio_parallel_steps._canonical import stable_name\n"
        "def f(): ...\n"
        "print(stable_name(f))"
    )
    names = []
    for file in ("a.py", "b.py"):
        tmp_path.joinpath(file).write_text(code, "utf-8")
    runs = [[str(tmp_path / "a.py")], [str(tmp_path / "b.py")], ["-m", "a"], ["-c", code]]
    for arguments in runs:
        path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": path}
        told = subprocess.check_output(
            [sys.executable, *arguments], text=True, cwd=Path.cwd(), env=environment
        )
        names.append(told.strip())
    expected = [f"__main__ {tmp_path / 'a.py'}:f", f"__main__ {tmp_path / 'b.py'}:f"]
    assert names == [*expected, "__main__ a:f", "__main__ :f"]


@pytest.mark.parametrize(
    ("spec", "file", "name"),
    [(None, "/x/a.py", "__main__ /x/a.py:f"), ("pkg.__main__", "", "__main__ pkg.__main__:f")],
)
def test_so_here(spec: str | None, file: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def f() -> None: ...

    f.__module__, f.__qualname__ = "__main__", "f"
    main = SimpleNamespace(__file__=file, __spec__=spec and SimpleNamespace(name=spec))
    monkeypatch.setitem(sys.modules, "__main__", main)
    assert stable_name(f) == name


def test_a_name_says_where_it_is() -> None:
    assert stable_name(Plain.method) == f"{__name__}:Plain.method"
    assert all(a != b for a, b in itertools.pairwise(map(stable_name, [int, len, Plain])))
