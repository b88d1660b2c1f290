"""What does a request of a budget cost, beside counting by hand behind an `if`?

CPU time of ``with budget.reserve(...) as reservation: reservation.settle(...)`` for one unit, and
of ``spend``, with no step open, and in open steps with and without an observer.
"""

import time
from collections.abc import Callable

import attrs

from _harness import Report, compared, open_report, rotated, run_in
from trio_parallel_steps import Budget, open_branch_nursery
from trio_parallel_steps.abc import Observer

LIMIT = 1e12


def by_hand(number: int) -> None:
    """What people write: floats, no reservations, no one is stopped."""
    used = reserved = 0.0
    for _ in range(number):
        if used + reserved + 0.01 > LIMIT:
            raise RuntimeError
        reserved += 0.01
        reserved -= 0.01
        used += 0.007


def reserve_and_settle(budget: Budget, number: int) -> None:
    for _ in range(number):
        with budget.reserve(usd=0.01) as reservation:
            reservation.settle(usd=0.007)


def reserve_and_settle_ints(budget: Budget, number: int) -> None:
    for _ in range(number):
        with budget.reserve(tokens=1_000) as reservation:
            reservation.settle(tokens=700)


def spend(budget: Budget, number: int) -> None:
    for _ in range(number):
        budget.spend(usd=0.01)


@attrs.frozen
class Contestant:
    name: str
    ask: Callable[[Budget, int], None]
    in_step: bool = False
    observed: bool = False
    nested: bool = False


HAND = Contestant("by hand", lambda _, number: by_hand(number))
CONTESTANTS = (
    Contestant("reserve+settle, ints", reserve_and_settle_ints),
    Contestant("reserve+settle, floats", reserve_and_settle),
    Contestant("spend, floats", spend),
    Contestant("reserve+settle, floats, in a step", reserve_and_settle, in_step=True),
    Contestant("reserve+settle, floats, observed", reserve_and_settle, in_step=True, observed=True),
    Contestant("reserve+settle, floats, with a parent", reserve_and_settle, nested=True),
    HAND,
)


async def timed(contestant: Contestant, number: int) -> float:
    budget = Budget(usd=LIMIT, tokens=10**15)
    if contestant.nested:
        budget = Budget(budget, usd=LIMIT, tokens=10**15)
    if contestant.in_step:
        observers = [Observer()] if contestant.observed else []
        async with open_branch_nursery(budget=budget, observers=observers):
            return measured(contestant, budget, number)
    return measured(contestant, budget, number)


def measured(contestant: Contestant, budget: Budget, number: int) -> float:
    began = time.process_time()
    contestant.ask(budget, number)
    return (time.process_time() - began) / number * 1e6


def main(report: Report) -> None:
    number, rounds = (10_000, 5) if report.quick else (50_000, 9)

    def measure(contestant: Contestant) -> float:
        return run_in("trio", lambda: timed(contestant, number))

    samples = rotated(CONTESTANTS, rounds, measure)
    title = f"{number:,} requests, {rounds} rounds"
    report.add(compared(title, "us a request", samples, (HAND.name,)))


if __name__ == "__main__":
    report = open_report(__doc__)
    main(report)
    report.save()
