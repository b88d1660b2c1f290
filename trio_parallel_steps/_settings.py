"""``--set key=value``: one value of a pipeline file changed, before it is checked.

1. The key is TOML's dotted key: steps by their names or their numbers, ``steps.check.timeout`` and
   ``steps[1].timeout``.  The value is a TOML value; what is none is a str as it stands.
2. A table that is not there is made.  A step or a branch that is not there is an error.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from ._errors import ConfigError
from ._tables import nearest

INDEX = re.compile(r"\[(\d+)\]")


def with_set(content: Mapping[str, Any], key: str, value: str) -> dict[str, Any]:
    """The `content` of a file, as `read_file` returns it, with one value changed.

    Raises `ConfigError` if there is no such place.

    >>> with_set({"name": "nightly"}, "execution_config.max_parallel_steps", "8")
    {'name': 'nightly', 'execution_config': {'max_parallel_steps': 8}}
    """
    changed = deepcopy(dict(content))
    *way, last = _parts(key)
    place: Any = changed
    walked = ""
    for part in way:
        place = _inside(key, place, part, walked)
        walked = part
    if isinstance(place, dict) and walked != "branches":
        place[last] = _value(value)
    else:
        _inside(key, place, last, walked)
        raise ConfigError("", [f"`{key}` can't be set: it must be a key of a table"])
    return changed


def _parts(key: str) -> list[str]:
    """Of a dotted key, as TOML reads it."""
    try:
        nested: Any = tomllib.loads(INDEX.sub(r".\1", key) + " = 0")
    except tomllib.TOMLDecodeError:
        nested = {}
    parts = []
    while isinstance(nested, dict) and len(nested) == 1:
        ((part, nested),) = nested.items()
        parts.append(part)
    if nested != 0:
        raise ConfigError("", [f"a key must be dotted, as `steps.check.timeout` is, got {key!r}"])
    return parts


def _inside(key: str, place: Any, part: str, walked: str) -> Any:
    if isinstance(place, list):
        names = {each["name"]: each for each in place if isinstance(each, dict) and "name" in each}
        if part in names:
            return names[part]
        if part.isdecimal() and int(part) < len(place):
            return place[int(part)]
        raise ConfigError("", [f"`{key}`: the list has no {part!r}{nearest(part, names)}"])
    if not isinstance(place, dict):
        raise ConfigError("", [f"`{key}`: `{walked}` is no table, but {place!r}"])
    if part not in place and walked == "branches":
        raise ConfigError("", [f"`{key}`: no branch {part!r}{nearest(part, place)}"])
    return place.setdefault(part, {})


def _value(text: str) -> Any:
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text
