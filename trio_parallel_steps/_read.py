"""What is in a pipeline file, TOML or JSON, as plain dicts and lists.

1. What can't be read as such is told with its file, line and column.
2. JSON is as strict as TOML: a key is given once, and NaN and Infinity are none of it.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

from ._errors import ConfigError

PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def read_file(path: str | Path) -> dict[str, Any]:
    """What is in a pipeline file, as plain dicts and lists.

    Raises `ConfigError` for what is no TOML or JSON, by the file's ending; OSError if it can't be
    read.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".json"):
        raise ConfigError(str(path), ["the file's name must end in .toml or .json"])
    content = file.read_bytes()
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        lines = content[: error.start].split(b"\n")
        raise _syntax(path, len(lines), len(lines[-1]) + 1, "not UTF-8") from None
    try:
        return _toml(path, text) if file.suffix == ".toml" else _json(path, text)
    except RecursionError:
        raise ConfigError(str(path), ["the file's tables are nested too deeply"]) from None


def _toml(path: str | Path, text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        message = str(error)
        place = PLACE.search(message)
        assert place is not None
        if place[1] is None:  # at the end of the document
            lines = text.split("\n")
            line, column = len(lines), len(lines[-1]) + 1
        else:
            line, column = int(place[1]), int(place[2])
        raise _syntax(path, line, column, message[: place.start()]) from None


def _json(path: str | Path, text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, object_pairs_hook=_once, parse_constant=_refused)
    except json.JSONDecodeError as error:
        raise _syntax(path, error.lineno, error.colno, error.msg) from None
    except ValueError as error:
        raise ConfigError(str(path), [str(error)]) from None
    if not isinstance(content, dict):
        raise ConfigError(str(path), [f"the file must be a table, got {content!r}"])
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise ConfigError(str(path), [f"{half!r}, half of a pair, is no character"]) from None
    return content


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"`{twice}` is given twice in one table")
    return table


def _refused(constant: str) -> None:
    raise ValueError(f'{constant} is no JSON: no limit is "inf"')


def _syntax(path: str | Path, line: int, column: int, message: str) -> ConfigError:
    return ConfigError(f"{path}:{line}:{column}", [message])
