"""Where the user's code raised: a traceback without the frames of those who called it."""

from traceback import TracebackException
from types import TracebackType

CALLERS = ("trio_parallel_steps", "trio", "outcome")


def user_traceback(exc: Exception) -> str:
    """Empty if no code of the user's had a part in it."""
    traceback = exc.__traceback__
    while traceback is not None and is_callers(traceback):
        traceback = traceback.tb_next
    if traceback is None:
        return ""
    return "".join(TracebackException(type(exc), exc, traceback).format())


def is_callers(traceback: TracebackType) -> bool:
    module = str(traceback.tb_frame.f_globals.get("__name__", ""))
    return module.partition(".")[0] in CALLERS
