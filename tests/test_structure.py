"""From plain values to tables: what is wrong with a file is told with its place, all at once; and
the JSON Schema refuses what `load_pipeline` does."""

import json
import pickle
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from trio_parallel_steps import CancelRule, CommandFailed, ConfigError, Retry, _structure
from trio_parallel_steps.files import plan_of, read_file, schema

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
VALIDATOR = Draft202012Validator(schema())

PLAIN = {"name": "a", "command": "true"}


def step(**keys: Any) -> dict[str, Any]:
    """A file with one plain step."""
    return {"steps": [{**PLAIN, **keys}]}


def wide(branches: Any = None, **keys: Any) -> dict[str, Any]:
    """A file with one parallel step."""
    branches = {"b": {"command": "true"}} if branches is None else branches
    return {"steps": [{"name": "a", "branches": branches, **keys}]}


def config(**keys: Any) -> dict[str, Any]:
    return {**step(), "execution_config": keys}


def faults(content: dict[str, Any], path: Path | str = EXAMPLES / "x.toml") -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        plan_of(content, path)
    return caught.value.faults


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ({}, "`steps` is missing"),
        ({"steps": []}, "`steps` must be one at least, got ()"),
        ({"steps": {}}, "`steps` must be a list, got {}"),
        ({"steps": [3]}, "`steps[0]` must be a table, got 3"),
        ({**step(), "name": 3}, "`name` must be a str, got 3"),
        ({**step(), "version": 3}, "`version` must be a str, got 3"),
        (
            {**step(), "stesp": []},
            "`stesp` is no key of a pipeline file: did you mean `steps`?",
        ),
        # a plain step
        ({"steps": [{"command": "true"}]}, "`steps[0].name` is missing"),
        (step(name=""), "`steps[0].name` must be a str that is not empty, got ''"),
        (
            {"steps": [{"name": "a"}]},
            "`steps[0]` must have either `call` or `command`, got neither",
        ),
        (step(call="json:dumps"), "`steps[0]` must have either `call` or `command`, got both"),
        (step(command=[]), "`steps[0].command` must be one str at least, got ()"),
        (step(command=""), "`steps[0].command` must be one str at least, got ''"),
        (step(command=3), "`steps[0].command` must be a str or a list of str, got 3"),
        (step(command=["a", 3]), "`steps[0].command[1]` must be a str, got 3"),
        (step(env=["A=1"]), "`steps[0].env` must be a table, got ['A=1']"),
        (step(env={"A": 1}), "`steps[0].env.A` must be a str, got 1"),
        (step(env={"A B": 1}), "`steps[0].env.'A B'` must be a str, got 1"),
        (step(cwd=3), "`steps[0].cwd` must be a str, got 3"),
        (step(grace=-1), "`steps[0].grace` must be a number of seconds >= 0, or math.inf, got -1"),
        (step(timeout="5"), "`steps[0].timeout` must be a number, got '5'"),
        (step(timeout=True), "`steps[0].timeout` must be a number, got True"),
        (step(timeout=None), "`steps[0].timeout` must be a number, got None"),
        (
            step(timeout=-1),
            "`steps[0].timeout` must be a number of seconds >= 0, or math.inf, got -1",
        ),
        (
            step(timout=5),
            "`steps[0].timout` is no key of a plain step: did you mean `timeout`?",
        ),
        (
            step(xyz=5),
            (
                "`steps[0].xyz` is no key of a plain step: known: `call`, `command`, `cwd`, "
                "`env`, `grace`, `name`, `retry`, `timeout`"
            ),
        ),
        (
            step(priority=5),  # of what is no branch
            (
                "`steps[0].priority` is no key of a plain step: known: `call`, `command`, "
                "`cwd`, `env`, `grace`, `name`, `retry`, `timeout`"
            ),
        ),
        (step(retry=3), "`steps[0].retry` must be a table, got 3"),
        (step(retry={}), "`steps[0].retry.on` is missing"),
        (step(retry={"on": 3}), "`steps[0].retry.on` must be a str or a list of str, got 3"),
        (
            step(retry={"on": []}),
            "`steps[0].retry.on` must be an exception class, or a tuple of them, got ()",
        ),
        (step(retry={"on": [3]}), "`steps[0].retry.on[0]` must be a str, got 3"),
        (
            step(retry={"on": "OSError", "attempts": 0}),
            "`steps[0].retry.attempts` must be an int >= 1, got 0",
        ),
        (
            step(retry={"on": "OSError", "attempts": 2.5}),
            "`steps[0].retry.attempts` must be an int, got 2.5",
        ),
        (
            step(retry={"on": "OSError", "wait_max": -1}),
            "`steps[0].retry.wait_max` must be a number of seconds >= 0, or math.inf, got -1",
        ),
        (
            {"steps": [{"name": "a", "call": "json:dumps", "env": {}}]},
            "`steps[0].env` is for a `command`, and this is a `call`",
        ),
        (
            {"steps": [{"name": "a", "call": "json:dumps", "cwd": "."}]},
            "`steps[0].cwd` is for a `command`, and this is a `call`",
        ),
        (
            {"steps": [{"name": "a", "call": "json:dumps", "grace": 1}]},
            "`steps[0].grace` is for a `command`, and this is a `call`",
        ),
        ({"steps": [{"name": "a", "call": 3}]}, "`steps[0].call` must be a str, got 3"),
        (
            {"steps": [{"name": "a", "call": "json"}]},
            "`steps[0].call` must be \"module:name\", got 'json'",
        ),
        (
            {"steps": [{"name": "a", "call": ".json:dumps"}]},
            "`steps[0].call` must be \"module:name\", got '.json:dumps'",
        ),
        # a parallel step
        (wide({}), "`steps[0].branches` must be one at least, got {}"),
        (wide([]), "`steps[0].branches` must be a table, got []"),
        (wide({"b": 3}), "`steps[0].branches.b` must be a table, got 3"),
        (
            wide({"b": {}}),
            "`steps[0].branches.b` must have either `call` or `command`, got neither",
        ),
        (
            wide({"b": {"command": "true", "prioriti": 1}}),
            (
                "`steps[0].branches.b.prioriti` is no key of a branch that is a plain step: "
                "did you mean `priority`?"
            ),
        ),
        (
            wide({"b": {"command": "true", "weight": 0}}),
            "`steps[0].branches.b.weight` must be an int >= 1, got 0",
        ),
        (
            wide({"b": {"command": "true", "priority": 0.5}}),
            "`steps[0].branches.b.priority` must be an int, got 0.5",
        ),
        (
            wide(merge_strategy="overwite"),
            (
                "`steps[0].merge_strategy` must be one of 'no_merge', 'context_update', "
                "'overwrite', 'keep_first', 'error_on_conflict', got 'overwite'"
            ),
        ),
        (
            wide(on_branch_failure=True),
            "`steps[0].on_branch_failure` must be one of 'propagate', 'ignore', got True",
        ),
        (
            wide(context_include_keys="abc"),
            "`steps[0].context_include_keys` must be a list, got 'abc'",
        ),
        (wide(weights={"b": 0}), "`steps[0].weights.b` must be an int >= 1, got 0"),
        (wide(priorities={"b": "1"}), "`steps[0].priorities.b` must be an int, got '1'"),
        (
            wide(timeout=-1),
            "`steps[0].timeout` must be a number of seconds >= 0, or math.inf, got -1",
        ),
        (
            wide(command="true"),
            (
                "`steps[0].command` is no key of a parallel step: known: `branches`, "
                "`concurrency`, `context_include_keys`, `merge_strategy`, `name`, "
                "`on_branch_failure`, `priorities`, `timeout`, `weights`"
            ),
        ),
        (
            wide(concurrency={"max_concurrent_branches": 0}),
            (
                "`steps[0].concurrency.max_concurrent_branches` must be an int >= 1, math.inf or "
                "None, got 0"
            ),
        ),
        (
            wide(concurrency={"max_concurrent_branches": 2.5}),
            (
                "`steps[0].concurrency.max_concurrent_branches` must be an int >= 1, math.inf or "
                "None, got 2.5"
            ),
        ),
        (
            wide(concurrency={"adaptive_limits": 1}),
            "`steps[0].concurrency.adaptive_limits` must be a bool, got 1",
        ),
        (
            wide(concurrency={"adaptiv_limits": True}),
            "`steps[0].concurrency.adaptiv_limits` is no key here: did you mean `adaptive_limits`?",
        ),
        (
            wide(concurrency={"cancel_rules": [{"when": "a"}]}),
            "`steps[0].concurrency.cancel_rules[0].cancel` is missing",
        ),
        (
            wide(concurrency={"cancel_rules": [{"when": "a", "cancel": "b", "on": "never"}]}),
            "`steps[0].concurrency.cancel_rules[0].on` must be 'success' or 'end', got 'never'",
        ),
        # deeper
        (
            wide({"b": {"steps": [{**PLAIN, "timeout": -1}]}}),
            (
                "`steps[0].branches.b.steps[0].timeout` must be a number of seconds >= 0, or "
                "math.inf, got -1"
            ),
        ),
        (
            wide(
                {"b": {"branches": {"c": {"command": "true", "retry": {"on": "OSError"}, "x": 1}}}}
            ),
            (
                "`steps[0].branches.b.branches.c.x` is no key of a branch that is a plain step: "
                "known: `call`, `command`, `cwd`, `env`, `grace`, `priority`, `retry`, `timeout`, "
                "`weight`"
            ),
        ),
        (
            wide({"b": {"steps": [PLAIN], "name": "b"}}),
            (
                "`steps[0].branches.b.name` is no key of a branch that is a pipeline: known: "
                "`execution_config`, `priority`, `steps`, `weight`"
            ),
        ),
        # the pipeline
        (
            config(max_parallel_steps=0),
            "`execution_config.max_parallel_steps` must be an int >= 1, got 0",
        ),
        (
            config(max_parallel_steps="inf"),
            "`execution_config.max_parallel_steps` must be an int, got 'inf'",
        ),
        (
            config(usage_limits={"usd": -1}),
            "`execution_config.usage_limits.usd` must be a number >= 0, or math.inf, got -1",
        ),
        (
            config(resource_limits={"max_cpu_percent": 101}),
            (
                "`execution_config.resource_limits.max_cpu_percent` must be a number > 0 and "
                "<= 100, or None, got 101"
            ),
        ),
        (
            config(resource_limits={"max_memory_mb": "inf"}),
            (
                "`execution_config.resource_limits.max_memory_mb` must be a finite number > 0, "
                "or None, got inf"
            ),
        ),
        (
            config(resource_limits={"action": "wait"}),
            (
                "`execution_config.resource_limits.action` must be one of 'hold', 'shed', "
                "'breach', got 'wait'"
            ),
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place_and_no_schema_lets_it_pass(
    content: dict[str, Any], fault: str
) -> None:
    assert faults(content) == (fault,)
    assert not VALIDATOR.is_valid(content)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (
            {"steps": [PLAIN, PLAIN]},
            "`steps[1].name` must be of one step only, got 'a', which is that of steps[0]",
        ),
        (
            wide({"high": {"command": "true"}}, priorities={"hihg": 1}),
            "`steps[0].priorities.hihg` is no branch: did you mean `high`?",
        ),
        (
            wide({"high": {"command": "true"}}, weights={"hihg": 1}),
            "`steps[0].weights.hihg` is no branch: did you mean `high`?",
        ),
        (
            wide({"b": {"command": "true", "priority": 1}}, priorities={"b": 2}),
            "`steps[0].priorities.b` is given twice: the branch has a `priority`",
        ),
        (
            wide({"b": {"command": "true", "weight": 1}}, weights={"b": 2}),
            "`steps[0].weights.b` is given twice: the branch has a `weight`",
        ),
        (
            step(retry={"on": "OSErorr"}),
            (
                "`steps[0].retry.on` must be an exception of this package, a built-in one, or "
                "\"module:Class\", got 'OSErorr': did you mean `OSError`?"
            ),
        ),
        (
            wide(
                concurrency={
                    "cancel_rules": [{"when": "a", "cancel": "b"}],
                    "individual_cancellation": False,
                }
            ),
            "`steps[0].concurrency.cancel_rules` need individual_cancellation=True",
        ),
        (
            step(timeout=float("nan")),
            "`steps[0].timeout` must be a number of seconds >= 0, or math.inf, got nan",
        ),
    ],
)
def test_so_is_what_no_schema_can_say(content: dict[str, Any], fault: str) -> None:
    assert faults(content) == (fault,)


