"""`Cache.sqlite`: shared by processes, there the next time, and never in the way of a call."""

from __future__ import annotations

import pickle
import sqlite3
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from drivers import EVERY_DRIVER, Driver, World, on_asyncio, on_trio
from trio_parallel_steps import COLLECT, BranchStatus, open_branch_nursery, run_branches
from trio_parallel_steps.cache import Cache, CacheWarning

pytestmark = pytest.mark.usefixtures("threads_work")


class Calls:
    def __init__(self) -> None:
        self.made = 0

    async def __call__(self) -> Any:
        self.made += 1
        return [self.made]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache.db"


@EVERY_DRIVER
def test_a_value_is_there_the_next_time_as_a_copy(path: Path, driver: Driver) -> None:
    calls = Calls()

    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)
        first, _ = await cache.fetch("key", calls)
        second, from_cache = await cache.fetch("key", calls)
        assert from_cache
        assert first is not second
        return first, second

    assert driver(program) == ([1], [1])
    assert driver(program) == ([1], [1])
    assert calls.made == 1


@EVERY_DRIVER
def test_branches_read_and_write_together(path: Path, driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)

        async def square(x: int) -> int:
            value, _ = await cache.fetch(str(x), partial(world.give, 0, x * x))
            assert isinstance(value, int)
            return value

        for _ in range(2):
            found = await run_branches({n: partial(square, n % 10) for n in range(40)}, 40)
        return found.outputs

    assert driver(program) == {n: (n % 10) ** 2 for n in range(40)}


@EVERY_DRIVER
def test_an_error_is_not_kept(path: Path, driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)
        with pytest.raises(ValueError, match="mine"):
            await cache.fetch("key", partial(world.fail, 0, "mine"))
        return await cache.fetch("key", partial(world.give, 0, 1))

    assert driver(program) == (1, False)


@EVERY_DRIVER
def test_one_that_is_stopped_hands_over(path: Path, driver: Driver) -> None:
    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)
        began = world.event()

        async def forever() -> None:
            began.set()
            await world.forever()

        async with open_branch_nursery(2, policy=COLLECT) as nursery:
            nursery.start_soon("first", cache.fetch, "key", forever)
            await began.wait()
            nursery.start_soon("second", cache.fetch, "key", partial(world.give, 0, 2))
            await world.turns(5)
            nursery.cancel("first")
        return nursery.result["first"].status, nursery.result["second"].output

    assert driver(program) == (BranchStatus.CANCELLED, (2, False))


# ---------------------------------------------------------------- time


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1e9]
    monkeypatch.setattr("trio_parallel_steps.cache._sqlite.time", lambda: now[0])
    return now


def fetch(cache: Cache, calls: Calls) -> tuple[Any, bool]:
    async def program(world: World) -> Any:
        return await cache.fetch("key", calls)

    return on_trio(program)  # type: ignore[no-any-return]


def test_it_is_kept_for_so_long_by_the_wall_clock(path: Path, wall: list[float]) -> None:
    cache, calls = Cache.sqlite(path, ttl=10), Calls()
    assert fetch(cache, calls) == ([1], False)
    wall[0] += 9.5
    assert fetch(Cache.sqlite(path, ttl=10), calls) == ([1], True)
    assert fetch(Cache.sqlite(path, ttl=9), calls) == ([2], False)  # that reader's own
    wall[0] += 9.5
    assert fetch(cache, calls) == ([3], False)  # as its writer said


def test_what_has_expired_is_deleted_when_the_file_is_opened(path: Path, wall: list[float]) -> None:
    fetch(Cache.sqlite(path, ttl=10), Calls())
    assert len(rows(path)) == 1
    wall[0] += 10

    async def program(world: World) -> Any:
        await Cache.sqlite(path).fetch("other", Calls())

    on_trio(program)
    assert [key for key, *_ in rows(path)] == ["other"]


# ---------------------------------------------------------------- damage


