"""The pipeline files of docs/examples run."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import trio

from trio_parallel_steps import BranchStatus, PipelineResult, load_pipeline
from trio_parallel_steps.cli._census import standard_library

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
posix = pytest.mark.skipif(os.name != "posix", reason="commands need POSIX")

PROGRAM = """#!/bin/sh
echo "$(basename $0) $*"
exit $EXIT
"""


def on_trio(name: str) -> PipelineResult:
    return trio.run(load_pipeline(EXAMPLES / name).run)


def on_asyncio(name: str) -> PipelineResult:
    return asyncio.run(load_pipeline(EXAMPLES / name).run())


HOSTS = pytest.mark.parametrize("run", [on_trio, on_asyncio])


def has_tools(folder: Path, monkeypatch: pytest.MonkeyPatch, status: int = 0) -> None:
    """Programs that say what they were told, in place of those that only developers have."""
    for name in ("ruff", "mypy"):
        (folder / name).write_text(PROGRAM.replace("$EXIT", str(status)))
        (folder / name).chmod(0o755)
    path = [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
    monkeypatch.setenv("PATH", os.pathsep.join(path))


@HOSTS
def test_census(run: Any) -> None:
    result = run("census.toml")
    assert result.success, result.feedback
    files = [file for package in standard_library() for file in package.files]
    lines = sum(file.read_bytes().count(b"\n") for file in files)
    assert result.output.startswith(f"lines: {lines}, functions: ")


@posix
@HOSTS
def test_checks(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_tools(tmp_path, monkeypatch)
    result = run("checks.toml")
    assert result.success, result.feedback
    lint, check = result.steps
    assert lint.output.text == "ruff check .\n"
    assert {name: branch.status for name, branch in check.branches.items()} == {
        "tests": BranchStatus.SUCCEEDED,
        "typing": BranchStatus.SUCCEEDED,
        "format": BranchStatus.SUCCEEDED,
        "watch_load": BranchStatus.CANCELLED,  # by the rule, once the tests were in
    }
    assert " passed" in result.output["tests"].text


@posix
def test_checks_end_with_what_the_linter_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_tools(tmp_path, monkeypatch, status=1)
    result = on_trio("checks.toml")
    assert not result.success
    assert [step.name for step in result.steps if step.attempts] == ["lint"]


@posix
def test_nightly_loads() -> None:
    pipeline = load_pipeline(EXAMPLES / "nightly.toml")
    assert [step.name for step in pipeline.steps] == ["list", "check"]
