"""What must hold of a random program, for who knows the program.

What is promised of every program is checked by `testing.check_invariants` on the log of a recorder.
This oracle adds what needs the program's plan, or a look between two events:

1. Running branches that are not parked <= total tokens, at every step of the scheduler, in the
   limiter and in every one around it.  (Excepted: a shrink, after which they only become fewer; one
   that was told to stop while parked; a weight above the total, alone.)
2. Work conserving: virtual time does not jump while something is admissible.
3. At the end no tokens are borrowed, and nobody waits.
4. Times, attempts and the peak are what the branches' own code saw.
5. Nothing starts after a deadline.
6. A timeout of a branch's own, or who asked before, is the cause.
7. What the block raises is what its policy says, and no error is lost.
8. Same seed, same schedule => same log.
9. A wait is refused if it would close a circle, and only then.

The code under test tells the oracle what it saw (`entered`, `returned`, `left`, ...); the host's
test calls `step_of_scheduler` before each step of each task.  What is wrong is noted, not raised,
since an exception in here would be taken for a branch's own; `verdict` raises it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import attrs
import trio

from trio_parallel_steps import (
    Branch,
    BranchErrors,
    BranchLimiter,
    BranchNursery,
    BranchStatus,
    Breach,
    Breached,
    ParallelResult,
    StepResult,
    StepTimeout,
    abc,
)
from trio_parallel_steps.testing import InvariantBroken, Recorder, check_invariants, recorder

if TYPE_CHECKING:
    from strategies import StepPlan

QUEUED = BranchStatus.QUEUED
RUNNING = BranchStatus.RUNNING
SUCCEEDED = BranchStatus.SUCCEEDED
FAILED = BranchStatus.FAILED
TIMED_OUT = BranchStatus.TIMED_OUT
CANCELLED = BranchStatus.CANCELLED
BREACHED = BranchStatus.BREACHED
SKIPPED = BranchStatus.SKIPPED

ENDED = {SUCCEEDED, FAILED, TIMED_OUT, CANCELLED, BREACHED, SKIPPED}
HEAVIEST = 3  # what a random branch may weigh
STOPPED = {TIMED_OUT, CANCELLED, BREACHED}


@attrs.define
class WatchedLimiter:
    limiter: BranchLimiter
    ceiling: float  # the total, or what was borrowed when it shrank
    parent: WatchedLimiter | None = None
    inside: int = 0  # tokens of branches in their own code, and of entrants
    entering: int = 0

    def chain(self) -> Iterator[WatchedLimiter]:
        watched: WatchedLimiter | None = self
        while watched is not None:
            yield watched
            watched = watched.parent

    def fits(self, weight: int) -> bool:
        return all(
            w.limiter.available_tokens >= weight or not w.limiter.borrowed_tokens
            for w in self.chain()
        )

    def is_paused(self) -> bool:
        return any(w.limiter.statistics().paused is not None for w in self.chain())


@attrs.define(eq=False)
class Lent:
    """A wait of a branch, that lends its token."""

    step: WatchedStep
    key: str
    targets: Callable[[], list[Hashable]]  # the keys that it waits for
    is_over: Callable[[], bool]  # at a jump of the clock: it waits for its token again


class Oracle:
    def __init__(
        self,
        now: Callable[[], float],
        cancelled: type[BaseException],
        is_cancelled: Callable[[], bool],
    ) -> None:
        self.now = now
        self.cancelled = cancelled
        self.is_cancelled = is_cancelled  # the current task, by now
        self.has_weights = False
        self.violations: list[str] = []
        self.log: list[tuple[object, ...]] = []
        self.recorded = recorder(heaviest=HEAVIEST)
        self.observers: list[abc.Observer] = [self.recorded]  # of every step
        self.limiters: dict[BranchLimiter, WatchedLimiter] = {}
        self.steps: list[WatchedStep] = []
        self.lent: list[Lent] = []
        self._checked_at = -math.inf
        self._requests = 0

    def check(self, right: bool, promise: str, *seen: object) -> None:
        if not right:
            self.violations.append(f"{promise}: {', '.join(map(repr, seen))}")

    def tell(self, *event: object) -> None:
        self.log.append((self.now(), *event))

    def verdict(self) -> None:
        violations = [*self.violations, *broken(self.recorded)]
        if violations:
            log = "\n".join("  ".join(map(str, event)) for event in self.log)
            raise AssertionError("\n".join([*violations, "", "What happened:", log]))

    # ------------------------------------------------------------ limiters

    def watch(self, limiter: BranchLimiter, parent: BranchLimiter | None = None) -> None:
        around = None if parent is None else self.limiters[parent]
        self.limiters[limiter] = WatchedLimiter(limiter, limiter.total_tokens, around)

    def set_limit(self, limiter: BranchLimiter, total_tokens: float) -> None:
        limiter.total_tokens = total_tokens
        self.limiters[limiter].ceiling = max(total_tokens, limiter.borrowed_tokens)
        self.tell("limit", limiter.name, total_tokens)

    @contextmanager
    def entering(self, limiter: BranchLimiter) -> Iterator[None]:
        watched = self.limiters[limiter]
        watched.entering += 1
        try:
            yield
        finally:
            watched.entering -= 1

    @contextmanager
    def inside(self, limiter: BranchLimiter) -> Iterator[None]:
        self.tell("entrant is in", limiter.name)
        watched = self.limiters[limiter]
        watched.inside += 1
        try:
            yield
        finally:
            watched.inside -= 1
            self.tell("entrant leaves", limiter.name)

    @contextmanager
    def lending(
        self,
        step: WatchedStep,
        key: str | None,
        targets: Callable[[], list[Hashable]],
        is_over: Callable[[], bool],
    ) -> Iterator[None]:
        """The branch is in a wait of ours; no branch (the body of a step in none) lends nothing."""
        if key is None:
            yield
            return
        lent = Lent(step, key, targets, is_over)
        step.has_begun_a_wait(key)
        self.lent.append(lent)
        step.count(key, -1)
        try:
            yield
        finally:
            step.count(key, +1)
            self.lent.remove(lent)

    def is_circle(self, waiter: str | None, targets: list[Hashable]) -> bool:
        """Forwards from the targets: is the waiter waited for, by them or through others?"""
        due, seen = list(targets), set(targets)
        while due:
            key = due.pop()
            if key == waiter:
                return True
            following = [
                target for lent in self.lent if lent.key == key for target in lent.targets()
            ]
            for step in self.steps:
                if step.parent == key and step.is_open:
                    following += step.outstanding()
            due += [target for target in following if target not in seen]
            seen.update(following)
        return False

    def trip(self, switch: Breach) -> None:
        reason = switch.reason or self.new_reason("trip")
        steps = [step for step in self.steps if step.is_open and step.plan.on_switch]
        before = [step.stop_reason() for step in steps]
        if switch.reason is None:
            for step in steps:
                step.breach_reasons.append(reason)
        is_first = switch.reason is None  # else it may be on its way, in the call around this one
        switch.trip(reason)
        for step, earlier in zip(steps, before, strict=True):
            self.check(
                not is_first
                or step.stop_reason() is not None
                or step.is_past_deadline()
                or step.has_ended(),
                "a tripped switch stops all open steps in the same instant",
                step.name,
                earlier,
            )

    def interrupt(self) -> None:
        """All of it is about to be cancelled from outside."""
        self.tell("interrupted from outside")
        for step in self.steps:
            step.interrupted_at = min(step.interrupted_at, self.now())

    def new_reason(self, what: str) -> str:
        self._requests += 1
        return f"{what} {self._requests}"

    # ------------------------------------------------------------ at every step of the scheduler

    def step_of_scheduler(self) -> None:
        for watched in self.limiters.values():
            limiter = watched.limiter
            borrowed = limiter.borrowed_tokens
            watched.ceiling = max(limiter.total_tokens, min(watched.ceiling, borrowed))
            self.check(
                borrowed <= watched.ceiling + self._over_the_cap(watched),
                "borrowed <= total",
                limiter.name,
                borrowed,
                watched,
            )
            self.check(
                watched.inside <= borrowed,
                "what runs holds a token",
                limiter.name,
                watched.inside,
                borrowed,
            )
        now = self.now()
        if now > self._checked_at:  # the clock has jumped: everything was waiting
            for watched in self.limiters.values():
                self._check_conservation(watched)
            self._checked_at = now
        for step in self.steps:
            step.look()

    def _check_conservation(self, watched: WatchedLimiter) -> None:
        limiter = watched.limiter
        how = limiter.statistics()
        steps = [s for s in self.steps if s.is_open and watched in s.chain()]
        queued = sum(s.statistics().queued for s in steps)
        resuming = [lent for lent in self.lent if watched in lent.step.chain() and lent.is_over()]
        self.check(
            how.tasks_waiting == queued + watched.entering + len(resuming),
            "who waits is counted",
            how,
            queued,
            watched.entering,
            resuming,
        )
        self.check(
            how.borrowed_tokens == watched.inside,
            "who runs is counted",
            how,
            watched.inside,
        )
        (*_, root) = watched.chain()
        if self.has_weights and root.limiter.borrowed_tokens:
            return  # one that fits may stand behind one that does not
        promise = "time does not jump while something is admissible"
        for lent in resuming:
            weight = lent.step.traces[lent.key].weight
            self.check(not lent.step.watched_limiter().fits(weight), promise, how, lent)
        if watched.entering and not watched.is_paused():
            self.check(not watched.fits(1), promise, how, "an entrant")
        for step in steps:
            if step.statistics().queued and not step.is_paused:
                own = step.watched_limiter()
                self.check(own.is_paused() or not own.fits(1), promise, how, step.name)

    def _over_the_cap(self, watched: WatchedLimiter) -> float:
        """What may be in use beyond it: who was told to stop while parked; a heavy one, alone."""
        traces = [
            trace
            for step in self.steps
            if step.is_open and watched in step.chain()
            for trace in step.traces.values()
            if trace.left_at is None
        ]
        heaviest = max((trace.weight for trace in traces), default=0)
        stopped = sum(trace.weight for trace in traces if trace.has_lent)
        is_any_told = stopped and any(step.may_be_stopped() for step in self.steps)
        return (stopped if is_any_told else 0) + max(0, heaviest - watched.limiter.total_tokens)

    # ------------------------------------------------------------ at the end

    def at_the_end(self) -> None:
        for watched in self.limiters.values():
            how = watched.limiter.statistics()
            self.check(how.borrowed_tokens == 0, "no token is left borrowed", how)
            self.check(how.tasks_waiting == 0, "nobody is left waiting", how)
        for step in self.steps:
            self.check(not step.is_open, "every block is left", step.name)

    # ------------------------------------------------------------ steps

    def step(
        self, plan: StepPlan, limiter: BranchLimiter, name: str, parent: str | None = None
    ) -> WatchedStep:
        step = WatchedStep(self, plan, limiter, name, parent)
        self.steps.append(step)
        return step


@attrs.define
class Trace:
    """What the code of one branch saw."""

    timeout: float
    weight: int
    submitted_at: float
    has_lent: bool = False
    entered_at: float | None = None
    left_at: float | None = None
    error: BaseException | None = None


class Listener(abc.Observer):
    """Hears what the step says, for its log."""

    def __init__(self, step: WatchedStep) -> None:
        self._step = step
        self.started: set[Hashable] = set()

    def _told(self, hook: str, branch: Branch[Any], *rest: object) -> None:
        self._step.oracle.tell(hook, branch.key, *rest)

    def branch_queued(self, branch: Branch[Any]) -> None:
        self._told("queued", branch)

    def branch_started(self, branch: Branch[Any]) -> None:
        self._told("started", branch)
        self.started.add(branch.key)
        self._step.oracle.check(
            not self._step.is_past_deadline(), "nothing starts after a deadline", branch
        )

    def cancel_requested(self, branch: Branch[Any], reason: str) -> None:
        self._told("cancel_requested", branch, reason)
        self._step.requested(branch.key, reason)

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self._told("ended", branch, result.status.value, result.reason)

    def breached(self, step: BranchNursery, reason: str) -> None:
        self._step.oracle.tell("breached", self._step.name, reason)


class WatchedStep:
    """One step: what its code saw, against the engine's account."""

    def __init__(
        self,
        oracle: Oracle,
        plan: StepPlan,
        limiter: BranchLimiter,
        name: str,
        parent: str | None = None,
    ) -> None:
        self.oracle = oracle
        self.plan = plan
        self.limiter = limiter
        self.name = name
        self.parent = parent  # the branch around it
        self.listener = Listener(self)
        self.nursery: BranchNursery | None = None
        self.is_open = False
        self.is_paused = False
        self.opened_at = 0.0
        self.branches: list[Branch[Any]] = []
        self.traces: dict[Hashable, Trace] = {}
        self.exits: list[str] = []
        self.inside = 0
        self.peak = 0
        self.has_lent = False
        self.requests: dict[Hashable, tuple[str, float]] = {}  # as observers were told
        self.cancelled_for: dict[Hashable, str] = {}  # by calls that returned True
        self.breach_reasons: list[str] = []
        self.first_breach: str | None = None  # that was certainly the first stop
        self.stopped_at = math.inf  # when a stop was first seen
        self.interrupted_at = math.inf  # when Cancelled was seen coming from outside

    # ------------------------------------------------------------ what the code tells

    def opened(self, nursery: BranchNursery) -> None:
        self.nursery = nursery
        self.is_open = True
        if nursery.limiter is not self.limiter:  # a sub-cap
            self.oracle.watch(nursery.limiter, self.limiter)
            self.limiter = nursery.limiter
        self.opened_at = self.oracle.now()
        self.oracle.tell("opened", self.name)

    @contextmanager
    def submitting(self, key: str, timeout: float, weight: int) -> Iterator[None]:
        self.traces[key] = Trace(timeout, weight, self.oracle.now())
        try:
            yield
        except Exception as exc:
            self.oracle.check(False, "a branch can be submitted until the block is left", key, exc)
            del self.traces[key]
            raise

    def submitted(self, branch: Branch[Any]) -> None:
        self.branches.append(branch)
        self.oracle.check(
            self.nursery is not None and self.nursery[branch.key] is branch,
            "nursery[key] is the branch",
            branch,
        )
        if self.stop_reason() is not None:
            self.oracle.check(
                branch.status is SKIPPED, "skipped already if submitted after a stop", branch
            )

    def entered(self, key: str) -> int:
        now = self.oracle.now()
        self.oracle.tell("enters", key)
        self.oracle.check(
            key in self.listener.started,
            "observers are told before its code is called",
            key,
        )
        trace = self.traces[key]
        self.oracle.check(trace.entered_at is None, "a branch is called once", key)
        trace.entered_at = now
        self.count(key, +1)
        return len([t for t in self.traces.values() if t.entered_at is not None])

    def watched_limiter(self) -> WatchedLimiter:
        return self.oracle.limiters[self.limiter]

    def chain(self) -> Iterator[WatchedLimiter]:
        return self.watched_limiter().chain()

    def count(self, key: str, change: int) -> None:
        """A branch runs, or does no more, or lends its token."""
        trace = self.traces[key]
        for watched in self.chain():
            watched.inside += change * trace.weight
        self.inside += change
        self.peak = max(self.peak, self.inside)

    def has_begun_a_wait(self, key: str) -> None:
        self.has_lent = self.traces[key].has_lent = True

    def outstanding(self) -> list[Hashable]:
        return [branch.key for branch in self.branches if branch.status not in ENDED]

    def may_be_stopped(self) -> bool:
        now = self.oracle.now()
        return self.is_open and (
            bool(self.requests)
            or self.stop_reason() is not None
            or self.is_past_deadline()
            or self.interrupted_at < math.inf
            or any(
                trace.entered_at is not None and now >= trace.entered_at + trace.timeout
                for trace in self.traces.values()
            )
        )

    def _left(self, key: str) -> Trace:
        self.count(key, -1)
        self.exits.append(key)
        trace = self.traces[key]
        trace.left_at = self.oracle.now()
        return trace

    def returned(self, key: str) -> None:
        self.oracle.tell("returns", key)
        self._left(key)

    def left(self, key: str, exc: BaseException) -> None:
        self.oracle.tell("raises", key, type(exc).__name__)
        self._left(key).error = exc

    def target(self, number: int) -> Branch[Any] | None:
        return self.branches[number % len(self.branches)] if self.branches else None

    def requested(self, key: Hashable, reason: str) -> None:
        self.requests.setdefault(key, (reason, self.oracle.now()))

    def cancel(self, branch: Branch[Any]) -> None:
        reason = self.oracle.new_reason("cancel")
        before = branch.status
        if branch.cancel(reason):
            self.oracle.tell("cancels", branch.key, reason)
            self._has_cancelled(branch, before, reason)
        else:
            self.oracle.check(
                before is not QUEUED
                or branch.status is SKIPPED
                or self.stop_reason() is not None
                or self.is_cut_short()
                or bool(self.plan.reactions),  # it may be told already, and not skipped yet
                "a queued branch can be cancelled",
                branch,
            )

    def _has_cancelled(self, branch: Branch[Any], before: BranchStatus, reason: str) -> None:
        check = self.oracle.check
        check(before in (QUEUED, RUNNING), "only what is live can be cancelled", branch)
        check(branch.key not in self.cancelled_for, "only one request is the first", branch)
        if before is QUEUED:
            check(branch.status is SKIPPED, "a queued branch that is cancelled is skipped", branch)
        self.cancelled_for[branch.key] = reason

    def cancel_where(self, predicate: Callable[[Any], bool]) -> None:
        assert self.nursery is not None
        reason = self.oracle.new_reason("cancel where")
        before = {b.key: b.status for b in self.branches}
        told = self.nursery.cancel_where(predicate, reason)
        self.oracle.tell("cancels where", *told)
        self.oracle.check(
            told == [key for key in self.traces if key in set(told)],
            "in the order of submission",
            told,
        )
        for key in told:
            self.oracle.check(predicate(key), "only what the predicate accepts is cancelled", key)
            self._has_cancelled(self.nursery[key], before.get(key, QUEUED), reason)

    def reprioritise(self, branch: Branch[Any], priority: int) -> None:
        before = branch.status
        try:
            branch.priority = priority
        except RuntimeError:
            self.oracle.check(before is not QUEUED, "settable while queued", branch)
        else:
            self.oracle.check(before is QUEUED, "settable while queued only", branch)
            self.oracle.check(branch.priority == priority, "a priority that is set stays", branch)

    def breach(self) -> None:
        assert self.nursery is not None
        earlier = self.stop_reason()
        untouched = earlier is None and not self.is_cut_short()
        reason = self.oracle.new_reason("breach")
        self.breach_reasons.append(reason)
        self.nursery.breach(reason)
        self.oracle.tell("breaches", self.name, reason)
        if untouched:
            self.first_breach = reason
            self.oracle.check(self.stop_reason() == reason, "a breach is synchronous", reason)

    def pause(self) -> None:
        assert self.nursery is not None
        self.nursery.pause("for a while")
        self.is_paused = True

    def resume(self) -> None:
        assert self.nursery is not None
        if self.is_open:
            self.nursery.resume()
        self.is_paused = False

    def waited(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        self.oracle.check(branch.status in ENDED, "wait() returns when it has ended", branch)
        self.oracle.check(result.key == branch.key, "wait() returns its result", branch)

    def consumed(self, results: list[StepResult[Any]]) -> None:
        how = self.statistics()
        self.oracle.check(
            len(results) == how.ended and not how.queued + how.running,
            "completed() ends when it has caught up and nothing is outstanding",
            how,
        )
        ran = [result.key for result in results if result.status is not SKIPPED]
        self.oracle.check(ran == self.exits, "completed() is in the order of ending", ran)

    # ------------------------------------------------------------ what the engine says meanwhile

    def statistics(self) -> Any:
        assert self.nursery is not None
        return self.nursery.statistics()

    def stop_reason(self) -> str | None:
        reason: str | None = self.statistics().stop_reason
        return reason

    def deadline(self) -> float:
        return self.opened_at + min(self.plan.fail_after, self.plan.move_on_after)

    def is_past_deadline(self) -> bool:
        return self.oracle.now() >= self.deadline()

    def has_ended(self) -> bool:
        """All branches, at least; the block may be about to be left."""
        how = self.statistics()
        return bool(how.queued == how.running == 0)

    def is_cut_short(self) -> bool:
        """By what the engine may not have been told of yet."""
        return (
            self.is_past_deadline() or self.interrupted_at < math.inf or self.oracle.is_cancelled()
        )

    def look(self) -> None:
        if self.is_open and self.stopped_at == math.inf and self.stop_reason() is not None:
            self.stopped_at = self.oracle.now()

    # ------------------------------------------------------------ the end

    def closed(self, raised: BaseException | None) -> None:
        assert self.nursery is not None
        self.look()
        self.is_open = False
        check = self.oracle.check
        name = None if raised is None else type(raised).__name__
        self.oracle.tell("closed", self.name, name, self.stop_reason())
        result = self.nursery.result
        keys: list[Any] = list(self.traces)
        if not self.plan.reactions:  # an observer may submit from within another submission
            check(list(result) == keys, "in the order of submission", list(result), keys)
        for branch in self.branches:
            self._check_branch(branch, result[branch.key])
        check(
            list(result.completion_order) == self.exits,
            "completion_order is the order in which the branches ended",
            result.completion_order,
            self.exits,
        )
        check(
            [result[key].completion_index for key in self.exits] == list(range(len(self.exits))),
            "completion_index counts the endings",
        )
        if self.has_lent:  # tokens come back a little before the code goes on
            check(result.peak_in_flight >= self.peak, "what runs counts in the peak", result)
        else:
            check(result.peak_in_flight == self.peak, "the peak is exact", result.peak_in_flight)
        how = self.statistics()
        check(
            (how.queued, how.running, how.ended) == (0, 0, len(keys)), "all have ended", how, keys
        )
        check(self.inside == 0, "no code of a branch runs on", self.inside)
        self._check_raised(result, raised)

    def _check_branch(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        check = self.oracle.check
        trace = self.traces[branch.key]
        status = result.status
        check(result.submitted_at == trace.submitted_at, "submitted then", result)
        check(result.started_at == trace.entered_at, "started when its code was called", result)
        check((result.reason is None) == (status in (SUCCEEDED, FAILED)), "why", result)
        reason = self.cancelled_for.get(branch.key)
        if reason is not None:
            told = self.requests.get(branch.key, ("nothing",))[0]
            check(told == reason, "observers are told the first request", result, reason, told)
        if trace.entered_at is None:
            check(result.attempts == 0 and result.completion_index is None, "skipped", result)
            check(result.output is None and result.exception is None, "skipped", result)
            return
        check(result.ended_at == trace.left_at, "ended when its code did", result)
        check(result.attempts == 1, "one attempt", result)
        if trace.error is not None and self._split(trace.error)[0] is None:
            self._check_stopped(branch, result, trace)

    def _split(self, exc: BaseException) -> tuple[BaseException | None, bool]:
        if isinstance(exc, BaseExceptionGroup):
            cancelled, rest = exc.split(self.oracle.cancelled)
            return (exc, False) if cancelled is None else (rest, True)
        if isinstance(exc, self.oracle.cancelled):
            return None, True
        return exc, False

    def _check_stopped(self, branch: Branch[Any], result: StepResult[Any], trace: Trace) -> None:
        check = self.oracle.check
        status = result.status
        assert trace.entered_at is not None
        assert trace.left_at is not None
        own_deadline = trace.entered_at + trace.timeout
        by_own_timeout = isinstance(result.exception, trio.TooSlowError)
        if by_own_timeout:
            check(status is TIMED_OUT, "its own timeout", result)
            check(trace.left_at >= own_deadline, "not before its timeout", result)
        else:
            check(result.exception is None, "only a timeout of its own is an exception", result)
        if status is TIMED_OUT and not by_own_timeout:
            check(trace.left_at >= self.deadline(), "not before the deadline", result)
        if status is BREACHED:
            check(result.reason in self.breach_reasons, "a breach's reason", result)
        _, requested_at = self.requests.get(branch.key, ("", math.inf))
        others = min(requested_at, self.stopped_at, self.deadline(), self.interrupted_at)
        if own_deadline < others:
            check(by_own_timeout, "its own timeout was first", result, own_deadline, others)
        elif own_deadline > others:
            check(not by_own_timeout, "its own timeout was not first", result, others)
        elif own_deadline < min(self.deadline(), self.interrupted_at):
            # Whatever else asked at that instant, it ran after the deadlines of that instant.
            check(by_own_timeout, "its own timeout came first", result, self.requests)

    def _check_raised(self, result: ParallelResult[Any, Any], raised: BaseException | None) -> None:
        check = self.oracle.check
        _, from_outside = (None, False) if raised is None else self._split(raised)
        policy = self.plan.policy
        failed = len(result.errors)
        allowed = {"FAIL_FAST": 0, "tolerate": 1}.get(policy, math.inf)
        goal = {"FIRST_SUCCESS": 1, "quorum": 2}.get(policy, 0)
        cut_by_deadline = (self.stop_reason() or "").startswith("step timed out")
        if raised is None:
            check(failed <= allowed, "errors that the policy raises are raised", result.errors)
            check(
                len(result.outputs) >= goal or cut_by_deadline,
                "an unmet policy is an error",
                policy,
                result.outputs,
            )
            check(self.first_breach is None, "a breach is raised", self.first_breach)
            check(result.success == (not cut_by_deadline and self._kept(result)), "success", result)
            return
        if from_outside:
            return
        if self.first_breach is not None:
            check(isinstance(raised, Breached), "a breach is raised", raised)
        if isinstance(raised, Breached):
            check(raised.reason in self.breach_reasons, "the breach's reason", raised)
        elif isinstance(raised, StepTimeout):
            check(self.plan.fail_after < math.inf, "only with fail_after", raised)
            check(self.is_past_deadline(), "not before the deadline", raised)
        else:
            check(isinstance(raised, BranchErrors), "the endings table", raised)
        shown = leaves(raised) if isinstance(raised, BranchErrors) else leaves(raised.__cause__)
        if failed > allowed:
            for error in result.errors.values():
                check(
                    all(leaf in shown for leaf in leaves(error)), "no error is lost", error, raised
                )

    def _kept(self, result: ParallelResult[Any, Any]) -> bool:
        failed = len(result.errors)
        match self.plan.policy:
            case "FAIL_FAST" | "COLLECT":
                return failed == 0
            case "tolerate":
                return failed <= 1
            case _:
                return True  # or it would have raised


def broken(recorded: Recorder) -> list[str]:
    """What `check_invariants` has to say."""
    try:
        check_invariants(recorded)
    except InvariantBroken as exc:
        return exc.violations
    return []


def leaves(exc: BaseException | None) -> list[BaseException]:
    if isinstance(exc, BaseExceptionGroup):
        return [leaf for inner in exc.exceptions for leaf in leaves(inner)]
    return [] if exc is None else [exc]
