"""The engine with one rule broken, in more than a hundred ways: for each a test has to fail.

1. A mutant is what a user could notice: its name says what is wrong, in words.  What has the same
   meaning as the engine itself is none.
2. The package is never changed: each mutant is a copy of it, first on the path.
3. A mutant is killed by a test that fails.  One under which the tests pass, only hang, or can't
   run at all, has survived: nothing told what is wrong.
4. The tests of a mutant are few and quick, and draw nothing: hypothesis is left out.
5. Under the package as it is, all of these tests pass.  This is run first.

`mutants.py [WORDS ...]` checks those whose names have any of them; all of them take minutes.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import pytest

import figures

TESTS: Final = Path(__file__).parent
SECONDS: Final = 60.0  # at most, for the tests of one mutant
PLUGINS: Final = ("trio", "hypothesispytest", "no:cacheprovider")  # all others only cost time
OPTIONS: Final = (
    *("-x", "-q", "--tb=line", "-m", "not long and not hypothesis"),
    *(f"-p{plugin}" for plugin in PLUGINS),
)
ENVIRONMENT: Final = {
    # Without it the tree, our working directory, would be imported in place of the copy.
    "PYTHONSAFEPATH": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    # Seconds until a stall of trio's is a failure.  No chosen test waits for what is slow.
    "PATIENCE": "5",
}

KILLED: Final = "killed"
SURVIVED: Final = "SURVIVED"
HUNG: Final = "HUNG"
BROKE: Final = "BROKE"  # no test could run


class Mutant(NamedTuple):
    name: str
    module: str
    before: str  # is in the module once
    after: str
    tests: tuple[str, ...]  # that have to kill it: files, or tests in them

    def source(self, package: Path) -> str:
        before = (package / self.module).read_text()
        if before.count(self.before) != 1:
            raise ValueError(f"{self.name!r}: not once in {self.module}: {self.before!r}")
        return before.replace(self.before, self.after)


class Outcome(NamedTuple):
    name: str
    verdict: str
    seconds: float
    said: str  # the test that failed, or the end of what pytest said

    def __str__(self) -> str:
        return f"{self.verdict:9}{self.seconds:5.1f} s  {self.name}\n{'':18}{self.said}"


MUTANTS: Final = (
    # ------------------------------------------------------------ admission
    Mutant(
        "the lowest priority is admitted first",
        "_admission.py",
        "(-waiter._priority, -depth, self._arrival(), waiter)",
        "(waiter._priority, -depth, self._arrival(), waiter)",
        ("test_priorities.py::test_higher_first_then_first_come",),
    ),
    Mutant(
        "among equals the outer branch goes before the deeper one",
        "_admission.py",
        "(-waiter._priority, -depth, self._arrival(), waiter)",
        "(-waiter._priority, depth, self._arrival(), waiter)",
        ("test_priorities.py::test_a_deeper_branch_goes_first_among_equals",),
    ),
    Mutant(
        "what comes late is queued behind what is there, whatever its priority",
        "_queue.py",
        "if not run or run[-1] < entry:",
        "if True:",
        ("test_priorities.py::test_higher_first_then_first_come",),
    ),
    Mutant(
        "a branch whose priority is changed loses its turn among its new equals",
        "_admission.py",
        "(-waiter._priority, -depth, waiter._entry[2], waiter)",
        "(-waiter._priority, -depth, self._arrival(), waiter)",
        ("test_priorities.py::test_one_that_comes_to_a_priority_keeps_its_turn",),
    ),
    Mutant(
        "a branch that resumes queues as if it were new",
        "_admission.py",
        "entry = waiter._entry = (RESUMES, 0, self._arrival(), waiter)",
        "entry = waiter._entry = (0, 0, self._arrival(), waiter)",
        ("test_lend_and_swap.py::test_resumers_come_first_first_come_first_served",),
    ),
    Mutant(
        "a weight above the cap never runs",
        "_admission.py",
        "return self.used + weight <= self.cap or not self.used",
        "return self.used + weight <= self.cap",
        ("test_lend_and_swap.py::test_a_weight_above_the_cap_runs_alone",),
    ),
    Mutant(
        "a heavy branch takes one token",
        "_admission.py",
        "token = Token(waiter, waiter._weight)\n        self._use(token, entry=waiter._entry)",
        "token = Token(waiter)\n        self._use(token, entry=waiter._entry)",
        ("test_lend_and_swap.py::test_a_weight_takes_as_many_tokens",),
    ),
    Mutant(
        "a branch of a sub-cap takes no token of the pool around it",
        "_admission.py",
        "            pool.used += token.weight\n",
        "            pool.used += token.weight if pool is self else 0\n",
        ("test_lend_and_swap.py::test_a_branch_takes_a_token_of_its_pool_and_of_all_around_it",),
    ),
    Mutant(
        "a pause of the limiter holds who resumes",
        "_admission.py",
        "(self.paused is not None and entry[0] is not RESUMES)",
        "self.paused is not None",
        ("test_lend_and_swap.py::test_a_pause_of_the_pool_does_not_hold_who_resumes",),
    ),
    Mutant(
        "a pause of a step holds none of its branches",
        "_admission.py",
        "elif (step := waiter._step).paused is not None:",
        "elif (step := waiter._step).paused is ...:",
        ("test_admission.py::test_waiters_of_a_paused_step_are_not_in_the_way_of_others",),
    ),
    Mutant(
        "what a pause has set aside is never admitted",
        "_core.py",
        "self.pool.put_back(held)",
        "pass",
        ("test_nursery.py::test_a_paused_step_admits_nothing_and_what_runs_goes_on",),
    ),
    Mutant(
        "a lifted pause of the limiter admits nobody until something else happens",
        "_admission.py",
        "if reason is None:\n            self._offer()\n            self.root().changed()",
        "if reason is None:\n            self._offer()",
        ("test_limiter.py::test_a_paused_limiter_admits_nobody_and_stops_nobody",),
    ),
    Mutant(
        "a grown limit admits nobody until something else happens",
        "_admission.py",
        "self.root().changed()\n        for step in self.steps:",
        "for step in self.steps:",
        ("test_peak.py::test_growing_admits_at_once_as_many_as_fit_now",),
    ),
    Mutant(
        "who runs on keeps its token though the limit has shrunk",
        "_admission.py",
        "if self.used <= self.cap:\n                if heir",
        "if True:\n                if heir",
        ("test_peak.py::test_shrinking_cancels_nobody_and_admits_nobody_until_there_is_room",),
    ),
    Mutant(
        "a head that goes away still holds up those behind it",
        "_admission.py",
        "            self._offer()\n            root.changed()\n",
        "            self._offer()\n",
        ("test_lend_and_swap.py::test_a_head_that_is_paused_lets_those_behind_it_pass",),
    ),
    Mutant(
        "the last nested branch hands its token to whoever is first in the queue",
        "_admission.py",
        "            self._hand_over(token, heir)",
        "            pass",
        ("test_lend_and_swap.py::test_hand_over_from_a_sub_cap_too",),
    ),
    Mutant(
        "the last nested branch hands over a token that a shrunk limit does not have",
        "_admission.py",
        "self.is_within(pool) and all(outer.fits(heir._weight) for outer in pool.chain())",
        "self.is_within(pool)",
        ("test_lend_and_swap.py::test_no_hand_over_of_what_does_not_fit_any_more",),
    ),
    Mutant(
        "a token that was given back goes to nobody",
        "_admission.py",
        "return self.dispatch(step) if self.waiting else None",
        "return None",
        ("test_lend_and_swap.py::test_none_is_the_pool_that_the_branch_runs_on",),
    ),
    Mutant(
        "a token is given back twice",
        "_admission.py",
        "self.pass_on(token, None)",
        "self.pass_on(token, None)\n        self.pass_on(token, None)",
        ("test_limiter.py::test_it_is_a_semaphore_first_come_first_served",),
    ),
    Mutant(
        "the queue is looked at once, and never again at a checkpoint",
        "_admission.py",
        "        self._kicked = False\n        following",
        "        following",
        ("test_admission.py::test_a_grown_pool_admits_at_the_next_checkpoint",),
    ),
    Mutant(
        "a branch of a map goes before those that wait in the same pool",
        "_admission.py",
        "if self.waiting or self.used >= self.cap or",
        "if self.used >= self.cap or",
        ("test_map.py::test_a_branch_of_another_step_that_came_first_goes_first",),
    ),
    Mutant(
        "a sweep of the queue loses those whose turn came out of order",
        "_queue.py",
        "self._heap = list(filter(is_current, self._heap))",
        "self._heap = []",
        ("test_admission.py::test_a_sweep_loses_nobody",),
    ),
    # ------------------------------------------------------------ parking
    Mutant(
        "a branch holds its token while it waits for another",
        "_parking.py",
        "step.pool.give_back(token)",
        "pass",
        ("test_lend_and_swap.py::test_none_is_the_pool_that_the_branch_runs_on",),
    ),
    Mutant(
        "a parent is resumed without a token",
        "_parking.py",
        "step.pool.resume(record)",
        "resumed(step, record)",
        ("test_lend_and_swap.py::test_none_is_the_pool_that_the_branch_runs_on",),
    ),
    Mutant(
        "a branch of a stopped step waits for its token before it unwinds",
        "_parking.py",
        "if record._cause is not None or step.is_stopping():",
        "if record._cause is not None:",
        (
            "test_lend_and_swap.py::test_one_that_is_told_to_stop_while_parked_goes_on_at_once_as_its_wait_ends",
        ),
    ),
    Mutant(
        "a cancelled branch waits for its token before it unwinds",
        "_parking.py",
        "if record._cause is not None or step.is_stopping():",
        "if step.is_stopping():",
        (
            "test_lend_and_swap.py::test_one_that_is_told_to_stop_while_parked_goes_on_at_once_as_its_wait_ends",
        ),
    ),
    Mutant(
        "a wait begun while the branch resumes leaves its request standing",
        "_parking.py",
        "        step.pool.forget(record)\n        _wake(record)\n    else:",
        "        _wake(record)\n    else:",
        ("test_lend_and_swap.py::test_a_wait_begun_while_resuming_withdraws_the_request",),
    ),
    Mutant(
        "a task whose branch is parked again by another waits with it",
        "_parking.py",
        "        step.pool.forget(record)\n        _wake(record)\n    else:",
        "        step.pool.forget(record)\n    else:",
        ("test_lend_and_swap.py::test_a_wait_begun_while_resuming_withdraws_the_request",),
    ),
    Mutant(
        "a wait that has outlived its try counts as one of the next",
        "_parking.py",
        "self.record.status is RUNNING and self.record.attempts == self._attempt",
        "self.record.status is RUNNING",
        ("test_nesting.py::test_a_wait_of_an_earlier_try_lends_and_asks_for_nothing",),
    ),
    Mutant(
        "a branch that ends while it is parked counts as parked for ever",
        "_parking.py",
        "    step.parked -= 1\n    record._waits = NONE",
        "    record._waits = NONE",
        ("test_lend_and_swap.py::test_it_can_end_while_it_waits_for_its_token",),
    ),
    Mutant(
        "a branch may wait for the one that it is nested in",
        "_parking.py",
        "if step.parent is not None:",
        "if False:",
        ("test_lend_and_swap.py::test_nor_for_an_ancestor",),
    ),
    Mutant(
        "a circle of three is not seen",
        "_parking.py",
        "due.append(before)",
        "due.extend([before] if record is waiter else [])",
        ("test_lend_and_swap.py::test_nor_for_an_ancestor",),
    ),
    # ------------------------------------------------------------ stops
    Mutant(
        "what is submitted after a stop runs",
        "_core.py",
        "admissible = self.cause is None",
        "admissible = True",
        ("test_endings.py::test_a_branch_that_is_submitted_after_the_stop_is_skipped",),
    ),
    Mutant(
        "the second request to stop the step wins",
        "_core.py",
        "if self.closed or self.is_stopping() or self._overtaken(None):",
        "if self.closed or self._overtaken(None):",
        ("test_core.py::test_the_first_stop_is_the_cause",),
    ),
    Mutant(
        "the second request to stop a branch wins",
        "_core.py",
        "if record._cause is None and not self._overtaken(record):",
        "if not self._overtaken(record):",
        ("test_endings.py::test_a_branch_may_cancel_itself",),
    ),
    Mutant(
        "a breach leaves queued branches queued",
        "_core.py",
        "for record in queued:",
        "for record in ():",
        ("test_breach.py::test_tripping_it_stops_all_steps_in_the_same_instant",),
    ),
    Mutant(
        "a draining breach stops what runs",
        "_core.py",
        "elif cause is not Cause.DRAIN:",
        "else:",
        ("test_budget.py::test_drain_lets_running_branches_and_the_body_end_by_themselves",),
    ),
    Mutant(
        "a satisfied policy stops the body",
        "_core.py",
        "frozenset({None, Cause.SATISFIED, Cause.DRAIN})",
        "frozenset({None, Cause.DRAIN})",
        ("test_policies.py::test_first_success_cancels_the_rest",),
    ),
    Mutant(
        "a deadline that has cut nothing short still times out",
        "_core.py",
        "if self.cause is not Cause.DEADLINE or self.cut:",
        "if self.cause is not None:",
        ("test_races.py::test_a_deadline_that_cut_nothing_short_is_no_timeout",),
    ),
    Mutant(
        "a timeout of its own that came first is taken for the stop of the step",
        "_core.py",
        "        self._settle_timeouts()\n",
        "",
        ("test_races.py::test_the_first_cause_wins",),
    ),
    Mutant(
        "a branch that has timed out is not counted as a failure",
        "_core.py",
        "            self.failed += 1\n            record._value = error",
        "            record._value = error",
        ("test_endings.py::test_a_branch_past_its_timeout_has_timed_out",),
    ),
    Mutant(
        "a refused branch takes the errors beside its refusal with it",
        "_core.py",
        "return all(map(self.is_refused, error.exceptions))",
        "return any(map(self.is_refused, error.exceptions))",
        ("test_budget.py::test_how_an_asking_branch_ends",),
    ),
    Mutant(
        "branches go on after a KeyboardInterrupt in another",
        "_core.py",
        'self.stop(Cause.CRASH, f"{who} raised {said(exc)}")',
        "pass",
        ("test_interrupts.py::test_raised_by_a_branch_it_stops_the_step_and_leaves_in_a_group",),
    ),
    Mutant(
        "parked branches count as in flight",
        "_core.py",
        "if running - self.parked > self.peak:\n            self.peak = running - self.parked",
        "if running > self.peak:\n            self.peak = running",
        ("test_lend_and_swap.py::test_what_goes_on_again_counts_in_the_peak",),
    ),
    Mutant(
        "a branch that was tried again says that it started with its last try",
        "_core.py",
        "if record.started_at is None:",
        "if True:",
        ("test_retry.py::test_it_is_tried_until_it_succeeds",),
    ),
    Mutant(
        "skipped branches are counted among those that ran",
        "_core.py",
        "record.completion_index = self.ran",
        "record.completion_index = len(self.endings)",
        ("test_outcomes.py::test_iteration_is_in_submission_order_and_completion_in_its_own",),
    ),
    # ------------------------------------------------------------ endings
    Mutant(
        "one error of several is lost",
        "_endings.py",
        "list(result.errors.values())",
        "list(result.errors.values())[:1]",
        ("test_endings.py::test_errors_of_cleanup_are_in_the_group",),
    ),
    Mutant(
        "errors met under a breach are not its cause",
        "_endings.py",
        "exc.__cause__ = _group([*step.errors, *_shown(step, result)], step, result)",
        "pass",
        ("test_endings.py::test_errors_of_cleanup_are_the_cause",),
    ),
    Mutant(
        "an error of the body hides those of the branches",
        "_endings.py",
        "_group([*step.errors, *_shown(step, result)], step, result) if step.errors else None",
        "_group(step.errors, step, result) if step.errors else None",
        ("test_endings.py::test_errors_of_cleanup_are_in_the_group",),
    ),
    Mutant(
        "a step that may move on raises its timeout",
        "_endings.py",
        "if cause is Cause.DEADLINE and not move_on:",
        "if cause is Cause.DEADLINE:",
        ("test_deadlines.py::test_move_on_after_goes_on_with_what_there_is",),
    ),
    Mutant(
        "a cancellation from outside hides errors of cleanup",
        "_endings.py",
        "if len(outside) == 1 and not shown and not crashes:",
        "if len(outside) == 1 and not crashes:",
        (
            "test_endings.py::test_a_branch_whose_own_nursery_met_an_error_has_failed_with_the_group",
        ),
    ),
    # ------------------------------------------------------------ policies and rules
    Mutant(
        "one failure fewer is tolerated than was said",
        "_policies.py",
        "Decision.GO_ON if tally.failed <= self.failures",
        "Decision.GO_ON if tally.failed < self.failures",
        ("test_policies.py::test_tolerate_collects_up_to_that_many",),
    ),
    Mutant(
        "a quorum is given up while its successes still count",
        "_policies.py",
        "return tally.succeeded + tally.outstanding >= self.successes",
        "return tally.outstanding >= self.successes",
        ("test_policies.py::test_a_quorum_stops_once_it_is_met",),
    ),
    Mutant(
        "a goal is given up while the body may still submit",
        "_judging.py",
        "if not step.body_open and not step.policy.in_reach(tally):",
        "if not step.policy.in_reach(tally):",
        ("test_policies.py::test_reach_is_judged_once_the_body_has_ended",),
    ),
    Mutant(
        "a policy that raises is ignored",
        "_judging.py",
        'step.stop(Cause.BODY, f"the policy raised {said(exc)}")',
        "pass",
        ("test_policies.py::test_a_predicate_that_raises_stops_the_step_as_the_body_would",),
    ),
    Mutant(
        "a rule for successes fires on a failure",
        "_rules.py",
        '"success": frozenset({BranchStatus.SUCCEEDED}),',
        '"success": frozenset({BranchStatus.SUCCEEDED, BranchStatus.FAILED}),',
        ("test_rules.py::test_by_default_only_a_success_triggers_it",),
    ),
    Mutant(
        "what a rule has cancelled fires others",
        "_rules.py",
        '"end": frozenset({',
        '"end": frozenset({BranchStatus.CANCELLED, ',
        ("test_rules.py::test_what_was_cancelled_or_skipped_triggers_nothing",),
    ),
    Mutant(
        "an observer that has raised is told on",
        "_announce.py",
        "observers.remove(observer)",
        "pass",
        ("test_observers.py::test_one_that_raises_is_reported_once_and_dropped",),
    ),
    Mutant(
        "what an observer causes is told before what it was told of",
        "_announce.py",
        "if self._telling:",
        "if False:",
        ("test_observers.py::test_what_an_observer_causes_is_told_after_the_current_event",),
    ),
    # ------------------------------------------------------------ tries, rates
    Mutant(
        "a branch keeps its token between two tries",
        "_core.py",
        "outcome_of(error))\n            return self._pass_on(record, None)",
        "outcome_of(error))\n            return None",
        ("test_retry.py::test_waits_double_up_to_the_most",),
    ),
    Mutant(
        "a branch is tried once more than was said",
        "_retry.py",
        "if tries >= self.attempts or",
        "if tries > self.attempts or",
        ("test_retry.py::test_waits_double_up_to_the_most",),
    ),
    Mutant(
        "a try sees what the one before has set in its context",
        "_tries.py",
        "record._context = tries.context.copy()",
        "pass",
        ("test_retry.py::test_each_try_has_a_fresh_copy_of_the_context",),
    ),
    Mutant(
        "a branch that is stopped between two tries loses its last error",
        "_tries.py",
        "record._value = record._tries.error",
        "pass",
        ("test_retry.py::test_the_timeout_runs_while_it_waits_for_its_token",),
    ),
    Mutant(
        "a new try starts past the timeout of all",
        "_tries.py",
        "if wait is None or now + wait >= record.started_at + tries.retry.timeout:",
        "if wait is None:",
        ("test_retry.py::test_backpressure_for_ever_is_the_end",),
    ),
    Mutant(
        "a branch that was told to stop is tried again",
        "_tries.py",
        "if step.cause is not None or record._cause not in TRIED_AFTER:",
        "if step.cause is not None:",
        ("test_retry.py::test_a_try_that_was_told_to_stop_is_not_retried",),
    ),
    Mutant(
        "backpressure does not say when the next try comes",
        "_retry.py",
        "return error.retry_after",
        "pass",
        ("test_retry.py::test_backpressure_says_after_how_long",),
    ),
    Mutant(
        "a rate lets any number through at once after the first",
        "_rate.py",
        "max(self._next, self._run.now()) + self._interval",
        "self._run.now() + self._interval",
        ("test_rate.py::test_a_burst_comes_at_once_and_then_one_at_a_time",),
    ),
    Mutant(
        "a branch that was stopped before it began has cost a place in the rate",
        "_admission.py",
        "pool.gate.refund()",
        "pass",
        ("test_rate.py::test_a_branch_stopped_before_its_function_is_called_spends_nothing",),
    ),
    Mutant(
        "who resumes is held by the rate",
        "_admission.py",
        "if self.gate is not None and entry[0] is not RESUMES and not",
        "if self.gate is not None and not",
        ("test_rate.py::test_who_goes_on_is_not_held",),
    ),
    # ------------------------------------------------------------ budgets, breaches
    Mutant(
        "a refused request has been written in part",
        "_budget.py",
        "changes.append((account, used))",
        "account.used = used",
        ("test_budget.py::test_several_units_are_granted_all_or_none",),
    ),
    Mutant(
        "money is reserved after the work: a limit can be passed",
        "_budget.py",
        "if used > account.limit:\n                        raise",
        "if account.used > account.limit:\n                        raise",
        ("test_budget.py::test_reaching_a_limit_is_allowed_and_passing_it_is_not",),
    ),
    Mutant(
        "reaching a limit is refused",
        "_budget.py",
        "if used > account.limit:\n                        raise",
        "if used >= account.limit:\n                        raise",
        ("test_budget.py::test_reaching_a_limit_is_allowed_and_passing_it_is_not",),
    ),
    Mutant(
        "the budget around is not asked",
        "_budget.py",
        "for accounts in self._chained:\n            for unit, amount in asked.items():",
        "for accounts in self._chained[:1]:\n            for unit, amount in asked.items():",
        (
            "test_budget.py::test_what_is_asked_of_a_child_counts_with_its_parent_for_the_units_it_has",
        ),
    ),
    Mutant(
        "what was not settled is not released",
        "_spending.py",
        "budget._book.release(left)",
        "pass",
        ("test_budget.py::test_leaving_the_block_releases_what_was_not_settled",),
    ),
    Mutant(
        "amounts add up as binary floats do",
        "_budget.py",
        "asked[unit] = Decimal(repr(amount))",
        "asked[unit] = Decimal(amount)",
        ("test_budget.py::test_leaving_the_block_releases_what_was_not_settled",),
    ),
    Mutant(
        "a refusal by the budget around stops the inner steps only",
        "_spending.py",
        "concerned = self._chain[: len(refusal._asked)]",
        "concerned = self._chain[:1]",
        ("test_budget.py::test_a_refusal_reaches_the_steps_up_to_the_budget_that_refused",),
    ),
    Mutant(
        "the last reason of a breach stands",
        "_breach.py",
        "if self._reason is None:\n            self._reason",
        "if True:\n            self._reason",
        ("test_breach.py::test_the_first_reason_stands",),
    ),
    Mutant(
        "a breach stops the outer step first",
        "_breach.py",
        "for step in reversed(tuple(self._steps)):",
        "for step in tuple(self._steps):",
        ("test_breach.py::test_a_step_nested_in_another_one_of_its_breach_is_breached_too",),
    ),
    Mutant(
        "a step opens on a breach that was tripped",
        "_open.py",
        "raise Breached(options.breach.reason)",
        "pass",
        ("test_breach.py::test_a_step_opened_on_a_tripped_breach_raises_at_once",),
    ),
    # ------------------------------------------------------------ limiters
    Mutant(
        "a grant that comes too late is lost",
        "_limiter.py",
        "pool.give_back(late)",
        "pass",
        ("test_limiter.py::test_a_grant_that_comes_with_a_cancellation_is_passed_on",),
    ),
    Mutant(
        "a task may wait for a limiter that it is in",
        "_limiter.py",
        "if run.current_task() in self._holders:",
        "if False:",
        ("test_limiter.py::test_a_task_that_is_in_it_can_not_enter_again",),
    ),
    Mutant(
        "a task that is cancelled as it waits to enter is still waited for",
        "_limiter.py",
        "pool.forget(entrant)",
        "pass",
        ("test_limiter.py::test_an_entrant_that_gives_up_leaves_the_queue",),
    ),
    Mutant(
        "forget to take the borrower out: a token that finds no record is kept",
        "_foreign.py",
        "        self._return_spare()\n        wanted",
        "        wanted",
        ("test_foreign.py::test_branches_run_under_it_and_it_is_idle_afterwards",),
    ),
    Mutant(
        "a user's own limiter is kept from the user's own tasks",
        "_foreign.py",
        "if self._spare and self._shared.is_wanted_back():",
        "if False:",
        ("test_foreign.py::test_it_is_first_come_first_served_with_the_users_own_tasks",),
    ),
    Mutant(
        "requests stand in the line of a user's own limiter for nobody",
        "_foreign.py",
        "self._shared.ask(0, self._granted)",
        "pass",
        ("test_foreign.py::test_a_stopped_step_leaves_the_line",),
    ),
    Mutant(
        "tokens are passed on though a user's own limiter has shrunk",
        "hosts/_trio_shared.py",
        "if statistics.borrowed_tokens > statistics.total_tokens:",
        "if False:",
        ("test_foreign.py::test_the_total_can_change",),
    ),
    # ------------------------------------------------------------ nursery and block
    Mutant(
        "a branch keeps its token as it leaves a nested block",
        "_open.py",
        "            if core.outstanding:\n                core.join.begin()",
        "            pass",
        ("test_nesting.py::test_many_levels_share_one_limit",),
    ),
    Mutant(
        "an iterator over endings skips one",
        "_nursery.py",
        "self._position += 1",
        "self._position += 2",
        ("test_completed.py::test_results_come_in_the_order_of_ending",),
    ),
    Mutant(
        "a body that was cancelled from outside is said to have ended by itself",
        "_open.py",
        "        core.interrupted()\n        core.cut = True",
        "        pass",
        ("test_endings.py::test_an_empty_step_that_waits_in_its_body_can_time_out",),
    ),
    Mutant(
        "a predicate is asked about branches that have ended",
        "_nursery.py",
        "if record._step is not None and predicate(key)",
        "if predicate(key)",
        ("test_nursery.py::test_cancel_where_takes_the_live_ones_that_match",),
    ),
    # ------------------------------------------------------------ maps and hedges
    Mutant(
        "results that nobody consumes do not hold the input back",
        "_feed.py",
        "if len(core.records) >= max(",
        "if core.outstanding >= max(",
        ("test_map.py::test_what_runs_and_what_is_unconsumed_stay_within_the_limit",),
    ),
    Mutant(
        "an input is pulled far ahead of what is admitted",
        "_feed.py",
        "return self._ahead is None or self._ahead._entry is None",
        "return True",
        ("test_map.py::test_one_item_is_pulled_ahead_of_the_admissions",),
    ),
    Mutant(
        "what runs is not stopped as the block of a map is left",
        "_feed.py",
        "        if stop:\n",
        "        if False:\n",
        ("test_map.py::test_a_limit_that_changes_is_followed",),
    ),
    Mutant(
        "the failure of a branch whose result was consumed is forgotten",
        "_feed.py",
        "            self._keep(record.exception, result)",
        "            pass",
        ("test_map.py::test_a_policy_raises_exceptions_that_were_consumed_but_100_at_most",),
    ),
    Mutant(
        "an error of the input ends the iteration as if all had been pulled",
        "_feed.py",
        "        core.errors.append(exc)\n",
        "",
        ("test_map.py::test_errors_of_an_input_that_is_cancelled_are_raised",),
    ),
    Mutant(
        "results that were to come in order come as they end",
        "_feed.py",
        "return line[0]._step is None",
        "return True",
        ("test_map.py::test_each_item_has_one_result",),
    ),
    Mutant(
        "a generator given as input is left open",
        "_inputs.py",
        "await generator.aclose()",
        "pass",
        ("test_map.py::test_what_runs_and_what_is_unconsumed_stay_within_the_limit",),
    ),
    Mutant(
        "a slow call is asked once more than was said",
        "_hedged.py",
        "if self._asked < self._attempts and",
        "if self._asked <= self._attempts and",
        ("test_hedged.py::test_a_slow_call_is_asked_again_and_the_first_success_wins",),
    ),
    Mutant(
        "a hedge asks on after its block was left",
        "_hedged.py",
        "        if self._timer is not None:\n            self._timer.cancel()",
        "        pass",
        ("test_hedged.py::test_a_fast_call_is_asked_once",),
    ),
    # ------------------------------------------------------------ trio
    Mutant(
        "drop the re-check of cancel_called: a late cancel stops the next branch",
        "hosts/_trio_runner.py",
        "touched = record._cause is not None or record._timeout != math.inf",
        "touched = record._timeout != math.inf",
        ("test_races.py::test_a_cancel_after_the_return_was_under_way_is_too_late",),
    ),
    Mutant(
        "the timeout of one branch stops the next",
        "hosts/_trio_runner.py",
        "touched = record._cause is not None or record._timeout != math.inf",
        "touched = record._cause is not None",
        ("test_deadlines.py::test_a_branch_in_time_keeps_nothing_of_its_timeout",),
    ),
    Mutant(
        "do not change the context: a branch sets variables of the next",
        "hosts/_trio_runner.py",
        "    task.context = context\n    while True:",
        "    while True:",
        ("test_contexts.py::test_a_branch_sees_what_was_set_as_it_was_submitted",),
    ),
    Mutant(
        "do not restore the context: a runner that rests keeps that of the branch before",
        "hosts/_trio_runner.py",
        "task.context = own",
        "pass",
        ("test_map.py::test_what_was_consumed_is_gone_at_once",),
    ),
    Mutant(
        "the timeout of a branch goes before a deadline of the step that came first",
        "hosts/_trio.py",
        "if scope.cancel_called and not (root.cancel_called and root.deadline < scope.deadline):",
        "if scope.cancel_called:",
        ("test_races.py::test_its_own_timeout_after_a_deadline_that_it_is_the_first_to_hear_of",),
    ),
    Mutant(
        "a cancelled wait goes on without its token",
        "hosts/_trio.py",
        "trio.CancelScope(shield=True, deadline=record._place.deadline)",
        "trio.CancelScope(deadline=record._place.deadline)",
        (
            "test_nesting.py::test_a_wait_cut_short_by_a_scope_of_ones_own_takes_the_token_back_first",
        ),
    ),
    Mutant(
        "branches start in the reverse of the order in which they were admitted",
        "hosts/_trio_runner.py",
        "host.granted.popleft()",
        "host.granted.pop()",
        ("test_priorities.py::test_higher_first_then_first_come",),
    ),
    Mutant(
        "a branch that never blocks keeps all others from the thread",
        "hosts/_trio_runner.py",
        "elif not self._has_blocked and perf_counter() > run.slice_end:",
        "elif False:",
        ("test_fairness.py::test_branches_that_return_at_once",),
    ),
    Mutant(
        "a timer that is set later, for earlier, rings late",
        "hosts/_trio_timers.py",
        "self._scope.deadline = min(self._scope.deadline, when)",
        "pass",
        ("test_timers.py::test_an_earlier_one_may_be_asked_for_later",),
    ),
    Mutant(
        "a block that was cancelled, with nothing left to wait for, ends quietly",
        "hosts/_trio.py",
        "if core.is_stopping() and exc is None:",
        "if False:",
        ("test_endings.py::test_what_is_cancelled_before_it_starts_runs_nothing",),
    ),
    Mutant(
        "a limiter of trio's own caps the threads of branches",
        "hosts/_trio.py",
        "trio.to_thread.run_sync(context.run, sync_fn, limiter=unlimited)",
        "trio.to_thread.run_sync(context.run, sync_fn)",
        ("test_threads.py::test_no_token_of_trios_own_limiter_is_taken",),
    ),
    # ------------------------------------------------------------ asyncio
    Mutant(
        "a step leaves its own requests to stop behind in the block's task",
        "hosts/_asyncio_host.py",
        "for _ in range(own):",
        "for _ in range(0):",
        ("test_asyncio_host.py::test_cleanup_that_awaits_is_not_interrupted",),
    ),
    Mutant(
        "a branch that is cancelled before its first step keeps its place",
        "hosts/_asyncio_host.py",
        "            following = core.not_begun(record)\n",
        "            following = None\n",
        ("test_asyncio_host.py::test_a_task_cancelled_before_its_first_step_frees_its_place",),
    ),
    Mutant(
        "a branch that swallows its cancellations is told again once only",
        "hosts/_asyncio_host.py",
        "        self.stop(record, reason)\n        warn(",
        "        warn(",
        ("test_asyncio_host.py::test_a_swallowed_cancellation_is_told_again",),
    ),
    Mutant(
        "a branch that was told to stop is told again as the step stops",
        "hosts/_asyncio_host.py",
        "if record.status is RUNNING and record not in self._told:",
        "if record.status is RUNNING:",
        (
            "test_asyncio_host.py::test_cleanup_of_a_cancelled_branch_is_not_interrupted_by_a_stop_of_the_step",
        ),
    ),
    Mutant(
        "a stop that comes once the body has ended cancels its task",
        "hosts/_asyncio_host.py",
        "if self._core.body_open and (task",
        "if (task",
        ("test_asyncio_host.py::test_cleanup_that_awaits_is_not_interrupted",),
    ),
    Mutant(
        "a cancellation that was swallowed before the block is met in it again",
        "hosts/_asyncio_host.py",
        "task.cancelling() > self._baseline",
        "task.cancelling() > 0",
        ("test_asyncio_host.py::test_requests_are_counted_from_those_there_were_on_entry",),
    ),
    Mutant(
        "timers of a step outlive it",
        "hosts/_asyncio_host.py",
        "        for timer in self._timers.values():\n            timer.cancel()\n",
        "",
        ("test_asyncio_host.py::test_a_deadline_that_comes_once_its_step_was_left_reaches_nobody",),
    ),
    Mutant(
        "the ledger counts tokens that are borrowed, and none that is given back",
        "hosts/_asyncio_ledger.py",
        "self.borrowed -= 1",
        "pass",
        (
            "test_asyncio_host.py::test_what_comes_in_the_turn_in_which_a_nested_block_is_left_stalls_nothing",
        ),
    ),
    Mutant(
        "the ledger does not hear of a changed total",
        "hosts/_asyncio_ledger.py",
        "set_total(self, total_tokens: int | float) -> None:\n        self.total = total_tokens",
        "set_total(self, total_tokens: int | float) -> None:\n        pass",
        ("test_asyncio_host.py::test_a_limit_that_has_grown_admits_as_many",),
    ),
    Mutant(
        "a cancellation met while a branch waits for its token is lost",
        "hosts/_asyncio_shields.py",
        "            cancelled = exc\n    if cancelled is not None:",
        "            pass\n    if cancelled is not None:",
        (
            "test_asyncio_host.py::test_a_timeout_in_a_branch_that_waits_for_its_token_goes_through_with_it",
        ),
    ),
    Mutant(
        "a cancellation that is none of the step's is swallowed for the value of a thread",
        "hosts/_asyncio_shields.py",
        "if not _told_by_step(task):",
        "if False:",
        ("test_asyncio_host.py::test_a_timeout_of_ones_own_around_a_thread_goes_before_its_value",),
    ),
    # ------------------------------------------------------------ adaptive limits and guards
    Mutant(
        "a limit is told of the time in which the token was lent",
        "_meter.py",
        "(started_at, in_flight, lent + now - since)",
        "(started_at, in_flight, lent)",
        ("test_adaptive.py::test_time_in_which_the_token_was_lent_is_no_latency",),
    ),
    Mutant(
        "who is parked counts as in flight",
        "_meter.py",
        "        self.in_flight -= waiter._weight\n        self._parked[waiter] = now",
        "        self._parked[waiter] = now",
        ("test_adaptive.py::test_time_in_which_the_token_was_lent_is_no_latency",),
    ),
    Mutant(
        "small steps do not bypass the limit",
        "_meter.py",
        "elif self._pool.used + self._pool.waiting >= self._pool.cap:",
        "else:",
        ("test_adaptive.py::test_steps_with_fewer_branches_than_the_initial_limit_bypass_it",),
    ),
    Mutant(
        "a timeout of a branch's own is no drop",
        "_meter.py",
        "return DROPPED if record._cause is Cause.TIMEOUT else outcome_of(record._value)",
        "return outcome_of(record._value)",
        ("test_adaptive.py::test_outcomes",),
    ),
    Mutant(
        "a limit that raised is asked again",
        "_meter.py",
        "            self._is_broken = True\n",
        "",
        ("test_adaptive.py::test_a_limit_that_raises_stops_the_step_as_its_body_would",),
    ),
    Mutant(
        "the tokens of a limit can be set by hand",
        "_limiter.py",
        "        if self._limit is not None:\n            raise RuntimeError",
        "        if self._limit is ...:\n            raise RuntimeError",
        ("test_adaptive.py::test_only_the_limit_sets_the_tokens",),
    ),
    Mutant(
        "while resources are short nothing may run at all",
        "_guarding.py",
        "        if not any(r.status is QUEUED or _is_busy(r, self._step) for r in self._leaves):\n"
        "            return True\n",
        "",
        ("test_guarding.py::test_one_branch_runs_all_the_same",),
    ),
    Mutant(
        "a parked branch is one that runs, to the guards",
        "_guarding.py",
        "not record._waits or any(_is_wait_busy(wait.target, step) for wait in record._waits)",
        "True",
        ("test_guarding.py::test_a_parked_branch_is_none_that_runs",),
    ),
    Mutant(
        "who waits for a guarded step within is none that runs, to the guards",
        "_guarding.py",
        "not record._waits or any(_is_wait_busy(wait.target, step) for wait in record._waits)",
        "not record._waits",
        ("test_nested_steps.py",),
    ),
    Mutant(
        "memory that was reserved is never given back",
        "_guarding.py",
        "self.guards.ended(self._leaves.pop(record))\n        if record is self._shedding:",
        "self._leaves.pop(record)\n        if record is self._shedding:",
        ("test_guarding.py::test_reservations_are_admitted_as_they_fit",),
    ),
    Mutant(
        "the next is shed before the last is out",
        "_guarding.py",
        "elif self._shedding is None and self._step.cause is None",
        "elif self._step.cause is None",
        ("test_guarding.py::test_they_are_shed_one_at_a_time_but_the_last",),
    ),
    Mutant(
        "the only branch that runs is shed too",
        "_guarding.py",
        "if len(running) > 1:",
        "if running:",
        ("test_guarding.py::test_they_are_shed_one_at_a_time_but_the_last",),
    ),
    Mutant(
        "the oldest is shed first",
        "_guarding.py",
        "for record in reversed(self._leaves)",
        "for record in self._leaves",
        ("test_guarding.py::test_the_lowest_priority_and_of_these_the_newest_is_shed",),
    ),
    Mutant(
        "a cancel of a branch that is being shed is lost",
        "_core.py",
        "if record._cause is Cause.SHED or self._is_to_be_tried_again(record):",
        "if self._is_to_be_tried_again(record):",
        ("test_guarding.py::test_one_that_was_shed_can_be_stopped",),
    ),
    Mutant(
        "a try that was shed counts as one of its retry",
        "_tries.py",
        "record.attempts - self.shed, random",
        "record.attempts, random",
        ("test_guarding.py::test_a_try_that_was_shed_is_none_of_the_retrys",),
    ),
    Mutant(
        "a step that was left is still told of readings",
        "_open.py",
        "            core.guarding.leave()\n",
        "",
        ("test_guarding.py::test_its_readings_end_with_the_step",),
    ),
    # ------------------------------------------------------------ steps
    Mutant(
        "a branch can be cancelled though its step forbids it",
        "_branch.py",
        "if not step.cancels_branches:",
        "if False:",
        ("test_parallel.py::test_individual_cancellation",),
    ),
    Mutant(
        "memory and the loop's lag are watched only beside resource limits",
        "_units.py",
        "if self.resources is not None or any(self.watches.values()):",
        "if self.resources is not None:",
        (
            "test_parallel.py::test_memory_based_limits_hold_as_memory_runs_short",
            "test_parallel.py::test_a_loop_that_lags_admits_nothing_new",
        ),
    ),
    Mutant(
        "a parallel step's limit never moves",
        "_parallel_run.py",
        "if not config.adaptive_limits:",
        "if True:",
        ("test_parallel.py::test_adaptive_limits_move_the_limit",),
    ),
    Mutant(
        "what failed branches did is merged",
        "_parallel_run.py",
        "names = result.with_status(BranchStatus.SUCCEEDED)",
        "names = list(result)",
        ("test_parallel.py::test_what_a_failed_pipeline_did_before_it_failed_is_not_merged",),
    ),
    Mutant(
        "the last to be submitted wins, not the last to end",
        "_parallel_run.py",
        "if strategy in BY_COMPLETION:",
        "if False:",
        ("test_parallel.py::test_contexts_are_merged",),
    ),
    Mutant(
        "a step changes the context of others",
        "_steps.py",
        "context = held.copy()",
        "context = held.value",
        ("test_steps.py::test_each_try_has_a_context_of_its_own",),
    ),
    Mutant(
        "what the journal has is done again",
        "_steps.py",
        "entry = journal.get(key)",
        "entry = None",
        ("test_kept_steps.py::test_the_same_run_again_skips_what_has_succeeded",),
    ),
    Mutant(
        "a failed step does not end its pipeline",
        "_pipeline.py",
        "if not result.success:",
        "if False:",
        ("test_pipeline.py::test_a_failed_step_ends_it_with_what_was_done",),
    ),
    Mutant(
        "a breach stops what its step would let run",
        "_pipeline.py",
        "core.drains = unit._lets_run",
        "core.drains = False",
        ("test_pipeline.py::test_a_step_without_a_breach_watcher_ends_by_itself",),
    ),
    Mutant(
        "a pipeline's usage limits are nobody's",
        "_pipeline.py",
        "if config.usage_limits is not None:",
        "if False:",
        ("test_pipeline.py::test_usage_limits_are_a_budget_for_the_whole_run",),
    ),
    Mutant(
        "a pipeline's resource limits are nobody's",
        "_pipeline.py",
        "if config.resource_limits is not None:",
        "if False:",
        ("test_pipeline.py::test_resource_limits_hold_every_parallel_step",),
    ),
    Mutant(
        "a pipeline has no timeout",
        "_pipeline.py",
        "fail_after=config.timeout,",
        "",
        ("test_pipeline.py::test_its_timeout_ends_the_step_that_runs",),
    ),
    Mutant(
        "nothing looks at those who are set aside",
        "_guarding.py",
        "heappush(self._aside_for(record), entry)\n        self._is_quiet = False",
        "heappush(self._aside_for(record), entry)",
        ("test_guarding.py",),
    ),
    Mutant(
        "a step's guards are quiet while they are pressed",
        "_guards.py",
        "return is_easy and self._pace.window == inf",
        "return True",
        ("test_guarding.py",),
    ),
)


def package() -> Path:
    spec = find_spec("trio_parallel_steps")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def copy(into: Path) -> Path:
    original = package()
    return Path(
        shutil.copytree(
            original, into / original.name, ignore=shutil.ignore_patterns("__pycache__")
        )
    )


def run_tests(name: str, copied: Path, tests: Iterable[str], seconds: float | None) -> Outcome:
    paths = os.pathsep.join(filter(None, [str(copied.parent), os.environ.get("PYTHONPATH")]))
    env = os.environ | ENVIRONMENT | {"PYTHONPATH": paths}
    env.pop("FIGURES", None)  # what broken code has to tell is none
    chosen = [f"{TESTS.name}/{test}" for test in tests]
    said = copied.parent / "said.txt"
    start = time.monotonic()
    with said.open("w") as file:
        try:
            code = subprocess.run(
                [sys.executable, "-m", "pytest", *OPTIONS, *chosen],
                check=False,
                cwd=TESTS.parent,
                env=env,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=seconds,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
    return _outcome(name, code, time.monotonic() - start, said.read_text())


def _outcome(name: str, code: int | None, seconds: float, said: str) -> Outcome:
    failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", said, re.MULTILINE)
    if code == pytest.ExitCode.TESTS_FAILED and failed is not None:
        return Outcome(name, KILLED, seconds, failed[1])
    verdict = HUNG if code is None else BROKE if code else SURVIVED
    return Outcome(name, verdict, seconds, " ".join(said.splitlines()[-1:]))


def check_one(mutant: Mutant) -> Outcome:
    with tempfile.TemporaryDirectory() as scratch:
        copied = copy(Path(scratch))
        (copied / mutant.module).write_text(mutant.source(copied))
        return run_tests(mutant.name, copied, mutant.tests, SECONDS)


def check_unchanged(mutants: Iterable[Mutant]) -> Outcome:
    """Of the package as it is, with all that the mutants are to be killed by."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests)
    with tempfile.TemporaryDirectory() as scratch:
        return run_tests("the package as it is", copy(Path(scratch)), tests, None)


