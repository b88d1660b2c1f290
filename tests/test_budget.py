"""Budgets: counted limits that cannot be overshot; refusal is the breach."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import random
import signal
import threading
import weakref
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
import trio
from hypothesis import given, strategies as st
from trio.testing import MockClock

from drivers import World, on_asyncio, on_trio
from helpers import (
    BREACHED,
    CANCELLED,
    FAILED,
    SKIPPED,
    SUCCEEDED,
    TIMED_OUT,
    fail,
    fail_after,
    give,
    give_after,
    statuses,
    until_nothing_is_ready,
)
from trio_parallel_steps import (
    COLLECT,
    FIRST_SUCCESS,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    Budget,
    BudgetExceeded,
    Decision,
    ParallelResult,
    StepResult,
    Tally,
    abc,
    in_thread,
    open_branch_nursery,
    run_branches,
)
from trio_parallel_steps._budget import Book

BOTH = pytest.mark.parametrize("driver", [on_trio, on_asyncio], ids=["trio", "asyncio"])


def fields(error: BudgetExceeded) -> tuple[str, float, float, float]:
    return error.resource, error.limit, error.used, error.requested


class Usage(abc.Observer):
    """What was told of usage, and of breaches."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    def usage_changed(self, budget: Budget) -> None:
        self.log.append((budget, budget.used()))

    def breached(self, step: BranchNursery, reason: str) -> None:
        self.log.append(("breached", step.name))


# ---------------------------------------------------------------- counting


def test_reaching_a_limit_is_allowed_and_passing_it_is_not() -> None:
    budget = Budget(usd=1.0)
    budget.spend(usd=1.0)
    assert budget.used() == budget.settled() == {"usd": 1.0}
    with pytest.raises(BudgetExceeded) as caught:
        budget.spend(usd=0.001)
    assert fields(caught.value) == ("usd", 1.0, 1.0, 0.001)
    assert caught.value.result is None
    assert budget.used() == {"usd": 1.0}


def test_a_refusal_is_a_breach_whose_reason_is_a_sentence() -> None:
    with pytest.raises(Breached, match="budget exceeded: 2 usd requested, 0 of 1 used") as caught:
        Budget(usd=1).spend(usd=2)
    assert caught.value.reason == str(caught.value)


def test_leaving_the_block_releases_what_was_not_settled() -> None:
    budget = Budget(usd=1.0, tokens=100)
    with budget.reserve(usd=0.5, tokens=50) as reservation:
        assert budget.used() == {"usd": 0.5, "tokens": 50}
        assert budget.settled() == {"usd": 0, "tokens": 0}
        reservation.settle(usd=0.2)
        assert budget.used() == {"usd": 0.5, "tokens": 50}
        assert budget.settled() == {"usd": 0.2, "tokens": 0}
        reservation.settle(usd=0.1)
    assert budget.used() == budget.settled() == {"usd": 0.3, "tokens": 0}


def test_an_exception_in_the_block_goes_through_and_releases() -> None:
    budget = Budget(usd=1.0)
    with pytest.raises(KeyError), budget.reserve(usd=1.0):
        raise KeyError
    assert budget.used() == {"usd": 0}


def test_a_refused_reservation_raises_at_the_call_and_reserves_nothing() -> None:
    budget = Budget(usd=1.0)
    with budget.reserve(usd=0.75):
        with pytest.raises(BudgetExceeded) as caught:
            budget.reserve(usd=0.5)
        assert fields(caught.value) == ("usd", 1.0, 0.75, 0.5)
        assert budget.used() == {"usd": 0.75}


def test_several_units_are_granted_all_or_none() -> None:
    budget = Budget(usd=1.0, tokens=10)
    for ask in (budget.spend, budget.reserve):
        with pytest.raises(BudgetExceeded) as caught:
            ask(usd=0.5, tokens=11)
        assert caught.value.resource == "tokens"
        assert budget.used() == {"usd": 0, "tokens": 0}


def test_a_settlement_beyond_the_reservation_is_recorded_in_full() -> None:
    budget = Budget(usd=1.0)
    with budget.reserve(usd=0.25) as reservation:
        reservation.settle(usd=0.5)
        assert budget.used() == budget.settled() == {"usd": 0.5}
        with pytest.raises(BudgetExceeded) as caught:
            reservation.settle(usd=0.75)
        assert fields(caught.value) == ("usd", 1.0, 0.5, 0.75)
        assert budget.settled() == {"usd": 1.25}
    assert budget.used() == budget.settled() == {"usd": 1.25}
    budget.spend(usd=0)  # asks for nothing
    with pytest.raises(BudgetExceeded):
        budget.spend(usd=0.001)


def test_a_settlement_within_its_reservation_never_breaches_though_the_limit_is_passed() -> None:
    budget = Budget(usd=1)
    with budget.reserve(usd=1) as reservation:
        with budget.reserve() as other, pytest.raises(BudgetExceeded):
            other.settle(usd=5)
        reservation.settle(usd=1)
    assert budget.settled() == {"usd": 6}


def test_settling_a_unit_that_was_not_reserved() -> None:
    budget = Budget(usd=1.0, tokens=10)
    with budget.reserve(usd=0.5) as reservation:
        reservation.settle(tokens=10)
        with pytest.raises(BudgetExceeded):
            reservation.settle(tokens=1)
    assert budget.used() == {"usd": 0, "tokens": 11}


