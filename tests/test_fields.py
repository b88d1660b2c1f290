"""Contexts of all kinds: copied for branches, merged field by field, and never written to."""

from __future__ import annotations

import copy
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import attrs
import pytest
from pydantic import BaseModel, ConfigDict, PrivateAttr

from trio_parallel_steps import MergeConflict, MergeStrategy
from trio_parallel_steps._contexts import begin, copied
from trio_parallel_steps._fields import fields, rebuilt

ERROR_ON_CONFLICT = MergeStrategy.ERROR_ON_CONFLICT


def doubled(n: int) -> int:
    return 2 * n


@attrs.define
class Defined:
    n: int
    items: list[int]
    inner: Any = None
    _private: int = attrs.field(default=0, alias="hidden")
    total: int = attrs.field(init=False, default=0)

    def __attrs_post_init__(self) -> None:
        self.total = -1


@attrs.frozen
class Frozen:
    n: int
    items: list[int]
    inner: Any = None


@attrs.define(slots=False, on_setattr=attrs.setters.NO_OP)
class InDict:
    n: int = attrs.field(converter=doubled)
    items: list[int]
    inner: Any = None


@dataclass
class Data:
    n: int
    items: list[int]
    inner: Any = None
    start: InitVar[int] = 1
    total: int = field(init=False, compare=False)

    def __post_init__(self, start: int) -> None:
        self.total = start


@dataclass(frozen=True, slots=True)
class FrozenData:
    n: int
    items: list[int]
    inner: Any = None


class Model(BaseModel):
    n: int
    items: list[int]
    inner: Any = None


class FrozenModel(BaseModel):
    model_config = ConfigDict(frozen=True)
    n: int
    items: list[int]
    inner: Any = None


class ModelLike:
    """Has what the contract asks of one that is pydantic-like."""

    model_fields: ClassVar = {"n": None, "items": None, "inner": None}

    def __init__(self, n: int, items: list[int], inner: Any = None) -> None:
        self.n, self.items, self.inner = n, items, inner

    def model_copy(self, *, update: dict[str, Any] | None = None, deep: bool = False) -> ModelLike:
        values = copy.deepcopy(vars(self)) if deep else vars(self)
        return ModelLike(**{**values, **(update or {})})


class Plain:
    def __init__(self, n: int, items: list[int], inner: Any = None) -> None:
        self.n, self.items, self.inner = n, items, inner


class Slotted:
    __slots__ = ("__inner", "items", "n")

    def __init__(self, n: int, items: list[int], inner: Any = None) -> None:
        self.n, self.items, self.__inner = n, items, inner

    @property
    def inner(self) -> Any:
        return self.__inner

    @inner.setter
    def inner(self, value: Any) -> None:
        self.__inner = value


INSTANCES = [
    *(Defined, Frozen, InDict, Data, FrozenData, Model, FrozenModel, ModelLike, Plain, Slotted),
    SimpleNamespace,
]
instances = pytest.mark.parametrize("kind", INSTANCES, ids=lambda kind: kind.__name__)
force = object.__setattr__  # what users do to frozen ones


def merged(strategy: Any, context: Any, *changes: Callable[[Any], object], keys: Any = None) -> Any:
    contexts = begin(context, keys)
    ended = []
    for number, change in enumerate(changes):
        own = copied(contexts.given)
        change(own)
        ended.append((str(number), own))
    return contexts.merged(strategy, ended)


def set_to(**values: Any) -> Callable[[Any], None]:
    def change(context: Any) -> None:
        frozen = isinstance(context, Frozen | FrozenData | FrozenModel)
        for name, value in values.items():
            (force if frozen else setattr)(context, name, value)

    return change


# ---------------------------------------------------------------- instances


@instances
def test_an_instance_is_merged_field_by_field(kind: Any) -> None:
    context = kind(n=1, items=[1], inner={"a": 1})

    def add(new: Any) -> None:
        new.items.append(2)
        new.inner["b"] = 2

    result = merged(ERROR_ON_CONFLICT, context, set_to(n=5), add, lambda _: None)
    n = 2 if kind is InDict else 1
    assert type(result) is kind
    assert (result.n, result.items, result.inner) == (5, [1, 2], {"a": 1, "b": 2})
    assert (context.n, context.items, context.inner) == (n, [1], {"a": 1})


