"""The JSON Schema of pipeline files, for editors: made from the classes that `_structure` fills.

1. A key's type is its field's, its description the text under the field; what a number may be is
   in `BOUNDS`.
2. What no schema can say is left to `load_pipeline`: names of functions, exceptions and branches,
   and what does not fit together.

https://json-schema.org/draft/2020-12/schema
"""

from __future__ import annotations

import ast
import enum
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from textwrap import dedent
from types import NoneType
from typing import Any, Final, TypeAlias, get_args, get_origin, get_type_hints

import attrs

from ._rules import FIRES_ON
from ._tables import (
    BranchTable,
    Call,
    LongBranch,
    PipelineTable,
    PlainBranch,
    PlainStep,
    StepTable,
    WideBranch,
    WideStep,
    Work,
)

Schema: TypeAlias = dict[str, Any]

INF: Final[Schema] = {"const": "inf"}
PLAIN: Final[dict[Any, Schema]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string"},
    Path: {"type": "string"},
    Call: {"type": "string", "pattern": "^[^.:][^:]*:[^:]+$"},
}
NAME: Final[Schema] = {"type": "string", "minLength": 1}
SECONDS: Final[Schema] = {"anyOf": [{"type": "number", "minimum": 0}, INF]}
POSITIVE: Final[Schema] = {"type": "number", "exclusiveMinimum": 0}
PERCENT: Final[Schema] = {**POSITIVE, "maximum": 100}
COUNT: Final[Schema] = {"type": "integer", "minimum": 1}

# Of fields whose type does not say all.
BOUNDS: Final[dict[str, Schema]] = {
    "CancelRule.on": {"enum": sorted(FIRES_ON)},
    "ConcurrencyConfig.max_concurrent_branches": {"anyOf": [COUNT, INF]},
    "ExecutionConfig.max_parallel_steps": COUNT,
    "ExecutionConfig.usage_limits": {"type": "object", "additionalProperties": SECONDS},
    "Named.name": NAME,
    "Parallel.weights": {"type": "object", "additionalProperties": COUNT},
    "ResourceLimits.max_cpu_percent": PERCENT,
    "ResourceLimits.max_loop_lag": POSITIVE,
    "ResourceLimits.max_memory_mb": POSITIVE,
    "ResourceLimits.max_memory_percent": PERCENT,
    "Retry.attempts": COUNT,
    "Retry.on": {"anyOf": [PLAIN[str], {"type": "array", "items": PLAIN[str], "minItems": 1}]},
    "Share.weight": COUNT,
    "Work.command": {"anyOf": [NAME, {"type": "array", "items": PLAIN[str], "minItems": 1}]},
}
# A plain step has one of the two, and only commands have the rest.
ONE_OF: Final[list[Schema]] = [
    {"required": ["call"], "properties": {"env": False, "cwd": False, "grace": False}},
    {"required": ["command"]},
]


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of pipeline files.

    >>> schema()["required"]
    ['steps']
    """
    described: dict[str, Schema] = {}
    top = _table(PipelineTable, described)
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**head, **top, "$defs": dict(sorted(described.items()))}


def _table(kind: type, described: dict[str, Schema]) -> Schema:
    hints, texts = get_type_hints(kind), _texts(kind)
    fields = attrs.fields(kind)
    properties = {}
    for field in fields:
        value = _bounds(kind, field.name) or _value(hints[field.name], described)
        properties[field.name] = {**value, "description": texts[field.name]}
        default = None if field.default is attrs.NOTHING else field.default  # which is an enum's
        if isinstance(default, enum.Enum):
            default = default.value
        if isinstance(default, bool | str):
            properties[field.name]["default"] = default
    table = {
        "type": "object",
        "title": (kind.__doc__ or "").partition(".")[0],
        "properties": properties,
        "required": [field.name for field in fields if field.default is attrs.NOTHING],
        "additionalProperties": False,
    }
    return {**table, "oneOf": ONE_OF} if issubclass(kind, Work) else table


def _bounds(kind: type, field: str) -> Schema | None:
    known = (BOUNDS.get(f"{base.__name__}.{field}") for base in kind.__mro__)
    return next(filter(None, known), None)


def _value(hint: Any, described: dict[str, Schema]) -> Schema:
    if hint == StepTable:
        return {
            "if": {"required": ["branches"]},
            "then": _reference(WideStep, described),
            "else": _reference(PlainStep, described),
        }
    if hint == BranchTable:
        return {
            "if": {"required": ["branches"]},
            "then": _reference(WideBranch, described),
            "else": {
                "if": {"required": ["steps"]},
                "then": _reference(LongBranch, described),
                "else": _reference(PlainBranch, described),
            },
        }
    if hint in PLAIN:
        return PLAIN[hint]
    if hint is float:
        return SECONDS
    arguments = get_args(hint)
    if NoneType in arguments:
        (hint,) = (each for each in arguments if each is not NoneType)
        return _value(hint, described)
    if get_origin(hint) is tuple:
        some = {"minItems": 1} if arguments[0] == StepTable else {}
        return {"type": "array", "items": _value(arguments[0], described), **some}
    if get_origin(hint) is Mapping:
        some = {"minProperties": 1} if arguments[1] == BranchTable else {}
        values = _value(arguments[1], described)
        return {"type": "object", "additionalProperties": values, **some}
    if issubclass(hint, enum.Enum):
        return {"enum": [member.value for member in hint]}
    return _reference(hint, described)


def _reference(kind: type, described: dict[str, Schema]) -> Schema:
    name = kind.__name__
    if name not in described:
        described[name] = {}  # tables hold tables of their own kind
        described[name] = _table(kind, described)
    return {"$ref": f"#/$defs/{name}"}


def _texts(kind: type) -> dict[str, str]:
    """What stands under each field, in its own class or in a base."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if attrs.has(base):
            texts.update(_texts_of(base))
    return texts


def _texts_of(kind: type) -> Iterator[tuple[str, str]]:
    (definition,) = ast.parse(dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    for field, text in zip(definition.body, definition.body[1:], strict=False):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(ast.Constant(str(said))):
                yield name, " ".join(said.replace("``", "`").split())
