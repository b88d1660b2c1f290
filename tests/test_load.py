"""`load_pipeline`: a pipeline from a file, and what is no such file."""

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trio_parallel_steps
from helpers import run
from trio_parallel_steps import ConfigError, Pipeline, PipelineResult, load_pipeline

FUNCTIONS = """
from pathlib import Path

async def one():
    return 1

async def double(data):
    return 2 * data

def triple(data):
    return 3 * data

async def fail(data):
    raise ValueError("no")

tries = 0

async def fail_once(data, context):
    global tries
    tries += 1
    if tries == 1:
        raise LookupError("once")
    return tries

async def note(data, context):
    context["noted"] = [data, *context]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    name = "functions_of_a_file"
    (tmp_path / f"{name}.py").write_text(FUNCTIONS)
    yield tmp_path
    sys.modules.pop(name, None)


def load(folder: Path, text: str, name: str = "some.toml") -> Pipeline:
    file = folder / name
    file.write_text(text.replace("MODULE", "functions_of_a_file"))
    return load_pipeline(file)


async def ran(pipeline: Pipeline, context: Any = None) -> PipelineResult:
    return await pipeline.run(None, context=context)


def on_asyncio(pipeline: Pipeline, context: Any = None) -> PipelineResult:
    return asyncio.run(ran(pipeline, context))


def on_trio(pipeline: Pipeline, context: Any = None) -> PipelineResult:
    return run(ran, pipeline, context)


HOSTS = pytest.mark.parametrize("host", [on_trio, on_asyncio])

CALLS = """
version = "2"

[[steps]]
name = "one"
call = "MODULE:one"

[[steps]]
name = "both"
context_include_keys = ["noted"]
merge_strategy = "overwrite"

[steps.branches]
doubled.call = "MODULE:double"
tripled.call = "MODULE:triple"
noted.call = "MODULE:note"
long.steps = [{ name = "a", call = "MODULE:double" }, { name = "b", call = "MODULE:double" }]
wide.branches = { c = { call = "MODULE:triple" } }
"""


@HOSTS
def test_functions_are_called_each_with_what_the_last_step_returned(
    folder: Path, host: Any
) -> None:
    pipeline = load(folder, CALLS)
    assert (pipeline.name, pipeline.version) == ("some", "2")
    result = host(pipeline, {"noted": 0, "other": 0})
    assert result.success, result.feedback
    assert result.output == {
        "doubled": 2,
        "tripled": 3,
        "noted": None,
        "long": 4,
        "wide": {"c": 3},
    }
    assert result.context == {"noted": [1, "noted"], "other": 0}  # which was not given to branches


@HOSTS
def test_a_failed_branch_and_the_ways_to_bear_it(folder: Path, host: Any) -> None:
    text = """
        [[steps]]
        name = "check"
        branches = { good = { command = "true" }, bad = { command = "exit 3" } }
    """
    result = host(load(folder, text))
    assert not result.success
    assert "bad" in result.feedback
    text += 'on_branch_failure = "ignore"\n'
    assert host(load(folder, text)).success


@HOSTS
def test_a_step_is_tried_again_as_its_table_says(folder: Path, host: Any) -> None:
    text = """
        [[steps]]
        name = "flaky"
        call = "MODULE:fail_once"
        retry = { on = "LookupError", attempts = 2, wait_initial = 0, wait_jitter = 0 }
    """
    result = host(load(folder, text))
    assert result.output == 2
    assert result.steps[0].attempts == 2


@HOSTS
def test_a_command_has_its_environment_and_its_folder(folder: Path, host: Any) -> None:
    (folder / "inner").mkdir()
    text = """
        [[steps]]
        name = "look"
        command = "echo $SOME $(basename $PWD)"
        env = { SOME = "thing" }
        cwd = "inner"
    """
    assert host(load(folder, text)).output.text == "thing inner\n"


@pytest.mark.parametrize(
    ("keys", "options"),
    [
        ("", {"env": None, "cwd": None, "grace": 5.0}),
        ("grace = 0.5", {"env": None, "cwd": None, "grace": 0.5}),
        ("env = { A = 'b' }", {"env": {"A": "b"}, "cwd": None, "grace": 5.0}),
    ],
)
def test_a_command_is_made_of_what_its_table_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, keys: str, options: dict[str, Any]
) -> None:
    made = []

    def command(argv: Any, **options: Any) -> Any:
        made.append((argv, options))
        return trio_parallel_steps.command(argv, **options)

    monkeypatch.setattr("trio_parallel_steps._plan.command", command)
    load(folder, f"[[steps]]\nname = 'a'\ncommand = ['x', 'y']\n{keys}")
    assert made == [(("x", "y"), {**options, "on_output": None})]


def test_a_plain_step_has_its_own_timeout(folder: Path) -> None:
    (step,) = load(folder, "[[steps]]\nname = 'a'\ncommand = 'x'\ntimeout = 5").steps
    assert step.timeout == 5


def test_priorities_weights_and_limits_arrive_in_the_step(folder: Path) -> None:
    text = """
        [execution_config]
        max_parallel_steps = 7

        [[steps]]
        name = "check"
        timeout = 9.0
        priorities = { a = 5 }
        weights = { b = 2 }
        concurrency = { max_concurrent_branches = 3 }

        [steps.branches]
        a = { command = "true", weight = 4 }
        b = { command = "true", priority = 6 }
    """
    pipeline = load(folder, text)
    assert pipeline.execution_config is not None
    assert pipeline.execution_config.max_parallel_steps == 7
    check: Any = pipeline.steps[0]
    assert check.priorities == {"a": 5, "b": 6}
    assert check.weights == {"a": 4, "b": 2}
    assert check.concurrency.max_concurrent_branches == 3
    assert check.step_timeout == 9


def test_what_does_not_fit_together_is_told_with_its_place(folder: Path) -> None:
    text = """
        [[steps]]
        name = "outer"

        [steps.branches.inner]
        merge_strategy = "overwrite"
        concurrency = { completion_tracking = false }
        branches = { a = { command = "true" } }
    """
    with pytest.raises(ConfigError) as caught:
        load(folder, text)
    (fault,) = caught.value.faults
    assert fault.startswith("`steps[0].branches.inner`: ")
    assert "needs completion_tracking=True" in fault
    assert caught.value.file == str(folder / "some.toml")


def test_json_says_the_same(folder: Path) -> None:
    content = {"name": "b", "steps": [{"name": "a", "command": "true", "timeout": "inf"}]}
    pipeline = load(folder, json.dumps(content), "some.json")
    assert pipeline.name == "b"
    assert [step.name for step in pipeline.steps] == ["a"]


def test_a_file_that_is_not_there_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_pipeline(tmp_path / "x.toml")
