"""What runs in worker processes: only the standard library, so that they start quickly."""

import asyncio
import os
import signal
import threading
from pathlib import Path
from typing import Any, NoReturn


def pid() -> int:
    return os.getpid()


def all_of(*args: int, **kwargs: int) -> Any:
    return args, kwargs


def tell(fifo: Path) -> None:
    """Its process id, to who reads."""
    fifo.write_text(str(os.getpid()))


def hangs(fifo: Path) -> str:
    """Says so; for a minute it can't be ended but by SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    tell(fifo)
    signal.sigtimedwait([], 60)
    return "never killed"


def meets(mine: Path, others: Path) -> int:
    """Says that it runs, and waits for who says that all do."""
    tell(mine)
    others.read_text()
    return os.getpid()


def dies(how: int) -> NoReturn:
    if how > 0:
        os._exit(how)
    os.kill(os.getpid(), -how)
    raise AssertionError("unreachable")


class Custom(Exception):
    """With a signature of its own."""

    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


def raises() -> NoReturn:
    try:
        raise KeyError("the cause")
    except KeyError as exc:
        raise Custom(7, reason="in the worker") from exc


class Holding(Exception):
    def __init__(self) -> None:
        super().__init__("own words")
        self.lock = threading.Lock()


def raises_what_cannot_be_pickled() -> NoReturn:
    raise Holding


def raises_a_broken_worker_error() -> NoReturn:
    from trio_parallel import BrokenWorkerError

    raise BrokenWorkerError("own words")


def raises_what_is_no_exception() -> NoReturn:
    raise SystemExit(5)


def returns_what_cannot_be_pickled() -> Any:
    return threading.Lock()


async def an_async_function() -> None:
    pass


def returns_a_coroutine() -> Any:
    return an_async_function()


def _fail(*args: Any) -> NoReturn:
    raise LookupError("not here")


class OneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _fail, ()


def returns_one_way() -> Any:
    return OneWay()


def runs_a_loop() -> int:
    """A loop of the worker's own."""
    return asyncio.run(asyncio.sleep(0, 42))
