"""A FastAPI app on uvicorn: its clients go, and come in hundreds.

1. The app is the one in docs/asyncio.rst, word for word; we add endpoints that let us look inside.
2. Upstream counts for itself how many requests it is answering, and answers when it is told to.
3. Nobody waits for a time to pass: whoever waits is told, by a server that answers once it is so.
"""

from __future__ import annotations

import asyncio
import gc
import re
import textwrap
import types
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from servers import PATIENCE, asgi_server, needed, until
from trio_parallel_steps import COLLECT, Branch, ParallelResult, open_branch_nursery
from trio_parallel_steps.abc import Observer

with needed():
    import anyio
    import httpx
    import uvicorn  # noqa: F401
    from fastapi import FastAPI, Request
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

PAGE = Path(__file__).parent.parent / "docs" / "asyncio.rst"
BLOCK = re.compile(
    r"^\.\. code-block:: python\n   :name: fastapi-app\n((?:\n|   .*\n)+)", re.MULTILINE
)
CAP = 16
FAN_OUT = 20

# ---------------------------------------------------------------- upstream, a process of its own


class Upstream:
    """Answers no page until it is released."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._start_anew()

    def _start_anew(self) -> None:
        self.now = self.peak = self.served = self.left = 0
        self._released = asyncio.Event()

    async def anew(self, request: Request) -> Response:
        assert self.now == 0
        self._start_anew()
        return Response()

    async def _count(self, change: int) -> None:
        async with self._changed:
            self.now += change
            self.peak = max(self.peak, self.now)
            self._changed.notify_all()

    async def page(self, request: Request) -> Response:
        await self._count(1)
        if not self._released.is_set():
            await self._wait_released(request)
        else:
            self.served += 1
        await self._count(-1)
        return Response(f"page {request.path_params['number']}")

    async def _wait_released(self, request: Request) -> None:
        gone = asyncio.create_task(disconnected(request))
        released = asyncio.create_task(self._released.wait())
        await asyncio.wait([gone, released], return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            self.left += 1
        else:
            self.served += 1
        gone.cancel()
        released.cancel()

    async def release(self, request: Request) -> Response:
        self._released.set()
        return Response()

    async def wait(self, request: Request) -> Response:
        """Answers once it is answering that many pages."""
        wanted = int(request.path_params["now"])
        async with self._changed:
            await self._changed.wait_for(lambda: self.now == wanted)
        return await self.counts(request)

    async def counts(self, request: Request) -> Response:
        counted = ("now", "peak", "served", "left")
        return JSONResponse({name: getattr(self, name) for name in counted})


async def disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def make_upstream() -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        upstream = Upstream()
        for path, endpoint in {
            "/pages/{number}": upstream.page,
            "/anew": upstream.anew,
            "/release": upstream.release,
            "/wait/{now}": upstream.wait,
            "/counts": upstream.counts,
        }.items():
            app.router.routes.append(Route(path, endpoint))
        yield

    return Starlette(lifespan=lifespan)


# ---------------------------------------------------------------- the app, another process


def documented() -> Any:
    """The app of the docs."""
    text = PAGE.read_text("utf-8")
    (block,) = BLOCK.finditer(text)
    module = types.ModuleType("documented")
    line = text.count("\n", 0, block.start(1))
    source = "\n" * line + textwrap.dedent(block[1])
    exec(compile(source, str(PAGE), "exec"), vars(module))
    return module


class Changes(Observer):
    """Wakes who waits for a change of a step."""

    def __init__(self) -> None:
        self._waiting: list[asyncio.Future[None]] = []

    async def until(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            self._waiting.append(asyncio.get_running_loop().create_future())
            await self._waiting[-1]
        return True

    def _changed(self) -> None:
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def branch_queued(self, branch: Branch[Any]) -> None:
        self._changed()

    def step_closed(self, step: Any, result: ParallelResult[Any, Any]) -> None:
        self._changed()


def make_app() -> FastAPI:
    module = documented()
    app: FastAPI = module.app
    limiter, fetch = module.upstream_limiter, module.fetch

    class Endings(module.Endings, Changes):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            module.Endings.__init__(self)
            Changes.__init__(self)

        def step_closed(self, step: Any, result: Any) -> None:
            module.Endings.step_closed(self, step, result)
            Changes.step_closed(self, step, result)

    endings: Any = Endings()
    module.endings = endings
    idle: list[str] = []

    def tasks() -> list[str]:
        """What runs, but for the asking request."""
        mine = asyncio.current_task()
        return sorted(str(task.get_coro()) for task in asyncio.all_tasks() if task is not mine)

    @app.get("/anew")
    async def anew() -> None:
        endings.last.clear()
        idle[:] = tasks()

    @app.get("/scope")
    async def scope(request: Request) -> Response:
        """All of it is cancelled on disconnect, every turn of the loop, as anyio does."""

        async def watch(group: Any) -> None:
            await disconnected(request)
            group.cancel_scope.cancel()

        client = request.app.state.client
        async with anyio.create_task_group() as group:
            group.start_soon(watch, group)
            async with open_branch_nursery(
                limiter, name="scope", policy=COLLECT, observers=[endings]
            ) as nursery:
                for page in range(FAN_OUT):
                    nursery.start_soon(page, fetch, client, page)
            group.cancel_scope.cancel()
            return JSONResponse(nursery.result.outputs)
        return Response(status_code=499)

    @app.get("/queued/{number}")
    async def queued(number: int) -> Any:
        """Answers once that many branches wait for a token."""
        return await endings.until(lambda: limiter.statistics().tasks_waiting == number)

    @app.get("/closed/{number}")
    async def closed(number: int) -> list[dict[str, Any]]:
        """Answers once that many steps have ended, with how they did."""
        await endings.until(lambda: len(endings.last) >= number)
        return list(endings.last)

    @app.get("/left")
    async def left() -> dict[str, Any]:
        """What is left, once all is quiet."""
        await until(lambda: tasks() == idle)
        gc.collect()
        return {
            "tasks": [task for task in tasks() if task not in idle],
            "borrowed": limiter.borrowed_tokens,
            "waiting": limiter.statistics().tasks_waiting,
            "admitted": limiter.statistics().admitted,
        }

    return app


# ---------------------------------------------------------------- both, seen from their client


class Apps:
    def __init__(self, app: str, upstream: str) -> None:
        self.url = app
        self.upstream = upstream

    async def get(self, path: str) -> Any:
        return await get(self.url + path)

    async def ask_upstream(self, path: str) -> dict[str, int]:
        return await get(self.upstream + path)  # type: ignore[no-any-return]

    async def left(self) -> dict[str, Any]:
        found = await self.get("/left")
        assert found.pop("admitted") > 0
        return found  # type: ignore[no-any-return]


NOTHING = {"tasks": [], "borrowed": 0, "waiting": 0}


def new_client() -> httpx.AsyncClient:
    # Without certificates, which take long to load.
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(timeout=None, trust_env=False, verify=False, limits=limits)


async def get(url: str) -> Any:
    # A connection of its own: none of these is kept alive, and in the way of what is counted.
    async with new_client() as client:
        response = await client.get(url, headers={"connection": "close"})
        response.raise_for_status()
        return response.json() if response.content else None


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def running_apps(request: pytest.FixtureRequest) -> Iterator[Apps]:
    loop: str = request.param
    if loop == "uvloop":
        with needed():
            import uvloop  # noqa: F401
    with asgi_server("test_fastapi:make_upstream") as (upstream_url, upstream):
        env = {"UPSTREAM": upstream_url, "NO_PROXY": "*"}
        with asgi_server("test_fastapi:make_app", loop=loop, **env) as (app_url, app):
            yield Apps(app_url, upstream_url)
    # No task destroyed, no exception never retrieved, no resource left open.
    assert app.output == []
    assert upstream.output == []


@pytest.fixture
async def apps(running_apps: Apps) -> Apps:
    await running_apps.ask_upstream("/anew")
    await running_apps.get("/anew")
    return running_apps


async def leave_early(apps: Apps, path: str) -> None:
    """A client that goes away once upstream is answering as many requests as the cap lets in."""

    async def ask() -> None:
        async with new_client() as client:
            response = await client.get(apps.url + path)
            pytest.fail(f"nobody should have answered, got {response}")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await apps.ask_upstream(f"/wait/{CAP}")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("path", "status", "reason"),
    [
        ("/report", "breached", "the client has gone"),
        ("/scope", "cancelled", "cancelled from outside"),
        ("/stream", "cancelled", "cancelled from outside"),
    ],
)
async def test_all_branches_end_when_the_client_disconnects(
    apps: Apps, path: str, status: str, reason: str
) -> None:
    with trio.fail_after(PATIENCE):
        await leave_early(apps, path)
        counts = await apps.ask_upstream("/wait/0")  # upstream has seen all of them go
        assert counts == {"now": 0, "peak": CAP, "served": 0, "left": CAP}
        (ending,) = await apps.get("/closed/1")
        branches = ending["branches"]
        statuses = Counter(branch["status"] for branch in branches)
        assert statuses == {status: CAP, "skipped": FAN_OUT - CAP}
        assert {branch["reason"] for branch in branches} == {reason}
        assert not ending["success"]
        assert await apps.left() == NOTHING
        # It serves on.
        await apps.ask_upstream("/release")
        await get_all_pages(apps, path)
        assert await apps.left() == NOTHING


async def get_all_pages(apps: Apps, path: str) -> None:
    async with new_client() as client:
        response = await client.get(apps.url + path)
    assert response.status_code == 200
    pages = {str(number): f"page {number}" for number in range(FAN_OUT)}
    if path == "/stream":
        found = dict(line.split(": ", 1) for line in response.text.splitlines())
    else:
        found = response.json()
    assert found == pages


async def test_the_cap_holds_for_200_concurrent_requests(apps: Apps) -> None:
    requests = 200
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            for _ in range(requests // 2):
                nursery.start_soon(get_all_pages, apps, "/report")
                nursery.start_soon(get_all_pages, apps, "/stream")
            # All of them are there, before the first is answered.
            assert await apps.get(f"/queued/{requests * FAN_OUT - CAP}")
            await apps.ask_upstream(f"/wait/{CAP}")
            await apps.ask_upstream("/release")
        counts = await apps.ask_upstream("/wait/0")
        served = requests * FAN_OUT
        assert counts == {"now": 0, "peak": CAP, "served": served, "left": 0}
        endings = await apps.get(f"/closed/{requests}")
        assert len(endings) == requests
        assert all(ending["success"] for ending in endings)
        assert await apps.left() == NOTHING


async def test_clients_that_leave_a_crowd_do_not_disturb_the_rest(apps: Apps) -> None:
    staying, leaving = 30, 90

    async def leave(path: str, client: httpx.AsyncClient) -> None:
        await client.get(apps.url + path)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            async with new_client() as client, trio.open_nursery() as leavers:
                for number in range(leaving):
                    path = ["/report", "/scope", "/stream"][number % 3]
                    leavers.start_soon(leave, path, client)
                    if number % 3 == 0:
                        nursery.start_soon(get_all_pages, apps, path)
                queued = (staying + leaving) * FAN_OUT - CAP
                assert await apps.get(f"/queued/{queued}")
                leavers.cancel_scope.cancel()
            endings = await apps.get(f"/closed/{leaving}")
            assert not any(ending["success"] for ending in endings)
            await apps.ask_upstream("/release")
        endings = await apps.get(f"/closed/{staying + leaving}")
        assert sum(ending["success"] for ending in endings) == staying
        statuses = Counter(b["status"] for ending in endings for b in ending["branches"])
        assert set(statuses) <= {"succeeded", "skipped", "breached", "cancelled"}
        assert statuses["succeeded"] == staying * FAN_OUT
        assert statuses.total() == (staying + leaving) * FAN_OUT
        assert await apps.left() == NOTHING


# ---------------------------------------------------------------- the app by itself


def test_a_response_that_is_cancelled_while_it_sends_ends_its_branches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The generator is suspended then, and closed by the loop, in a task of its own."""
    monkeypatch.setenv("UPSTREAM", "http://127.0.0.1:9")
    module = documented()
    asyncio.run(abandon_stream(module, "2.3"))


