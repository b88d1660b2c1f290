"""Functions and exceptions by their names: where they are looked for, and what is refused."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trio_parallel_steps import Backpressure, ConfigError
from trio_parallel_steps.files import plan_of

SOURCE = """
async def async_fn(): ...
def sync_fn(): ...
async def generator(): yield
class Kind: ...
class Inner:
    class Error(Exception): ...
class Called:
    async def __call__(self): ...
called = Called()
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    before = set(sys.modules)
    (tmp_path / "named_here.py").write_text(SOURCE)
    (tmp_path / "broken_here.py").write_text("1 / 0")
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def only(step: dict[str, Any], folder: Path) -> Any:
    """The only step of a file."""
    (step_table,) = plan_of({"steps": [{"name": "a", **step}]}, folder / "x.toml").table.steps
    return step_table


def call(folder: Path, target: str) -> Any:
    return only({"call": target}, folder).call.fn


def retried(folder: Path, on: str) -> Any:
    return only({"command": "true", "retry": {"on": on}}, folder).retry.on


def test_the_files_own_folder_comes_first_and_the_path_is_as_it_was(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "named_here.py").write_text("")
    monkeypatch.syspath_prepend(elsewhere)
    before = sys.path[:]
    assert call(folder, "named_here:async_fn") is sys.modules["named_here"].async_fn
    assert sys.path == before


def test_the_path_is_as_it_was_after_a_fault_too(folder: Path) -> None:
    before = sys.path[:]
    with pytest.raises(ConfigError):
        call(folder, "broken_here:fn")
    assert sys.path == before


def test_a_sync_function_is_for_a_thread_and_an_object_may_be_async(folder: Path) -> None:
    assert call(folder, "named_here:sync_fn").__wrapped__ is sys.modules["named_here"].sync_fn
    assert call(folder, "named_here:called") is sys.modules["named_here"].called


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("nowhere_here:fn", "can't be imported: ModuleNotFoundError: No module named 'nowhere_he"),
        ("broken_here:fn", "can't be imported: ZeroDivisionError: division by zero"),
        ("named_here:async_fnn", "names no 'async_fnn' in <module 'named_here' from '"),
        ("named_here:number", "must be a function, async or not, got 3"),
        ("named_here:Kind", "must be a function, async or not, got <class 'named_here.Kind'>"),
        ("named_here:generator", "must be a function, async or not, got <function generator at"),
    ],
)
def test_what_can_not_be_called_is_told(folder: Path, target: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        call(folder, target)
    (fault,) = caught.value.faults
    assert fault.startswith(f"`steps[0].call` {said}")


def test_the_nearest_name_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean `async_fn`"):
        call(folder, "named_here:asinc_fn")


def test_what_a_module_raised_is_the_cause(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call(folder, "broken_here:fn")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_fault_of_ours_has_no_cause(folder: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        call(folder, "named_here:number")
    assert caught.value.__cause__ is None


def test_another_module_of_the_same_name_is_not_taken_for_it(folder: Path) -> None:
    call(folder, "named_here:async_fn")
    other = folder / "other"
    other.mkdir()
    (other / "named_here.py").write_text(SOURCE)
    with pytest.raises(ConfigError) as caught:
        call(other, "named_here:async_fn")
    assert caught.value.faults == (
        (
            f"`steps[0].call` can't be imported: 'named_here' of {other} has the name of "
            f"{folder / 'named_here.py'}"
        ),
    )


def test_nor_is_a_built_in_one(folder: Path) -> None:
    (folder / "sys.py").write_text(SOURCE)
    with pytest.raises(ConfigError, match=r"'sys' of .* has the name of None"):
        call(folder, "sys:async_fn")


def test_the_same_folder_may_be_named_in_another_way(folder: Path) -> None:
    (folder / "inner").mkdir()
    assert call(folder, "named_here:async_fn") is call(
        folder / "inner" / "..", "named_here:async_fn"
    )


@pytest.mark.parametrize(
    ("name", "kind"), [("Backpressure", Backpressure), ("ConnectionError", ConnectionError)]
)
def test_exceptions_of_this_package_and_built_in_ones_have_short_names(
    folder: Path, name: str, kind: type
) -> None:
    assert retried(folder, name) is kind


def test_others_are_named_with_their_module(folder: Path) -> None:
    kind = retried(folder, "named_here:Inner.Error")
    assert kind is sys.modules["named_here"].Inner.Error


@pytest.mark.parametrize("name", ["named_here:Kind", "named_here:number", "BaseException", "trio"])
def test_what_is_no_exception_is_refused(folder: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must be an exception of this package, a built-in one, "):
        retried(folder, name)
