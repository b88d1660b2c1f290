"""Who tells the observers, and in what order.

1. An event is told after the state has changed, to all its observers, in the order of events: one
   queue for all steps of an event loop's run, so what an observer causes is told after the event
   that it was told of.
2. An observer that raises is reported once and dropped from its step.
"""

from __future__ import annotations

import logging
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from ._outcomes import said

if TYPE_CHECKING:
    from .abc import Observer


class Announcer:
    __slots__ = ("_due", "_telling")

    def __init__(self) -> None:
        self._due: deque[tuple[list[Observer], str, tuple[Any, ...]]] = deque()
        self._telling = False

    def tell(self, observers: list[Observer], hook: str, *args: Any) -> None:
        self._due.append((observers, hook, args))
        if self._telling:
            return
        self._telling = True
        try:
            while self._due:
                self._deliver(*self._due.popleft())
        finally:
            self._telling = False

    def _deliver(self, observers: list[Observer], hook: str, args: tuple[Any, ...]) -> None:
        for observer in observers.copy():
            try:
                getattr(observer, hook)(*args)
            except Exception as exc:  # the observer is dropped; no branch hears of it
                observers.remove(observer)
                warn(f"{hook}() of {observer!r} raised {said(exc)}: it is told no more", exc)


def warn(
    message: str, exc: Exception | None = None, kind: type[RuntimeWarning] = RuntimeWarning
) -> None:
    """Where warnings are errors they still disturb no branch: then it is logged."""
    try:
        warnings.warn(message, kind, stacklevel=1, source=exc)
    except RuntimeWarning:
        logging.getLogger(__name__).error(message, exc_info=exc)