def test_all_faults_of_a_file_are_told_at_once_a_line_for_each() -> None:
    content = {
        "steps": [{**PLAIN, "timout": 5, "cwd": 3}, {"name": "b", "branches": {"c": {"env": 1}}}],
        "execution_config": {"timeout": "long"},
    }
    with pytest.raises(ConfigError) as caught:
        plan_of(content, "a/b.toml")
    assert str(caught.value).splitlines() == [
        "a/b.toml: `steps[0].cwd` must be a str, got 3",
        "a/b.toml: `steps[0].timout` is no key of a plain step: did you mean `timeout`?",
        "a/b.toml: `steps[1].branches.c.env` must be a table, got 1",
        "a/b.toml: `execution_config.timeout` must be a number, got 'long'",
    ]
    assert caught.value.file == "a/b.toml"


def test_what_is_no_table_at_all_is_told_of_the_file() -> None:
    assert faults([]) == ("the file must be a table, got []",)  # type: ignore[arg-type]


def test_a_config_error_pickles() -> None:
    error = pickle.loads(pickle.dumps(ConfigError("a.toml", ["one", "two"])))
    assert (error.file, error.faults, str(error)) == (
        "a.toml",
        ("one", "two"),
        "a.toml: one\na.toml: two",
    )


# ---------------------------------------------------------------- what is right