def test_a_reservation_ends_with_its_block() -> None:
    budget = Budget(usd=1.0)
    manager = budget.reserve(usd=0.5)
    with manager as reservation:
        assert repr(reservation) == "<Reservation: 0.5 usd left>"
    with pytest.raises(RuntimeError, match="a reservation ends with its block"):
        reservation.settle(usd=0.1)
    with pytest.raises(RuntimeError, match="a reservation ends with its block"):
        manager.__enter__()
    assert repr(reservation) == "<Reservation: nothing left>"
    assert budget.used() == {"usd": 0}


def test_a_budget_without_limits_counts_whatever_it_is_told() -> None:
    budget = Budget()
    assert budget.used() == {}
    budget.spend(usd=1e300)
    with budget.reserve(calls=2) as reservation:
        reservation.settle(calls=1, bytes=7)
        assert budget.used() == {"usd": 1e300, "calls": 2, "bytes": 7}
    assert budget.settled() == {"usd": 1e300, "calls": 1, "bytes": 7}
    with pytest.raises(ValueError, match="`usd`"):
        budget.spend(more=1, usd=-1)
    assert "more" not in budget.used()


def test_an_infinite_limit_counts_too() -> None:
    budget = Budget(usd=math.inf, calls=1)
    budget.spend(usd=1e308)
    assert repr(budget) == "<Budget: 1e+308 of inf usd, 0 of 1 calls>"
    assert repr(Budget()) == "<Budget: no limits>"


def test_units_may_have_any_name() -> None:
    budget = Budget(self=1, parent=2)
    budget.spend(self=1, parent=1)
    with budget.reserve(self=0, parent=1) as reservation:
        reservation.settle(self=0, parent=1)
    assert budget.settled() == {"self": 1, "parent": 2}


# ---------------------------------------------------------------- exact sums


def test_amounts_add_up_as_the_decimals_they_print_as() -> None:
    budget = Budget(usd=0.3)
    for _ in range(3):
        budget.spend(usd=0.1)
    assert budget.used() == {"usd": 0.3}
    with pytest.raises(BudgetExceeded):
        budget.spend(usd=1e-300)


def test_huge_and_small_amounts_lose_nothing() -> None:
    budget = Budget(usd=math.inf, n=10**40)
    with budget.reserve(usd=1e308, n=10**40 - 1) as reservation:
        budget.spend(usd=5e-324, n=1)
        with pytest.raises(BudgetExceeded):
            budget.spend(n=1)
        reservation.settle(n=10**40 - 1)
    assert budget.used() == {"usd": 5e-324, "n": 10**40}
    assert type(budget.used()["n"]) is int
    budget = Budget(usd=math.inf)
    budget.spend(usd=1e23)
    assert budget.used() == {"usd": 1e23}


def test_a_subclass_of_float_counts_as_what_it_is() -> None:
    class Usd(float):
        def __repr__(self) -> str:
            return "a dollar"

    budget = Budget(usd=Usd(1.0))
    budget.spend(usd=Usd(0.1))
    assert budget.used() == {"usd": 0.1}


amounts = st.one_of(
    st.integers(0, 10**30), st.floats(0, 1e300, allow_nan=False, allow_subnormal=True)
)


@given(st.lists(amounts, max_size=20))
def test_sums_are_exact(spent: list[float]) -> None:
    budget = Budget(usd=math.inf)
    for amount in spent:
        budget.spend(usd=amount)
    exact = sum((Fraction(repr(amount)) for amount in spent), Fraction())
    assert budget.settled() == {"usd": int(exact) if _all_ints(spent) else float(exact)}


def _all_ints(numbers: list[float]) -> bool:
    return all(isinstance(number, int) for number in numbers)


@given(st.lists(amounts, max_size=20), amounts)
def test_what_is_reserved_is_given_back_to_the_last_digit(asked: list[float], limit: float) -> None:
    budget = Budget(usd=limit)
    exact = Fraction()
    with ExitStack() as stack:
        for amount in asked:
            fits = exact + Fraction(repr(amount)) <= Fraction(repr(limit))
            try:
                stack.enter_context(budget.reserve(usd=amount))
            except BudgetExceeded:
                assert not fits
            else:
                assert fits or not amount
                exact += Fraction(repr(amount))
    assert budget.used() == {"usd": 0}


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("amount", "error", "message"),
    [
        (-1, ValueError, "`usd` must be a finite number >= 0, got -1"),
        (-0.5, ValueError, "`usd` must be a finite number >= 0, got -0.5"),
        (math.nan, ValueError, "`usd` must be a finite number >= 0, got nan"),
        (math.inf, ValueError, "`usd` must be a finite number >= 0, got inf"),
        (True, TypeError, "`usd` must be a finite number >= 0, got True"),
        ("1", TypeError, "`usd` must be a finite number >= 0, got '1'"),
        (None, TypeError, "`usd` must be a finite number >= 0, got None"),
    ],
)
def test_bad_amounts(amount: Any, error: type[Exception], message: str) -> None:
    budget = Budget(calls=5, usd=1.0)
    with budget.reserve(usd=1.0) as reservation:
        for ask in (budget.spend, budget.reserve, reservation.settle):
            with pytest.raises(error) as caught:
                ask(calls=1, usd=amount)
            assert str(caught.value) == message
        assert budget.used() == {"calls": 0, "usd": 1}


