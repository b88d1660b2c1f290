"""What the demo shows while it runs.

1. On a terminal: a few lines that are redrawn in place, with the news above them.  Elsewhere, and
   on a terminal that can't move its cursor: the news, and from time to time a line of progress.
2. Nothing is drawn but in `refresh`, which one task of our own calls: no thread of rich's, and an
   observer stays quick.
3. However the block is left, all news is out and the terminal is as it was.
"""

import math
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import trio
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.text import Text

from trio_parallel_steps import BranchStatus, StepResult

from ._progress import Progress

STYLES = {
    BranchStatus.SUCCEEDED: "green",
    BranchStatus.FAILED: "red",
    BranchStatus.TIMED_OUT: "red",
    BranchStatus.CANCELLED: "yellow",
    BranchStatus.BREACHED: "magenta",
    BranchStatus.SKIPPED: "bright_black",
}
REFRESH_EVERY = 0.1  # seconds
PROGRESS_EVERY = 2.0  # seconds, where lines are not redrawn
BAR_WIDTH = 40
NAMES_SHOWN = 10


class View(ABC):
    """Entered, it shows; `refresh` draws what has changed."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        print_news(self._console, self._progress)

    @abstractmethod
    def refresh(self) -> None: ...


def open_view(console: Console, progress: Progress) -> View:
    """The view that suits where `console` writes."""
    # Not console.is_terminal alone: FORCE_COLOR asks for colours in a file, not for cursor codes.
    if console.is_terminal and console.file.isatty() and not console.is_dumb_terminal:
        return LiveView(console, progress)
    return PlainView(console, progress)


async def keep_fresh(view: View) -> None:
    """Refresh the view until cancelled."""
    while True:
        view.refresh()
        await trio.sleep(REFRESH_EVERY)


class LiveView(View):
    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console, progress)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            super().__exit__(exc_type, exc, traceback)
        finally:
            self._live.stop()

    def refresh(self) -> None:
        print_news(self._console, self._progress)
        self._live.update(self._render(), refresh=True)

    def _render(self) -> RenderableType:
        progress = self._progress
        # The bar comes last: it leaves room for the ^C that a terminal echoes after it.
        return Group(
            one_line(names(progress), style="cyan"),
            one_line(standing(progress)),
            ProgressBar(max(progress.total, 1), progress.ended, width=BAR_WIDTH),
        )


class PlainView(View):
    def __init__(self, console: Console, progress: Progress) -> None:
        super().__init__(console, progress)
        self._told_at = -math.inf

    def refresh(self) -> None:
        progress = self._progress
        print_news(self._console, progress)
        if progress.running and progress.elapsed >= self._told_at + PROGRESS_EVERY:
            self._told_at = progress.elapsed
            print_line(self._console, Text(f"{standing(progress)}; now {names(progress)}"))


def one_line(text: str, style: str = "") -> Text:
    """Cut where the terminal ends, so that the view keeps its height."""
    return Text(text, style, no_wrap=True, overflow="ellipsis")


def standing(progress: Progress) -> str:
    return (
        f"{progress.elapsed:.1f} s: {progress.queued} queued, "
        f"{len(progress.running)} running (limit {progress.limit}), "
        f"{progress.ended} ended, {progress.rate:.1f}/s"
    )


def names(progress: Progress) -> str:
    """The branches that run now, those that have run longest first."""
    running = list(progress.running)
    more = len(running) - NAMES_SHOWN
    return ", ".join(running[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def print_news(console: Console, progress: Progress) -> None:
    """A line for each ending that was not a success, all at once: a breach brings many."""
    news = progress.take_news()
    if news:
        print_line(console, Text("\n").join(map(news_line, news)))


def news_line(result: StepResult[Any]) -> Text:
    return Text(result.feedback or result.name, style=STYLES[result.status])


def print_line(console: Console, line: Text) -> None:
    """As it is: neither wrapped nor looked through for markup."""
    console.print(line, soft_wrap=True, highlight=False)
