"""What the docs say is so: every example runs, and every public name has its entry."""

import ast
import doctest
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trio_parallel_steps
from trio_parallel_steps import cache, files, limits, testing

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.rst"))]
FENCE = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ENTRY = re.compile(r"^\.\. auto\w+:: (\w+)$", re.MULTILINE)


def module_names() -> Iterator[str]:
    yield trio_parallel_steps.__name__
    for module in pkgutil.walk_packages(trio_parallel_steps.__path__, "trio_parallel_steps."):
        if not module.name.endswith("__main__"):
            yield module.name


def check(test: doctest.DocTest) -> None:
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert not said, "".join(said)


@pytest.mark.parametrize("name", list(module_names()))
def test_the_examples_of_docstrings_run(name: str) -> None:
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module):
        check(test)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page: Path) -> None:
    text = page.read_text("utf-8")
    check(
        doctest.DocTestParser().get_doctest(text, {"__name__": "__main__"}, page.name, str(page), 0)
    )
    # As a reader would type them in: one after the other, in one session.
    session: dict[str, Any] = {"__name__": "__main__"}
    for fence in FENCE.finditer(text):
        line = text.count("\n", 0, fence.start(1))
        exec(compile("\n" * line + fence[1], str(page), "exec"), session)


def names_passed_on(module: ModuleType) -> list[str]:
    return [
        alias.asname
        for node in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(node, ast.ImportFrom) and node.module is not None
        for alias in node.names
        if alias.asname is not None
    ]


def test_the_reference_has_every_public_name() -> None:
    reference = (ROOT / "docs" / "reference.rst").read_text("utf-8")
    public = [
        *names_passed_on(trio_parallel_steps),
        *names_passed_on(cache),
        *names_passed_on(files),
        *names_passed_on(limits),
        *names_passed_on(testing),
    ]
    assert sorted(ENTRY.findall(reference)) == sorted([*public, "Observer", "step_recorder"])
