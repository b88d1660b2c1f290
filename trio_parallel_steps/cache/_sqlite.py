"""Values in a sqlite file, which processes may share and which outlives them.

1. The file is read and written in a thread, those who ask at the same time together (`_batches`).
   Values are pickled in the event loop's thread: that is the user's code.
2. An entry is believed only if its checksum, over key and value, is right and it can be unpickled;
   else it is a miss, a warning, and overwritten.
3. Trouble with the file (locked, full, read-only) is a miss or a value not kept, and a warning.
   One that is no cache of ours, or can't be opened, is an error, and left as it is.
4. Time is the wall clock's, as no other outlives the process.
"""

from __future__ import annotations

import pickle
import sqlite3
from contextlib import suppress
from copy import copy
from hashlib import sha256
from time import time
from typing import TYPE_CHECKING, Any, Final
from weakref import finalize

from .._batches import Batches
from .._database import NotOurs, claim, connect
from .._outcomes import said
from ._stores import MISSING, warn_of

if TYPE_CHECKING:
    from pathlib import Path

    from ..hosts._abc import Run

OURS: Final = 0x74707363  # "tpsc"
LAYOUT: Final = 1
TABLES: Final = """
CREATE TABLE entries (
    key TEXT PRIMARY KEY, stored_at REAL NOT NULL, expires_at REAL NOT NULL,
    checksum BLOB NOT NULL, value BLOB NOT NULL)
"""
READ: Final = """
SELECT CAST(stored_at AS REAL), CAST(expires_at AS REAL), checksum, CAST(value AS BLOB)
FROM entries WHERE key = ?"""  # of what was damaged the types may be wrong, too
WRITE: Final = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)"
PURGE: Final = "DELETE FROM entries WHERE expires_at <= ?"
TIMEOUT: Final = 30.0  # seconds that another process may take to write


class Job:
    """Read an entry, or write one."""

    __slots__ = ("error", "key", "row", "value")

    def __init__(self, key: str, value: bytes | None = None) -> None:
        self.key: str = key
        self.value: bytes | None = value
        self.row: tuple[float, float, bytes, bytes] | None = None
        self.error: sqlite3.Error | None = None


class SqliteStore:
    __slots__ = ("__weakref__", "_batches", "_connection", "_path", "_ttl")

    def __init__(self, path: Path, ttl: float) -> None:
        self._path = path
        self._ttl = ttl
        self._connection: sqlite3.Connection | None = None
        self._batches: Batches[Job] = Batches(self._carry_out)

    async def get(self, key: str, run: Run) -> Any:
        await run.checkpoint()
        job = Job(key)
        error = await self._batches.add(job) or job.error
        if isinstance(error, sqlite3.Error):
            warn_of(f"{self!r} could not be read: {said(error)}", error)
        elif error is not None:
            raise copy(error) from error  # others may have it too
        return MISSING if job.row is None else self._believed(key, job.row)

    def _believed(self, key: str, row: tuple[float, float, bytes, bytes]) -> Any:
        stored_at, expires_at, checksum, pickled = row
        if min(expires_at, stored_at + self._ttl) <= time():
            return MISSING
        if checksum != _checksum(key, pickled):
            warn_of(f"an entry of {self!r} is damaged: it is as if it were not there")
            return MISSING
        try:
            return pickle.loads(pickled)
        except Exception as exc:  # of the user's classes: a miss
            warn_of(f"an entry of {self!r} can't be unpickled: {said(exc)}", exc)
            return MISSING

    async def put(self, key: str, value: Any, run: Run) -> None:
        try:
            pickled = pickle.dumps(value)
        except Exception as exc:  # of the user's classes: it is not kept
            kind = type(value).__qualname__
            warn_of(f"{self!r} can't keep a {kind}, as it can't be pickled: {said(exc)}", exc)
            return
        job = Job(key, pickled)
        error = await self._batches.add(job) or job.error
        if error is not None:
            warn_of(f"{self!r} could not keep a value: {said(error)}", error)

    # ------------------------------------------------------------ in a thread

    def _carry_out(self, jobs: list[Job]) -> None:
        connection = self._connection or self._open()
        now = time()
        for job in jobs:
            if job.value is None:
                try:
                    job.row = connection.execute(READ, (job.key,)).fetchone()
                except sqlite3.Error as exc:
                    job.error = exc.with_traceback(None)  # which keeps the jobs: no cycles
        writes = [job for job in jobs if job.value is not None]
        try:
            if writes:
                with connection:
                    connection.execute("BEGIN IMMEDIATE")
                    connection.executemany(WRITE, [self._row(job, now) for job in writes])
        except sqlite3.Error as exc:
            for job in writes:
                job.error = exc.with_traceback(None)

    def _row(self, job: Job, now: float) -> tuple[Any, ...]:
        assert job.value is not None
        return job.key, now, now + self._ttl, _checksum(job.key, job.value), job.value

    def _open(self) -> sqlite3.Connection:
        connection = connect(self._path, TIMEOUT)
        try:
            claim(connection, "IMMEDIATE", OURS, LAYOUT, TABLES)
            _set_wal(connection)
            connection.execute("PRAGMA synchronous = NORMAL")  # the last values may be lost
            connection.execute(PURGE, (time(),))
        except NotOurs as exc:
            connection.close()
            raise ValueError(
                f"`path` must be a cache's own file, got {str(self._path)!r}: {exc}; "
                "delete it, or name another"
            ) from exc
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        finalize(self, connection.close)
        return connection

    def __repr__(self) -> str:
        return f"sqlite({str(self._path)!r}, {self._ttl})"


def _set_wal(connection: sqlite3.Connection) -> None:
    """So that readers do not wait for writers.  The file remembers."""
    with suppress(sqlite3.OperationalError):  # another process is at it: it works either way
        connection.execute("PRAGMA journal_mode = WAL")


def _checksum(key: str, pickled: bytes) -> bytes:
    return sha256(key.encode() + b"\0" + pickled).digest()
