"""The model of admission, as far as it is quick; `nox -s model` checks all of it.

1. What its README says of the code is there: each function, and each part of the model.
2. The smallest configuration holds, and the model can fail.
"""

import re
from importlib import import_module
from pathlib import Path

import pytest

from models.check import BROKEN, MODEL, SMALLEST, Configuration, check, missing as missing_programs
from servers import missing

README = MODEL.with_name("README.md").read_text()
# | rule | `inline`, ... | `_module.Name`, ... |
ROWS = re.findall(r"^\| [AP\d, ]* \| (`.+`) \| (`.+`) \|$", README, re.MULTILINE)


def names(cell: int) -> list[str]:
    return [name for row in ROWS for name in re.findall("`([^`]+)`", row[cell])]


@pytest.mark.parametrize("name", names(1))
def test_what_the_model_stands_for_is_in_the_code(name: str) -> None:
    module, *attributes = name.split(".")
    found: object = import_module(f"trio_parallel_steps.{module}")
    for attribute in attributes:
        found = getattr(found, attribute)
    assert callable(found)


def test_all_of_the_model_is_mapped() -> None:
    source = MODEL.read_text()
    inlines = set(re.findall(r"^inline (\w+)", source, re.MULTILINE))
    # What chooses a program stands for nothing in the code.
    mapped = {name for name in inlines if not name.startswith(("choose_", "select_"))}
    defined = set(re.findall(r"^#define (\w+)", source, re.MULTILINE))
    assert mapped <= set(names(0)) <= mapped | defined


def test_each_switch_that_breaks_a_rule_has_to_fail() -> None:
    source = MODEL.read_text()
    listed = re.findall(r"^   ([A-Z_]+) .* [AP]?\d(?: \*/)?$", source, re.MULTILINE)
    assert set(listed) == {broken.name for broken in BROKEN}


@pytest.mark.parametrize("configuration", [SMALLEST, BROKEN[0]], ids=lambda each: each.name)
def test_the_smallest_model(configuration: Configuration, tmp_path: Path) -> None:
    if lacks := missing_programs():
        missing(f"{' and '.join(lacks)} (Debian: spin, gcc)")
    outcome = check(configuration, tmp_path)
    assert outcome.is_expected(), outcome