def rows(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT * FROM entries").fetchall()
    finally:
        connection.close()


def change(path: Path, statement: str, *values: Any) -> None:
    connection = sqlite3.connect(path)
    try:
        with connection:
            connection.execute(statement, values)
    finally:
        connection.close()


class Gone:
    """Can be pickled, and not unpickled."""

    def __reduce__(self) -> Any:
        return _raise, ()


def _raise() -> None:
    raise AttributeError("its class is gone")


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        ("UPDATE entries SET value = substr(value, 1, 5)", ()),
        ("UPDATE entries SET value = ?", (pickle.dumps([7]),)),
        ("UPDATE entries SET value = ?", (b"",)),
        ("UPDATE entries SET checksum = ?", (b"",)),
        ("UPDATE entries SET key = 'key', value = value || x'00'", ()),
    ],
)
def test_a_damaged_entry_is_a_miss_and_one_warning(path: Path, statement: str, values: Any) -> None:
    calls = Calls()
    fetch(Cache.sqlite(path), calls)
    change(path, statement, *values)
    cache = Cache.sqlite(path)
    with pytest.warns(CacheWarning, match="an entry of sqlite.* is damaged") as warned:
        assert fetch(cache, calls) == ([2], False)
    assert len(warned) == 1
    assert fetch(Cache.sqlite(path), calls) == ([2], True)  # overwritten


def test_an_entry_of_another_key_is_not_believed(path: Path) -> None:
    calls = Calls()
    fetch(Cache.sqlite(path), calls)
    change(path, "UPDATE entries SET key = 'other'")

    async def program(world: World) -> Any:
        return await Cache.sqlite(path).fetch("other", calls)

    with pytest.warns(CacheWarning, match="is damaged"):
        assert on_asyncio(program) == ([2], False)


def test_an_entry_that_can_not_be_unpickled_is_a_miss_and_a_warning(path: Path) -> None:
    async def program(world: World) -> Any:
        return await Cache.sqlite(path).fetch("key", partial(world.give, 0, Gone()))

    on_trio(program)
    with pytest.warns(CacheWarning, match="can't be unpickled: AttributeError: its class is gone"):
        assert fetch(Cache.sqlite(path), Calls()) == ([1], False)


@EVERY_DRIVER
def test_a_value_that_can_not_be_pickled_is_returned_and_not_kept(
    path: Path, driver: Driver
) -> None:
    def local() -> None: ...

    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)
        with pytest.warns(CacheWarning, match="can't keep a function, as it can't be pickled: "):
            return await cache.fetch("key", partial(world.give, 0, local))

    assert driver(program) == (local, False)
    assert rows(path) == []


def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path) -> None:
    path.write_text("my notes, longer than a header of a hundred bytes" * 9, "utf-8")
    calls = Calls()
    with pytest.raises(ValueError, match=r"^`path` must be a cache's own file, got .*; delete it"):
        fetch(Cache.sqlite(path), calls)
    assert path.read_text("utf-8").startswith("my notes")
    assert not calls.made


@pytest.mark.parametrize(
    ("statement", "why"),
    [
        ("CREATE TABLE mine (x)", "it is another program's database"),
        ("PRAGMA application_id = 7", "it is another program's database"),
        ("PRAGMA user_version = 7", "it is another program's database"),
    ],
)
def test_another_programs_database_is_refused(path: Path, statement: str, why: str) -> None:
    change(path, statement)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=why):
        fetch(Cache.sqlite(path), Calls())
    assert path.read_bytes() == before


def test_a_cache_of_another_layout_is_refused(path: Path) -> None:
    fetch(Cache.sqlite(path), Calls())
    change(path, "PRAGMA user_version = 7")
    with pytest.raises(ValueError, match="made by another version of trio_parallel_steps"):
        fetch(Cache.sqlite(path), Calls())


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^there is no folder '.*nowhere' for 'x.db'$"):
        fetch(Cache.sqlite(tmp_path / "nowhere" / "x.db"), Calls())


