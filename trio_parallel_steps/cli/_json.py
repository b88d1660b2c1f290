"""What the demo leaves for programs: the full result as JSON, in a file or (``-``) on stdout.

1. That the file can be written is checked before anything starts, and leaves in it what it holds.
2. It is written once, at the end, whatever the end was.
3. On stdout it is all there is: `stdout_apart` sends there to stderr what calls print.
"""

import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any

import attrs
import click

from ._census import total
from ._demo import Finish


def check_writable(file: str) -> None:
    if file == "-":
        return
    try:
        Path(file).open("a").close()
    except (OSError, ValueError) as error:  # ValueError: a null byte
        raise click.UsageError(
            f"`--json` must be a file that can be written, got {file!r}: {why(error)}"
        ) from None


def write(file: str, finish: Finish) -> None:
    write_json(file, as_dict(finish))


@contextmanager
def stdout_apart(file: str | None) -> Iterator[None]:
    """If the JSON goes to stdout, whatever else is written there goes to stderr, that of child
    processes too."""
    if file != "-":
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):  # which needn't be what writes to 1
            yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def write_json(file: str, content: Any) -> None:
    text = json.dumps(content, indent=2) + "\n"
    try:
        if file == "-":
            with suppress(BrokenPipeError):  # whoever reads it has gone
                print(text, end="", flush=True)
        else:
            Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.ClickException(f"`--json`: {file!r} was not written: {why(error)}") from None


def why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def as_dict(finish: Finish) -> dict[str, Any]:
    totals = total(finish.counted)
    return {
        "python": platform.python_version(),
        "seconds": finish.seconds,
        "interrupted": finish.interrupted,
        "breached": finish.breached,
        "result": finish.result.to_dict(),
        "endings": Counter(branch.status.value for branch in finish.result.values()),
        "totals": {
            "packages": totals.packages,
            "packages_in_all": finish.packages,
            **attrs.asdict(totals.counts),
            "largest": totals.largest,
        },
        "packages": {name: attrs.asdict(counts) for name, counts in finish.counted.items()},
    }
