"""Real servers for tests.

1. A server is a process of its own, on 127.0.0.1 or a Unix socket; it takes a free port itself and
   says which, so that none is taken between the choice and the use.
2. It is ready when it says so, and is stopped by its process id, whatever became of the test.
3. What is missing skips the tests that need it, with a reason; with CI=true in the environment
   nothing may be missing, and they fail.

Run as a script, ``servers.py module:factory``, it serves the ASGI app that the factory makes.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import NoReturn

PATIENCE: Final = 300.0  # seconds: who needs more hangs


def missing(what: str) -> NoReturn:
    import pytest  # a server does without

    if os.environ.get("CI") == "true":
        pytest.fail(f"needs {what}, and CI has to have it", pytrace=False)
    pytest.skip(f"needs {what}", allow_module_level=True)


@contextmanager
def needed() -> Iterator[None]:
    """Around imports of what only some tests need."""
    try:
        yield
    except ModuleNotFoundError as exc:
        missing(f"the package {exc.name!r}")


async def until(condition: Callable[[], bool]) -> bool:
    """Turn by turn of asyncio's loop, as long as it takes: for what nobody tells."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + PATIENCE / 2
    while not condition() and loop.time() < give_up:  # noqa: ASYNC110
        await asyncio.sleep(0)
    return condition()


# ---------------------------------------------------------------- processes


class Server:
    """A running server process."""

    def __init__(self, process: subprocess.Popen[str], ready: str) -> None:
        self.process = process
        self.output: list[str] = []  # its lines so far, of stdout and stderr
        self.match: re.Match[str] | None = None  # of the line that said that it is ready
        self._ready = re.compile(ready)
        self._told = threading.Event()  # that it is ready, or that its output has ended
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if self.match is None:
                self.match = self._ready.search(line)
            if self.match is None or self._told.is_set():
                self.output.append(line)
            else:
                self._told.set()
        self._told.set()

    def wait_ready(self) -> re.Match[str]:
        self._told.wait(PATIENCE)
        if self.match is None:
            raise RuntimeError(f"{self.process.args!r} is not ready: {''.join(self.output)}")
        return self.match

    def stop(self, how: signal.Signals) -> None:
        if self.process.poll() is None:
            os.kill(self.process.pid, how)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
            raise
        finally:
            self._reader.join(PATIENCE)
            assert self.process.stdout is not None
            self.process.stdout.close()


@contextmanager
def serving(
    command: Sequence[str],
    ready: str,
    *,
    stop_by: signal.Signals = signal.SIGTERM,
    env: Mapping[str, str] | None = None,
    user: str | None = None,
) -> Iterator[Server]:
    """Run it meanwhile.  `ready` is a pattern that is found in a line of its output."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        **_as_user(user),
    )
    server = Server(process, ready)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop(stop_by)


def _as_user(user: str | None) -> dict[str, Any]:
    return {} if user is None else {"user": user, "group": _group(user), "extra_groups": []}


def _group(user: str) -> int:
    return pwd.getpwnam(user).pw_gid


# ---------------------------------------------------------------- ASGI


@contextmanager
def asgi_server(factory: str, *, loop: str = "asyncio", **env: str) -> Iterator[tuple[str, Server]]:
    """Serve what `factory`, "module:function", makes.  Yields its URL and the server, whose output
    holds the warnings and errors that it has written."""
    import trio_parallel_steps

    here = Path(__file__).parent
    package = Path(trio_parallel_steps.__file__).parent.parent
    command = [sys.executable, "-W", "always::ResourceWarning", str(Path(__file__)), factory, loop]
    paths = {"PYTHONPATH": os.pathsep.join([str(here), str(package)])}
    with serving(command, r"listening on (http://\S+)", env={**paths, **env}) as server:
        yield server.wait_ready()[1], server
    assert server.process.returncode in (0, -signal.SIGTERM), server.output


def serve(factory: str, loop: str) -> None:
    import socket

    import uvicorn

    module, _, function = factory.partition(":")
    app = getattr(importlib.import_module(module), function)()
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)  # noqa: T201
        config = uvicorn.Config(
            app,
            http="h11",
            loop=loop,
            log_level="warning",
            timeout_graceful_shutdown=10,
            timeout_keep_alive=int(PATIENCE),
        )
        uvicorn.Server(config).run([listener])


# ---------------------------------------------------------------- PostgreSQL


def _postgres(name: str) -> str:
    """A program of the newest PostgreSQL here; Debian keeps them off the path."""
    found = shutil.which(name)
    if found is None:
        ours = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = sorted(ours, key=lambda path: float(path.parts[-3]))
        found = str(newest[-1]) if newest else None
    if found is None:
        missing(f"PostgreSQL's {name!r} (Debian: postgresql)")
    return found


def _unprivileged() -> str | None:
    """Who is to run what refuses to run as root; None if we are not root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in users else "nobody"


@contextmanager
def postgres_server() -> Iterator[str]:
    """A PostgreSQL with a new, empty cluster.  Yields its connection string."""
    initdb, postgres = _postgres("initdb"), _postgres("postgres")
    user = _unprivileged()
    # Not below pytest's own directory: other users can't enter that, and sockets' paths are short.
    home = tempfile.mkdtemp(prefix="postgres-")
    try:
        if user is not None:
            shutil.chown(home, user, _group(user))
        cluster = str(Path(home, "cluster"))
        subprocess.run(
            [initdb, "-D", cluster, "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            cwd=home,
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
            **_as_user(user),
        )
        settings = {
            "listen_addresses": "",
            "unix_socket_directories": home,
            "fsync": "off",
            # Clients that can't cancel a query in seconds close the connection: then it ends too.
            "client_connection_check_interval": "100ms",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with serving(
            [postgres, "-D", cluster, *options],
            "database system is ready to accept connections",
            stop_by=signal.SIGINT,  # which closes what is open
            env={"LC_ALL": "C"},
            user=user,
        ):
            yield f"postgresql://tester@/postgres?host={home}"
    finally:
        shutil.rmtree(home)


if __name__ == "__main__":
    serve(*sys.argv[1:])
