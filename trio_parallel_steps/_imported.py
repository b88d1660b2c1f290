"""Objects by their names in modules, as pipeline files name them: ``module:name``.

1. While a file is loaded its own folder is first on the import path, as a script's own is.  The
   path is as it was afterwards, but what was imported stays imported.
2. So a module of the folder whose name another module has taken already can't be had: it is an
   error, not the other module.
"""

from __future__ import annotations

import builtins
import sys
from contextlib import contextmanager
from importlib import import_module
from importlib.machinery import PathFinder
from inspect import isasyncgenfunction, iscoroutinefunction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _errors
from ._tables import Call, nearest
from ._threads import in_thread
from ._util import expected

if TYPE_CHECKING:
    from collections.abc import Iterator

EXCEPTION = 'an exception of this package, a built-in one, or "module:Class"'


@contextmanager
def importing_from(folder: Path) -> Iterator[None]:
    kept = sys.path[:]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path[:] = kept


def imported(target: str, folder: Path) -> Any:
    """What `target` names.  ValueError; of a module that raises, from its exception."""
    module_name, colon, name = target.partition(":")
    if not (colon and module_name and name) or module_name.startswith("."):
        raise ValueError(f'must be "module:name", got {target!r}')
    try:
        found = import_module(module_name)
    except (Exception, SystemExit) as error:  # of the user's module
        raise ValueError(f"can't be imported: {type(error).__name__}: {error}") from error
    _check_own(module_name.partition(".")[0], folder)
    for part in name.split("."):
        if not hasattr(found, part):
            names = [each for each in dir(found) if not each.startswith("_")]
            raise ValueError(f"names no {part!r} in {found!r}{nearest(part, names)}")
        found = getattr(found, part)
    return found


def _check_own(name: str, folder: Path) -> None:
    own = PathFinder.find_spec(name, [str(folder)])
    if own is None or own.origin is None:
        return
    taken = getattr(sys.modules[name], "__file__", None)
    if taken is None or not Path(own.origin).samefile(taken):
        raise ValueError(f"can't be imported: {name!r} of {folder} has the name of {taken}")


def call(target: str, folder: Path) -> Call:
    """An async function, or a sync one in a thread."""
    fn = imported(target, folder)
    if not callable(fn) or isinstance(fn, type) or isasyncgenfunction(fn):
        raise ValueError(expected("", "a function, async or not", fn).removeprefix("`` "))
    is_async = iscoroutinefunction(fn) or iscoroutinefunction(getattr(fn, "__call__", None))  # noqa: B004
    return Call(target, fn if is_async else in_thread(fn))


def exception(name: str, folder: Path) -> type[Exception]:
    if ":" in name:
        found = imported(name, folder)
    else:
        known = {
            each: kind
            for each, kind in (vars(builtins) | vars(_errors)).items()
            if isinstance(kind, type) and issubclass(kind, Exception)
        }
        if name not in known:
            raise ValueError(f"must be {EXCEPTION}, got {name!r}{nearest(name, known)}")
        found = known[name]
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise ValueError(f"must be {EXCEPTION}, got {found!r}")
    return found
