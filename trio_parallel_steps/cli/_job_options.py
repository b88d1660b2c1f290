"""The options that commands which run jobs share: how many at once, when to stop, what to write."""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import attrs
import click

from trio_parallel_steps import PressureAction, ResourceLimits

from ._options import at_least, check_tokens, checked, tokens

F = TypeVar("F", bound=Callable[..., Any])


def positive(text: str) -> float:
    number = float(text)
    if not 0 < number < math.inf:  # NaN too
        raise ValueError
    return number


check_positive = checked("a number > 0", positive)
check_retries = checked("an int >= 0", at_least(0))


@attrs.frozen
class JobOptions:
    """Fields as the options are named."""

    limit: int | float | None = None
    keep_going: bool = False
    stream: bool = False
    json_file: str | None = None
    joblog: str | None = None
    resume: bool = False
    dry_run: bool = False
    max_memory_mb: float | None = None
    on_memory: str = "hold"

    @property
    def resources(self) -> ResourceLimits | None:
        if self.max_memory_mb is None:
            return None
        action = PressureAction(self.on_memory)
        return ResourceLimits(max_memory_mb=self.max_memory_mb, action=action)


OPTIONS = (
    click.option(
        "--limit", "-j", metavar="N", callback=check_tokens, help="Jobs at once at most, or inf."
    ),
    click.option("--keep-going", is_flag=True, help="Run the others though one has failed."),
    click.option(
        "--stream", is_flag=True, help="Show output line by line as it comes, with the job's key."
    ),
    click.option(
        "--json",
        "json_file",
        metavar="FILE",
        help="Write what became of each job there; - is standard output.",
    ),
    click.option(
        "--joblog",
        metavar="FILE",
        help="Write a line for each job that ends, as GNU parallel does.",
    ),
    click.option("--dry-run", is_flag=True, help="Print what would be run, and run nothing."),
    click.option(
        "--max-memory-mb",
        metavar="MB",
        callback=check_positive,
        help="Start no more while all jobs together use more memory than that.",
    ),
    click.option(
        "--on-memory",
        type=click.Choice([action.value for action in PressureAction]),
        default="hold",
        help="What to do then: start no more, or also stop the newest to run it again later (for "
        "jobs that are safe to repeat), or stop all.  [default: hold]",
    ),
)


def job_options(function: F) -> F:
    """For a click command, which gets them by keyword."""
    for option in reversed(OPTIONS):
        function = option(function)
    return function


__all__ = [
    "JobOptions",
    "check_positive",
    "check_retries",
    "job_options",
    "tokens",
]
