"""The signals that end a run: Ctrl-C, a request to end, a terminal that has gone."""

import signal
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

import trio

ENDING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def open_signals() -> AbstractContextManager[AsyncIterator[int]]:
    """What was started with one ignored (nohup does it) goes on ignoring it."""
    ignored = {each for each in ENDING if signal.getsignal(each) is signal.SIG_IGN}
    return trio.open_signal_receiver(*ENDING.difference(ignored))
