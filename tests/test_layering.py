"""The layers of the design, proved on the source of the installed package.

1. Every module is in one layer, and imports from its own layer or those below.
2. The core (L1) is synchronous and pure: no event loop, clock, randomness, I/O.
3. Event loops are behind the hosts: only they import one, and nothing above names one of them.
4. Below the edges (L5) nothing optional is imported, and what may be imported where is listed.
5. The edges see of the package what its users see.

Imports under `if TYPE_CHECKING:` don't count; those in functions do.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib.util import find_spec
from pathlib import Path

import attrs
import pytest

PACKAGE = "trio_parallel_steps"

# The table: modules by their names within the package, or globs of them; a package stands for all
# that is in it.  The package's own __init__.py, which names what is public, has the empty name.
TABLE = {
    "L0 words": "_errors _outcomes _util abc",
    "L1 core": """
        _admission _allowance _announce _budget _core _endings _explain _fields _foreign _guarding
        _guards _judging _merge _meter _parking _policies _queue _rate _readings _records _resources
        _retry _rules _same _tries _unions limits
    """,
    "L2 hosts": "_cpus hosts pressure",
    "L3 engine": """
        _branch _breach _command _current _feed _guarded _hedged _inputs _limiter _map _nursery
        _open _processes _run_branches _spending _stalls _threads
    """,
    "L4 steps": """
        _batches _canonical _config _contexts _database _functions _imported _journal _load
        _parallel _parallel_run _pipeline _plan _read _schema _settings _steps _structure _tables
        _told _units cache files
    """,
    "the package": "",
    "L5 edges": "cli cluster observe testing",
}
LAYERS = {layer: places.split() or [""] for layer, places in TABLE.items()}
ORDER = list(LAYERS)
CORE = ORDER.index("L1 core")
EDGES = ORDER.index("L5 edges")

# What is not of the standard library, and asyncio, by the modules that may import it.
ALLOWED = {
    "asyncio": ["hosts._asyncio*", *LAYERS["L5 edges"]],
    "attrs": ["*"],
    "cachetools": ["cache._memory"],
    "cattrs": ["_canonical", "_structure"],
    "click": ["cli"],
    "psutil": ["pressure._psutil"],
    "pytest": ["testing.fixtures"],
    "rich": ["cli"],
    "sniffio": ["hosts"],
    "tblib": ["hosts._calls"],
    "trio": ["_errors", "hosts._trio*", *LAYERS["L5 edges"]],
    "trio_parallel": ["hosts._trio_processes"],
}

IMPURE = set(
    "asyncio concurrent datetime io multiprocessing os pathlib random secrets select selectors "
    "shutil signal socket ssl subprocess tempfile threading time trio uuid".split()
)
IMPURE_CALLS = {"breakpoint", "input", "open", "print"}

HOSTS = ["hosts._asyncio*", "hosts._trio*"]


def is_in(module: str, place: str) -> bool:
    return fnmatchcase(module, place) or (place != "" and fnmatchcase(module, f"{place}.*"))


def layer_of(module: str) -> int | None:
    for number, modules in enumerate(LAYERS.values()):
        if any(is_in(module, place) for place in modules):
            return number
    return None


# ---------------------------------------------------------------- reading


@attrs.frozen
class Module:
    name: str  # within the package; "" is its __init__.py
    path: Path
    tree: ast.Module

    @property
    def package(self) -> str:
        """What `from . import` means here, within the package."""
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]


def read_modules() -> dict[str, Module]:
    spec = find_spec(PACKAGE)
    assert spec is not None, f"{PACKAGE} is not installed"
    assert spec.origin is not None, f"{PACKAGE} has no __init__.py"
    root = Path(spec.origin).parent
    modules = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        name = ".".join(parts).removesuffix("__init__").removesuffix(".")
        modules[name] = Module(name, path, ast.parse(path.read_text("utf-8"), str(path)))
    return modules


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def running_code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a tree but those that only type checkers see."""
    if isinstance(node, ast.If) and is_type_checking(node.test):
        for statement in node.orelse:
            yield from running_code(statement)
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from running_code(child)


