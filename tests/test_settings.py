"""``--set key=value``: one value of a file changed."""

from copy import deepcopy
from typing import Any

import pytest

from trio_parallel_steps import ConfigError
from trio_parallel_steps.files import with_set

CONTENT: dict[str, Any] = {
    "name": "nightly",
    "steps": [
        {"name": "list", "command": ["a", "b"]},
        {
            "name": "check all",
            "branches": {"tests": {"command": "pytest"}},
            "concurrency": {"cancel_rules": [{"when": "a", "cancel": "b"}]},
        },
    ],
}


def at(content: Any, *path: Any) -> Any:
    for key in path:
        content = content[key]
    return content


@pytest.mark.parametrize(
    ("key", "value", "path", "becomes"),
    [
        ("name", "weekly", ("name",), "weekly"),
        ("name", '"8"', ("name",), "8"),
        ("version", "", ("version",), ""),
        (
            "execution_config.max_parallel_steps",
            "8",
            ("execution_config", "max_parallel_steps"),
            8,
        ),
        ("execution_config.timeout", "inf", ("execution_config", "timeout"), float("inf")),
        ("steps.list.timeout", "1.5", ("steps", 0, "timeout"), 1.5),
        ("steps[0].timeout", "1.5", ("steps", 0, "timeout"), 1.5),
        ("steps.0.command", '["c"]', ("steps", 0, "command"), ["c"]),
        ("steps.0.command", "a\nb = 3", ("steps", 0, "command"), "a\nb = 3"),
        ("steps.0.command", "1\nb = 3", ("steps", 0, "command"), "1\nb = 3"),
        (
            'steps."check all".branches.tests.env.CI',
            "'true'",
            ("steps", 1, "branches", "tests", "env", "CI"),
            "true",
        ),
        (
            "steps[1].concurrency.cancel_rules[0].on",
            "end",
            ("steps", 1, "concurrency", "cancel_rules", 0, "on"),
            "end",
        ),
    ],
)
def test_a_place_is_found_or_made(
    key: str, value: str, path: tuple[Any, ...], becomes: Any
) -> None:
    content = deepcopy(CONTENT)
    changed = with_set(content, key, value)
    assert at(changed, *path) == becomes
    assert content == CONTENT  # which is not written to


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("steps.lst.timeout", "`steps.lst.timeout`: the list has no 'lst': did you mean `list`?"),
        ("steps[2].timeout", "`steps[2].timeout`: the list has no '2': known: `check all`, "),
        (
            "steps[1].concurrency.cancel_rules[1].on",
            "`steps[1].concurrency.cancel_rules[1].on`: the list has no '1'",
        ),
        (
            "steps[1].branches.test.timeout",
            "`steps[1].branches.test.timeout`: no branch 'test': did you mean `tests`?",
        ),
        ("steps[1].branches.test", "`steps[1].branches.test`: no branch 'test': did you mean"),
        (
            "steps[1].branches.tests",
            "`steps[1].branches.tests` can't be set: it must be a key of a table",
        ),
        ("steps[0]", "`steps[0]` can't be set: it must be a key of a table"),
        ("name.x", "`name.x`: `name` is no table, but 'nightly'"),
        ("name.x.y", "`name.x.y`: `name` is no table, but 'nightly'"),
        ("", "a key must be dotted, as `steps.check.timeout` is, got ''"),
        ("a b", "a key must be dotted, as `steps.check.timeout` is, got 'a b'"),
        ("a = 0\nb", "a key must be dotted, as `steps.check.timeout` is, got 'a = 0\\nb'"),
        ("a = 1 #", "a key must be dotted, as `steps.check.timeout` is, got 'a = 1 #'"),
    ],
)
def test_a_place_that_can_not_be_is_told(key: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_set(CONTENT, key, "1")
    assert str(caught.value).startswith(said)
