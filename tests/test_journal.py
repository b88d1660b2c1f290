"""The journal: what was recorded is there, whatever happens; no other run may write to it."""

from __future__ import annotations

import pickle
import re
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

import journal_kills
from drivers import EVERY_DRIVER, Driver, World, on_asyncio, on_trio
from trio_parallel_steps import JournalError
from trio_parallel_steps._journal import NO_CONTEXT, Entry, Journal, open_journal

pytestmark = pytest.mark.usefixtures("threads_work")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


def write(path: Path, *keys: str, pipeline: str = "p", version: str = "") -> None:
    async def program(world: World) -> None:
        async with open_journal(path, pipeline, version) as journal:
            for key in keys:
                await journal.record(key, Entry(key.upper()))

    on_trio(program)


def read(path: Path, *keys: str, pipeline: str = "p", version: str = "") -> list[Any]:
    async def program(world: World) -> list[Any]:
        async with open_journal(path, pipeline, version) as journal:
            return [journal.get(key) for key in keys]

    return on_asyncio(program)


def change(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(statement, values)
    finally:
        connection.close()


# ---------------------------------------------------------------- what it keeps


@EVERY_DRIVER
def test_what_was_recorded_is_there_the_next_time(path: Path, driver: Driver) -> None:
    full = Entry({"a": [1]}, {"seen": {1}}, {"usd": 0.5})

    async def first(world: World) -> None:
        async with open_journal(path, "p", "1") as journal:
            assert journal.get("a") is None
            await journal.record("a", full)
            await journal.record("b", Entry(None))

    async def second(world: World) -> Any:
        async with open_journal(str(path), "p", "1") as journal:
            return [journal.get(key) for key in "abc"], repr(journal)

    driver(first)
    found, shown = driver(second)
    assert found == [full, Entry(None, NO_CONTEXT), None]
    assert shown == f"<Journal {str(path)!r}, 2 loaded>"


def test_no_context_is_told_from_a_context_that_is_none(path: Path) -> None:
    async def program(world: World) -> None:
        async with open_journal(path, "p") as journal:
            await journal.record("a", Entry(1, None))
            await journal.record("b", Entry(1))

    on_trio(program)
    a, b = read(path, "a", "b")
    assert a.context is None
    assert b.context is NO_CONTEXT


def test_the_last_entry_of_a_key_stands(path: Path) -> None:
    write(path, "a")

    async def program(world: World) -> None:
        async with open_journal(path, "p") as journal:
            await journal.record("a", Entry("again"))

    on_trio(program)
    assert read(path, "a") == [Entry("again")]


class Commits(sqlite3.Connection):
    """Counts them; the first waits until it may go on."""

    made: list[int]
    go: threading.Event

    def executemany(self, statement: str, rows: Any) -> Any:
        rows = list(rows)
        if not self.made:
            self.go.wait(60)
        self.made.append(len(rows))
        assert self.in_transaction
        return super().executemany(statement, rows)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> type[Commits]:
    class Connection(Commits):
        made: list[int] = []  # noqa: RUF012
        go = threading.Event()

    connect = partial(sqlite3.connect, factory=Connection)
    monkeypatch.setattr("trio_parallel_steps._database.sqlite3.connect", connect)
    return Connection


@EVERY_DRIVER
def test_those_who_come_during_a_write_share_the_next(
    path: Path, driver: Driver, commits: type[Commits]
) -> None:
    async def program(world: World) -> None:
        async with open_journal(path, "p") as journal, world.tasks() as start:
            for number in range(50):
                start(journal.record, str(number), Entry(number))
                await world.turns(3)
            commits.go.set()

    driver(program)
    assert commits.made == [1, 49]
    assert [entry.output for entry in read(path, *map(str, range(50)))] == list(range(50))


@EVERY_DRIVER
def test_one_that_is_cancelled_meanwhile_is_written(
    path: Path, driver: Driver, commits: type[Commits]
) -> None:
    async def program(world: World) -> None:
        async with (
            open_journal(path, "p") as journal,
            world.scope() as scope,
            world.tasks() as start,
        ):
            for key in "abc":
                start(journal.record, key, Entry(key))
                await world.turns(3)
            scope.cancel()
            commits.go.set()

    driver(program)
    assert read(path, *"abc") == [Entry(key) for key in "abc"]


@EVERY_DRIVER
def test_it_is_closed_whoever_is_cancelled(path: Path, driver: Driver) -> None:
    async def program(world: World) -> None:
        async with world.scope(1), open_journal(path, "p") as journal:
            await journal.record("a", Entry(1))
            await world.forever()
        async with open_journal(path, "p") as journal:
            assert journal.get("a") == Entry(1)

    driver(program)


@EVERY_DRIVER
def test_it_is_closed_if_the_cancellation_comes_first(path: Path, driver: Driver) -> None:
    async def program(world: World) -> None:
        async with world.scope() as scope:
            scope.cancel()
            async with open_journal(path, "p"):
                await world.forever()
        async with open_journal(path, "p"):
            pass

    driver(program)


async def test_it_is_written_off_the_event_loops_thread_and_durably(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, statements = set(), []

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            threads.add(threading.get_ident())
            statements.append(args[0])
            return super().execute(*args)

    connect = partial(sqlite3.connect, factory=Connection)
    monkeypatch.setattr("trio_parallel_steps._database.sqlite3.connect", connect)
    async with open_journal(path, "p") as journal:
        await journal.record("a", Entry(1))
    assert threading.get_ident() not in threads
    assert "PRAGMA synchronous = FULL" in statements
    assert "PRAGMA journal_mode = WAL" in statements


# ---------------------------------------------------------------- whose it is


INSTEAD = r"; delete the file to begin anew, or use another$"


@pytest.mark.parametrize(
    ("was", "now", "why"),
    [
        ("p", "q", "is of another pipeline, 'p', not of 'q'"),
        ("x" * 99 + "a", "x" * 99 + "b", "'...xxxxxxxxxxxxxxxa', not of '...xxxxxxxxxxxxxxxb'"),
        ("x" * 99, "y", f"'{'x' * 60}...', not of 'y'"),
        ("p", "p more", "'p', not of 'p more'"),
    ],
)
def test_another_pipeline_is_refused(path: Path, was: str, now: str, why: str) -> None:
    write(path, "a", pipeline=was)
    with pytest.raises(JournalError, match=re.escape(why) + INSTEAD):
        read(path, "a", pipeline=now)
    assert read(path, "a", pipeline=was) == [Entry("A")]


def test_another_version_is_refused(path: Path) -> None:
    write(path, "a", version="1")
    with pytest.raises(
        JournalError, match="is of version '1' of the pipeline, not of '2'" + INSTEAD
    ):
        read(path, "a", version="2")


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("my notes, longer than a header of a hundred bytes" * 9, "utf-8")
    with pytest.raises(JournalError, match="is none: file is not a database" + INSTEAD):
        read(path)
    assert path.read_text("utf-8").startswith("my notes")


@pytest.mark.parametrize("statement", ["CREATE TABLE mine (x)", "PRAGMA user_version = 7"])
def test_another_programs_database_is_refused_and_left_alone(path: Path, statement: str) -> None:
    change(path, statement)
    before = path.read_bytes()
    with pytest.raises(JournalError, match="is none: it is another program's database" + INSTEAD):
        read(path)
    assert path.read_bytes() == before


def test_one_of_another_layout_is_refused(path: Path) -> None:
    write(path)
    change(path, "PRAGMA user_version = 7")
    with pytest.raises(JournalError, match="was made by another version of trio_parallel_steps"):
        read(path)


def test_an_empty_file_becomes_one(path: Path) -> None:
    path.touch()
    write(path, "a")
    assert read(path, "a") == [Entry("A")]


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match=r"can't be opened: .* there is no folder '.*nowhere'"):
        read(tmp_path / "nowhere" / "x")


def test_a_folder_is_no_journal(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="can't be opened: "):
        read(tmp_path)


@EVERY_DRIVER
def test_two_runs_at_once_are_refused(
    path: Path, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_parallel_steps._journal.TIMEOUT", 0)

    async def program(world: World) -> str:
        async with open_journal(path, "p") as journal:
            with pytest.raises(JournalError, match="is in use by another run" + INSTEAD):
                async with open_journal(path, "p"):
                    pass
            await journal.record("a", Entry(1))
            return repr(journal)

    driver(program)
    assert read(path, "a") == [Entry(1)]


HOLD = """
import sys, trio
from trio_parallel_steps._journal import Entry, open_journal

async def main():
    async with open_journal(sys.argv[1], "p") as journal:
        await journal.record("a", Entry(1))
        print("open", flush=True)
        sys.stdin.read()

trio.run(main)
"""


def test_another_process_is_refused_until_this_one_is_killed(path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(JournalError, match="is in use by another run"):
            read(path)
        holder.kill()
    assert read(path, "a") == [Entry(1)]


# ---------------------------------------------------------------- what can't be kept or read


async def test_an_output_that_can_not_be_pickled_is_an_error_that_names_its_key(path: Path) -> None:
    async with open_journal(path, "p") as journal:
        with pytest.raises(
            TypeError, match=r"^what 'a' gave must be picklable, to go into a journal"
        ):
            await journal.record("a", Entry(lambda: None))
        await journal.record("b", Entry(1))
    assert journal.get("a") is None


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE entries SET entry = substr(entry, 1, 5) WHERE key = 'a'", ()),
        ("UPDATE entries SET entry = ? WHERE key = 'a'", (pickle.dumps(Entry(7)),)),
        ("UPDATE entries SET checksum = 'x' WHERE key = 'a'", ()),
    ],
)
def test_a_damaged_entry_is_as_if_never_written(path: Path, statement: str, values: Any) -> None:
    write(path, "a", "b")
    change(path, statement, *values)
    with pytest.warns(RuntimeWarning, match=r"is damaged at 'a': it is as if never written"):
        assert read(path, "a", "b") == [None, Entry("B")]


class Gone:
    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise AttributeError("its class is gone")


async def test_an_entry_of_code_that_is_gone_is_an_error(path: Path) -> None:
    async with open_journal(path, "p") as journal:
        await journal.record("a", Entry(Gone()))
    async with open_journal(path, "p") as journal:
        why = "holds an entry of 'a' that can't be unpickled: AttributeError: its class is gone"
        with pytest.raises(JournalError, match=why + INSTEAD):
            journal.get("a")


@EVERY_DRIVER
def test_trouble_with_the_file_is_told_to_all_it_concerns(path: Path, driver: Driver) -> None:
    async def program(world: World) -> list[str]:
        errors = []

        async def record(journal: Journal, key: str) -> None:
            with pytest.raises(JournalError) as caught:
                await journal.record(key, Entry(1))
            errors.append(str(caught.value))

        async with open_journal(path, "p") as journal:
            assert journal._connection is not None
            journal._connection.execute("DROP TABLE entries")
            async with world.tasks() as start:
                for key in "abc":
                    start(record, journal, key)
        return errors

    errors = driver(program)
    assert len(errors) == 3
    assert all("could not be written: OperationalError: no such table" in each for each in errors)


def test_a_torn_tail_costs_what_was_torn_at_most(path: Path) -> None:
    """The log of a killed process, cut anywhere."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    log = Path(f"{path}-wal")
    whole, file = log.read_bytes(), path.read_bytes()
    lengths = sorted({*range(0, len(whole), max(1, len(whole) // 40)), len(whole) - 1, len(whole)})
    found = []
    for length in lengths:
        path.write_bytes(file)
        log.write_bytes(whole[:length])
        try:
            found += read(path, "a")
        except JournalError as error:
            pytest.fail(f"{length} of {len(whole)}: {error}")
    assert found[0] is None
    assert found[-1] == Entry(1)
    assert found == sorted(found, key=bool)


async def test_after_its_end_it_records_nothing(path: Path) -> None:
    async with open_journal(path, "p") as journal:
        pass
    with pytest.raises(RuntimeError, match=r"run.journal', 0 loaded, closed> is closed"):
        await journal.record("a", Entry(1))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((3, "p"), "`journal` must be a path, as a str or an os.PathLike of one, got 3"),
        (("x", 3), "`pipeline` must be a str, got 3"),
        (("x", "p", 3), "`version` must be a str, got 3"),
    ],
)
async def test_bad_arguments(args: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        async with open_journal(*args):
            pass


async def test_a_key_is_a_str(path: Path) -> None:
    async with open_journal(path, "p") as journal:
        with pytest.raises(TypeError, match="`key` must be a str, got 1"):
            await journal.record(1, Entry(1))  # type: ignore[arg-type]


def test_it_is_made_by_open_journal_alone() -> None:
    with pytest.raises(TypeError, match="Journal has no public constructor"):
        Journal(Path("x"))


def test_an_entry_is_a_value() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Entry(1).output = 2  # type: ignore[misc]


async def test_a_record_of_a_cancelled_branch_is_no_exception(path: Path) -> None:
    async with open_journal(path, "p") as journal:
        with trio.CancelScope() as scope:
            scope.cancel()
            await journal.record("a", Entry(1))
        assert not scope.cancelled_caught


# ---------------------------------------------------------------- killed


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("host", ["trio", "asyncio"])
def test_a_kill_at_any_moment_loses_nothing_that_was_recorded(tmp_path: Path, host: str) -> None:
    """Each of 60 children is killed, and the next goes on; what was recorded is not done again."""
    kills = 60
    journal_kills.run(tmp_path, host, kills, 8, "journal")
    effects = journal_kills.lines(tmp_path / "effects")
    recorded = journal_kills.lines(tmp_path / "recorded")
    assert len({child for _, child in recorded}) > kills // 4
    keys = [key for key, _ in recorded]
    assert len(set(keys)) == len(keys) > 100
    in_the_end = dict(effects)  # the last child that had that effect
    for key, child in recorded:
        assert in_the_end[key] == child
        assert [key for key, _ in effects].count(key) >= 1

    async def found(world: World) -> list[Entry | None]:
        async with open_journal(tmp_path / "journal", "kills", "1") as journal:
            return [journal.get(key) for key in keys]

    assert on_trio(found) == [Entry(journal_kills.output_of(key)) for key in keys]