def test_unknown_units() -> None:
    budget = Budget(usd=1.0, calls=2)
    with budget.reserve(usd=1.0) as reservation:
        for ask in (budget.spend, budget.reserve, reservation.settle):
            with pytest.raises(ValueError, match=r"'eur' is no unit of .* has 'usd', 'calls'"):
                ask(calls=1, eur=1)
    assert budget.used() == {"usd": 0, "calls": 0}


@pytest.mark.parametrize(
    ("limit", "error"),
    [(-1, ValueError), (math.nan, ValueError), (True, TypeError), ("1", TypeError)],
)
def test_bad_limits(limit: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"`usd` must be a number >= 0, or math\.inf, got ") as caught:
        Budget(usd=limit)
    assert str(caught.value).endswith(f"got {limit!r}")


def test_a_limit_of_zero_forbids_all_but_nothing() -> None:
    budget = Budget(usd=0)
    budget.spend(usd=0)
    with pytest.raises(BudgetExceeded):
        budget.spend(usd=1)


def test_what_a_reservation_covers_is_settled_in_all_books_around_it() -> None:
    books = [Book(None, {"usd": 9})]
    for _ in range(2):
        books.append(Book(books[-1], {"usd": 9}))
    reserved = books[-1].reserve({"usd": 3})
    assert books[-1].settle(reserved, {"usd": 2}) is None
    assert [book.accounts["usd"].settled for book in books] == [2, 2, 2]


def test_a_book_between_that_lacks_the_unit_hides_none_around_it() -> None:
    outer = Book(None, {"usd": 9})
    inner = Book(Book(outer, {"calls": 9}), {"usd": 9})
    assert inner.settle({}, {"usd": 2}) is None
    assert outer.accounts["usd"].settled == outer.accounts["usd"].used == 2


def test_bad_parents_and_options() -> None:
    with pytest.raises(TypeError, match="`parent` must be a Budget or None, got 3"):
        Budget(3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`budget` must be a Budget or None, got 3"):
        open_branch_nursery(budget=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`on_breach` must be 'cancel' or 'drain', got 'stop'"):
        open_branch_nursery(on_breach="stop")
    with pytest.raises(TypeError, match="`on_breach` must be a str, got None"):
        open_branch_nursery(on_breach=None)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the error


def test_it_pickles_with_all_its_fields() -> None:
    error = BudgetExceeded("usd", 1.0, 0.75, 0.5)
    error.add_note("noted")
    for twin in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(twin) is BudgetExceeded
        assert fields(twin) == fields(error)
        assert (str(twin), twin.reason, twin.result) == (str(error), error.reason, None)
        assert twin.__notes__ == ["noted"]


async def test_what_was_raised_pickles_with_its_result() -> None:
    budget = Budget(usd=1)
    with pytest.raises(BudgetExceeded) as caught:
        await run_branches({"a": lambda: spends(budget)}, budget=budget)
    twin = pickle.loads(pickle.dumps(caught.value))
    assert fields(twin) == ("usd", 1, 0, 5)
    assert twin.result["a"].status is BREACHED
    with pytest.raises(BudgetExceeded) as refused:
        budget.spend(usd=2)
    assert pickle.loads(pickle.dumps(refused.value)).reason == refused.value.reason


async def spends(budget: Budget, amount: float = 5) -> None:
    await trio.lowlevel.checkpoint()
    budget.spend(usd=amount)


@pytest.mark.parametrize("ask", ["spend", "reserve", "settle"])
def test_a_refusal_leaves_no_cycles(ask: str) -> None:
    budget = Budget(usd=1)
    gc.collect()
    gc.disable()
    try:
        try:
            asked = budget.reserve() if ask == "settle" else budget
            getattr(asked, ask)(usd=2)
        except BudgetExceeded as exc:
            gone = weakref.ref(exc)
        assert gone() is None
    finally:
        gc.enable()


# ---------------------------------------------------------------- parents


def test_what_is_asked_of_a_child_counts_with_its_parent_for_the_units_it_has() -> None:
    parent = Budget(usd=1.0)
    child = Budget(parent, usd=0.5, calls=3)
    with child.reserve(usd=0.25, calls=1) as reservation:
        assert parent.used() == {"usd": 0.25}
        reservation.settle(usd=0.125, calls=1)
        assert parent.settled() == {"usd": 0.125}
    assert parent.used() == {"usd": 0.125}
    assert child.used() == {"usd": 0.125, "calls": 1}
    with child.reserve(calls=1):
        pass
    assert child.used() == {"usd": 0.125, "calls": 1}
    parent.spend(usd=0.5)
    assert child.used()["usd"] == 0.125


def test_a_parent_may_refuse_and_then_nothing_is_reserved_anywhere() -> None:
    grandparent = Budget(usd=1.0)
    parent = Budget(grandparent)
    child = Budget(parent, usd=5.0)
    with pytest.raises(BudgetExceeded) as caught:
        child.reserve(usd=2.0)
    assert fields(caught.value) == ("usd", 1.0, 0, 2.0)
    for budget in (grandparent, parent, child):
        assert budget.used() == {"usd": 0}
    with pytest.raises(BudgetExceeded) as caught:
        child.reserve(usd=6.0)
    assert caught.value.limit == 5.0  # its own limit forbids it: the others are not asked


def test_a_parent_without_limits_counts_what_its_children_are_told() -> None:
    parent = Budget()
    Budget(parent, usd=1).spend(usd=1)
    Budget(parent).spend(calls=2)
    assert parent.settled() == {"usd": 1, "calls": 2}


def test_a_settlement_may_pass_the_limit_of_a_parent() -> None:
    parent = Budget(usd=1)
    child = Budget(parent, usd=1)
    with child.reserve(usd=1) as reservation, pytest.raises(BudgetExceeded):
        reservation.settle(usd=3)
    assert parent.used() == child.used() == {"usd": 3}


# ---------------------------------------------------------------- steps


@BOTH
@pytest.mark.parametrize("ask", ["spend", "reserve", "settle"])
def test_a_refusal_breaches_the_step_in_the_asking_task(driver: Any, ask: str) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1.0)
        budget.spend(usd=0.5)

        async def asks() -> None:
            await world.sleep(1)
            try:
                if ask == "settle":
                    with budget.reserve(usd=0.5) as reservation:
                        reservation.settle(usd=0.75)
                else:
                    getattr(budget, ask)(usd=0.75)
            finally:
                assert nursery["queued"].status is SKIPPED  # synchronously
                assert nursery.statistics().stop_reason is not None

        with pytest.raises(BudgetExceeded) as caught:
            async with open_branch_nursery(2, budget=budget) as nursery:
                nursery.start_soon("asks", asks)
                nursery.start_soon("runs", world.forever)
                nursery.start_soon("queued", world.forever)
        error = caught.value
        assert fields(error) == ("usd", 1.0, 0.5, 0.75)
        assert error.result is nursery.result
        assert error.__cause__ is None
        assert statuses(nursery.result) == {"asks": BREACHED, "runs": BREACHED, "queued": SKIPPED}
        asked = nursery.result["asks"]
        assert (asked.reason, asked.exception, asked.output) == (error.reason, None, None)
        assert nursery.result.stop_reason == error.reason
        assert not nursery.result.success
        assert budget.used() == {"usd": 0.5 if ask != "settle" else 1.25}

    driver(program)


@BOTH
def test_the_asking_branch_succeeds_if_it_returns_and_fails_if_it_raises_something_else(
    driver: Any,
) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)

        async def returns() -> str:
            with suppress(BudgetExceeded):
                budget.spend(usd=2)
            return "kept"

        async def raises() -> None:
            try:
                budget.spend(usd=2)
            except BudgetExceeded:
                raise ValueError("mine") from None

        async def group(*more: Exception) -> None:
            try:
                budget.spend(usd=2)
            except BudgetExceeded as exc:
                raise ExceptionGroup("of a task group", [exc, *more]) from None

        with pytest.raises(BudgetExceeded) as caught:
            async with open_branch_nursery(budget=budget) as nursery:
                nursery.start_soon("returns", returns)
                nursery.start_soon("raises", raises)
                nursery.start_soon("group", group)
                nursery.start_soon("more", group, KeyError())
                await world.forever()
        kept = [ended for ended in nursery.result.values() if ended.status is not SKIPPED]
        for ended in kept:
            expected = {"returns": SUCCEEDED, "group": BREACHED}.get(ended.name, FAILED)
            assert ended.status is expected
        assert kept
        assert (caught.value.__cause__ is not None) == bool(nursery.result.errors)

    driver(program)


