"""Would the tests notice?  Change one thing in the core at a time, and run them.

1. The mutants are mutmut's, of the modules that ``[tool.mutmut]`` names, and so are the tests.
2. Tests are collected once.  Each mutant has a fork of that process, where the code of one function
   is exchanged for the mutant's: nothing is written, and nothing is in the way of a call.
3. One that mypy refuses, for more than it says of the original, never comes to a test.
4. The others meet the tests that run the changed statement, and have to fail one.  What takes far
   longer than they did, or runs out of memory, has failed too.
5. Before all, one that changes nothing has to survive: so we know that one can.

`check.py [PATTERN ...]` tries those of such names only, as ``_queue.*``.
"""

from __future__ import annotations

import argparse
import ast
import fnmatch
import importlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import dropwhile, zip_longest
from pathlib import Path
from typing import Any, Final, NamedTuple

import coverage
import pytest
from mutmut.mutation.file_mutation import MutatedFile, mutate_file_contents

TESTS: Final = Path(__file__).parent.parent
ROOT: Final = TESTS.parent
JOBS: Final = 2
GIGABYTES: Final = 3  # at most, for one mutant
GOAL: Final = 0.95  # of all mutants, refused or killed

CONTROL: Final = "nothing changed"
SURVIVED: Final = 0
KILLED: Final = 1
BROKEN: Final = 2  # by us


class Mutant(NamedTuple):
    name: str
    original: Any
    mutated: Any
    is_refused: bool
    file: str
    lines: range  # of the changed statement, or of the whole function for its signature
    before: str
    after: str

    def install(self) -> None:
        self.original.__code__ = self.mutated.__code__
        self.original.__defaults__ = self.mutated.__defaults__
        self.original.__kwdefaults__ = self.mutated.__kwdefaults__


def mutants_of(paths: Sequence[str]) -> Iterator[Mutant]:
    files = {path: mutate_file_contents(path, Path(path).read_text()) for path in paths}
    complaints = complaints_about(files)
    for path, mutated in files.items():
        yield from _mutants_of(Path(path), mutated, complaints[path])


def complaints_about(files: Mapping[str, MutatedFile]) -> dict[str, dict[str, Counter[str]]]:
    """What mypy has to say of each function, an original or a mutant, in each file."""
    with tempfile.TemporaryDirectory() as work:
        package = Path(next(iter(files))).parent
        shutil.copytree(package, Path(work, package))
        shutil.copy("pyproject.toml", work)
        for path, mutated in files.items():
            Path(work, path).write_text(mutated.code)
        command = [sys.executable, "-m", "mypy", "--output=json", "--cache-dir=cache", *files]
        said = subprocess.run(command, check=False, cwd=work, stdout=subprocess.PIPE, text=True)
    functions: dict[tuple[str, int], str] = {}
    complaints: dict[str, dict[str, Counter[str]]] = {}
    for path, mutated in files.items():
        complaints[path] = defaultdict(Counter)
        for function, span in mutated.line_span_by_function_name.items():
            functions.update({(path, line): function for line in range(span.start, span.end + 1)})
    for line in map(json.loads, said.stdout.splitlines()):
        function = functions.get((line["file"], line["line"]))
        if line["severity"] == "error" and function is not None:
            message = re.sub(r"__mutmut_\w+", "", line["message"])
            complaints[line["file"]][function][f"{line['code']}: {message}"] += 1
    return complaints


def _mutants_of(
    path: Path, mutated: MutatedFile, complaints: dict[str, Counter[str]]
) -> Iterator[Mutant]:
    name = ".".join(path.with_suffix("").parts)
    module = importlib.import_module(name)
    namespace: dict[str, Any] = {"__name__": name, "__package__": module.__package__}
    exec(compile(mutated.code, f"mutants of {name}", "exec", dont_inherit=True), namespace)
    lines = mutated.code.splitlines()
    tree = ast.parse(path.read_text())
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]

    def text(function: str) -> list[str]:
        span = mutated.line_span_by_function_name[function]
        return list(dropwhile(lambda line: "def " not in line, lines[span.start - 1 : span.end]))

    for mangled in mutated.mutant_names:
        stem, _, number = mangled.rpartition("__mutmut_")
        *owners, function = stem.removeprefix("x_").removeprefix("xǁ").split("ǁ")
        if owners:
            original = vars(getattr(module, owners[0]))[function]
            changed = vars(namespace[owners[0]])[mangled]
        else:
            original = getattr(module, function)
            changed = namespace[mangled]
        first = original.__code__.co_firstlineno
        line, before, after = next(
            (line, before, after)
            for line, (before, after) in enumerate(
                zip(text(f"{stem}__mutmut_orig"), text(mangled), strict=False), first
            )
            if before.replace("__mutmut_orig", f"__mutmut_{number}") != after
        )
        yield Mutant(
            ".".join([path.stem, *owners, function, number]),
            original,
            changed,
            bool(complaints[mangled] - complaints[f"{stem}__mutmut_orig"]),
            str(path.absolute()),
            _lines(statements, first, line),
            before.strip(),
            after.strip(),
        )


def _lines(statements: Iterable[ast.stmt], function: int, line: int) -> range:
    """Those of the innermost statement there, without the statements in it."""
    innermost = max(
        (node for node in statements if node.lineno <= line <= (node.end_lineno or 0)),
        key=lambda node: node.lineno,
    )
    end = (innermost.end_lineno or 0) + 1
    if innermost.lineno == function:
        return range(function + 1, end)
    body = getattr(innermost, "body", None)
    return range(innermost.lineno, body[0].lineno if body else end)


