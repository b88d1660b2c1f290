"""The core of a step: it owns all decisions, and knows no event loop.

1. Synchronous and single-threaded: state changes between two checkpoints only, so no locks.
2. The host reports (`begin`, `returned`, `raised`, `stopped`) and runs what it is given next; the
   core asks the host for little: run a record, stop a record, stop everything, call me at the next
   checkpoint, wake the block.
3. One record, one ending.  The first request to stop is the cause; the code decides the ending.
4. A step that was told to stop starts nothing more: what is queued is skipped in the same instant.
5. When a branch ends: its observers are told, cancel rules are applied, the policy is asked, and
   only then its token admits anyone.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any, Final

from . import _parking as parking
from ._errors import BudgetExceeded, TooSlowError
from ._judging import ask_late, judge, judge_reach
from ._meter import DROPPED, IGNORED, outcome, outcome_of
from ._outcomes import said
from ._policies import EnginePolicy, Tally
from ._records import (
    BREACHED,
    FAILED,
    QUEUED,
    RUNNING,
    SKIPPED,
    STOPPED_AS,
    SUCCEEDED,
    TIMED_OUT,
    Cause,
    Record,
)
from ._tries import end_between, is_tried_again

if TYPE_CHECKING:
    from collections.abc import Hashable

    from ._admission import Pool
    from ._announce import Announcer
    from ._feed import Feed, Unconsumed
    from ._guarding import Guarding
    from ._meter import Meter
    from ._outcomes import BranchStatus
    from ._queue import Entry
    from ._records import Waker
    from ._rules import Rules
    from ._spending import Budget
    from .abc import Observer
    from .hosts._abc import Host, Run
    from .limits import Outcome

# What leaves the running branches, or at least the body, alone.
GOES_ON: Final = frozenset({None, Cause.SATISFIED, Cause.DRAIN})

CANCELLED_FROM_OUTSIDE: Final = "cancelled from outside"
HOST_GAVE_UP: Final = "a task that branches ran in could not be ended"  # as of a nursery left open


class StepCore:
    """One step."""

    __slots__ = (
        "announcer",
        "body_open",
        "budget",
        "cancels_branches",
        "cause",
        "closed",
        "crashes",
        "cut",
        "depth",
        "drains",
        "endings",
        "errors",
        "exceeded",
        "failed",
        "failed_late",
        "feed",
        "guarding",
        "handle",
        "held",
        "host",
        "is_cleanup",
        "join",
        "listeners",
        "meters",
        "name",
        "observers",
        "outstanding",
        "parent",
        "parked",
        "paused",
        "peak",
        "policy",
        "policy_raised",
        "pool",
        "ran",
        "_endings_before_stop",
        "reason",
        "records",
        "rules",
        "run",
        "running",
        "succeeded",
        "timeout",
        "_asked_on_success",
        "_before_stop",
        "_drained_for",
        "_is_over",
    )

    def __init__(
        self,
        name: str,
        pool: Pool,
        policy: EnginePolicy,
        rules: Rules | None,
        observers: list[Observer],
        run: Run,
        parent: Record | None,
        timeout: float,
        budget: Budget | None = None,
        drains: bool = False,
    ) -> None:
        self.name: str = name
        self.pool: Pool = pool
        self.meters: tuple[Meter, ...] = pool.meters()
        self.policy: EnginePolicy = policy
        self.rules: Rules | None = rules
        self.observers: list[Observer] = observers
        self.run: Run = run
        self.announcer: Announcer = run.announcer
        self.parent: Record | None = parent  # the branch that the step is in
        # The branch around it had been told to stop already: who opens it now, means it.
        self.is_cleanup: bool = parent is not None and _is_told(parent)
        self.depth: int = 0 if parent is None or parent._step is None else parent._step.depth + 1
        self.timeout: float = timeout
        self.budget: Budget | None = budget
        self.cancels_branches: bool = True  # may its users stop one by itself?
        self.drains: bool = drains  # a breach lets what runs end by itself
        self._drained_for: str | None = None  # the reason of such a breach
        self.exceeded: BudgetExceeded | None = None  # a copy of the refusal that breached it
        self.host: Host
        self.handle: Any  # what observers and users hold
        self.records: dict[Hashable, Record] = {}  # in the order of submission
        # In the order of ending, skipped ones included.
        self.endings: list[Record] | Unconsumed = []
        self.guarding: Guarding | None = None  # if resources are limited
        self.feed: Feed | None = None  # what submits, where branches come as they are admitted
        self.ran: int = 0  # how many of these did run
        self._endings_before_stop: int = 0
        self._is_over: bool = False
        self.failed_late: bool = False
        self.policy_raised: bool = False
        self.cut: bool = False  # has a stop of the step cut a branch short, or the body?
        self.outstanding: int = 0
        self.running: int = 0
        self.parked: int = 0  # of these, how many have lent their token
        self.peak: int = 0
        self.succeeded: int = 0
        self.failed: int = 0
        self.body_open: bool = True
        self.closed: bool = False
        self.paused: str | None = None
        self.held: list[Entry] = []  # set aside by the pool while we are paused
        self.cause: Cause | None = None
        self.reason: str | None = None
        self.crashes: list[BaseException] = []  # out of callbacks: never collected
        self.errors: list[Exception] = []  # of the body, and of a policy that raised
        self.listeners: list[Waker] = []  # set at the next ending, once
        # Of the branch around it, for all of ours, while the block is being left.
        self.join: parking.Wait | None = None
        self._before_stop: tuple[Cause | None, str | None] = (None, None)
        self._asked_on_success: bool = SUCCEEDED in policy.asked_on

    # ------------------------------------------------------------ branches come

    def submit(self, record: Record) -> None:
        self._notice()
        self.records[record.key] = record
        self.outstanding += 1
        if self.feed is not None:
            self.feed.submitted(record)
        if self.join is not None:
            self.join.begin()  # if it is over already, or had nothing to wait for
        admissible = self.cause is None
        if self.guarding is not None:
            self.guarding.submitted(record)
        if admissible:
            if self.rules is not None:
                self.rules.submitted(record)
            if self.feed is None or self.is_gated() or not self.pool.admit(record):
                self.pool.push(record, self.depth)
        else:
            record._cause = self.cause  # told to stop already: an observer can't be first
            record._reason = self.reason
        if self.observers:
            self.tell("branch_queued", record)
        if admissible:
            if record._token is None:
                self.pool.kick(self)
            else:
                self.host.run(record)
            return
        if record.status is QUEUED:  # an observer may have been quicker
            assert record._reason is not None
            self.cut = True
            self.skip(record, record._reason, record.submitted_at)

    def is_gated(self) -> bool:
        """May what comes have to wait, though there is a token?"""
        return self.paused is not None or self.guarding is not None

    def granted(self, record: Record) -> None:
        if record.status is QUEUED:
            self.host.run(record)
        else:
            parking.resumed(self, record)

    def begin(self, record: Record, now: float) -> None:
        """Its function is called next."""
        record.status = RUNNING
        record.attempts += 1
        if record.started_at is None:
            record.started_at = now
        self.running = running = self.running + 1
        if running - self.parked > self.peak:
            self.peak = running - self.parked
        for meter in self.meters:
            meter.began(record, now)
        if self.observers:
            self.tell("branch_started", record)
        if self.feed is not None:
            self.feed.begun(record)

    def note_peak(self) -> None:
        in_flight = self.running - self.parked
        if in_flight > self.peak:
            self.peak = in_flight

    # ------------------------------------------------------------ and go: the record to run next

    def returned(self, record: Record, value: Any, now: float) -> Record | None:
        record._value = value
        self.succeeded += 1
        return self._ran(record, SUCCEEDED, now, self._asked_on_success)

    def raised(self, record: Record, error: Exception, now: float) -> Record | None:
        self._notice()
        if record._tries is not None and is_tried_again(self, record, error, FAILED, now):
            self._measure(record, now, outcome_of(error))
            return self._pass_on(record, None)
        if self.is_stopping():
            self.cut = True
        if self.is_refused(error):
            record._reason = self._breached_for()
            return self._ran(record, BREACHED, now, BREACHED in self.policy.asked_on)
        record._value = error
        self.failed += 1
        return self._ran(record, FAILED, now, FAILED in self.policy.asked_on)

    def stopped(self, record: Record, now: float) -> Record | None:
        """Only Cancelled came out of it (or what no one collects: a KeyboardInterrupt)."""
        if record._cause is Cause.SHED:
            self._notice()
            if self.cause is None:
                return self._shed(record, now)
            record._cause = None
        cause = record._cause or self.cause
        assert cause is not None
        status = STOPPED_AS[cause]
        if record._cause is None:
            record._reason = self.reason
            self.cut = True
        elif cause is Cause.TIMEOUT:
            error = TooSlowError(f"{record.key!r} {record._reason}")
            if record._tries is not None and is_tried_again(self, record, error, TIMED_OUT, now):
                self._measure(record, now, DROPPED)
                return self._pass_on(record, None)
            self.failed += 1
            record._value = error
        return self._ran(record, status, now, status in self.policy.asked_on)

    def _shed(self, record: Record, now: float) -> Record | None:
        assert self.guarding is not None
        self.guarding.shed(record)
        self._measure(record, now, IGNORED)
        return self._pass_on(record, None)

    def is_refused(self, error: Exception) -> bool:
        """Does it say no more than that a budget refused, and so breached this step?"""
        if self.budget is None or self._breached_for() is None:
            return False
        if isinstance(error, ExceptionGroup):
            return all(map(self.is_refused, error.exceptions))
        return isinstance(error, BudgetExceeded) and self.budget._book in error._asked

    def _breached_for(self) -> str | None:
        return self.reason if self.cause is Cause.BREACH else self._drained_for

    def not_begun(self, record: Record) -> Record | None:
        """Its place has come up, and it was stopped meanwhile."""
        self.pool.not_begun()
        return self._pass_on(record, None)

    def _ran(
        self, record: Record, status: BranchStatus, now: float, ask_policy: bool
    ) -> Record | None:
        if record._token is None:
            parking.leave(self, record)
        record.status = status
        record.ended_at = now
        record.completion_index = self.ran
        self.ran += 1
        self.running -= 1
        parent = self.parent
        was_parked = parent is not None and bool(parent._waits)
        self._ended(record)
        if self.meters:
            self._measure(record, now, outcome(record))
        if self.rules is not None and self.cause is None:
            self._apply_rules(record)
        if self.cause is None and (ask_policy or self.policy.has_goal):
            judge(self, record, ask_policy)
        elif ask_policy and self.policy.is_users_own and not self.policy_raised:
            ask_late(self, record)
        if not self.outstanding:
            self._all_ended()
        if was_parked and parent is not None and parent._entry is not None:
            return self._pass_on(record, parent)  # its last wait has ended with this branch
        return self._pass_on(record, None)

    def ran_between(self, record: Record, status: BranchStatus, now: float) -> None:
        self._ran(record, status, now, status in self.policy.asked_on)

    def _all_ended(self) -> None:
        if self.join is not None:
            self.join.end()
        if self.feed is not None:
            self.feed.all_ended()
        self.host.wake()

    def _measure(self, record: Record, now: float, how: Outcome) -> None:
        for meter in self.meters:
            try:
                meter.ended(record, record._weight, now, how)
            except Exception as exc:
                self.limit_raised(exc)

    def limit_raised(self, exc: Exception) -> None:
        self.errors.append(exc)
        self.stop(Cause.BODY, f"the limit raised {said(exc)}")

    def _pass_on(self, record: Record, heir: Record | None) -> Record | None:
        token, record._token = record._token, None
        if token is None:  # it had lent it
            return None
        following: Record | None = self.pool.pass_on(token, self, heir)
        return following

    def _ended(self, record: Record) -> None:
        record._fn = record._context = record._step = None
        record._args = ()
        if record._tries is not None:
            record._tries.stop_timer()
            record._tries = None
        self.endings.append(record)
        self.outstanding -= 1
        if self.guarding is not None:
            self.guarding.ended(record)
        if self.feed is not None:
            self.feed.ended(record)
        if record._done is not None:
            for waker in record._done:
                waker.set()
        if self.listeners:
            listeners, self.listeners = self.listeners, []
            for waker in listeners:
                waker.set()
        if self.observers:
            self.tell("branch_ended", record, record.result)

    def skip(self, record: Record, reason: str, now: float) -> None:
        """End one that never ran."""
        record.status = SKIPPED
        record._reason = reason
        record.ended_at = now
        self._ended(record)
        asked = SKIPPED in self.policy.asked_on
        if self.cause is None and (asked or self.policy.has_goal):
            judge(self, record, asked)
        if not self.outstanding:
            self._all_ended()

    def _stop_queued(self, record: Record, reason: str, now: float) -> None:
        if record.attempts:
            cause = record._cause or self.cause
            assert cause is not None
            record._reason = reason
            end_between(self, record, STOPPED_AS[cause], now)
        else:
            self._unqueue(record)
            self.skip(record, reason, now)

    def _apply_rules(self, record: Record) -> None:
        assert self.rules is not None
        for other, reason in self.rules.ended(record):
            self.cancel(other, reason)

    # ------------------------------------------------------------ the policy

    def tally(self) -> Tally:
        return Tally(self.succeeded, self.failed, len(self.endings), self.outstanding)

    def policy_raises(self) -> bool:
        """Are the branches' exceptions to be raised, though something else stopped the step?"""
        return self.failed_late or self.policy.raises(self.tally())

    def body_ended(self) -> None:
        """The body submits no more (branches still may)."""
        self.body_open = False
        if self.cause is None and self.policy.has_goal:
            judge_reach(self, self.tally())

    def settle(self) -> None:
        """All has ended, the host has gone.  A deadline that passed while all ended by itself has
        stopped nothing: what the policy was not asked meanwhile, it is asked now."""
        self._is_over = True
        if self._drained_for is not None:
            self.cause, self.reason = Cause.BREACH, self._drained_for
        if self.cause is not Cause.DEADLINE or self.cut:
            return
        self.cause, self.reason = self._before_stop
        for record in self.ended_while_stopping():
            if self.cause is None and record.status in self.policy.asked_on:
                judge(self, record, ask=True)
        if self.cause is None:
            judge_reach(self, self.tally())

    def ended_while_stopping(self) -> list[Record]:
        return self.endings[self._endings_before_stop :]

    def succeeded_as_asked(self) -> bool:
        return not self.is_stopping() and self.policy.kept(self.tally())

    # ------------------------------------------------------------ stops

    def is_stopping(self) -> bool:
        """Is what runs being stopped, and the body?"""
        return self.cause not in GOES_ON

    def is_stopped_further_out(self) -> bool:
        """Has the branch around it been told to stop since, or one around that?"""
        step = self
        while not step.is_cleanup and (parent := step.parent) is not None:
            if parent._step is None:
                return False
            if _is_told(parent):
                return True
            step = parent._step
        return False

    def leave_pool(self) -> None:
        """Nothing will be admitted any more.  A stopped step still takes submissions of branches
        that unwind, and skips them."""
        self.closed = not self.is_stopping()
        for pool in self.pool.chain():
            pool.steps.pop(self, None)

    def cancel(self, record: Record, reason: str) -> bool:
        """Tell one branch to stop.  True if it was the first request."""
        if record._step is None or self.is_stopping():
            return False
        if record._cause is None and not self._overtaken(record):
            self.tell_to_stop(record, Cause.CANCEL, reason)
            return True
        if record._cause is Cause.SHED or self._is_to_be_tried_again(record):
            record._cause = Cause.CANCEL
            record._reason = reason
            if self.observers:
                self.tell("cancel_requested", record, reason)
            return True
        return False

    def _is_to_be_tried_again(self, record: Record) -> bool:
        """After its timeout."""
        tries = record._tries
        return (
            record._cause is Cause.TIMEOUT and tries is not None and tries.outlast_timeout(record)
        )

    def tell_to_stop(self, record: Record, cause: Cause, reason: str) -> None:
        record._cause = cause
        record._reason = reason
        if self.observers:
            self.tell("cancel_requested", record, reason)
        if record.status is QUEUED:  # an observer may have been quicker
            self._stop_queued(record, reason, self.host.now())
        elif record.status is RUNNING:
            self.host.stop(record, reason)
            parking.force(self, record)

    def _unqueue(self, record: Record) -> None:
        record.status = SKIPPED
        if record._entry is not None:
            self.pool.forget(record)

    def _overtaken(self, record: Record | None) -> bool:
        """Has a deadline or a cancellation from outside come first?"""
        cause = self.host.overtaken(record)
        if cause is None:
            return False
        if cause is Cause.TIMEOUT:
            assert record is not None
            self.timed_out(record)
        else:
            self._stop(cause, self.why(cause))
        return True

    def timed_out(self, record: Record) -> None:
        """Its own timeout has passed, and nothing had stopped it before."""
        record._cause = Cause.TIMEOUT
        record._reason = f"timed out after {record._timeout} s"
        parking.force(self, record)

    def why(self, cause: Cause) -> str:
        if cause is Cause.DEADLINE:
            return f"step timed out after {self.timeout} s"
        return HOST_GAVE_UP if cause is Cause.CRASH else CANCELLED_FROM_OUTSIDE

    def stop(self, cause: Cause, reason: str) -> bool:
        """Tell the step to stop.  True if it was the first request (a satisfied policy does not
        count: it leaves the body alone)."""
        if self._is_over:
            self.cause, self.reason = cause, reason
            return True
        if self.closed or self.is_stopping() or self._overtaken(None):
            return False
        if cause is Cause.BREACH and self.drains:
            if self._drained_for is not None:
                return False
            self._drained_for = reason
            cause = Cause.DRAIN
        self._stop(cause, reason)
        return True

    def notice_late(self, record: Record) -> None:
        """It waits for its token: has it been told to stop, though nobody has reported it yet?"""
        self._overtaken(record)  # what has been reported lets none wait

    def _notice(self) -> None:
        """A deadline or a cancellation from outside that nobody has reported yet."""
        if not self.is_stopping() and self.host.is_cancelled():
            self.interrupted()

    def interrupted(self) -> None:
        """Cancelled came out of something, and nobody here had asked for it."""
        if not self.is_stopping():
            cause = self.host.overtaken(None) or Cause.OUTSIDE
            self._stop(cause, self.why(cause))

    def _stop(self, cause: Cause, reason: str) -> None:
        self._settle_timeouts()
        self._before_stop = (self.cause, self.reason)
        self.cause = cause
        self.reason = reason
        self._endings_before_stop = len(self.endings)
        now = self.host.now()
        queued = [record for record in self.records.values() if record.status is QUEUED]
        if cause is Cause.SATISFIED:
            running = [record for record in self.records.values() if record.status is RUNNING]
            for record in running:
                if record._cause is None:
                    self.tell_to_stop(record, cause, reason)
        elif cause is not Cause.DRAIN:
            self.host.stop_all(reason)
            if self.parked:
                for record in self.records.values():
                    parking.force(self, record)
        if cause in (Cause.BREACH, Cause.DRAIN) and self.observers:
            self.tell("breached", self.handle, reason)
        for record in queued:
            if record.status is QUEUED:
                self.cut = True
                self._stop_queued(record, record._reason or reason, now)
        self.held.clear()
        if self.feed is not None:
            self.feed.stopped()

    def _settle_timeouts(self) -> None:
        """A timeout of a branch's own that has passed came before this stop."""
        for record in self.records.values():
            if (
                record.status is RUNNING
                and record._timeout != inf
                and record._cause is None
                and self.host.overtaken(record) is Cause.TIMEOUT
            ):
                self.timed_out(record)

    # ------------------------------------------------------------ changes

    def reorder(self, record: Record, priority: int) -> None:
        changed, record._priority = record._priority != priority, priority
        if changed and record._entry is not None:
            self.pool.reorder(record, self.depth)

    def pause(self, reason: str) -> None:
        self.paused = reason
        self.pool.unblock()

    def resume(self) -> None:
        self.paused = None
        if not self.held:  # then there is nothing to look for, and the host may be gone
            return
        held, self.held = self.held, []
        self.pool.put_back(held)
        self.pool.kick(self)

    def cap_changed(self) -> None:
        if self.feed is not None:
            self.feed.look()

    def tell(self, hook: str, *args: Any) -> None:
        try:
            self.announcer.tell(self.observers, hook, *args)
        except BaseException as exc:  # an Exception is the announcer's business
            self.crashed("a callback", exc)

    def crashed(self, who: str, exc: BaseException) -> None:
        """A KeyboardInterrupt or SystemExit came out: it leaves with the block, where nothing is
        half done."""
        self.crashes.append(exc)
        self.stop(Cause.CRASH, f"{who} raised {said(exc)}")


def _is_told(record: Record) -> bool:
    return record._cause is not None or (record._step is not None and record._step.is_stopping())