@pytest.mark.parametrize(
    ("how", "status"),
    [("returns", SUCCEEDED), ("mine", FAILED), ("group", BREACHED), ("group of more", FAILED)],
)
@BOTH
def test_how_an_asking_branch_ends(driver: Any, how: str, status: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)

        async def asks() -> None:
            try:
                budget.spend(usd=2)
            except BudgetExceeded as exc:
                if how == "mine":
                    raise ValueError("mine") from None
                if how == "group":
                    raise ExceptionGroup("", [ExceptionGroup("", [exc])]) from None
                if how == "group of more":
                    raise ExceptionGroup("", [exc, KeyError("mine")]) from None

        with pytest.raises(BudgetExceeded) as caught:
            await run_branches({"asks": asks}, budget=budget)
        assert caught.value.result["asks"].status is status  # type: ignore[index]

    driver(program)


@BOTH
def test_the_body_may_ask_and_the_block_raises_its_own(driver: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)
        with pytest.raises(BudgetExceeded) as caught:
            async with open_branch_nursery(budget=budget) as nursery:
                nursery.start_soon("a", world.forever)
                await world.sleep(1)
                budget.spend(usd=2)
        assert caught.value.result is nursery.result
        assert caught.value.__cause__ is None
        assert statuses(nursery.result) == {"a": BREACHED}

    driver(program)


