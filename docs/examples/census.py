"""A census of the standard library: what census.toml calls.

These are plain functions: each runs in a thread.  A step is given what the one before it returned.
"""

import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

FUNCTION = re.compile(rb"^[ \t]*(?:async[ \t]+)?def[ \t]", re.MULTILINE)
CLASS = re.compile(rb"^[ \t]*class[ \t]", re.MULTILINE)

Modules = dict[str, list[str]]


def list_modules() -> Modules:
    """The files of each top-level module or package, where Python keeps them."""
    library = Path(sysconfig.get_path("stdlib"))
    found = {}
    for name in sorted(sys.stdlib_module_names):
        files = [library / f"{name}.py", *sorted((library / name).rglob("*.py"))]
        found[name] = [str(file) for file in files if file.is_file()]
    return {name: files for name, files in found.items() if files}


def sources(modules: Modules) -> Iterator[tuple[str, bytes]]:
    for name, files in modules.items():
        for file in files:
            yield name, Path(file).read_bytes()


def count_lines(modules: Modules) -> int:
    return sum(source.count(b"\n") for _, source in sources(modules))


def count_functions(modules: Modules) -> int:
    return sum(len(FUNCTION.findall(source)) for _, source in sources(modules))


def count_classes(modules: Modules) -> int:
    return sum(len(CLASS.findall(source)) for _, source in sources(modules))


def find_largest(modules: Modules) -> str:
    sizes = dict.fromkeys(modules, 0)
    for name, source in sources(modules):
        sizes[name] += len(source)
    return max(sizes, key=lambda name: sizes[name])


def report(found: dict[str, object]) -> str:
    """What the branches of the step before have found."""
    return ", ".join(f"{name}: {value}" for name, value in found.items())
