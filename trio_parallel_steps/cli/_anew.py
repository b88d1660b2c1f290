"""``--journal`` without ``--resume``: what an earlier run has left in the file is taken away.

1. Only a journal is, or an empty file; whatever else bears that name, a folder or a device too, is
   refused and left as it is.
2. So is the journal of a run that goes on.
"""

import sqlite3
from contextlib import closing
from pathlib import Path

from trio_parallel_steps import JournalError

from ._json import why

OURS = 0x7470736A  # "tpsj", in the header of every journal
WITH_IT = ("", "-wal", "-shm")


def begin_anew(path: Path) -> None:
    """JournalError if the file can't be had."""
    if not path.exists():
        return
    if not path.is_file():
        raise refusal(path, "it is no file")
    try:
        with closing(sqlite3.connect(path, timeout=1, isolation_level=None)) as connection:
            connection.execute("BEGIN EXCLUSIVE")
            (is_of,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if is_of != OURS and (is_of or tables):
                raise refusal(path, "it is another program's database")
            for ending in WITH_IT:
                Path(f"{path}{ending}").unlink(missing_ok=True)
    except (sqlite3.Error, OSError) as error:
        is_busy = getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_BUSY
        raise refusal(path, "it is in use by another run" if is_busy else why(error)) from None


def refusal(path: Path, reason: str) -> JournalError:
    what = "a journal, or a new file"
    return JournalError(f"`--journal` must be {what}, got {str(path)!r}: {reason}")