@instances
def test_instances_within_are_merged_field_by_field(kind: Any) -> None:
    context = {"it": kind(n=1, items=[1], inner=kind(n=3, items=[]))}
    result = merged(
        ERROR_ON_CONFLICT,
        context,
        lambda own: set_to(n=5)(own["it"]),
        lambda own: own["it"].items.append(2),
        lambda own: set_to(n=6)(own["it"].inner),
    )
    assert (result["it"].n, result["it"].items, result["it"].inner.n) == (5, [1, 2], 6)


@instances
def test_a_conflict_within_an_instance_names_the_field(kind: Any) -> None:
    context = {"it": kind(n=1, items=[])}
    with pytest.raises(MergeConflict) as caught:
        merged(
            ERROR_ON_CONFLICT,
            context,
            lambda own: set_to(n=5)(own["it"]),
            lambda own: set_to(n=6)(own["it"]),
        )
    assert caught.value.path == ("it", "n")


@instances
def test_nothing_is_shared_with_the_callers_instance(kind: Any) -> None:
    context = kind(n=1, items=[1], inner=[[1]])
    contexts = begin(context)
    context.items.append(2)
    context.inner[0].append(2)
    own = copied(contexts.given)
    assert (own.items, own.inner) == ([1], [[1]])
    own.items.append(3)
    result = contexts.merged(ERROR_ON_CONFLICT, [("a", own)])
    assert (result.items, result.inner) == ([1, 3], [[1]])
    result.inner[0].append(4)
    assert context.inner == [[1, 2]]
    assert copied(contexts.given).inner == [[1]]


@instances
def test_the_included_fields_alone_are_merged(kind: Any) -> None:
    context = kind(n=1, items=[1])

    def change(new: Any) -> None:
        set_to(n=2)(new)
        new.items.append(2)

    result = merged(ERROR_ON_CONFLICT, context, change, keys=frozenset({"items"}))
    assert (result.n, result.items) == (context.n, [1, 2])


@instances
def test_a_field_to_include_is_one_of_the_instances(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"`context_include_keys` must be fields of ") as caught:
        begin(kind(n=1, items=[]), frozenset({"n", "nn"}))
    assert kind.__name__ in str(caught.value)
    assert str(caught.value).endswith(", got 'nn'")


def test_no_constructor_converter_or_post_init_runs() -> None:
    result = merged(ERROR_ON_CONFLICT, InDict(n=1, items=[]), lambda own: own.items.append(1))
    assert result.n == 2
    defined: Any = Defined(1, [], hidden=7)
    defined.total = 5
    result = merged(ERROR_ON_CONFLICT, defined, set_to(n=2), set_to(_private=8))
    assert (result.n, result._private, result.total) == (2, 8, 5)
    assert merged(ERROR_ON_CONFLICT, defined, set_to(total=9)).total == 9


def test_fields_that_init_does_not_take_and_eq_leaves_out() -> None:
    result = merged(ERROR_ON_CONFLICT, Data(1, [], start=3), set_to(total=4), set_to(n=2))
    assert (result.total, result.n) == (4, 2)


def test_an_unset_field_may_be_set_and_a_set_one_deleted() -> None:
    @attrs.define(slots=False)
    class Late:
        a: int = attrs.field(init=False)
        b: int = 0

    def drop(context: Any) -> None:
        del context.b

    result = merged(ERROR_ON_CONFLICT, Late(), set_to(a=1), drop, drop, keys=frozenset("ab"))
    assert result.a == 1
    assert not hasattr(result, "b")
    model = merged(ERROR_ON_CONFLICT, Model(n=1, items=[]), lambda own: delattr(own, "inner"))
    assert not hasattr(model, "inner")


def test_attributes_that_come_and_go() -> None:
    def move(context: Any) -> None:
        context.new = context.n
        del context.n

    result = merged(ERROR_ON_CONFLICT, SimpleNamespace(n=1, m=2), move)
    assert result == SimpleNamespace(new=1, m=2)
    # One branch deletes an attribute that is not there in what another has put in its place.
    taken = merged(
        MergeStrategy.OVERWRITE,
        {"it": SimpleNamespace(n=1)},
        lambda own: own.update(it=SimpleNamespace(m=2)) or own.update(it=5),
        lambda own: own.update(it=5),
        lambda own: delattr(own["it"], "n"),
        lambda own: delattr(own["it"], "n"),
    )
    assert taken["it"] == SimpleNamespace()