@BOTH
def test_two_steps_on_one_budget_are_breached_at_once(driver: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)
        seen: list[BudgetExceeded] = []

        async def asks() -> None:
            await world.sleep(1)
            budget.spend(usd=2)

        async def step(fn: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(BudgetExceeded) as caught:
                await run_branches({"a": fn}, budget=budget)
            seen.append(caught.value)

        async with world.tasks() as start:
            start(step, asks)
            start(step, world.forever)
        one, other = seen
        assert fields(one) == fields(other) == ("usd", 1, 0, 2)
        assert one is not other
        assert isinstance(one.result, ParallelResult)
        assert isinstance(other.result, ParallelResult)
        assert statuses(one.result) == statuses(other.result) == {"a": BREACHED}
        assert one.result["a"].ended_at == other.result["a"].ended_at

    driver(program)


@BOTH
def test_a_refusal_reaches_the_steps_up_to_the_budget_that_refused(driver: Any) -> None:
    async def program(world: World, refuses: str) -> dict[str, str]:
        top = Budget(usd=100)
        middle = Budget(top, usd=10)
        child = Budget(middle, usd=5)
        sibling = Budget(middle, usd=5)
        left: dict[str, str] = {}

        async def step(name: str, budget: Budget) -> None:
            async def waits() -> None:
                await world.sleep(2)

            try:
                await run_branches({"a": waits}, budget=budget)
            except BudgetExceeded as exc:
                left[name] = exc.resource
            else:
                left[name] = ""

        async with world.tasks() as start:
            for name, budget in {
                "top": top,
                "middle": middle,
                "child": child,
                "sibling": sibling,
            }.items():
                start(step, name, budget)
            await world.sleep(1)
            if refuses == "middle":
                sibling.spend(usd=5)
                middle.spend(usd=4)
            with pytest.raises(BudgetExceeded):
                child.spend(usd=2 if refuses == "middle" else 6)
        return left

    reached = {"top": "", "middle": "usd", "child": "usd", "sibling": ""}
    assert driver(partial(program, refuses="middle")) == reached
    assert driver(partial(program, refuses="child")) == {**reached, "middle": ""}


@BOTH
def test_a_settlement_that_passes_several_limits_reaches_the_outermost(driver: Any) -> None:
    async def program(world: World) -> None:
        parent = Budget(usd=2, calls=5)
        child = Budget(parent, usd=1, calls=5)

        async def settles() -> None:
            with child.reserve(usd=1) as reservation:
                reservation.settle(calls=6, usd=3)

        with pytest.raises(BudgetExceeded) as caught:
            async with open_branch_nursery(budget=parent) as nursery:
                nursery.start_soon("waits", world.forever)
                await world.sleep(1)
                with pytest.raises(BudgetExceeded):
                    await run_branches({"settles": settles}, BranchLimiter(1), budget=child)
        assert fields(caught.value) == ("calls", 5, 0, 6)
        assert statuses(nursery.result) == {"waits": BREACHED}
        assert parent.used() == child.used() == {"usd": 3, "calls": 6}

    driver(program)


@BOTH
def test_a_branch_of_a_step_that_is_not_given_the_budget_fails_with_it(driver: Any) -> None:
    async def program(world: World) -> None:
        budget, other = Budget(usd=1), Budget(usd=1)

        async def asks() -> None:
            budget.spend(usd=2)

        for options in ({}, {"budget": other}):
            result = await run_branches({"a": asks}, policy=COLLECT, **options)  # type: ignore[arg-type]
            assert result["a"].status is FAILED
            assert isinstance(result["a"].exception, BudgetExceeded)

        # And a breach for another reason does not make it this one's.
        with pytest.raises(Breached) as caught:
            async with open_branch_nursery(budget=other) as nursery:
                nursery.breach("mine")
                budget.spend(usd=2)
        assert type(caught.value) is Breached
        assert isinstance(caught.value.__cause__, BranchErrors)

    driver(program)


@BOTH
def test_a_refusal_after_another_breach_does_not_replace_it(driver: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)

        async def asks_in_its_cleanup() -> None:
            try:
                await world.forever()
            finally:
                budget.spend(usd=2)

        with pytest.raises(Breached, match="first") as caught:
            async with open_branch_nursery(budget=budget) as nursery:
                nursery.start_soon("a", asks_in_its_cleanup)
                await world.sleep(1)
                nursery.breach("first")
        assert type(caught.value) is Breached
        assert nursery.result["a"].status is BREACHED
        assert nursery.result["a"].reason == "first"

    driver(program)


@BOTH
def test_nested_steps_on_one_budget_are_breached_and_the_outermost_raises(driver: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)
        inner: list[BranchNursery] = []

        async def asks() -> None:
            await world.sleep(1)
            budget.spend(usd=2)

        async def nests() -> None:
            async with open_branch_nursery(BranchLimiter(2), budget=budget) as nursery:
                inner.append(nursery)
                nursery.start_soon("asks", asks)
                nursery.start_soon("waits", world.forever)

        with pytest.raises(BudgetExceeded) as caught:
            await run_branches({"nests": nests}, budget=budget)
        assert isinstance(caught.value.result, ParallelResult)
        assert statuses(caught.value.result) == {"nests": BREACHED}
        assert statuses(inner[0].result) == {"asks": BREACHED, "waits": BREACHED}

    driver(program)


@BOTH
def test_a_nested_step_without_the_budget_fails_inside_and_the_outer_branch_is_breached(
    driver: Any,
) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)
        inner: list[BranchNursery] = []

        async def asks() -> None:
            await world.sleep(1)
            budget.spend(usd=2)

        async def nests() -> None:
            async with open_branch_nursery(BranchLimiter(2)) as nursery:
                inner.append(nursery)
                nursery.start_soon("asks", asks)

        with pytest.raises(BudgetExceeded) as caught:
            await run_branches({"nests": nests}, budget=budget)
        assert isinstance(caught.value.result, ParallelResult)
        assert statuses(caught.value.result) == {"nests": BREACHED}
        assert statuses(inner[0].result) == {"asks": FAILED}

    driver(program)


