"""``--joblog``: a line for each job that has ended, as GNU parallel writes it.

1. A line is written at once as the job ends, in one piece.
2. What has succeeded is what exited with 0.  A job that was stopped with the run is not in it.
3. ``--resume`` skips a command as often as it has succeeded.  A last line that was torn counts as
   not written, and is taken away before more are added.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from ._json import why

HEADER = "Seq Host Starttime JobRuntime Send Receive Exitval Signal Command".replace(" ", "\t")


class JobLog:
    """The file, open for more lines; what it held is kept if the run is to be resumed."""

    def __init__(self, path: str, resume: bool) -> None:
        self.succeeded: Counter[str] = Counter()
        with refused(path):
            whole = 0
            if resume:
                self.succeeded, whole = read(path)
            self._file = Path(path).open("ab", buffering=0)  # noqa: SIM115
            self._file.truncate(whole)
        if not whole:
            self._write(HEADER)

    def add(
        self,
        number: int,
        started: float,
        runtime: float,
        received: int,
        exit_code: int,
        command: str,
    ) -> None:
        """`exit_code` is negative if it was killed by that signal."""
        status, killed_by = (exit_code, 0) if exit_code >= 0 else (0, -exit_code)
        text = command.replace("\n", "\0")  # as GNU parallel does: a line is a line
        times = f"{started:.3f}\t{runtime:10.3f}"
        self._write(f"{number}\t:\t{times}\t0\t{received}\t{status}\t{killed_by}\t{text}")

    def close(self) -> None:
        self._file.close()

    def _write(self, line: str) -> None:
        self._file.write(os.fsencode(line + "\n"))


@contextmanager
def refused(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError: a null byte too
        raise click.UsageError(
            f"`--joblog` must be a joblog that can be written, got {path!r}: {why(error)}"
        ) from None


def succeeded(path: str) -> Counter[str]:
    """How often each command has, by the file."""
    with refused(path):
        return read(path)[0]


def read(path: str) -> tuple[Counter[str], int]:
    """And how many bytes of it are whole lines."""
    done: Counter[str] = Counter()
    whole = 0
    with suppress(FileNotFoundError), Path(path).open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            if not whole and line[:-1] != HEADER.encode():
                raise ValueError("its first line is no joblog's")
            whole += len(line)
            match os.fsdecode(line[:-1]).split("\t", 8):
                case [_, _, _, _, _, _, "0", "0", command]:
                    done[command.replace("\0", "\n")] += 1
    return done, whole
