"""The table of mutants is sound, and its runner tells a mutant from what is none.

`nox -s mutants` checks all of them.
"""

from pathlib import Path

import pytest

from mutants import (
    BROKE,
    HUNG,
    KILLED,
    MUTANTS,
    SURVIVED,
    TESTS,
    Mutant,
    check,
    check_one,
    check_unchanged,
    package,
    run_tests,
)

BREACH = "test_breach.py::test_the_first_reason_stands"
KILLED_AT_ONCE = Mutant(
    "a breach forgets its reason",
    "_breach.py",
    "self._reason = reason",
    "self._reason = None",
    (BREACH,),
)
THE_SAME = KILLED_AT_ONCE._replace(
    name="a breach whose comment is another", before="# the open ones", after="# those open"
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_the_package_with_one_place_changed(mutant: Mutant) -> None:
    compile(mutant.source(package()), mutant.module, "exec")
    assert mutant.tests
    for test in mutant.tests:
        module, _, function = test.partition("::")
        assert f"def {function}" in (TESTS / module).read_text()


def test_no_two_are_the_same() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert len({(mutant.module, mutant.source(package())) for mutant in MUTANTS}) == len(MUTANTS)


def test_what_is_not_there_once_can_not_be_changed() -> None:
    with pytest.raises(ValueError, match=r"'a breach forgets its reason': not once in _breach\.py"):
        KILLED_AT_ONCE._replace(before="self._reason").source(package())


def test_who_is_killed_and_who_survives(capsys: pytest.CaptureFixture[str]) -> None:
    unchanged = check_unchanged([KILLED_AT_ONCE, THE_SAME])
    assert unchanged.verdict == SURVIVED, unchanged
    outcomes = {outcome.name: outcome for outcome in check([KILLED_AT_ONCE, THE_SAME], 2)}
    assert outcomes[KILLED_AT_ONCE.name].verdict == KILLED
    assert outcomes[KILLED_AT_ONCE.name].said == f"{TESTS.name}/{BREACH}"
    assert outcomes[THE_SAME.name].verdict == SURVIVED
    said = capsys.readouterr().out
    assert all(str(outcome) in said for outcome in outcomes.values())


def test_what_can_not_run_is_not_killed() -> None:
    broken = KILLED_AT_ONCE._replace(after="self._reason = reason)")
    assert check_one(broken).verdict == BROKE


def test_what_hangs_is_not_killed(tmp_path: Path) -> None:
    assert run_tests("any", tmp_path / "copy", [BREACH], seconds=0.01).verdict == HUNG