def imports_of(module: Module, known: set[str]) -> Iterator[tuple[int, bool, str]]:
    """For each import: its line, whether it is of this package, and the module's name (within the
    package if it is)."""
    for node in running_code(module.tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = [PACKAGE, *filter(None, module.package.split("."))]
                base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
            # `from package import module` imports the module, `from module import name` does not.
            names = [f"{base}.{alias.name}" for alias in node.names]
            names = list(dict.fromkeys(name if own(name) in known else base for name in names))
        else:
            continue
        for name in names:
            within = own(name)
            yield node.lineno, within is not None, name if within is None else within


def own(name: str) -> str | None:
    """The name within the package, or None if it is not of the package."""
    if name != PACKAGE and not name.startswith(f"{PACKAGE}."):
        return None
    return name.removeprefix(PACKAGE).removeprefix(".")


# ---------------------------------------------------------------- judging


def faults(module: Module, known: set[str]) -> list[str]:
    layer = layer_of(module.name)
    if layer is None:
        return [f"{module.path}: not in the table of layers: enter it in tests/test_layering.py"]
    found = []
    for line, within, name in imports_of(module, known):
        fault = (own_import_fault if within else foreign_import_fault)(module.name, layer, name)
        if fault is not None:
            found.append(f"{module.path}:{line}: {fault}")
    if layer == CORE:
        found += [f"{module.path}:{line}: {fault}" for line, fault in impurities(module)]
    return found


def own_import_fault(importer: str, layer: int, name: str) -> str | None:
    target = layer_of(name)
    if target is None:
        return f"imports {name!r}, which is in no layer"
    if target > layer:
        return f"is of {ORDER[layer]} and imports {name!r} of {ORDER[target]}"
    if any(is_in(name, host) for host in HOSTS) and not is_in(importer, "hosts"):
        return f"names a host, {name!r}: only `hosts` chooses one"
    if layer == EDGES:
        edge = importer.partition(".")[0]
        private = any(part.startswith("_") for part in name.split("."))
        if not is_in(name, edge) and (private or target == EDGES):
            return f"is the edge {edge!r} and imports {name!r}, which is not public"
    return None


def foreign_import_fault(importer: str, layer: int, name: str) -> str | None:
    top = name.partition(".")[0]
    if layer == CORE and top in IMPURE:
        return f"is of {ORDER[layer]} and imports {top!r}"
    if top in sys.stdlib_module_names and top not in ALLOWED:
        return None
    if not any(is_in(importer, place) for place in ALLOWED.get(top, ())):
        return f"must not import {top!r}"
    return None


def impurities(module: Module) -> Iterator[tuple[int, str]]:
    for node in running_code(module.tree):
        match node:
            case ast.AsyncFunctionDef() | ast.AsyncFor() | ast.AsyncWith() | ast.Await():
                yield node.lineno, "the core is synchronous: no `async`, no `await`"
            case ast.comprehension(is_async=1):
                yield node.target.lineno, "the core is synchronous: no `async`, no `await`"
            case ast.Call(func=ast.Name(id=called)) if called in IMPURE_CALLS:
                yield node.lineno, f"the core does no I/O: no {called}()"


# ---------------------------------------------------------------- the tests

MODULES = read_modules()


@pytest.mark.parametrize("module", MODULES.values(), ids=lambda module: module.name or PACKAGE)
def test_a_module_keeps_to_its_layer(module: Module) -> None:
    found = faults(module, set(MODULES))
    assert not found, "\n" + "\n".join(found)


def test_no_module_has_two_layers() -> None:
    places = [place for layer in LAYERS.values() for place in layer]
    assert len(places) == len(set(places))


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        ("_surprise", "", "not in the table of layers"),
        ("_errors", "from ._core import StepCore", "imports '_core' of L1 core"),
        ("_errors", "from . import _core", "imports '_core' of L1 core"),
        ("_core", f"import {PACKAGE}._nursery", "imports '_nursery' of L3 engine"),
        ("_core", "def f():\n    from ._nursery import x", "imports '_nursery' of L3 engine"),
        ("_core", "from . import run_branches", "imports '' of the package"),
        ("_core", "import time", "L1 core and imports 'time'"),
        ("_core", "from os.path import join", "L1 core and imports 'os'"),
        ("_core", "import trio", "L1 core and imports 'trio'"),
        ("limits._vegas", "import random", "L1 core and imports 'random'"),
        ("limits._vegas", "from .._nursery import x", "imports '_nursery' of L3 engine"),
        ("_core", "async def f(): pass", "the core is synchronous"),
        ("_core", "f = lambda xs: [x async for x in xs]", "the core is synchronous"),
        ("_core", "print(1)", "no print()"),
        ("_core", "if TYPE_CHECKING:\n    pass\nelse:\n    import time", "imports 'time'"),
        ("_nursery", "import trio", "must not import 'trio'"),
        ("_nursery", "import asyncio", "must not import 'asyncio'"),
        ("_nursery", "from .hosts._trio import TrioHost", "names a host, 'hosts._trio'"),
        ("hosts._asyncio", "import trio", "must not import 'trio'"),
        ("hosts._trio", "from .._nursery import x", "imports '_nursery' of L3 engine"),
        ("_steps", "import cattrs", "must not import 'cattrs'"),
        ("_limiter", "import psutil", "must not import 'psutil'"),
        ("hosts._trio", "import trio_parallel", "must not import 'trio_parallel'"),
        ("_limiter", "import click", "must not import 'click'"),
        ("", "from .cli import main", "imports 'cli' of L5 edges"),
        ("cli._demo", f"from {PACKAGE}._nursery import x", "imports '_nursery', which is not"),
        ("cli._demo", f"import {PACKAGE}.testing", "imports 'testing', which is not public"),
        ("cli._demo", "import numpy", "must not import 'numpy'"),
    ],
)
def test_a_breach_of_the_layers_is_seen(name: str, source: str, fault: str) -> None:
    found = faults_of(name, source)
    assert len(found) == 1
    assert fault in found[0]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("_core", "import attrs, heapq\nfrom ._errors import Breached\nfrom ._records import x"),
        ("_core", "if TYPE_CHECKING:\n    import trio\n    from ._nursery import x"),
        ("_core", "if typing.TYPE_CHECKING:\n    import trio"),
        ("_errors", "import trio"),
        ("hosts._trio", "import trio, time\nfrom ._abc import Host\nfrom .._core import x"),
        ("hosts", "from . import _trio"),
        ("_nursery", "import math\nfrom .hosts import current_host\nfrom ._core import x"),
        ("", "from ._nursery import BranchNursery as BranchNursery"),
        ("cli._demo", f"import click, rich.live, trio\nfrom {PACKAGE} import run_branches"),
        ("cli._demo", f"from {PACKAGE}.abc import Observer\nfrom ._view import View"),
    ],
)
def test_what_the_layers_allow_is_let_pass(name: str, source: str) -> None:
    assert faults_of(name, source) == []


