"""The command line, ``trio-parallel-steps``: extra ``cli``.

`main` is all that is public.  It can be imported and called without the extra, and then says in one
line what to install.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]

NEEDED = ("click", "rich")


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (None: the process's own) and return its exit code.

    0: all went as it should; 1: branches failed; 2: bad options, or the extra is not installed;
    3: a step was breached, or timed out; 130: Ctrl-C.
    """
    try:
        from ._commands import run
    except KeyboardInterrupt:  # it takes a while
        return 130
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in NEEDED:
            raise
        print(
            f"trio-parallel-steps needs {name}: pip install 'trio-parallel-steps[cli]'",
            file=sys.stderr,
        )
        return 2
    return run(args)
