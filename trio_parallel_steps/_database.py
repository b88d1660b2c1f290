"""A sqlite file of our own: made if missing, and never one of somebody else's.

1. A file says in its header whose it is (``application_id``) and of which layout
   (``user_version``).  It gets both together with its tables, in one transaction, so one that was
   left half-made is still empty.
2. A file that says anything else is left as it is.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from ._util import expected


class NotOurs(Exception):
    """A file of somebody else's, or one that can't be read; says why."""


def path_of(name: str, path: Any) -> Path:
    """Absolute: the working directory may change before it is opened."""
    try:
        text = os.fspath(path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise TypeError(expected(name, "a path, as a str or an os.PathLike of one", path))
    return Path(text).absolute()


def connect(path: Path, timeout: float) -> sqlite3.Connection:
    """For one thread at a time; waits `timeout` seconds for other processes.

    FileNotFoundError without its folder, OSError if it can't be opened.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r} for {path.name!r}")
    try:
        # isolation_level None: transactions begin and end where we say.
        return sqlite3.connect(path, timeout=timeout, isolation_level=None, check_same_thread=False)
    except sqlite3.OperationalError as exc:
        raise OSError(f"{str(path)!r} can't be opened: {exc}") from exc


def claim(connection: sqlite3.Connection, lock: str, ours: int, layout: int, tables: str) -> None:
    """Make the tables in an empty file; NotOurs if the file is not of ours and that layout."""
    try:
        with connection:  # ends the transaction
            connection.execute(f"BEGIN {lock}")
            is_of = _pragma(connection, "application_id")
            is_like = _pragma(connection, "user_version")
            (has_tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if (is_of, is_like, has_tables) == (0, 0, 0):
                for statement in tables.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA application_id = {ours}")
                connection.execute(f"PRAGMA user_version = {layout}")
            elif is_of != ours:
                raise NotOurs("it is another program's database")
            elif is_like != layout:
                raise NotOurs("it was made by another version of trio_parallel_steps")
    except sqlite3.OperationalError:  # locked, read-only, full: not the file's fault
        raise
    except sqlite3.DatabaseError as exc:
        raise NotOurs(str(exc)) from exc


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    (value,) = connection.execute(f"PRAGMA {name}").fetchone()
    assert isinstance(value, int)
    return value
