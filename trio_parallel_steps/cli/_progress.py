"""How the step stands, as an `Observer` sees it.  No output.

1. A branch is queued, then perhaps running, then ended; the three numbers add up to all of them.
2. Each ending that was not a success is news until somebody takes it, in order.
"""

from typing import Any

import trio

from trio_parallel_steps import Branch, BranchNursery, StepResult
from trio_parallel_steps.abc import Observer


class Progress(Observer):
    """Counts of one step, kept up to date while it runs."""

    def __init__(self) -> None:
        self.opened_at = 0.0
        self.limit: int | float = 0
        self.queued = 0
        self.ended = 0
        self.ran = 0
        self.running: dict[str, None] = {}  # a set in order: the longest first
        self._news: list[StepResult[Any]] = []

    def __repr__(self) -> str:
        return f"<Progress: {self.queued} queued, {len(self.running)} running, {self.ended} ended>"

    @property
    def total(self) -> int:
        return self.queued + len(self.running) + self.ended

    @property
    def elapsed(self) -> float:
        """Seconds since the step was opened."""
        return trio.current_time() - self.opened_at

    @property
    def rate(self) -> float:
        """Branches that ran to an ending, per second since the step was opened."""
        return self.ran / self.elapsed if self.elapsed > 0 else 0.0

    def take_news(self) -> list[StepResult[Any]]:
        news, self._news = self._news, []
        return news

    def step_opened(self, step: BranchNursery) -> None:
        self.opened_at = trio.current_time()
        self.limit = step.limiter.total_tokens

    def branch_queued(self, branch: Branch[Any]) -> None:
        self.queued += 1

    def branch_started(self, branch: Branch[Any]) -> None:
        self.queued -= 1
        self.running[str(branch.key)] = None

    def branch_ended(self, branch: Branch[Any], result: StepResult[Any]) -> None:
        if result.name in self.running:
            del self.running[result.name]
            self.ran += 1
        else:
            self.queued -= 1
        self.ended += 1
        if not result.success:
            self._news.append(result)
