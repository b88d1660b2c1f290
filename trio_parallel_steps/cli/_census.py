"""What the demo counts: the modules of the running Python's own standard library, and what is in
their files.  No event loop, no output.

1. The standard library is what `sys.stdlib_module_names` names, as far as it has ``.py`` files
   where Python keeps them.  So site-packages is left out, and so is ``test``, CPython's own test
   suite, which that set leaves out; tests that a package carries within itself are part of it.
2. Same Python, same packages, same files, in the same order.
3. A file that does not parse is counted as unparsed, with its lines: lib2to3 carries bad syntax on
   purpose.  A file that can't be read is an error.
"""

import ast
import sys
import sysconfig
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Self

import attrs

# CPython 3.11 keeps one depth for all trees that it builds, and two threads that build at once may
# fail with a SystemError (its gh-106905).  The GIL lets but one of them go on anyway.
PARSER = threading.Lock() if sys.version_info < (3, 12) else nullcontext()


@attrs.frozen
class Package:
    """A top-level package or module: its name, its files and their size in bytes."""

    name: str
    files: tuple[Path, ...]
    size: int


@attrs.frozen
class Counts:
    """What was found in some files; counts add up."""

    files: int = 0
    unparsed: int = 0
    lines: int = 0
    classes: int = 0
    functions: int = 0

    def __add__(self, other: Self) -> "Counts":
        return Counts(
            self.files + other.files,
            self.unparsed + other.unparsed,
            self.lines + other.lines,
            self.classes + other.classes,
            self.functions + other.functions,
        )


@attrs.frozen
class Totals:
    """The counts of some packages together, and the one with the most lines (None of none)."""

    packages: int
    counts: Counts
    largest: str | None


def standard_library() -> list[Package]:
    """The packages of the running Python, by name."""
    return find_packages(Path(sysconfig.get_path("stdlib")), sys.stdlib_module_names)


def find_packages(library: Path, names: Iterable[str]) -> list[Package]:
    """Those of `names` that have files in the folder `library`, by name."""
    packages = []
    for name in sorted(names):
        found = [library / f"{name}.py", *sorted((library / name).rglob("*.py"))]
        files = [file for file in found if file.is_file()]
        if files:
            size = sum(file.stat().st_size for file in files)
            packages.append(Package(name, tuple(files), size))
    return packages


def count_source(source: bytes) -> Counts:
    """What is in one file."""
    lines = len(source.splitlines())
    try:
        with PARSER:
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # ValueError: a null byte.  The last two: nested too deeply for the parser.
        return Counts(files=1, unparsed=1, lines=lines)
    classes = functions = 0
    for node in statements(tree):
        classes += isinstance(node, ast.ClassDef)
        functions += isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    return Counts(files=1, lines=lines, classes=classes, functions=functions)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements under `tree`.  Expressions, by far the most nodes, hold no definitions."""
    waiting = [tree]
    while waiting:
        for node in ast.iter_child_nodes(waiting.pop()):
            if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
                waiting.append(node)
                yield node


def total(counted: Mapping[str, Counts]) -> Totals:
    """The sum over packages, and the largest of them; the first in order, of equals."""
    largest = max(counted, key=lambda name: counted[name].lines, default=None)
    return Totals(len(counted), sum(counted.values(), Counts()), largest)


@contextmanager
def parser_warnings_off() -> Iterator[None]:
    """Old code makes the parser warn of its escapes and literals.  For the whole process: the
    filters are shared by all threads, so that it is no business of any one of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