@BOTH
def test_nested_steps_on_one_breach_are_both_breached(driver: Any) -> None:
    async def program(world: World) -> None:
        breach = Breach()
        with pytest.raises(Breached):
            async with (
                open_branch_nursery(breach=breach) as outer,
                open_branch_nursery(breach=breach) as inner,
            ):
                outer.start_soon("a", world.forever)
                inner.start_soon("b", world.forever)
                await world.sleep(1)
                breach.trip("both")
        assert statuses(outer.result) == {"a": BREACHED}
        assert statuses(inner.result) == {"b": BREACHED}

    driver(program)


async def test_a_policy_of_the_users_own_is_asked_about_one_that_was_refused() -> None:
    class Asked:
        def __init__(self) -> None:
            self.endings: list[tuple[Any, BranchStatus]] = []

        def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
            self.endings.append((key, result.status))
            return Decision.GO_ON

    async def asks() -> None:
        budget.spend(usd=2)

    budget, policy = Budget(usd=1), Asked()
    with pytest.raises(BudgetExceeded):
        await run_branches({"a": asks}, budget=budget, policy=policy)
    assert policy.endings == [("a", BREACHED)]


async def test_a_closed_step_is_not_touched_any_more() -> None:
    budget = Budget(usd=1)
    result = await run_branches({"a": lambda: give(1)}, budget=budget)
    with pytest.raises(BudgetExceeded):
        budget.spend(usd=2)
    assert result.stop_reason is None
    assert not budget._steps


async def test_a_deadline_that_came_first_is_the_cause(autojump_clock: MockClock) -> None:
    budget = Budget(usd=1)

    async def asks_when_stopped() -> None:
        try:
            await trio.sleep_forever()
        finally:
            budget.spend(usd=2)

    async with open_branch_nursery(budget=budget, move_on_after=1, policy=COLLECT) as nursery:
        nursery.start_soon("a", asks_when_stopped)
    assert nursery.result["a"].status is FAILED


# ---------------------------------------------------------------- observers


@BOTH
def test_observers_are_told_once_a_call_after_the_state_has_changed(driver: Any) -> None:
    async def program(world: World) -> None:
        usage = Usage()
        budget = Budget(usd=10)
        with pytest.raises(BudgetExceeded):
            async with open_branch_nursery(budget=budget, observers=[usage]) as nursery:
                budget.spend(usd=1)
                with budget.reserve(usd=5) as reservation:
                    reservation.settle(usd=2)
                with budget.reserve() as reservation:
                    reservation.settle(usd=20)
        assert nursery.result.stop_reason is not None
        assert usage.log == [
            (budget, {"usd": 1}),
            (budget, {"usd": 6}),
            (budget, {"usd": 6}),
            (budget, {"usd": 3}),
            (budget, {"usd": 23}),
            ("breached", "step"),
        ]
        budget = Budget(usd=1)  # a refusal changes nothing
        usage.log.clear()
        with pytest.raises(BudgetExceeded):
            async with open_branch_nursery(budget=budget, observers=[usage]):
                budget.spend(usd=2)
        assert usage.log == [("breached", "step")]

    driver(program)


async def test_each_open_step_of_the_family_is_told_of_the_innermost_it_uses() -> None:
    parent = Budget()
    child, sibling, stranger = Budget(parent), Budget(parent), Budget()
    told = {name: Usage() for name in ("parent", "child", "sibling", "stranger")}
    async with (
        open_branch_nursery(budget=parent, observers=[told["parent"]]),
        open_branch_nursery(budget=child, observers=[told["child"]]),
        open_branch_nursery(budget=sibling, observers=[told["sibling"]]),
        open_branch_nursery(budget=stranger, observers=[told["stranger"]]),
        open_branch_nursery(budget=child),
    ):
        child.spend(usd=1)
        assert {name: [b for b, _ in usage.log] for name, usage in told.items()} == {
            "parent": [parent],
            "child": [child],
            "sibling": [parent],
            "stranger": [],
        }
        parent.spend(usd=1)
        assert [b for b, _ in told["child"].log] == [child, parent]


async def test_an_observer_may_ask_too() -> None:
    budget = Budget(usd=3)

    class Greedy(abc.Observer):
        def usage_changed(self, budget: Budget) -> None:
            if budget.used()["usd"] < 3:
                budget.spend(usd=1)

    async with open_branch_nursery(budget=budget, observers=[Greedy()]):
        budget.spend(usd=1)
    assert budget.used() == {"usd": 3}


# ---------------------------------------------------------------- threads, interrupts


async def test_another_thread_is_refused_before_anything_changes() -> None:
    parent = Budget(usd=5)
    budget = Budget(parent, usd=5)
    reserved = budget.reserve(usd=1)

    def wrong() -> None:
        calls: list[Callable[[], object]] = [
            lambda: budget.spend(usd=1),
            lambda: budget.reserve(usd=1),
            lambda: reserved.__enter__().settle(usd=1),
            lambda: reserved.__exit__(None, None, None),
            lambda: trio.run(partial(run_branches, {}, budget=budget)),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match=r"use trio\.from_thread\.run_sync"):
                call()

    async with open_branch_nursery(budget=parent):  # a step of the parent counts
        await trio.to_thread.run_sync(wrong)
        assert budget.used() == {"usd": 1}
        with reserved:
            pass
        assert budget.used() == {"usd": 0}
    thread = threading.Thread(target=partial(budget.spend, usd=1))
    thread.start()
    thread.join()
    assert budget.used() == {"usd": 1}


