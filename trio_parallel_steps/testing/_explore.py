"""`explore` and `replay`, as their users see them.

They check arguments and say nothing else: what is tried when is the search's (`_search`).
"""

from collections.abc import Iterable
from typing import Literal, TypeAlias

from ._choices import Unplayable, parse
from ._faults import Fault
from ._run import Run
from ._search import Check, Explored, Program, Search

Raises: TypeAlias = type[BaseException] | tuple[type[BaseException], ...]


def explore(
    async_fn: Program,
    *,
    check: Check | None = None,
    schedules: int | Literal["all"] = "all",
    seed: int = 0,
    faults: Iterable[Fault] = (),
    raises: Raises = (),
) -> Explored:
    """Run a trio program under many schedules, and see that it keeps its promises in each.

    `async_fn` takes no arguments and makes all it needs anew; each run is a trio run of its own, in
    virtual time.  It may wait for nothing outside of trio: no threads, sockets, processes.  `check`
    is called after each run with a `Run`, and raises (or is ``assert``) if something is wrong.

    ``schedules="all"`` tries every order in which tasks that are ready at once could be run.  That
    is for small programs: four tasks of two steps each have 576.  A number tries that many at
    random, always the same ones for the same `seed`.

    Of the `faults` at most one is injected in a run, before one of its steps: `Cancel`, `Deadline`,
    `Interrupt`, `SetLimit`, `TripBreach` or `Call`.  All schedules includes those with each fault
    before each step.  A number has each fault before each step in turn, each time under another
    schedule, if that number is as large; at a step where it is not possible yet, at the next where
    it is.

    A run fails if `check` raises; if the program raises, other than what `raises` allows (a group
    of nothing else included) and the KeyboardInterrupt of an `Interrupt`; and if it hangs: no task
    can run and no deadline is ahead, or there is no end of it.

    Raises `ScheduleFailed` for the shortest schedule that fails: the one that departs least often
    from running tasks in the order in which they were spawned.  (Of random ones, the first that
    fails, made shorter.)  Raises `NotDeterministic` if the program goes differently under the same
    schedule, and RuntimeError inside a trio run, and with a trio whose scheduler is not known.

    >>> import trio
    >>> from trio_parallel_steps.testing import explore
    >>> async def program():
    ...     seen = []
    ...     async def see(name):
    ...         seen.append(name)
    ...     async with trio.open_nursery() as nursery:
    ...         nursery.start_soon(see, "a")
    ...         nursery.start_soon(see, "b")
    ...     return seen
    >>> def check(run):
    ...     assert sorted(run.value) == ["a", "b"]
    >>> explore(program, check=check)
    Explored(schedules=2, complete=True, with_faults=0)
    """
    if schedules != "all" and not (type(schedules) is int and schedules >= 1):
        raise ValueError(f"`schedules` must be 'all' or an int >= 1, got {schedules!r}")
    if not isinstance(seed, int):
        raise TypeError(f"`seed` must be an int, got {seed!r}")
    with Search(async_fn, check, _faults(faults), _raises(raises)) as search:
        return search.all() if schedules == "all" else search.some(schedules, seed)


def replay(
    async_fn: Program,
    schedule: str,
    *,
    check: Check | None = None,
    faults: Iterable[Fault] = (),
    raises: Raises = (),
) -> Run:
    """Run a program once, under a schedule that `ScheduleFailed` told of, with the same faults.

    Raises `ScheduleFailed` if it fails, else returns what came of it.  ValueError for what is no
    schedule, or not one of this program: ``-`` is one of any.

    >>> async def program():
    ...     return "done"
    >>> replay(program, "-").value
    'done'
    """
    if not isinstance(schedule, str):
        raise TypeError(f"`schedule` must be a string that explore() has given, got {schedule!r}")
    wanted = parse(schedule)
    with Search(async_fn, check, _faults(faults), _raises(raises)) as search:
        if wanted.fault is not None and wanted.fault[0] >= len(search.faults):
            raise ValueError(f"`faults` must be those that {schedule!r} was found with")
        try:
            run, error, tracer = search.traced(wanted)
        except Unplayable as exc:
            raise ValueError(f"{schedule!r} is no schedule of this program: {exc}") from None
        if error is not None:
            raise search.failure(run, error, tracer, 1) from error
        return run


def _faults(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    if not isinstance(faults, Iterable):
        raise TypeError(f"`faults` must be several, such as [Cancel()], got {faults!r}")
    found = tuple(faults)
    for fault in found:
        if not isinstance(fault, Fault):
            raise TypeError(f"`faults` must be faults, such as Cancel(), got {fault!r}")
    return found


def _raises(raises: Raises) -> tuple[type[BaseException], ...]:
    found = raises if isinstance(raises, tuple) else (raises,)
    for cls in found:
        if not (isinstance(cls, type) and issubclass(cls, BaseException)):
            raise TypeError(f"`raises` must be exception classes, got {cls!r}")
    return found
