"""The JSON Schema; that it judges as `load_pipeline` does is in test_structure.py."""

import json
import re
import tomllib
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from trio_parallel_steps.cli import main
from trio_parallel_steps.files import pipeline_of, plan_of, schema

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "docs" / "examples").glob("*.toml"))


def tables() -> dict[str, dict[str, Any]]:
    described = schema()
    return {"PipelineTable": described, **described["$defs"]}


def test_it_is_a_schema_and_plain_json() -> None:
    described = schema()
    Draft202012Validator.check_schema(described)
    assert json.loads(json.dumps(described)) == described


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_examples_keep_to_it(file: Path) -> None:
    Draft202012Validator(schema()).validate(tomllib.loads(file.read_text()))


@pytest.mark.parametrize("name", tables())
def test_every_key_has_a_description(name: str) -> None:
    table = tables()[name]
    assert table["additionalProperties"] is False
    assert table["title"]
    bare = [key for key, value in table["properties"].items() if not value["description"].strip()]
    assert bare == []


def test_defaults_are_told() -> None:
    wide = tables()["WideStep"]["properties"]
    assert wide["merge_strategy"]["default"] == "no_merge"
    assert tables()["ConcurrencyConfig"]["properties"]["adaptive_limits"]["default"] is True
    assert "default" not in wide["branches"]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == schema()


HEADING = re.compile(r"^(.+)\n~+$", re.MULTILINE)
ENTRY = re.compile(r"^``(\w+)``$", re.MULTILINE)
SECTIONS = {
    "The file": "PipelineTable",
    "A plain step": "PlainStep",
    "A parallel step": "WideStep",
    "A branch": "LongBranch",
    "retry": "Retry",
    "concurrency": "ConcurrencyConfig",
    "cancel_rules": "CancelRule",
    "execution_config": "ExecutionConfig",
    "resource_limits": "ResourceLimits",
}
PAGE = (ROOT / "docs" / "files.rst").read_text()


def sections() -> dict[str, list[str]]:
    """The keys that the page has in each."""
    _, *parts = HEADING.split(PAGE)
    return {title: ENTRY.findall(text) for title, text in zip(parts[::2], parts[1::2], strict=True)}


@pytest.mark.parametrize("title", SECTIONS)
def test_the_page_has_every_key_and_no_other(title: str) -> None:
    assert sorted(sections()[title]) == sorted(tables()[SECTIONS[title]]["properties"])


def test_the_page_has_every_table() -> None:
    assert list(sections()) == list(SECTIONS)
    branches = {"PlainBranch": "PlainStep", "WideBranch": "WideStep"}
    assert set(tables()) == {*SECTIONS.values(), *branches}
    for branch, step in branches.items():  # as the page says
        keys = set(tables()[step]["properties"]) - {"name"} | {"priority", "weight"}
        assert set(tables()[branch]["properties"]) == keys


def test_the_example_of_the_page_loads() -> None:
    (block,) = re.findall(r"^\.\. code-block:: toml\n\n((?:   .*\n|\n)+)", PAGE, re.MULTILINE)
    content = tomllib.loads(dedent(block))
    Draft202012Validator(schema()).validate(content)
    assert pipeline_of(plan_of(content, "x.toml")).name == "checks"