def test_a_response_whose_send_fails_ends_its_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with servers of ASGI 2.4."""
    monkeypatch.setenv("UPSTREAM", "http://127.0.0.1:9")
    module = documented()
    asyncio.run(abandon_stream(module, "2.4"))


async def abandon_stream(module: Any, spec_version: str) -> None:
    ended = []
    sending = asyncio.Event()

    async def fetch(client: object, page: int) -> str:
        if page == 0:
            return "first"
        try:
            await asyncio.get_running_loop().create_future()  # for ever
        finally:
            ended.append(page)
        raise AssertionError

    async def receive() -> dict[str, Any]:
        await sending.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body" and message["body"]:
            sending.set()
            if spec_version == "2.4":
                raise OSError("the client has gone")
            await asyncio.get_running_loop().create_future()

    module.fetch = fetch
    module.app.state.client = None
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": spec_version},
        "http_version": "1.1",
        "method": "GET",
        "path": "/stream",
        "query_string": b"",
        "headers": [],
    }
    request = asyncio.create_task(module.app(scope, receive, send))
    await asyncio.wait([request], timeout=PATIENCE)
    if spec_version == "2.4":
        assert type(request.exception()).__name__ == "ClientDisconnect"
    else:
        assert request.exception() is None
    del request
    gc.collect()
    assert await until(lambda: len(module.endings.last) == 1)
    assert len(ended) == CAP  # page 0 has made room for one more
    statuses = Counter(branch["status"] for branch in module.endings.last[0]["branches"])
    assert statuses == {"succeeded": 1, "cancelled": CAP, "skipped": FAN_OUT - CAP - 1}
    assert await until(lambda: asyncio.all_tasks() == {asyncio.current_task()})


def test_the_documented_app_opens_its_schema() -> None:
    assert set(documented().app.openapi()["paths"]) == {"/report", "/stream"}
