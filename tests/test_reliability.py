"""What becomes of the figures of the proofs."""

from pathlib import Path

import pytest

import figures
from reliability import BEGIN, END, PAGE, gathered, rewritten


def test_figures_are_told_to_the_file_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    monkeypatch.delenv("FIGURES", raising=False)
    figures.add("explored", schedules=1)
    monkeypatch.setenv("FIGURES", str(told))
    figures.add("explored", schedules=10, longest_s=2.0, by="one")
    figures.add("mutants", made=3)
    figures.add("explored", schedules=3, longest_s=1.0, by="both")
    figures.add("explored", schedules=5, host="asyncio")
    assert gathered(told.read_text().splitlines()) == {
        "explored": {"schedules": 13, "longest_s": 2.0, "by": "both"},
        "explored on asyncio": {"schedules": 5},
        "mutants": {"made": 3},
    }


def test_a_page_gets_new_figures_and_keeps_the_rest() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    found = gathered(['{"proof": "soak", "branches": 1000000, "growth_percent": 0.25}'])
    again = rewritten(page, found, "then, there:")
    assert again == (
        f"before\n{BEGIN}\nthen, there:\n\n| proof | figures |\n|---|---|\n"
        f"| soak | branches: 1,000,000, growth percent: 0.2 |\n{END}\nafter\n"
    )
    assert rewritten(again, found, "then, there:") == again


def test_a_page_without_a_place_for_them_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reliability\.md has no place for figures"):
        rewritten("nothing", {}, "")


def test_the_page_has_a_place() -> None:
    page = PAGE.read_text()
    assert rewritten(page, {}, "") != page
