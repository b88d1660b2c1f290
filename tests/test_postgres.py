"""A connection pool on a real PostgreSQL, used from branches that are stopped in every way.

1. No connection is leaked: by the pool's own count, and by the server's list of its clients.
2. The pool is whole afterwards: as many branches as it has connections hold one each, at once.
3. Nobody waits for a time to pass: a test goes on once the server says that its clients are where
   the test wants them, in a query or waiting for a lock.
"""

from __future__ import annotations

import asyncio
import math
import random
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import pytest

from servers import PATIENCE, needed, postgres_server, until
from trio_parallel_steps import (
    COLLECT,
    BranchErrors,
    BranchLimiter,
    BranchStatus,
    Breached,
    ParallelResult,
    StepTimeout,
    open_branch_nursery,
    run_branches,
)

with needed():
    import anyio
    import asyncpg
    import psycopg
    import psycopg_pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from trio_parallel_steps import BranchNursery

SIZE = 4  # connections of the pool
CALLERS = 7  # branches at once: some wait for a connection
ENDED = {BranchStatus.SUCCEEDED, BranchStatus.CANCELLED, BranchStatus.SKIPPED}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with postgres_server() as dsn:
        yield dsn


# ---------------------------------------------------------------- two pools, one way to use them


class Pool(Protocol):
    """A pool of SIZE connections."""

    def connection(self) -> AbstractAsyncContextManager[Any]: ...
    def idle(self) -> int:
        """Connections that nobody holds, by its own count."""

    def waiting(self) -> int: ...


class Psycopg:
    def __init__(self, pool: psycopg_pool.AsyncConnectionPool[Any]) -> None:
        self._pool = pool

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator[Psycopg]:
        kwargs = {"application_name": "pool"}
        async with psycopg_pool.AsyncConnectionPool(
            dsn, min_size=SIZE, max_size=SIZE, timeout=PATIENCE, kwargs=kwargs, open=False
        ) as pool:
            await pool.wait(PATIENCE)
            yield cls(pool)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        async with self._pool.connection() as connection:  # and a transaction
            yield connection

    def idle(self) -> int:
        return self._pool.get_stats()["pool_available"]

    def waiting(self) -> int:
        return self._pool.get_stats().get("requests_waiting", 0)


class Asyncpg:
    def __init__(self, pool: asyncpg.Pool[Any]) -> None:
        self._pool = pool
        self._waiting = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str) -> AsyncIterator[Asyncpg]:
        settings = {"application_name": "pool"}
        async with asyncpg.create_pool(
            dsn, min_size=SIZE, max_size=SIZE, server_settings=settings
        ) as pool:
            yield cls(pool)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Any]:
        self._waiting += 1
        try:
            acquired = await self._pool.acquire()
        finally:
            self._waiting -= 1
        try:
            async with acquired.transaction():
                yield acquired
        finally:
            await self._pool.release(acquired)

    def idle(self) -> int:
        # One that was closed is made anew by who asks for it next.
        in_use: int = self._pool.get_size() - self._pool.get_idle_size()
        return SIZE - in_use

    def waiting(self) -> int:
        return self._waiting


POOLS = [Psycopg, Asyncpg]


class Database:
    """A pool, and a connection beside it that asks the server about the pool's."""

    def __init__(self, pool: Pool, monitor: psycopg.AsyncConnection[Any]) -> None:
        self.pool = pool
        self._monitor = monitor

    async def clients(self, condition: str = "true") -> int:
        cursor = await self._monitor.execute(
            "select count(*) from pg_stat_activity where application_name = 'pool' and " + condition
        )
        row = await cursor.fetchone()
        assert row is not None
        return int(row[0])

    async def until(self, condition: str, number: int) -> None:
        """Return once that many clients are so."""
        while await self.clients(condition) != number:
            pass

    async def stuck(self) -> None:
        """A query that never ends."""
        async with self.pool.connection() as connection:
            await connection.execute("select pg_sleep(86400)")

    async def quick(self) -> None:
        async with self.pool.connection() as connection:
            await connection.execute("select 1")

    async def all_are_stuck(self) -> None:
        await self.until("wait_event = 'PgSleep'", SIZE)
        assert await until(lambda: self.pool.waiting() == CALLERS - SIZE)

    async def check_whole(self) -> None:
        """Nothing is held, nothing runs, and every connection can be used, all of them at once."""
        # Psycopg's pool replaces one that was closed by itself.
        assert await until(lambda: self.pool.idle() == SIZE)
        assert self.pool.waiting() == 0
        await self.until("state <> 'idle'", 0)
        assert await self.clients() <= SIZE
        together = asyncio.Barrier(SIZE)

        async def hold() -> None:
            async with self.pool.connection() as connection:
                await together.wait()
                await connection.execute("select 1")

        result = await run_branches(dict.fromkeys(range(SIZE), hold), SIZE)
        assert len(result.outputs) == SIZE
        assert await until(lambda: self.pool.idle() == SIZE)
        assert await self.clients() == SIZE
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not [task for task in others if "AsyncioHost" in str(task.get_coro())]