def test_what_is_derived_is_no_change_and_is_forgotten() -> None:
    class Circle:
        def __init__(self) -> None:
            self.r = 1
            self.name = ""

        @cached_property
        def area(self) -> int:
            return 3 * self.r**2

    @attrs.define
    class SlottedCircle:
        r: int = 1
        name: str = ""

        @cached_property
        def area(self) -> int:
            return 3 * self.r**2

    class ModelCircle(BaseModel):
        r: int = 1
        name: str = ""

        @cached_property
        def area(self) -> int:
            return 3 * self.r**2

    for kind in (Circle, SlottedCircle, ModelCircle):
        context: Any = kind()
        assert context.area == 3

        result = merged(
            ERROR_ON_CONFLICT, context, lambda own: own.area, set_to(r=2), set_to(name="c")
        )
        assert (result.r, result.name, result.area) == (2, "c", 12)


def test_a_hash_that_attrs_has_cached_is_forgotten() -> None:
    @attrs.frozen(cache_hash=True, slots=False)
    class Key:
        n: int = 1

    key = Key()
    assert hash(key) == hash(Key(1))
    result = merged(ERROR_ON_CONFLICT, {"key": key}, lambda own: force(own["key"], "n", 2))
    assert hash(result["key"]) == hash(Key(2))
    assert hash(rebuilt(key, {"n": 2})) == hash(Key(2))
    assert fields(key) == {"n": 1}


def test_what_says_itself_how_it_is_copied_is_one_value() -> None:
    class Counted:
        def __init__(self) -> None:
            self.n = self.m = 0

        def __deepcopy__(self, memo: Any) -> Counted:
            new = Counted()
            new.n, new.m = self.n, self.m
            return new

    with pytest.raises(MergeConflict) as caught:
        merged(
            ERROR_ON_CONFLICT,
            {"it": Counted()},
            lambda own: set_to(n=1)(own["it"]),
            lambda own: set_to(m=1)(own["it"]),
        )
    assert caught.value.path == ("it",)


# ---------------------------------------------------------------- pydantic


class Open(BaseModel):
    model_config = ConfigDict(extra="allow", validate_assignment=True)
    n: int = 0
    m: int = 0
    _private: dict[str, int] = PrivateAttr(default_factory=dict)


def test_a_models_extra_and_private_values_are_merged_too() -> None:
    def private(own: Open) -> None:
        own._private["a"] = 1

    result = merged(
        ERROR_ON_CONFLICT,
        Open.model_validate({"n": 1, "x": 1}),
        private,
        set_to(x=2),
        set_to(y=3),
        set_to(m=4),
    )
    assert result.model_extra == {"x": 2, "y": 3}
    assert (result.n, result.m, result._private) == (1, 4, {"a": 1})


def test_which_fields_of_a_model_were_set_is_no_conflict() -> None:
    result = merged(ERROR_ON_CONFLICT, Open(), set_to(n=1), set_to(m=2))
    assert result.model_fields_set == {"n", "m"}


# ---------------------------------------------------------------- mappings