async def test_a_thread_of_a_branch_asks_through_its_loop() -> None:
    budget = Budget(usd=1)

    def asks() -> None:
        trio.from_thread.run_sync(partial(budget.spend, usd=2))

    with pytest.raises(BudgetExceeded) as caught:
        await run_branches({"a": in_thread(asks)}, budget=budget)
    assert isinstance(caught.value.result, ParallelResult)
    assert statuses(caught.value.result) == {"a": BREACHED}


@pytest.mark.parametrize("ask", ["spend", "reserve", "settle"])
def test_an_interrupt_never_leaves_a_request_half_done(ask: str) -> None:
    parent = Budget(b=1e9)
    budget = Budget(parent, a=1e9, b=1e9)

    class Interrupts(float):
        """Read in the middle of the call."""

        def __ge__(self, other: object) -> bool:
            signal.raise_signal(signal.SIGINT)
            return True

    async def main() -> None:
        await trio.lowlevel.checkpoint()
        try:
            asked = budget.reserve() if ask == "settle" else budget
            getattr(asked, ask)(a=1, b=Interrupts(1.0))
        finally:
            expected = {"a": 1, "b": 1}
            assert budget.used() == expected
            assert parent.used() == {"b": 1}
        await trio.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        trio.run(main)


# ---------------------------------------------------------------- drain


@BOTH
def test_drain_lets_running_branches_and_the_body_end_by_themselves(driver: Any) -> None:
    async def program(world: World) -> None:
        went_on = []
        usage = Usage()
        with pytest.raises(Breached, match="enough") as caught:
            async with open_branch_nursery(2, on_breach="drain", observers=[usage]) as nursery:
                nursery.start_soon("returns", world.give, 2, 7)
                nursery.start_soon("fails", world.fail, 3, "late")
                nursery.start_soon("queued", world.forever)
                await world.sleep(1)
                nursery.breach("enough")
                assert nursery["queued"].status is SKIPPED
                assert nursery.start_soon("later", world.forever).status is SKIPPED
                nursery.breach("again")
                await world.sleep(4)
                went_on.append(world.now())
        assert went_on
        assert usage.log == [("breached", "step")]
        assert statuses(nursery.result) == {
            "returns": SUCCEEDED,
            "fails": FAILED,
            "queued": SKIPPED,
            "later": SKIPPED,
        }
        assert nursery.result["queued"].reason == "enough"
        assert nursery.result.stop_reason == caught.value.reason == "enough"
        assert caught.value.result is nursery.result
        assert isinstance(caught.value.__cause__, BranchErrors)
        assert not nursery.result.success

    driver(program)


@BOTH
def test_drain_by_a_budget(driver: Any) -> None:
    async def program(world: World) -> None:
        budget = Budget(usd=1)

        async def asks() -> None:
            await world.sleep(1)
            budget.spend(usd=2)

        with pytest.raises(BudgetExceeded) as caught:
            async with open_branch_nursery(2, budget=budget, on_breach="drain") as nursery:
                nursery.start_soon("asks", asks)
                nursery.start_soon("returns", world.give, 3, 1)
                nursery.start_soon("queued", world.forever)
                await world.sleep(2)
                budget.spend(usd=2)
        assert fields(caught.value) == ("usd", 1, 0, 2)
        assert caught.value.__cause__ is None
        ended = {"asks": BREACHED, "returns": SUCCEEDED, "queued": SKIPPED}
        assert statuses(nursery.result) == ended

    driver(program)


@BOTH
@pytest.mark.parametrize("option", ["fail_after", "move_on_after"])
def test_a_later_deadline_cuts_a_drain_short_and_the_breach_is_raised(
    driver: Any, option: str
) -> None:
    async def program(world: World) -> None:
        options: Any = {option: 2}
        start = world.now()
        with pytest.raises(Breached, match="enough"):
            async with open_branch_nursery(on_breach="drain", **options) as nursery:
                nursery.start_soon("a", world.forever)
                await world.sleep(1)
                nursery.breach("enough")
                await world.forever()
        assert world.now() - start == 2
        assert statuses(nursery.result) == {"a": TIMED_OUT}
        assert nursery.result.stop_reason == "enough"

    driver(program)


@BOTH
def test_an_outer_cancellation_cuts_a_drain_short(driver: Any) -> None:
    async def program(world: World) -> None:
        start = world.now()
        async with world.scope(2), open_branch_nursery(on_breach="drain") as nursery:
            nursery.start_soon("a", world.forever)
            await world.sleep(1)
            nursery.breach("enough")
        assert world.now() - start == 2
        assert statuses(nursery.result) == {"a": CANCELLED}

    driver(program)


@BOTH
def test_an_error_of_the_body_cuts_a_drain_short(driver: Any) -> None:
    async def program(world: World) -> None:
        with pytest.raises(Breached, match="enough") as caught:
            async with open_branch_nursery(on_breach="drain") as nursery:
                nursery.start_soon("a", world.forever)
                await world.sleep(1)
                nursery.breach("enough")
                raise KeyError("body")
        assert isinstance(caught.value.__cause__, BranchErrors)
        assert isinstance(caught.value.__cause__.exceptions[0], KeyError)
        assert statuses(nursery.result) == {"a": CANCELLED}

    driver(program)


