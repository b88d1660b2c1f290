"""What `explore` may do to a program before one of its steps, at most once a run.

1. A fault is a value, made once for all runs; what it acts on is made anew in each run, and the
   program gives it a name: `expose`.  Before a step at which that name is not known yet the fault
   is not possible, and is not tried.
2. A step is one step of one task: what it does between two of its checkpoints.  Steps are counted
   from 0, which is the first after the program's function was called.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from contextvars import ContextVar
from typing import Any, Literal, TypeAlias, final

import attrs
import trio

from . import _scheduler

Steps: TypeAlias = Literal["every"] | frozenset[int]

exposed_names: ContextVar[dict[str, Any] | None] = ContextVar("exposed_names", default=None)


def expose(**objects: Any) -> None:
    """In a program that is explored: give its objects names, for faults, and for the check.

    ::

        with trio.CancelScope() as scope:
            expose(scope=scope)

    Elsewhere it does nothing, so that the program can be run as it is.
    """
    names = exposed_names.get()
    if names is not None:
        names.update(objects)


def _steps(at: Literal["every"] | Collection[int]) -> Steps:
    if at == "every":
        return "every"
    if isinstance(at, str) or not isinstance(at, Collection):
        raise TypeError(f"`at` must be 'every' or numbers of steps, got {at!r}")
    for step in at:
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            raise ValueError(f"`at` must be 'every' or numbers of steps >= 0, got {at!r}")
    return frozenset(at)


def _name(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"`{attribute.name}` must be a name that was exposed, got {value!r}")


def _name_or_none(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if value is not None:
        _name(instance, attribute, value)


@attrs.frozen(kw_only=True, repr=False)
class Fault(ABC):
    """What all faults have: before which steps they are tried, every one or those given."""

    at: Steps = attrs.field(default="every", converter=_steps)

    def needs(self) -> tuple[str, ...]:
        """The names that must have been exposed."""
        return ()

    def is_possible(self, step: int, exposed: Mapping[str, Any]) -> bool:
        """Before that step?"""
        return (self.at == "every" or step in self.at) and all(
            name in exposed for name in self.needs()
        )

    def __repr__(self) -> str:
        """Without what is as ever."""
        values = [(field, getattr(self, field.name)) for field in attrs.fields(type(self))]
        told = [f"{field.name}={value!r}" for field, value in values if value != field.default]
        return f"{type(self).__name__}({', '.join(told)})"

    @abstractmethod
    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Do it; `program` is the scope around all of it."""

    def explains(self, exc: BaseException) -> bool:
        """Is that what comes out of a program in which it was injected?"""
        return False


@final
@attrs.frozen(repr=False)
class Cancel(Fault):
    """Cancels the whole program, or a scope that it exposed."""

    scope: str | None = attrs.field(default=None, validator=_name_or_none)

    def needs(self) -> tuple[str, ...]:
        """Its scope's, if it has one."""
        return () if self.scope is None else (self.scope,)

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Cancel it."""
        (program if self.scope is None else exposed[self.scope]).cancel()


@final
@attrs.frozen(repr=False)
class Deadline(Fault):
    """Sets the deadline of a scope to so many seconds from now, or of the whole program."""

    scope: str | None = attrs.field(default=None, validator=_name_or_none)
    seconds: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))

    def needs(self) -> tuple[str, ...]:
        """Its scope's, if it has one."""
        return () if self.scope is None else (self.scope,)

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Set it."""
        scope = program if self.scope is None else exposed[self.scope]
        scope.deadline = trio.current_time() + self.seconds


@final
@attrs.frozen(repr=False)
class Interrupt(Fault):
    """Ctrl-C, as trio delivers it while no task runs: KeyboardInterrupt at the next checkpoint of
    the program's main task."""

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Deliver it."""
        _scheduler.interrupt()

    def explains(self, exc: BaseException) -> bool:
        """KeyboardInterrupt, or a group of nothing else."""
        if isinstance(exc, BaseExceptionGroup):
            return all(map(self.explains, exc.exceptions))
        return isinstance(exc, KeyboardInterrupt)


@final
@attrs.frozen(repr=False)
class SetLimit(Fault):
    """Sets ``total_tokens`` of a limiter: a `BranchLimiter` or a `trio.CapacityLimiter`."""

    limiter: str = attrs.field(validator=_name)
    total_tokens: int | float = attrs.field(default=1, validator=attrs.validators.ge(1))

    def needs(self) -> tuple[str, ...]:
        """Its limiter's."""
        return (self.limiter,)

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Set it."""
        exposed[self.limiter].total_tokens = self.total_tokens


@final
@attrs.frozen(repr=False)
class TripBreach(Fault):
    """Breaches an exposed step, ``nursery.breach(reason)``.  What then leaves the program is for
    ``raises=Breached`` to allow."""

    nursery: str = attrs.field(validator=_name)
    reason: str = "injected"

    def needs(self) -> tuple[str, ...]:
        """Its step's."""
        return (self.nursery,)

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Breach it."""
        exposed[self.nursery].breach(self.reason)


def _callable(instance: object, attribute: "attrs.Attribute[Any]", value: object) -> None:
    if not callable(value):
        raise TypeError(f"`{attribute.name}` must be a function, got {value!r}")


@final
@attrs.frozen(init=False, repr=False)
class Call(Fault):
    """Calls ``fn`` with the objects of those names: ``Call(trio.Event.set, "ready")``.

    An exception that it raises is a failure of that schedule.
    """

    fn: Callable[..., object] = attrs.field(validator=_callable)
    names: tuple[str, ...] = ()

    def __init__(
        self,
        fn: Callable[..., object],
        *names: str,
        at: Literal["every"] | Collection[int] = "every",
    ) -> None:
        for name in names:
            if not isinstance(name, str):
                raise TypeError(f"`names` must be names that were exposed, got {name!r}")
        self.__attrs_init__(fn, names, at=at)

    def needs(self) -> tuple[str, ...]:
        """All its names."""
        return self.names

    def inject(self, program: trio.CancelScope, exposed: Mapping[str, Any]) -> None:
        """Call it."""
        self.fn(*(exposed[name] for name in self.names))
