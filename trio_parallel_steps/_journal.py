"""The journal of a pipeline's run: what has succeeded, so that the same run again can skip it.

1. What `record` has returned for is in the file, whatever kills the process, or the machine.
2. Many are written at once: those who come during a write share the next one (`_batches`).
3. The file is locked from open to close, by the system, which lets go of a killed process's lock.
4. A journal belongs to one pipeline, in one version; any other, and any other file, is refused and
   left as it is.
5. An entry that is damaged is as if it had never been written.  One that is whole, but that this
   code can't unpickle, is an error: to skip it would repeat what was done.
"""

from __future__ import annotations

import enum
import pickle
import sqlite3
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final, final

import attrs

from ._announce import warn
from ._batches import Batches
from ._database import NotOurs, claim, connect, path_of
from ._errors import JournalError
from ._outcomes import said
from ._util import NoPublicConstructor, check_str
from .hosts import current_run, protected

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

OURS: Final = 0x7470736A  # "tpsj"
LAYOUT: Final = 1
TABLES: Final = """
CREATE TABLE journal (pipeline TEXT NOT NULL, version TEXT NOT NULL);
CREATE TABLE entries (key TEXT PRIMARY KEY, checksum BLOB NOT NULL, entry BLOB NOT NULL)
"""
READ: Final = "SELECT key, checksum, CAST(entry AS BLOB) FROM entries ORDER BY rowid"
WRITE: Final = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?)"
TIMEOUT: Final = 1.0  # seconds that the other run may take to close
LONG: Final = 60  # of a description that an error quotes
INSTEAD: Final = "delete the file to begin anew, or use another"


class NoContext(enum.Enum):
    NO_CONTEXT = "no context"


NO_CONTEXT: Final = NoContext.NO_CONTEXT


@final
@attrs.frozen
class Entry:
    """What there is to know of a branch, or a step, that has succeeded."""

    output: Any
    context: Any = NO_CONTEXT
    """the one that it left, if there is one"""
    usage: Mapping[str, float] = attrs.field(factory=dict)
    """what it spent of the run's budget"""


@final
class Journal(metaclass=NoPublicConstructor):
    """An open one; `open_journal` makes it."""

    __slots__ = ("_batches", "_connection", "_damaged", "_is_closed", "_loaded", "_path", "_places")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: sqlite3.Connection | None = None
        self._is_closed = False
        self._loaded: dict[str, bytes] = {}
        self._places: dict[str, int] = {}
        self._damaged: list[str] = []
        self._batches: Batches[tuple[str, bytes] | None] = Batches(self._carry_out)

    def get(self, key: str) -> Entry | None:
        """What an earlier run has recorded.  JournalError if it can't be unpickled."""
        pickled = self._loaded.get(key)
        if pickled is None:
            return None
        try:
            entry = pickle.loads(pickled)
        except Exception as exc:  # of the user's classes
            raise self._error(
                f"holds an entry of {key!r} that can't be unpickled: {said(exc)}"
            ) from exc
        assert isinstance(entry, Entry)
        return entry

    def place(self, key: str) -> int:
        """Which of all that an earlier run has recorded it is, in their order."""
        return self._places[key]

    @protected
    async def record(self, key: str, entry: Entry) -> None:
        """Returns once it is in the file.  A checkpoint, but a cancellation does not stop it.

        TypeError if the entry can't be pickled, JournalError if it can't be written.
        """
        check_str("key", key)
        if self._is_closed:
            raise RuntimeError(f"{self!r} is closed")
        try:
            pickled = pickle.dumps(entry)
        except Exception as exc:  # of the user's classes
            raise TypeError(
                f"what {key!r} gave must be picklable, to go into a journal, and is not: "
                f"{said(exc)}"
            ) from exc
        error = await self._batches.add((key, pickled))
        if error is not None:
            raise self._error(f"could not be written: {said(error)}") from error

    @protected
    async def _close(self) -> None:
        self._is_closed = True
        if self._connection is not None:
            await self._batches.add(None)

    def _warn_of_damage(self) -> None:
        if self._damaged:
            keys = ", ".join(map(repr, self._damaged))
            warn(f"the journal {str(self._path)!r} is damaged at {keys}: it is as if never written")

    def _error(self, why: str) -> JournalError:
        return JournalError(f"the journal {str(self._path)!r} {why}; {INSTEAD}")

    def __repr__(self) -> str:
        state = ", closed" if self._is_closed else ""
        return f"<Journal {str(self._path)!r}, {len(self._loaded)} loaded{state}>"

    # ------------------------------------------------------------ in a thread

    def _open(self, pipeline: str, version: str) -> None:
        try:
            self._claim(pipeline, version)
        except NotOurs as exc:
            raise self._error(f"is none: {exc}") from exc
        except (sqlite3.Error, OSError) as exc:
            if getattr(exc, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY:
                raise self._error("is in use by another run") from exc
            raise self._error(f"can't be opened: {said(exc)}") from exc

    def _claim(self, pipeline: str, version: str) -> None:
        connection = self._connection = connect(self._path, TIMEOUT)
        # The lock: taken by the first transaction, and kept until the file is closed.
        connection.execute("PRAGMA locking_mode = EXCLUSIVE")
        claim(connection, "EXCLUSIVE", OURS, LAYOUT, TABLES)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        whose = connection.execute("SELECT pipeline, version FROM journal").fetchone()
        if whose is None:
            connection.execute("INSERT INTO journal VALUES (?, ?)", (pipeline, version))
        elif whose[0] != pipeline:
            was, is_now = _difference(whose[0], pipeline)
            raise self._error(f"is of another pipeline, {was}, not of {is_now}")
        elif whose[1] != version:
            raise self._error(f"is of version {whose[1]!r} of the pipeline, not of {version!r}")
        for key, checksum, pickled in connection.execute(READ):
            if checksum == _checksum(key, pickled):
                self._places[key] = len(self._loaded)
                self._loaded[key] = pickled
            else:
                self._damaged.append(key)

    def _carry_out(self, jobs: list[tuple[str, bytes] | None]) -> None:
        connection = self._connection
        assert connection is not None
        rows = [(job[0], _checksum(*job), job[1]) for job in jobs if job is not None]
        try:
            if rows:
                with connection:
                    connection.execute("BEGIN")
                    connection.executemany(WRITE, rows)
        finally:
            if None in jobs:
                connection.close()


@asynccontextmanager
@protected
async def open_journal(path: Any, pipeline: str, version: str = "") -> AsyncIterator[Journal]:
    """The journal of `pipeline` (its description, whose every change makes it another one) at
    `version`, made if it is missing.  A checkpoint.

    JournalError for any other file, for one that is in use, and for one that can't be opened.
    """
    journal: Journal = Journal._create(path_of("journal", path))
    check_str("pipeline", pipeline)
    check_str("version", version)
    try:
        await current_run().finish_in_thread(partial(journal._open, pipeline, version))
        journal._warn_of_damage()
        yield journal
    finally:
        await journal._close()


def _checksum(key: str, pickled: bytes) -> bytes:
    return sha256(key.encode() + b"\0" + pickled).digest()


def _difference(one: str, other: str) -> tuple[str, str]:
    """Of two descriptions: from a little before where they part."""
    parts_at = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    begin = 0 if parts_at < LONG // 2 else parts_at - LONG // 4
    return _excerpt(one, begin), _excerpt(other, begin)


def _excerpt(text: str, begin: int) -> str:
    before, after = "..." * (begin > 0), "..." * (len(text) > begin + LONG)
    return repr(f"{before}{text[begin : begin + LONG]}{after}")