def test_the_values_are_those_of_the_classes(tmp_path: Path) -> None:
    plan = plan_of(read_file(EXAMPLES / "nightly.toml"), EXAMPLES / "nightly.toml")
    table = plan.table
    assert table.execution_config is not None
    assert table.execution_config.usage_limits == {"usd": 2.5}
    check: Any = table.steps[1]
    assert check.concurrency.cancel_rules == (CancelRule("high_priority_*", "low_priority_*"),)
    tests = check.branches["tests"]
    assert tests.retry == Retry(on=(CommandFailed,), attempts=2)
    assert (tests.command, tests.env, tests.cwd) == ("pytest -q", {"CI": "true"}, EXAMPLES)
    assert check.branches["high_priority_types"].command[0] == "mypy"
    assert check.branches["low_priority_docs"].steps[0].name == "build"


def only(content: dict[str, Any], path: Path | str = "x.toml") -> Any:
    """The only step of a file."""
    (step,) = plan_of(content, path).table.steps
    return step


def test_cwd_is_seen_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.toml"
    assert only(step(cwd="../b"), path).cwd == tmp_path / "a" / ".." / "b"
    assert only(step(), path).cwd is None


def test_inf_is_a_number_in_words_too() -> None:
    content = wide(timeout="inf", concurrency={"max_concurrent_branches": "inf"})
    check = only(content)
    assert check.timeout == float("inf")
    assert check.concurrency.max_concurrent_branches == float("inf")
    assert VALIDATOR.is_valid(content)


