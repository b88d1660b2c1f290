"""What the options take, and what is said of anything else: the option, what it must be, what was
given; one line, as the library says it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import click

Callback: TypeAlias = Callable[[click.Context, click.Parameter, str | None], Any]


def checked(what: str, convert: Callable[[str], Any]) -> Callback:
    """For `click.option`: the option's value by `convert`, which raises ValueError for one that
    won't do; None if it was not given."""

    def callback(ctx: click.Context, param: click.Parameter, given: str | None) -> Any:
        if given is None:
            return None
        try:
            return convert(given)
        except ValueError:
            option = param.opts[0]
            raise click.UsageError(f"`{option}` must be {what}, got {given!r}") from None

    return callback


def at_least(minimum: int) -> Callable[[str], int]:
    def convert(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise ValueError
        return number

    return convert


def tokens(text: str) -> int | float:
    return math.inf if text == "inf" else at_least(1)(text)


def seconds(text: str) -> float:
    number = float(text)
    if not number >= 0:  # NaN too
        raise ValueError
    return number


check_tokens = checked("an int >= 1 or inf", tokens)
check_count = checked("an int >= 0", at_least(0))
check_seconds = checked("a number of seconds >= 0", seconds)


def check_apart(**named: str | None) -> None:
    """No two options name one file, which would be lost."""
    seen: dict[Path, str] = {}
    for option, file in named.items():
        if file is None or file == "-" or "\0" in file:
            continue
        name = "`FILE`" if option == "file" else f"`--{option}`"
        other = seen.setdefault(Path(file).resolve(), name)
        if other != name:
            raise click.UsageError(f"{name} must be a file of its own, got {file!r}, as {other}")
