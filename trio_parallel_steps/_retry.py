"""`Retry`: when a branch is tried again, and after how long.

1. Between tries the branch is QUEUED and holds no token; it keeps its priority, and its next
   admission waits its turn like any other.
2. The back-off is stamina's: ``min(wait_max, wait_initial * 2 ** (tries - 1) + jitter)``, with a
   jitter drawn uniformly from 0 to `wait_jitter`.  Backpressure may say how long instead.
3. Stopped while it is queued again, it ends as a running one would, with its last exception.
4. Each try runs in a context of its own: a copy of that of the submission.
"""

from __future__ import annotations

from math import inf
from typing import Any, final

import attrs

from ._errors import Backpressure
from ._util import check_int, check_seconds, expected


def _check_on(retry: Retry, attribute: attrs.Attribute[Any], value: Any) -> None:
    what = "an exception class, or a tuple of them"
    kinds = value if isinstance(value, tuple) else (value,)
    for kind in kinds:
        if not isinstance(kind, type):
            raise TypeError(expected(attribute.name, what, value))
        if not issubclass(kind, Exception):
            raise ValueError(expected(attribute.name, what, value))
    if not kinds:
        raise ValueError(expected(attribute.name, what, value))


def _check_attempts(retry: Retry, attribute: attrs.Attribute[int], value: int) -> None:
    check_int(attribute.name, value, 1)


def _check_seconds(retry: Retry, attribute: attrs.Attribute[float], value: float) -> None:
    check_seconds(attribute.name, value)


@final
@attrs.frozen
class Retry:
    """Try again after an exception in `on`, `attempts` times in all.

    Between tries the branch gives its token back and is queued again, after a back-off in seconds
    that doubles from `wait_initial` up to `wait_max`, with a random `wait_jitter` on top, as in
    stamina; after a `Backpressure` that says so, after its ``retry_after``.  The branch's timeout
    applies to each try, and its `trio.TooSlowError` can be retried.  `timeout` runs from the first
    admission, waiting included: from then on no new try starts; it never cuts one short.

    >>> Retry(on=(ConnectionError, TimeoutError), attempts=5)  # doctest: +ELLIPSIS
    Retry(on=(<class 'ConnectionError'>, <class 'TimeoutError'>), attempts=5, wait_initial=0.1, ...)
    """

    on: type[Exception] | tuple[type[Exception], ...] = attrs.field(validator=_check_on)
    """the exceptions after which there is another try; `Backpressure` is always one of them"""
    attempts: int = attrs.field(default=3, validator=_check_attempts)
    """how many tries in all"""
    wait_initial: float = attrs.field(default=0.1, validator=_check_seconds)
    """seconds before the second try; they double from try to try"""
    wait_max: float = attrs.field(default=5.0, validator=_check_seconds)
    """seconds between two tries at most"""
    wait_jitter: float = attrs.field(default=1.0, validator=_check_seconds)
    """random seconds on top, at most"""
    timeout: float = attrs.field(default=inf, validator=_check_seconds)
    """seconds from the first admission on, after which no new try starts"""

    def wait_after(self, error: Exception, tries: int, random: float) -> float | None:
        """Seconds until the next try, or None if there is none.  `random` is from 0 to 1."""
        if tries >= self.attempts or not isinstance(error, (Backpressure, self.on)):
            return None
        if isinstance(error, Backpressure) and error.retry_after is not None:
            return error.retry_after
        doubled = self.wait_initial * 2.0 ** min(tries - 1, 1000)
        return min(self.wait_max, doubled + random * self.wait_jitter)


def check_retry(retry: Retry | None) -> Retry | None:
    if not isinstance(retry, Retry | None):
        raise TypeError(expected("retry", "a Retry or None", retry))
    return retry