def test_on_may_be_one_name() -> None:
    assert only(step(retry={"on": "json:JSONDecodeError"})).retry.on is json.JSONDecodeError


# ---------------------------------------------------------------- the schema says the same

VALUES: list[Any] = [None, True, -1, 0, 1, 0.5, 101, "inf", "", [], {}, [0.5], {"x": -1}]
EVERYTHING = {
    "name": "all",
    "version": "1",
    "execution_config": {
        "max_parallel_steps": 4,
        "timeout": 3600,
        "usage_limits": {"usd": 2.5},
        "resource_limits": {
            "max_memory_mb": 1,
            "max_memory_percent": 1,
            "max_cpu_percent": 1,
            "max_loop_lag": 1,
            "action": "hold",
        },
    },
    "steps": [
        {
            "name": "plain",
            "command": ["true"],
            "env": {"A": "1"},
            "cwd": ".",
            "grace": 1,
            "timeout": 1,
            "retry": {
                "on": ["OSError"],
                "attempts": 2,
                "wait_initial": 1,
                "wait_max": 1,
                "wait_jitter": 1,
                "timeout": 1,
            },
        },
        {
            "name": "wide",
            "merge_strategy": "overwrite",
            "on_branch_failure": "ignore",
            "priorities": {"plain": 1},
            "weights": {"plain": 1},
            "context_include_keys": ["a"],
            "timeout": 1,
            "concurrency": {
                "max_concurrent_branches": 1,
                "adaptive_limits": True,
                "cpu_based_limits": True,
                "memory_based_limits": True,
                "completion_tracking": True,
                "individual_cancellation": True,
                "breach_watcher": True,
                "cancel_rules": [{"when": "a", "cancel": "b", "on": "end"}],
                "timeout": 1,
            },
            "branches": {
                "plain": {"call": "json:dumps"},
                "wide": {
                    "branches": {"a": {"command": "true"}},
                    "priority": 1,
                    "weight": 1,
                },
                "long": {
                    "steps": [{"name": "a", "command": "true"}],
                    "execution_config": {"timeout": 1},
                    "priority": 1,
                    "weight": 1,
                },
            },
        },
    ],
}
ONE_READER = cache(_structure._Reader)  # a new one for each would take the most of the time
# What a schema can't say: other checks look at them.
SAID_ELSEWHERE = ["is no branch", "must be an exception of", "individual_cancellation="]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def changed(path: tuple[Any, ...], new: Any) -> dict[str, Any]:
    content = deepcopy(EVERYTHING)
    place: Any = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return content


def loads(content: dict[str, Any]) -> bool:
    try:
        plan_of(content, "x.json")
    except ConfigError as error:
        return all(any(word in fault for word in SAID_ELSEWHERE) for fault in error.faults)
    return True


def test_everything_may_be_said() -> None:
    assert VALIDATOR.is_valid(EVERYTHING)
    plan_of(EVERYTHING, "x.json")
    said = {key for path in places(EVERYTHING) for key in path}
    assert said >= {key for table in tables(schema()) for key in table["properties"]}


def tables(described: dict[str, Any]) -> list[dict[str, Any]]:
    return [described, *described["$defs"].values()]


@pytest.mark.parametrize(
    "path", list(places(EVERYTHING)), ids=lambda path: ".".join(map(str, path))
)
def test_what_is_put_in_a_place_is_judged_alike_by_schema_and_loader(
    path: tuple[Any, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_structure, "_Reader", ONE_READER)
    for new in VALUES:
        content = changed(path, new)
        assert VALIDATOR.is_valid(content) == loads(content), f"{new!r}"