def with_database(dsn: str, pool_class: Any, test: Callable[[Database], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            monitor = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
            async with monitor:
                async with pool_class.open(dsn) as pool:
                    database = Database(pool, monitor)
                    await test(database)
                    await database.check_whole()
                await database.until("true", 0)  # all have gone with the pool
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())


# ---------------------------------------------------------------- every way to stop


def submit(nursery: BranchNursery, database: Database, timeout: float = math.inf) -> None:
    for number in range(CALLERS):
        nursery.start_soon(number, database.stuck, timeout=timeout)


def statuses(result: ParallelResult[Any, Any]) -> set[BranchStatus]:
    assert len(result) == CALLERS
    return {branch.status for branch in result.values()}


async def cancel_each(database: Database) -> None:
    async with open_branch_nursery(CALLERS) as nursery:
        submit(nursery, database)
        await database.all_are_stuck()
        for number in range(CALLERS):
            assert nursery.cancel(number)
    assert statuses(nursery.result) == {BranchStatus.CANCELLED}


async def branch_timeouts(database: Database) -> None:
    async with open_branch_nursery(CALLERS, policy=COLLECT) as nursery:
        submit(nursery, database, timeout=0.1)
    assert statuses(nursery.result) == {BranchStatus.TIMED_OUT}


async def step_timeout(database: Database) -> None:
    with pytest.raises(StepTimeout):
        async with open_branch_nursery(CALLERS, fail_after=0.1) as nursery:
            submit(nursery, database)
    assert statuses(nursery.result) <= {BranchStatus.TIMED_OUT, BranchStatus.SKIPPED}


async def breach(database: Database) -> None:
    with pytest.raises(Breached, match="enough"):
        async with open_branch_nursery(CALLERS) as nursery:
            submit(nursery, database)
            await database.all_are_stuck()
            nursery.breach("enough")
    assert statuses(nursery.result) == {BranchStatus.BREACHED}


async def a_branch_fails(database: Database) -> None:
    async def fail() -> None:
        await database.all_are_stuck()
        raise ValueError

    with pytest.raises(BranchErrors):
        async with open_branch_nursery(CALLERS + 1) as nursery:
            submit(nursery, database)
            nursery.start_soon("fail", fail)
    assert len(nursery.result.with_status(BranchStatus.CANCELLED)) == CALLERS


async def cancelled_from_outside(database: Database) -> None:
    nursery: BranchNursery | None = None

    async def step() -> None:
        nonlocal nursery
        async with open_branch_nursery(CALLERS) as nursery:
            submit(nursery, database)

    task = asyncio.create_task(step())
    await database.all_are_stuck()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert nursery is not None
    assert statuses(nursery.result) == {BranchStatus.CANCELLED}


async def timeout_outside(database: Database) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(PATIENCE) as scope, open_branch_nursery(CALLERS) as nursery:
            submit(nursery, database)
            await database.all_are_stuck()
            scope.reschedule(0)
    assert statuses(nursery.result) == {BranchStatus.CANCELLED}


async def anyio_scope_outside(database: Database) -> None:
    """It tells its task again each turn of the loop; branches are told once, and clean up."""
    with anyio.CancelScope() as scope:
        async with open_branch_nursery(CALLERS) as nursery:
            submit(nursery, database)
            await database.all_are_stuck()
            scope.cancel()
    assert statuses(nursery.result) == {BranchStatus.CANCELLED}


WAYS = [
    cancel_each,
    branch_timeouts,
    step_timeout,
    breach,
    a_branch_fails,
    cancelled_from_outside,
    timeout_outside,
    anyio_scope_outside,
]


@pytest.mark.parametrize("pool_class", POOLS)
@pytest.mark.parametrize("way", WAYS)
def test_no_connection_is_lost_to(
    server: str, pool_class: Any, way: Callable[[Database], Awaitable[None]]
) -> None:
    with_database(server, pool_class, way)


# Psycopg's pool (3.3.3) can lose a connection that it hands to a waiter in the turn in which that
# is cancelled; any task of asyncio's will do.  So nobody waits there: the limit is the pool's size.
@pytest.mark.parametrize(("pool_class", "limit"), [(Psycopg, SIZE), (Asyncpg, CALLERS)])
@pytest.mark.parametrize("seed", range(3))
def test_no_connection_is_lost_to_cancellations_at_any_turn(
    server: str, pool_class: Any, limit: int, seed: int
) -> None:
    """Before a connection, while one is handed over, in a query, in a commit, on the way back."""

    async def storm(database: Database) -> None:
        draw = random.Random(seed)
        limiter = BranchLimiter(limit)
        for _ in range(20):
            async with open_branch_nursery(limiter, policy=COLLECT) as nursery:
                for number in range(3 * CALLERS):
                    nursery.start_soon(number, database.quick)
                for number in draw.sample(range(3 * CALLERS), 2 * CALLERS):
                    for _ in range(draw.randrange(6)):
                        await asyncio.sleep(0)
                    nursery.cancel(number)
            assert {branch.status for branch in nursery.result.values()} <= ENDED
            assert len(nursery.result.outputs) >= CALLERS
        assert limiter.borrowed_tokens == 0

    with_database(server, pool_class, storm)