def check(mutants: Sequence[Mutant], jobs: int) -> list[Outcome]:
    """Check them, `jobs` at once, and print a line for each as it ends."""
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        for done in as_completed([pool.submit(check_one, mutant) for mutant in mutants]):
            outcome = done.result()
            print(outcome, flush=True)  # noqa: T201
            outcomes.append(outcome)
    return outcomes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("words", nargs="*", metavar="WORDS", help="only those named so")
    parser.add_argument("--list", action="store_true", help="print their names, and check none")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once")
    options = parser.parse_args()
    words: list[str] = options.words or [""]
    chosen = [mutant for mutant in MUTANTS if any(word in mutant.name for word in words)]
    if options.list:
        print(*(f"{mutant.module:28}{mutant.name}" for mutant in chosen), sep="\n")  # noqa: T201
        return
    if not chosen:
        parser.error(f"no mutant is named so: {', '.join(words)}")
    unchanged = check_unchanged(chosen)
    if unchanged.verdict != SURVIVED:
        sys.exit(f"the tests have to pass before anything is broken:\n{unchanged}")
    print(f"{unchanged.name}: {unchanged.said}", flush=True)  # noqa: T201
    outcomes = check(chosen, options.jobs)
    alive = [outcome for outcome in outcomes if outcome.verdict != KILLED]
    killed = len(outcomes) - len(alive)
    figures.add(
        "mutants",
        made=len(outcomes),
        killed=killed,
        longest_s=round(max(outcome.seconds for outcome in outcomes), 1),
    )
    print(*alive, f"{killed} / {len(outcomes)} killed", sep="\n")  # noqa: T201
    sys.exit(bool(alive))


if __name__ == "__main__":
    main()