@BOTH
def test_while_it_drains_one_may_be_cancelled_or_time_out_and_the_policy_rests(driver: Any) -> None:
    async def program(world: World) -> None:
        with pytest.raises(Breached, match="enough"):
            async with open_branch_nursery(on_breach="drain", policy=FIRST_SUCCESS) as nursery:
                nursery.start_soon("cancelled", world.forever)
                nursery.start_soon("slow", world.forever, timeout=3)
                nursery.start_soon("first", world.give, 2, 1)
                nursery.start_soon("second", world.give, 4, 2)
                await world.sleep(1)
                nursery.breach("enough")
                assert nursery.cancel("cancelled", "mine")
        assert statuses(nursery.result) == {
            "cancelled": CANCELLED,
            "slow": TIMED_OUT,
            "first": SUCCEEDED,
            "second": SUCCEEDED,
        }

    driver(program)


class Strict:
    """A policy of the user's own."""

    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.FAILED if tally.failed else Decision.GO_ON


class Picky:
    def on_end(self, key: Any, result: StepResult[Any], tally: Tally) -> Decision:
        return Decision.SATISFIED


async def test_a_policy_of_ones_own_is_asked_whether_late_errors_are_shown() -> None:
    with pytest.raises(Breached) as caught:
        async with open_branch_nursery(on_breach="drain", policy=Strict()) as nursery:
            nursery.start_soon("fails", fail_after, 0.02, ValueError("late"))
            nursery.start_soon("returns", give_after, 0.04, 1)
            await until_nothing_is_ready()
            nursery.breach("enough")
    assert isinstance(caught.value.__cause__, BranchErrors)
    assert statuses(nursery.result) == {"fails": FAILED, "returns": SUCCEEDED}


async def test_a_satisfied_policy_may_still_be_breached() -> None:
    budget = Budget(usd=1)
    with pytest.raises(BudgetExceeded):
        async with open_branch_nursery(policy=Picky(), budget=budget) as nursery:
            nursery.start_soon("a", give, 1)
            nursery.start_soon("b", trio.sleep_forever)
            await until_nothing_is_ready()
            budget.spend(usd=2)
    assert nursery.result["a"].status is SUCCEEDED
    assert nursery.result["b"].status in (CANCELLED, SKIPPED)


# ---------------------------------------------------------------- a hundred at once


def check_families(family: list[Budget], limits: list[dict[str, float]]) -> None:
    for budget, limit in zip(family, limits, strict=True):
        for unit, used in budget.used().items():
            assert budget.settled()[unit] <= used <= limit[unit]


@BOTH
@pytest.mark.parametrize("seed", range(20))
def test_a_hundred_branches_never_bring_it_above_a_limit(driver: Any, seed: int) -> None:
    """Random reserve, settle, spend and cancel, on a tree of budgets; looked at at every instant
    that anyone runs."""

    async def program(world: World) -> None:
        rng = random.Random(seed)
        limits: list[dict[str, float]] = [
            {"usd": rng.choice([1.0, 5.0]), "calls": 200},
            {"usd": rng.choice([0.5, 3.0]), "calls": 120},
            {"usd": 2.5, "calls": rng.choice([40, 400])},
        ]
        top = Budget(**limits[0])
        family = [top, Budget(top, **limits[1]), Budget(top, **limits[2])]
        refusals = 0

        class Looks(abc.Observer):
            def usage_changed(self, budget: Budget) -> None:
                check_families(family, limits)

        async def branch(key: int) -> None:
            nonlocal refusals
            for _ in range(rng.randrange(1, 6)):
                budget = rng.choice(family)
                amount = rng.randrange(1, 9) / 100
                try:
                    if rng.random() < 0.3:
                        budget.spend(usd=amount, calls=1)
                    else:
                        with budget.reserve(usd=amount, calls=2) as reservation:
                            check_families(family, limits)
                            await world.sleep(rng.random())
                            check_families(family, limits)
                            for _ in range(rng.randrange(3)):
                                reservation.settle(usd=amount / 4)
                            reservation.settle(calls=rng.randrange(3))
                except BudgetExceeded:
                    refusals += 1
                    if not persists:
                        raise
                if rng.random() < 0.05:
                    nursery.cancel(rng.randrange(100))
                await world.sleep(rng.random())

        persists = seed % 2 == 0
        given = {} if persists else {"budget": rng.choice(family)}
        with suppress(BudgetExceeded, BranchErrors):
            async with open_branch_nursery(
                100,
                observers=[Looks()],
                **given,  # type: ignore[arg-type]
            ) as nursery:
                for key in range(100):
                    nursery.start_soon(key, branch, key)
        check_families(family, limits)
        for budget in family:
            assert budget.used() == budget.settled()
        assert refusals
        assert len(nursery.result) == 100

    driver(program)


async def test_it_can_be_given_to_run_branches_by_name() -> None:
    budget = Budget(usd=1)
    with pytest.raises(Breached) as caught:
        await run_branches(
            {"a": lambda: fail(ValueError("x")), "b": lambda: give(1)},
            1,
            budget=budget,
            on_breach="drain",
            observers=[Spender(budget)],
        )
    assert isinstance(caught.value, BudgetExceeded)


class Spender(abc.Observer):
    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def branch_started(self, branch: Any) -> None:
        with suppress(BudgetExceeded):
            self.budget.spend(usd=2)
