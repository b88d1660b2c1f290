"""Random trees in the core alone: what `simulator` checks at each step, on many seeds."""

from __future__ import annotations

import pytest

from simulator import PLAIN, Shape, Simulation

SHAPES = {
    "all": Shape(),
    "narrow and deep": Shape(width=3, branches=40),
    "one pool": Shape(pools=1, sub_caps=False, branches=40),
    "no weights": Shape(weights=False, branches=40),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("start", range(0, 500, 100))
def test_random_trees_keep_the_invariants(shape: Shape, start: int) -> None:
    refused = parked = 0
    for seed in range(start, start + 100):
        simulation = Simulation(seed, shape)
        try:
            simulation.run()
        except AssertionError as exc:
            exc.add_note(f"seed {seed} of {shape}")
            raise
        refused += simulation.refused
        parked += sum(map(len, simulation.waits.values()))
    assert refused > 10  # they do what they are drawn for
    assert parked > 200


def test_a_plain_tree_takes_no_longer_than_any_schedule_that_conserves_work() -> None:
    for seed in range(300):
        simulation = Simulation(seed, PLAIN)
        simulation.run()
        assert simulation.fake.time <= simulation.bound() + 1e-9, seed