class Own(MutableMapping[str, Any]):
    """A mapping whose shallow copy shares its items."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._items[key] = value

    def __delitem__(self, key: str) -> None:
        del self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


MAPPINGS: list[Callable[..., Any]] = [
    *(dict, OrderedDict, Counter, UserDict, Own),
    lambda **items: defaultdict(list, items),
]
mappings = pytest.mark.parametrize("make", MAPPINGS)


@mappings
def test_a_mapping_of_any_type_is_merged_key_by_key(make: Any) -> None:
    context = make(a=1, gone=2, items=[1], inner=make(x=1, y=1))

    def drop(own: Any) -> None:
        del own["gone"]

    def within(own: Any) -> None:
        own["inner"]["x"] = 2
        own["items"].append(2)

    result = merged(ERROR_ON_CONFLICT, context, drop, within, lambda own: own.update(new=3))
    assert type(result) is type(context)
    assert dict(result) == {"a": 1, "items": [1, 2], "inner": make(x=2, y=1), "new": 3}
    assert dict(context) == {"a": 1, "gone": 2, "items": [1], "inner": make(x=1, y=1)}
    assert getattr(result, "default_factory", None) is getattr(context, "default_factory", None)


@mappings
def test_with_included_keys_a_branch_sees_those_alone_and_they_alone_are_merged(make: Any) -> None:
    context = make(a=1, b=2, c=[3])
    seen = []

    def change(own: Any) -> None:
        seen.append(dict(own))
        own["a"] = 10
        own["b"] = 20
        own["later"] = 30
        own["other"] = 40

    result = merged(ERROR_ON_CONFLICT, context, change, keys=frozenset({"a", "c", "later"}))
    assert seen == [{"a": 1, "c": [3]}]
    assert dict(result) == {"a": 10, "b": 2, "c": [3], "later": 30}
    assert dict(context) == {"a": 1, "b": 2, "c": [3]}


def test_no_included_key_leaves_a_branch_nothing() -> None:
    contexts = begin({"a": 1}, frozenset())
    assert copied(contexts.given) == {}
    assert contexts.merged(ERROR_ON_CONFLICT, [("x", {"a": 2})]) == {"a": 1}


@mappings
def test_nothing_is_shared_with_the_callers_mapping(make: Any) -> None:
    context = make(a=[1], inner=make(b=[1]))
    contexts = begin(context, None)
    context["a"].append(2)
    context["inner"]["b"].append(2)
    first, second = copied(contexts.given), copied(contexts.given)
    assert first["a"] == second["inner"]["b"] == [1]
    first["a"].append(3)
    assert second["a"] == [1]
    for strategy in (ERROR_ON_CONFLICT, MergeStrategy.NO_MERGE, lambda mine, _: mine):
        result = contexts.merged(strategy, [("first", copied(contexts.given))])
        result["a"].append(4)
        result["inner"]["b"].append(4)
        assert context["a"] == context["inner"]["b"] == [1, 2]
        assert copied(contexts.given)["inner"]["b"] == [1]


def test_what_a_branch_left_may_be_another_mapping() -> None:
    contexts = begin(OrderedDict(a=1, b=2))
    result = contexts.merged(ERROR_ON_CONFLICT, [("x", {"a": 1, "b": 3})])
    assert result == OrderedDict(a=1, b=3)
    assert type(result) is OrderedDict


@pytest.mark.parametrize("left", [None, 5, Plain(1, [])])
def test_what_a_branch_left_is_a_context_of_the_same_kind(left: Any) -> None:
    with pytest.raises(TypeError, match="the context of branch 'x' must be a dict, as it was, got"):
        begin({}).merged(ERROR_ON_CONFLICT, [("x", left)])
    with pytest.raises(TypeError, match="the context of branch 'x' must be a Data, as it was, got"):
        begin(Data(1, [])).merged(ERROR_ON_CONFLICT, [("x", left)])


# ---------------------------------------------------------------- what is no context


@pytest.mark.parametrize("strategy", [*MergeStrategy, lambda context, branches: {"never": 1}])
@pytest.mark.parametrize("keys", [None, frozenset({"a"})])
def test_none_stays_none(strategy: Any, keys: Any) -> None:
    contexts = begin(None, keys)
    assert copied(contexts.given) is None
    assert contexts.merged(strategy, [("a", None)]) is None


class Point(NamedTuple):
    x: int


@pytest.mark.parametrize(
    "context", [5, "a", [1], {1}, (), Point(1), MappingProxyType({}), object(), Data, len]
)
def test_a_context_has_fields_that_can_be_set(context: Any) -> None:
    with pytest.raises(TypeError) as caught:
        begin(context)
    assert str(caught.value) == (
        "`context` must be a mutable mapping, an instance with attributes (attrs, dataclass, "
        f"pydantic or plain), or None, got {context!r}"
    )


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(TypeError) as caught:
        begin({"a": 1, "deep": [1], "db": Data(1, [], inner={"lock": threading.Lock()})})
    assert str(caught.value) == (
        "`context` must be what can be deep-copied, but context['db']['inner']['lock'] is not: "
        "cannot pickle '_thread.lock' object"
    )
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_cannot_be_copied_is_named_within_what_holds_itself() -> None:
    context: dict[str, Any] = {}
    context["self"] = context
    context["lock"] = threading.Lock()
    with pytest.raises(TypeError, match=r"but context\['self'\] is not"):
        begin(context)


def test_what_cannot_be_copied_may_be_the_context_itself() -> None:
    class Fixed(dict[str, int]):
        def __deepcopy__(self, memo: Any) -> Fixed:
            raise RuntimeError("there is one of me")

    with pytest.raises(TypeError, match="but context is not: there is one of me"):
        begin(Fixed(a=1))


def test_contexts_say_what_they_are_of() -> None:
    assert repr(begin({"a": 1})) == "<Contexts of dict>"