def faults_of(name: str, source: str) -> list[str]:
    path = Path(*name.split("."), "__init__.py" if name in ("", "hosts") else "")
    known = {
        *("", "_core", "_errors", "_nursery", "_records", "abc", "cli", "cli._demo", "cli._view"),
        *("hosts", "hosts._abc", "hosts._asyncio", "hosts._trio", "testing"),
    }
    return faults(Module(name, path, ast.parse(source)), known)


# ---------------------------------------------------------------- the import as it happens

FRESH = f"""
import json, sys
import attrs, sniffio, trio
before = set(sys.modules)
import {PACKAGE}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_the_import_loads_nothing_optional() -> None:
    output = subprocess.check_output([sys.executable, "-c", FRESH], text=True)
    loaded: set[str] = set(json.loads(output))
    assert PACKAGE in loaded
    foreign = {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names
    assert foreign == {PACKAGE}
    # The other host, and what asyncio apps alone need, wait until they are asked for.
    assert not {name for name in loaded if name.partition(".")[0] == "asyncio"}
    within = {name.removeprefix(PACKAGE).removeprefix(".") for name in loaded if own(name)}
    unwanted = [
        "hosts._asyncio",
        "hosts._trio_commands",
        "hosts._trio_processes",
        "pressure._psutil",
        "_canonical",
        "_database",
        "_journal",
        "_plan",
        "_read",
        "_structure",
        "_tables",
        "cache._memory",
        "cache._sqlite",
        *LAYERS["L5 edges"],
    ]
    assert not {name for name in within if any(is_in(name, place) for place in unwanted)}
