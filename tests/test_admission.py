"""The pool and its queue, with a ledger that only counts: no event loop, no step."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, strategies as st

from fakes import StrictLedger
from trio_parallel_steps import BranchStatus
from trio_parallel_steps._admission import Pool, Token
from trio_parallel_steps._queue import Entry, Queue

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING
SKIPPED = BranchStatus.SKIPPED


class Waiter:
    def __init__(self, step: Step, name: str, priority: int = 0) -> None:
        self.name = name
        self.status = QUEUED
        self._priority = priority
        self._weight = 1
        self._entry: Entry | None = None
        self._token: Token | None = None
        self._step: Any = step

    def __repr__(self) -> str:
        return self.name


class Step:
    """What a pool needs of a step; `soon` keeps what is to be called at the next checkpoint."""

    def __init__(self, pool: Pool, depth: int = 0) -> None:
        self.pool = pool
        self.depth = depth
        self.paused: str | None = None
        self.guarding = None
        self.held: list[Entry] = []
        self.admitted: list[Any] = []
        self.calls: list[Any] = []
        self.host = self

    def granted(self, waiter: Any) -> None:
        waiter.status = RUNNING
        self.admitted.append(waiter)

    def cap_changed(self) -> None:
        pass

    def soon(self, call: Any) -> None:
        self.calls.append(call)

    def checkpoint(self) -> None:
        calls, self.calls = self.calls, []
        for call in calls:
            call()

    def submit(self, name: str, priority: int = 0) -> Waiter:
        waiter = Waiter(self, name, priority)
        self.pool.push(waiter, self.depth)
        self.pool.kick(self)  # type: ignore[arg-type]
        return waiter

    def reprioritise(self, waiter: Waiter, priority: int) -> None:
        waiter._priority = priority
        self.pool.reorder(waiter, self.depth)

    def drop(self, waiter: Waiter) -> None:
        waiter.status = SKIPPED
        self.pool.forget(waiter)

    def end(self, waiter: Waiter) -> Any:
        token, waiter._token = waiter._token, None
        assert token is not None
        following = self.pool.pass_on(token, self)  # type: ignore[arg-type]
        if following is not None:
            following.status = RUNNING
        return following

    def names(self) -> list[str]:
        return [waiter.name for waiter in self.admitted]


def pool_of(total: int | float) -> tuple[Pool, StrictLedger]:
    ledger = StrictLedger(total)
    return Pool(ledger, total), ledger


def run_dry(step: Step) -> list[str]:
    """End what runs, one after another: all names in the order of their admission."""
    step.checkpoint()
    order = step.names()
    running = list(step.admitted)
    while running:
        following = step.end(running.pop(0))
        if following is not None:
            running.append(following)
            order.append(following.name)
    return order


# ---------------------------------------------------------------- order


def test_nothing_is_admitted_before_the_next_checkpoint() -> None:
    pool, ledger = pool_of(2)
    step = Step(pool)
    step.submit("a")
    assert not step.admitted
    assert not ledger.out
    step.checkpoint()
    assert step.names() == ["a"]
    assert len(ledger.out) == pool.used == 1


def test_one_look_is_asked_for_however_many_are_submitted() -> None:
    pool, _ = pool_of(2)
    step = Step(pool)
    for name in "abc":
        step.submit(name)
    assert len(step.calls) == 1


def test_no_look_is_asked_for_when_nothing_fits() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    step.submit("a")
    step.checkpoint()
    step.submit("b")
    assert not step.calls


def test_higher_priority_first_then_first_come() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    for name, priority in [("a", 0), ("b", 2), ("c", -1), ("d", 2), ("e", 0)]:
        step.submit(name, priority)
    assert run_dry(step) == ["b", "d", "a", "e", "c"]


def test_deeper_first_among_equal_priorities() -> None:
    pool, _ = pool_of(1)
    outer, inner = Step(pool), Step(pool, depth=1)
    outer.submit("outer")
    outer.submit("urgent", 1)
    inner.submit("inner")
    outer.checkpoint()
    assert outer.names() == ["urgent"]
    assert outer.end(outer.admitted[0]) is None
    assert inner.names() == ["inner"]
    assert inner.end(inner.admitted[0]) is None
    assert outer.names() == ["urgent", "outer"]


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 4))
def test_the_order_is_that_of_a_stable_sort(priorities: list[int], total: int) -> None:
    pool, ledger = pool_of(total)
    step = Step(pool)
    for number, priority in enumerate(priorities):
        step.submit(str(number), priority)
    expected = sorted(range(len(priorities)), key=lambda number: -priorities[number])
    assert run_dry(step) == list(map(str, expected))
    assert (pool.used, pool.waiting, len(ledger.out)) == (0, 0, 0)
    assert pool.admitted == len(priorities)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), max_size=40), st.data())
def test_a_queue_is_a_heap(keys: list[tuple[int, int]], data: st.DataObject) -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    queue = Queue()
    model: list[Entry] = []
    for arrival, (priority, depth) in enumerate(keys):
        waiter = Waiter(step, str(arrival), -priority)
        entry = waiter._entry = (priority, depth, arrival, waiter)
        queue.push(entry)
        model.append(entry)
        model.sort(key=lambda entry: entry[:3])
        if data.draw(st.booleans()):
            assert queue.pop() is model.pop(0)
        if data.draw(st.integers(0, 9)) == 0:
            queue.sweep()
        assert len(queue) == len(model)
    while model:
        assert queue.pop() is model.pop(0)
    assert queue.pop() is None


def test_a_priority_changed_while_queued_counts_and_the_turn_is_kept() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    a, _, c = step.submit("a"), step.submit("b"), step.submit("c")
    step.submit("d", 1)
    step.reprioritise(c, 1)
    step.reprioritise(a, -1)
    assert run_dry(step) == ["c", "d", "b", "a"]


def test_a_priority_that_is_changed_leaves_the_deeper_one_first() -> None:
    pool, _ = pool_of(1)
    shallow, deep = Step(pool), Step(pool, depth=2)
    first = shallow.submit("first", 9)
    shallow.submit("shallow")
    late = deep.submit("deep", -1)
    deep.reprioritise(late, 0)
    shallow.checkpoint()
    assert shallow.end(first) is None
    assert deep.names() == ["deep"]


def test_a_priority_changed_to_and_fro_admits_once() -> None:
    pool, ledger = pool_of(1)
    step = Step(pool)
    a = step.submit("a")
    step.submit("b")
    for priority in (1, 0, 1, 0):
        step.reprioritise(a, priority)
    assert run_dry(step) == ["a", "b"]
    assert not ledger.out


# ---------------------------------------------------------------- tokens


def test_a_place_keeps_its_token_for_the_next_of_its_own_step() -> None:
    pool, ledger = pool_of(1)
    step = Step(pool)
    a, b = step.submit("a"), step.submit("b")
    step.checkpoint()
    (token,) = ledger.out
    assert step.end(a) is b
    assert ledger.out == [token]
    assert token.holder is b


def test_a_token_goes_to_another_step_if_its_waiter_is_better() -> None:
    pool, ledger = pool_of(1)
    one, other = Step(pool), Step(pool)
    a = one.submit("a")
    one.checkpoint()
    one.submit("b")
    urgent = other.submit("urgent", 1)
    assert one.end(a) is None
    assert other.admitted == [urgent]
    assert [token.holder for token in ledger.out] == [urgent]


def test_a_token_is_given_back_when_nobody_waits() -> None:
    pool, ledger = pool_of(3)
    step = Step(pool)
    step.submit("a")
    assert run_dry(step) == ["a"]
    assert not ledger.out
    assert pool.is_idle()


def test_a_shrunk_pool_takes_tokens_back_as_branches_end() -> None:
    pool, ledger = pool_of(3)
    step = Step(pool)
    for name in "abcdef":
        step.submit(name)
    step.checkpoint()
    pool.set_cap(1)
    a, b, c = step.admitted
    assert step.end(a) is None
    assert step.end(b) is None
    assert pool.used == 1
    assert step.end(c) is not None
    assert pool.used == len(ledger.out) == 1


def test_a_grown_pool_admits_at_the_next_checkpoint() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    pool.steps[step] = None  # type: ignore[index]
    for name in "abc":
        step.submit(name)
    step.checkpoint()
    pool.set_cap(math.inf)
    step.checkpoint()
    assert step.names() == ["a", "b", "c"]


def test_one_look_is_asked_for_however_often_it_changes() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    pool.steps[step] = None  # type: ignore[index]
    step.submit("a")
    step.checkpoint()
    step.submit("b")
    pool.set_cap(2)
    pool.set_cap(3)
    assert len(step.calls) == 1


def test_growing_with_only_tasks_waiting_admits_at_once() -> None:
    pool, _ = pool_of(1)
    entrants = Step(pool)  # no open step: nobody to ask for a checkpoint
    for name in "ab":
        pool.push(Waiter(entrants, name), 0)
    pool.dispatch()
    assert entrants.names() == ["a"]
    pool.set_cap(2)
    assert entrants.names() == ["a", "b"]


# ---------------------------------------------------------------- pauses


def test_a_paused_pool_admits_nothing_and_takes_tokens_back() -> None:
    pool, ledger = pool_of(2)
    step = Step(pool)
    pool.steps[step] = None  # type: ignore[index]
    a, _ = step.submit("a"), step.submit("b")
    step.checkpoint()
    step.submit("c")
    pool.set_paused("memory")
    assert step.end(a) is None
    assert len(ledger.out) == 1
    pool.set_paused(None)
    step.checkpoint()
    assert step.names() == ["a", "b", "c"]


def test_waiters_of_a_paused_step_are_not_in_the_way_of_others() -> None:
    pool, _ = pool_of(1)
    paused, other = Step(pool), Step(pool)
    paused.paused = "for now"
    first = paused.submit("first", 9)
    second = paused.submit("second", 8)
    other.submit("other")
    paused.checkpoint()
    assert other.names() == ["other"]
    assert pool.waiting == 2
    paused.paused = None
    pool.put_back(paused.held)
    assert other.end(other.admitted[0]) is None
    assert paused.admitted == [first]
    assert paused.end(first) is second


# ---------------------------------------------------------------- entries that are no longer true


def test_one_that_has_gone_is_passed_over() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    a, _, c = step.submit("a"), step.submit("b"), step.submit("c")
    step.drop(a)
    step.drop(c)
    assert pool.waiting == 1
    assert run_dry(step) == ["b"]


def test_entries_of_those_that_have_gone_do_not_pile_up() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    pool.set_paused("nothing is admitted, so nothing is passed over")
    staying = step.submit("staying")
    for number in range(20_000):
        step.drop(step.submit(str(number), number % 7))
    assert len(pool._queue) <= 2 * pool.waiting + 1000
    pool.set_paused(None)
    pool.dispatch()
    assert step.admitted == [staying]


@pytest.mark.parametrize("priorities", [range(20_000), [0, 1] * 10_000])
def test_entries_of_changed_priorities_do_not_pile_up(priorities: Iterable[int]) -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    pool.set_paused("nothing is admitted, so nothing is passed over")
    waiter = step.submit("waiter", -1)
    for priority in priorities:
        step.reprioritise(waiter, priority)
        assert len(pool._queue) <= 2 * pool.waiting + 1000
    pool.set_paused(None)
    pool.dispatch()
    assert step.admitted == [waiter]


def test_a_sweep_loses_nobody() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    rng = random.Random(1)
    pool.set_paused("until all are in")
    waiters = [step.submit(str(number), rng.randrange(5)) for number in range(3_000)]
    for waiter in waiters[::2]:
        step.reprioritise(waiter, waiter._priority + 1 + rng.randrange(5))
    for waiter in waiters[::3]:
        step.drop(waiter)
    pool._queue.sweep()
    assert len(pool._queue) == pool.waiting == 2_000
    left = [waiter for waiter in waiters if waiter.status is QUEUED]
    expected = sorted(left, key=lambda waiter: (waiter._entry or ())[:3])
    pool.set_paused(None)
    pool.dispatch()
    assert run_dry(step) == [waiter.name for waiter in expected]


def test_a_queue_that_was_left_refers_to_nobody() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    a, b = step.submit("a"), step.submit("b")
    step.checkpoint()
    step.reprioritise(b, 1)
    step.reprioritise(b, 0)
    assert step.end(a) is b
    step.end(b)
    assert not pool._queue


@pytest.mark.parametrize("is_sub_cap", [False, True])
def test_one_that_has_gone_is_not_kept_once_all_others_have_ended(is_sub_cap: bool) -> None:
    outer, _ = pool_of(1)
    pool = Pool(None, 1, parent=outer) if is_sub_cap else outer
    step = Step(pool)
    a, b, c = (Waiter(step, name) for name in "abc")
    for waiter in (a, b, c):
        pool.enter(waiter, 0)
    step.drop(c)
    assert step.end(a) is b
    step.end(b)
    assert not pool._queue
    assert not outer._queue


def test_a_sub_cap_that_was_left_is_referred_to_by_none_around_it() -> None:
    outer, _ = pool_of(1)
    pool = Pool(None, 1, parent=outer)
    step = Step(pool)
    a, b = Waiter(step, "a"), Waiter(step, "b")
    pool.enter(a, 0)
    pool.enter(b, 0)
    step.reprioritise(b, 1)  # another offer
    assert step.end(a) is b
    step.end(b)
    assert not pool._queue
    assert not outer._queue


# ---------------------------------------------------------------- what it counts


@pytest.mark.parametrize("weight", [1, 2])
def test_a_pool_counts_whom_it_admits_once_each(weight: int) -> None:
    pool, _ = pool_of(2)
    step = Step(pool)
    for name in "abc":
        waiter = Waiter(step, name)
        waiter._weight = weight
        pool.enter(waiter, 0)
    admitted = len(step.admitted)
    assert pool.admitted == admitted == 2 // weight
    first = step.admitted[0]
    token, first._token = first._token, None
    assert token is not None
    pool.give_back(token)
    pool.resume(first)
    assert pool.admitted == 4 - weight  # the next one, or both
    for waiter in step.admitted[1 : 4 - weight]:
        step.end(waiter)
    assert first._token is not None
    assert pool.admitted == 4 - weight  # who resumes has been admitted before


def test_who_is_lent_a_token_at_once_counts_as_admitted() -> None:
    pool, _ = pool_of(2)
    step = Step(pool)
    assert pool.admit(Waiter(step, "a"))
    assert pool.admit(Waiter(step, "b"))
    assert not pool.admit(Waiter(step, "c"))
    assert (pool.admitted, pool.used) == (2, 2)


def test_a_follower_counts_as_admitted() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    a, b = step.submit("a"), step.submit("b")
    step.checkpoint()
    assert step.end(a) is b
    assert pool.admitted == 2


def test_a_pool_is_idle_without_tokens_in_use_waiters_and_open_steps() -> None:
    pool, _ = pool_of(1)
    step = Step(pool)
    assert pool.is_idle()
    pool.steps[step] = None  # type: ignore[index]
    assert not pool.is_idle()
    del pool.steps[step]  # type: ignore[arg-type]
    a = step.submit("a")
    assert not pool.is_idle()
    step.checkpoint()
    assert not pool.is_idle()
    step.end(a)
    assert pool.is_idle()


@pytest.mark.parametrize("weight", [1, 2])
def test_a_place_goes_on_with_its_own_step_in_a_pool_that_is_not_plain(weight: int) -> None:
    outer, _ = pool_of(2)
    pool = Pool(None, weight, parent=outer)
    step = Step(pool)
    for name in "ab":
        waiter = Waiter(step, name)
        waiter._weight = weight
        pool.enter(waiter, 0)
    (a,) = step.admitted
    following = step.end(a)
    assert following.name == "b"
    assert step.admitted == [a]  # it needs no place of its own
    assert outer.used == weight


def test_a_token_says_who_holds_it() -> None:
    pool, ledger = pool_of(1)
    step = Step(pool)
    step.submit("a")
    step.checkpoint()
    assert repr(ledger.out[0]) == "<token of a>"