def test_a_path_that_is_a_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="can't be opened"):
        fetch(Cache.sqlite(tmp_path), Calls())


@EVERY_DRIVER
def test_all_who_ask_are_told_of_a_wrong_file(path: Path, driver: Driver) -> None:
    change(path, "CREATE TABLE mine (x)")

    async def program(world: World) -> Any:
        cache = Cache.sqlite(path)
        fetches = {n: partial(cache.fetch, str(n), Calls()) for n in range(5)}
        return await run_branches(fetches, 9, policy=COLLECT)

    errors = driver(program).errors
    assert len(set(map(id, errors.values()))) == 5
    assert {type(error) for error in errors.values()} == {ValueError}


def test_trouble_with_an_open_file_is_a_warning(path: Path) -> None:
    """The table has gone: it can be neither read nor written."""

    async def program(world: World) -> Any:
        cache, calls = Cache.sqlite(path), Calls()
        await cache.fetch("key", calls)
        change(path, "DROP TABLE entries")
        with pytest.warns(CacheWarning) as warned:
            found = await cache.fetch("key", calls)
        return found, [str(warning.message) for warning in warned]

    found, said = on_trio(program)
    assert found == ([2], False)
    assert [("could not be read" in text, "could not keep" in text) for text in said] == [
        (True, False),
        (False, True),
    ]
    assert all("no such table" in text for text in said)


def test_a_file_that_another_holds_is_a_warning(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_parallel_steps.cache._sqlite.TIMEOUT", 0)
    calls = Calls()
    fetch(Cache.sqlite(path), calls)
    cache = Cache.sqlite(path)
    holder = sqlite3.connect(path, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        with pytest.warns(CacheWarning, match="OperationalError: database is locked"):
            assert fetch(cache, calls) == ([2], False)
        holder.execute("COMMIT")
    finally:
        holder.close()
    assert fetch(cache, calls) == ([1], True)


def test_a_cache_in_memory_needs_no_file_and_one_in_a_file_is_made_at_the_first_call(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it was meant to be, wherever the program has gone since."""
    monkeypatch.chdir(path.parent)
    cache = Cache.sqlite("cache.db")
    assert not path.exists()
    assert repr(cache) == f"<Cache sqlite({str(path)!r}, inf), 0 in flight>"
    monkeypatch.chdir("/")
    fetch(cache, Calls())
    assert path.exists()


# ---------------------------------------------------------------- processes and threads

PROGRAM = """
import sys, trio
from trio_parallel_steps import run_branches
from trio_parallel_steps.cache import Cache

async def square(x):
    await trio.sleep(0)
    return x * x

async def main():
    cached = Cache.sqlite(sys.argv[1]).wrap(square)
    for _ in range(5):
        result = await run_branches({x: lambda x=x: cached(x) for x in range(100)}, 20)
        assert result.outputs == {x: x * x for x in range(100)}

sys.stdin.readline()
trio.run(main)
"""


def test_processes_may_share_a_file(path: Path) -> None:
    """Made by all of them at once."""
    command = [sys.executable, "-W", "error", "-c", PROGRAM, str(path)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    for process in started:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    told = [process.communicate(timeout=120)[1] for process in started]
    assert told == [""] * 4
    assert len(rows(path)) == 100


async def test_the_file_is_used_off_the_event_loops_thread(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    class Connection(sqlite3.Connection):
        def execute(self, *args: Any) -> Any:
            threads.append(threading.get_ident())
            return super().execute(*args)

    connect = partial(sqlite3.connect, factory=Connection)
    monkeypatch.setattr("trio_parallel_steps._database.sqlite3.connect", connect)
    cache = Cache.sqlite(path)
    await cache.fetch("key", partial(trio.sleep, 0))
    await cache.fetch("key", partial(trio.sleep, 0))
    assert threads
    assert threading.get_ident() not in threads
