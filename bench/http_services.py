"""Two HTTP services that know a limit of their own, and do not tell it.

1. ``/pool`` has as many workers as `POOL` says: who comes when all are busy waits.
2. ``/quota`` turns away, with a 429, who comes while as many as `QUOTA` says are served.
3. To serve is to sleep, for half to one and a half times the mean: no CPU sets the limit.
4. They are small and slow, because httpx takes milliseconds of CPU for a request, and with many
   connections far more: the knee is to be theirs, not the client's.

Run as a script, it serves both on a free port of 127.0.0.1, prints the address, and ends with its
standard input.
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Final

import anyio
import attrs
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


@attrs.frozen
class Service:
    name: str
    knee: int  # how many it serves at once
    mean: float  # seconds to serve one


POOL: Final = Service("pool", 8, 0.4)
QUOTA: Final = Service("quota", 6, 0.25)

workers = anyio.CapacityLimiter(POOL.knee)
quota = anyio.CapacityLimiter(QUOTA.knee)
random = Random(0)


async def serve(service: Service) -> Response:
    await anyio.sleep(service.mean * random.uniform(0.5, 1.5))
    return Response()


async def pooled(request: Request) -> Response:
    async with workers:
        return await serve(POOL)


async def metered(request: Request) -> Response:
    try:
        quota.acquire_nowait()
    except anyio.WouldBlock:
        return Response(status_code=429)
    try:
        return await serve(QUOTA)
    finally:
        quota.release()


app = Starlette(routes=[Route("/pool", pooled), Route("/quota", metered)])


@contextmanager
def serving() -> Iterator[str]:
    """Both services in a process of their own, meanwhile; yields their address."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.communicate()


def run() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        config = uvicorn.Config(app, http="h11", log_level="warning", timeout_keep_alive=60)
        server = uvicorn.Server(config)

        def end() -> None:
            sys.stdin.read()
            server.should_exit = True

        threading.Thread(target=end, daemon=True).start()
        server.run([listener])


if __name__ == "__main__":
    run()
