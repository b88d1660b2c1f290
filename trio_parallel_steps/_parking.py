"""Parking: no branch holds a token while it waits for another through us.

1. A branch is parked while any of its tasks is in a wait of ours.  The first such wait lends its
   token, in the whole chain; the end of the last asks for it back.
2. A wait ends in the instant of what it waited for, not when its task is scheduled: so the branch
   that ended can hand its token over.
3. A wait begun while the branch resumes withdraws the request; the tasks that waited for it go on.
4. A wait of a task that has outlived its branch, or the attempt, lends and asks for nothing.
5. A branch that was told to stop waits for no token: it goes on at once, over the cap if need be,
   and counts until it has ended.
6. A wait for a call (`Awaited`) is one for the branch that makes it.
7. A wait that would close a circle is refused as it begins: who waits for the waiter, directly or
   through others, is found backwards from it.  Records are born waiting for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._records import NONE, RUNNING, Record

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._core import StepCore
    from ._records import Waker


class Awaited:
    """A call that others than its caller wait for.  It stands among what the end of the branch that
    makes it sets, and is deaf to that."""

    __slots__ = ("leader", "name", "waits")

    def __init__(self, name: str) -> None:
        self.name: str = name
        self.leader: Record | None = None  # the branch; None for a plain task
        self.waits: list[Waker] = []

    def set(self) -> None:
        """The branch has ended: a task of its own may still be at it."""

    def what(self) -> str:
        by = "" if self.leader is None else f", made by {self.leader.key!r}"
        return f"an equal call of {self.name}{by}"


class Wait:
    """A wait of a task of the branch, from `begin` to `end`; it may begin again."""

    __slots__ = ("_attempt", "has_begun", "is_over", "record", "target")

    def __init__(self, record: Record, target: Record | StepCore | Awaited) -> None:
        self.record: Record = record
        self.target: Record | StepCore | Awaited = target
        self.has_begun: bool = False
        self.is_over: bool = True
        self._attempt: int = record.attempts

    def begin(self) -> None:
        if self.is_over and self.is_of_this_try():
            self.has_begun = True
            self.is_over = False
            _begin(self.record, self)

    def what(self) -> str:
        target = self.target
        if isinstance(target, Record):
            return repr(target.key)
        if isinstance(target, Awaited):
            return target.what()
        return f"step {target.name!r}, {target.outstanding} to end"

    def end(self) -> None:
        if self.is_over:
            return
        self.is_over = True
        record = self.record
        if self.is_of_this_try():
            record._waits.remove(self)
            if not record._waits:
                record._waits = NONE
                _ask_back(record)

    def is_of_this_try(self) -> bool:
        """Or has its task outlived the branch, or the attempt?"""
        return self.record.status is RUNNING and self.record.attempts == self._attempt

    def is_held_up(self) -> bool:
        """Does its task wait for the branch's token?"""
        return self.is_of_this_try() and is_resuming(self.record)


def _begin(record: Record, wait: Wait) -> None:
    if record._waits:
        record._waits.append(wait)
        return
    record._waits = [wait]
    step = record._step
    assert step is not None
    if record._entry is not None:
        step.pool.forget(record)
        _wake(record)
    else:
        token, record._token = record._token, None
        assert token is not None
        step.parked += 1
        for meter in step.meters:
            meter.parked(record, step.run.now())
        if step.guarding is not None:
            step.guarding.look()
        step.pool.give_back(token)


def _ask_back(record: Record) -> None:
    step = record._step
    assert step is not None
    if record._cause is not None or step.is_stopping():
        step.pool.force(record)
        resumed(step, record)
    else:
        step.pool.resume(record)


def is_resuming(record: Record) -> bool:
    return record._entry is not None and record.status is RUNNING


def resumed(step: StepCore, record: Record) -> None:
    """It has its token again."""
    step.parked -= 1
    for meter in step.meters:
        meter.resumed(record, step.run.now())
    step.note_peak()
    _wake(record)


def _wake(record: Record) -> None:
    wakers, record._resumed = record._resumed, None
    for waker in wakers or ():
        waker.set()


def force(step: StepCore, record: Record) -> None:
    """It was told to stop: if it waits for its token, it waits no longer."""
    if is_resuming(record):
        step.pool.force(record)
        resumed(step, record)


def leave(step: StepCore, record: Record) -> None:
    """It ends, or the attempt does, while tasks of its own are in waits: it has lent its token."""
    if record._entry is not None:
        step.pool.forget(record)
    step.parked -= 1
    record._waits = NONE
    _wake(record)


# ---------------------------------------------------------------- circles


def check_no_circle(
    waiter: Record, is_target: Callable[[Record], bool], call: str, what: str
) -> None:
    """`waiter` is about to wait for every record that `is_target` is true of."""
    came_from: dict[Record, Record | None] = {waiter: None}
    due = [waiter]
    while due:
        record = due.pop()
        if is_target(record):
            raise RuntimeError(f"{call} would wait for ever: {_path(record, came_from)}{what}")
        for before in _waiting_for(record):
            if before not in came_from:
                came_from[before] = record
                due.append(before)


def _waiting_for(record: Record) -> Iterable[Record]:
    """Who waits for it: the branch around it, those that wait for its end, those that wait for any
    of its step."""
    step = record._step
    if step is None:
        return
    if step.parent is not None:
        yield step.parent
    for waker in (*(record._done or ()), *step.listeners):
        for wait in waker.waits if isinstance(waker, Awaited) else (waker,):
            if isinstance(wait, Wait) and not wait.is_over and wait.is_of_this_try():
                yield wait.record


def _path(record: Record, came_from: dict[Record, Record | None]) -> str:
    keys = []
    following: Record | None = record
    while following is not None:
        keys.append(repr(following.key))
        following = came_from[following]
    return " waits for ".join(keys) + " waits for "