class Runner:
    """The plugin: in place of a run of the tests, one for each mutant."""

    def __init__(self, mutants: Sequence[Mutant]) -> None:
        self.mutants = mutants
        self.survivors: list[Mutant] = []
        self._failed = False
        self._running: dict[int, Mutant] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        ran, seconds = self._measure(items)
        first = self.mutants[0]
        for mutant in (first._replace(name=CONTROL, mutated=first.original), *self.mutants):
            tests = {test for line in mutant.lines for test in ran[mutant.file, line]}
            chosen = in_turn(sorted(tests, key=seconds.__getitem__))
            limit = 20 + 5 * int(sum(map(seconds.__getitem__, chosen)))
            if pid := os.fork():
                self._running[pid] = mutant
            else:
                self._try(mutant, [items[test] for test in chosen], limit)
            if len(self._running) == JOBS or mutant.name == CONTROL:
                self._wait()
        while self._running:
            self._wait()
        return True

    def _wait(self) -> None:
        pid, status = os.wait()
        mutant = self._running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        if code == BROKEN:
            raise RuntimeError(f"{mutant.name} could not be made")
        if mutant.name == CONTROL:
            if code != SURVIVED:
                raise RuntimeError("without a change tests fail")
            return
        if code == SURVIVED:
            self.survivors.append(mutant)
            print(f"{mutant.name} survived:\n  - {mutant.before}\n  + {mutant.after}", flush=True)  # noqa: T201

    def _try(self, mutant: Mutant, items: Sequence[pytest.Item], limit: int) -> None:
        code = BROKEN
        try:
            _be_quiet()
            resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
            signal.alarm(3 * limit)
            mutant.install()
            code = KILLED
            if self._pass(items):
                code = SURVIVED
        finally:
            os._exit(code)

    def _pass(self, items: Sequence[pytest.Item]) -> bool:
        for item, following in zip(items, (*items[1:], None), strict=False):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self._failed:
                return False
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._failed = self._failed or report.failed

    def _measure(
        self, items: dict[str, pytest.Item]
    ) -> tuple[defaultdict[tuple[str, int], set[str]], dict[str, float]]:
        """Which tests run a line, and how long each takes.  In a fork: it leaves traces."""
        with tempfile.TemporaryDirectory() as work:
            timings, lines = Path(work, "timings"), Path(work, "lines")
            if not (pid := os.fork()):
                code = BROKEN
                try:
                    _be_quiet()
                    files = {mutant.file for mutant in self.mutants}
                    cover = coverage.Coverage(str(lines), include=files, config_file=False)
                    cover.start()
                    seconds = {}
                    for test, item in items.items():
                        cover.switch_context(test)
                        start = time.process_time()
                        if not self._pass([item]):
                            break
                        seconds[test] = time.process_time() - start
                    cover.stop()
                    cover.save()
                    timings.write_text(json.dumps(seconds))
                    code = KILLED if self._failed else SURVIVED
                finally:
                    os._exit(code)
            if os.waitpid(pid, 0)[1]:
                raise RuntimeError("without a change tests fail")
            seconds = json.loads(timings.read_text())
            measured = coverage.CoverageData(str(lines))
            measured.read()
            ran: defaultdict[tuple[str, int], set[str]] = defaultdict(set)
            for file in measured.measured_files():
                for line, tests in measured.contexts_by_lineno(file).items():
                    ran[file, line].update(test for test in tests if test in seconds)
            return ran, seconds


def in_turn(tests: Iterable[str]) -> list[str]:
    """Of each module the first, then of each the second: so they differ, and one fails soon."""
    modules: defaultdict[str, list[str]] = defaultdict(list)
    for test in tests:
        modules[test.partition("::")[0]].append(test)
    turns = zip_longest(*modules.values())
    return [test for turn in turns for test in turn if test is not None]


def _be_quiet() -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)


def main() -> str | None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", default=["*"])
    patterns = parser.parse_args().patterns
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT), str(TESTS)]
    settings = tomllib.loads(Path("pyproject.toml").read_text())["tool"]["mutmut"]
    mutants = [
        mutant
        for mutant in mutants_of(settings["only_mutate"])
        if any(fnmatch.fnmatch(mutant.name, pattern) for pattern in patterns)
    ]
    runner = Runner([mutant for mutant in mutants if not mutant.is_refused])
    arguments = [
        "-qq",
        "--capture=no",  # else the forks still write where we do
        *settings["pytest_add_cli_args"],
        *settings["pytest_add_cli_args_test_selection"],
    ]
    if code := pytest.main(arguments, plugins=[runner]):
        return f"pytest ended with {code}"
    table = {
        "made": mutants,
        "refused": [mutant for mutant in mutants if mutant.is_refused],
        "killed": [mutant for mutant in runner.mutants if mutant not in runner.survivors],
        "survived": runner.survivors,
    }
    counts = {
        how: Counter(mutant.name.partition(".")[0] for mutant in some)
        for how, some in table.items()
    }
    print(" " * 12, *(f"{how:>9}" for how in counts))  # noqa: T201
    for module in counts["made"]:
        print(f"{module:12}", *(f"{counts[how][module]:>9}" for how in counts))  # noqa: T201
    figures = {how: len(some) for how, some in table.items()}
    print(f"{'in all':12}", *(f"{number:>9}" for number in figures.values()))  # noqa: T201
    if patterns == ["*"]:
        importlib.import_module("figures").add("mutmut", **figures)
    noticed = figures["refused"] + figures["killed"]
    return None if noticed >= GOAL * figures["made"] else f"fewer than {GOAL:.0%} are noticed"


if __name__ == "__main__":
    sys.exit(main())
