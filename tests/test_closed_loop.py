"""The exam of the limits is what it says: deterministic, with an oracle that can be found again."""

import attrs
import cattrs
import pytest

from bench_adaptive import LIMITS, examine
from closed_loop import examined
from plants import Case, own_cases, public_cases

PUBLIC = {case.id: case for case in public_cases()}
SMALL = [
    PUBLIC["tiny-3"],
    attrs.evolve(PUBLIC["quota-1"], n=300),
    attrs.evolve(PUBLIC["bucket-1"], n=300),
    attrs.evolve(PUBLIC["moving-2"], n=3000),
]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.family)
@pytest.mark.parametrize("name", LIMITS)
def test_the_same_exam_gives_the_same_event_log(name: str, case: Case) -> None:
    first, second = (examine((name, case), logged=True) for _ in range(2))
    assert first == second
    mark, log = first
    assert not mark.truncated
    assert len([line for line in log if " end " in line]) == case.n


@pytest.mark.parametrize("name", ["tiny-1", "tiny-2", "tiny-3"])
def test_the_oracle_that_is_recorded_is_found_again(name: str) -> None:
    case = PUBLIC[name]
    assert examined(attrs.evolve(case, oracle=None)) == case


def test_an_oracle_of_a_plant_that_moves_has_a_limit_for_each_segment() -> None:
    moving = attrs.evolve(PUBLIC["moving-2"], oracle=None, n=1500)
    moving = attrs.evolve(moving, plant=[attrs.evolve(s, at=s.at / 6) for s in moving.plant])
    oracle = examined(moving).oracle
    assert oracle is not None
    (begin, first), (at, second) = oracle.plan
    assert (begin, at) == (0.0, 5.0)
    assert first > 2 * second


def test_cases_of_our_own_are_drawn_from_their_seed() -> None:
    assert own_cases(3, 2) == own_cases(3, 2)
    assert own_cases(3, 2) != own_cases(4, 2)
    families = [case.family for case in own_cases(3, 2)]
    assert sorted(families) == sorted([*{case.family for case in PUBLIC.values()}] * 2)


def test_a_case_is_plain_data() -> None:
    cases = own_cases(5, 2)
    again = cattrs.structure(cattrs.unstructure(cases), list[Case])
    assert [case.works() for case in again] == [case.works() for case in cases]
