"""What the demo counts; the demo itself is in test_cli.py."""

import ast
import sys
import sysconfig
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from trio_parallel_steps.cli._census import (
    Counts,
    Package,
    count_source,
    find_packages,
    parser_warnings_off,
    standard_library,
    total,
)


def write(path: Path, text: str = "x = 1\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_package_is_all_its_files_and_a_module_its_one(tmp_path: Path) -> None:
    init = write(tmp_path / "pkg" / "__init__.py")
    deep = write(tmp_path / "pkg" / "sub" / "deep.py")
    module = write(tmp_path / "mod.py", "y = 22\n")
    write(tmp_path / "pkg" / "notes.txt")
    assert find_packages(tmp_path, {"pkg", "mod"}) == [
        Package("mod", (module,), 7),
        Package("pkg", (init, deep), 12),
    ]


def test_what_is_not_named_or_has_no_files_is_left_out(tmp_path: Path) -> None:
    write(tmp_path / "mod.py")
    write(tmp_path / "other.py")
    write(tmp_path / "site-packages" / "installed.py")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder" / "named.py").mkdir(parents=True)
    names = [package.name for package in find_packages(tmp_path, {"mod", "empty", "folder", "sys"})]
    assert names == ["mod"]


def test_the_standard_library_is_this_pythons_own_and_always_the_same() -> None:
    packages = standard_library()
    names = [package.name for package in packages]
    assert names == sorted(names)
    assert {"asyncio", "json", "this"} <= set(names) <= sys.stdlib_module_names
    assert "test" not in names
    library = Path(sysconfig.get_path("stdlib"))
    for package in packages:
        for file in package.files:
            assert file.relative_to(library).parts[0] in {package.name, f"{package.name}.py"}
    assert packages == standard_library()


def test_definitions_are_counted_wherever_a_statement_can_be() -> None:
    source = b"""
class A:
    async def a(self): pass
    def b(self):
        class Inner: pass
if 1:
    def c(): pass
else:
    def d(): pass
try:
    def e(): pass
except ValueError:
    def f(): pass
finally:
    def g(): pass
match 1:
    case 1:
        def h(): pass
with open("x"):
    for _ in ():
        while 0:
            def i(): pass
lambda: [x for x in ()]
"""
    assert count_source(source) == Counts(files=1, lines=23, classes=2, functions=9)


@pytest.mark.parametrize("name", ["ast", "enum", "typing"])
def test_the_count_is_what_a_walk_over_the_whole_tree_finds(name: str) -> None:
    source = (Path(sysconfig.get_path("stdlib")) / f"{name}.py").read_bytes()
    nodes = list(ast.walk(ast.parse(source)))
    counts = count_source(source)
    assert counts.classes == sum(isinstance(n, ast.ClassDef) for n in nodes)
    assert counts.functions == sum(
        isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef) for n in nodes
    )


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        (b"", 0),
        (b"x = 1", 1),
        (b"x = 1\n", 1),
        (b"x = 1\r\ny = 2\rz = 3\n", 3),
        (b"# coding: latin-1\nx = '\xe9'\n", 2),
        (b"\xef\xbb\xbfx = 1\n", 1),
    ],
)
def test_lines_are_counted_as_python_reads_them(source: bytes, lines: int) -> None:
    assert count_source(source) == Counts(files=1, lines=lines)


@pytest.mark.parametrize(
    "source",
    [
        b"print 'two'\n",
        b"x = '\0'\n",
        b"# coding: nonsense\n",
        b"x = '\xff'\n",
        b"(" * 300 + b"\n",
        b"-" * 100_000 + b"1\n",
    ],
    ids=["python 2", "null byte", "unknown encoding", "not utf-8", "nesting", "depth"],
)
def test_what_does_not_parse_is_counted_not_raised(source: bytes) -> None:
    assert count_source(source) == Counts(files=1, unparsed=1, lines=1)


def test_counts_add_up_and_the_largest_is_the_one_with_the_most_lines() -> None:
    counted = {
        "a": Counts(files=1, lines=10, classes=1, functions=2),
        "b": Counts(files=3, lines=30, unparsed=1),
        "c": Counts(files=1, lines=30),
    }
    totals = total(counted)
    assert totals.packages == 3
    assert totals.counts == Counts(files=5, unparsed=1, lines=70, classes=1, functions=2)
    assert totals.largest == "b"


def test_the_total_of_nothing_is_nothing() -> None:
    totals = total({})
    assert (totals.packages, totals.counts, totals.largest) == (0, Counts(), None)


def test_the_parsers_warnings_are_off_inside_and_as_they_were_after() -> None:
    source = b"x = '\\d'\ny = 1if x else 2\n"
    before = warnings.filters[:]
    with parser_warnings_off():
        assert count_source(source) == Counts(files=1, lines=2)
    assert warnings.filters == before
    with pytest.warns(Warning, match="invalid"):
        count_source(source)


class Finalized:
    """Garbage that only the collector finds, and that then gives way to another thread."""

    def __init__(self) -> None:
        self.me = self

    def __del__(self) -> None:
        time.sleep(0)


def test_threads_that_parse_at_once_do_not_disturb_each_other() -> None:
    source = (Path(sysconfig.get_path("stdlib")) / "argparse.py").read_bytes()
    expected = count_source(source)

    def count() -> list[Counts]:
        found = []
        for _ in range(3):
            Finalized()
            found.append(count_source(source))
        return found

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(count) for _ in range(4)]
    for future in futures:
        assert future.result() == [expected] * 3
