"""What is public: the names of the contract, each with a docstring, and nothing else."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import trio_parallel_steps
import trio_parallel_steps.abc
import trio_parallel_steps.cache
import trio_parallel_steps.files
import trio_parallel_steps.limits
import trio_parallel_steps.testing

# The contract's names (api.pyi), by the issue that brings them.
CONTRACT = {
    3: """
        BranchErrors Breached StepTimeout BranchNotDone
        BranchStatus StepResult ParallelResult
        LimitLike BranchLimiter LimiterStatistics usable_cpus
        Tally Decision Policy FAIL_FAST COLLECT FIRST_SUCCESS quorum tolerate until
        CancelRule Breach Branch current_branch
        BranchNursery NurseryStatistics open_branch_nursery run_branches in_thread
    """,
    4: "run_branches_sync",
    5: "BudgetExceeded Budget Reservation map_branches Rate Retry Backpressure in_process hedged",
    7: "ResourceLimits PressureAction",
    8: """
        ConcurrencyConfig ExecutionConfig MergeStrategy MergeConflict OnBranchFailure Step step
        ParallelStep Pipeline PipelineResult load_pipeline ConfigError CommandFailed
    """,
}

# What the contract speaks of without giving it a line of its own.
ADDED = {
    "NurseryOptions",  # "Unpack[NurseryOptions], checked by type checkers"
    "JournalError",  # "refused with a clear error"
    "command",  # the branch that a CommandFailed is of
    "CommandOutput",
    "check_cancelled",  # in_thread's, on any host
    "Pressure",  # what Observer.pressure_changed is told
    "PressureLevel",  # what it holds
}

HOOKS = (
    "step_opened branch_queued branch_started branch_progressed branch_ended cancel_requested "
    "limit_changed usage_changed breached pressure_changed step_closed"
)

MEMBERS = {
    "StepResult": """
        key name status output exception reason attempts submitted_at started_at ended_at
        completion_index from_cache success feedback wait_time duration unwrap
    """,
    "ParallelResult": """
        completion_order outputs errors success feedback stop_reason peak_in_flight with_status
        raise_for_errors to_dict
    """,
    "Backpressure": "retry_after",
    "CommandFailed": "exit_code",
    "BranchLimiter": """
        total_tokens borrowed_tokens available_tokens statistics pause resume stall_report
    """,
    "Breach": "reason trip",
    "Budget": "spend reserve used settled",
    "Reservation": "settle",
    "Branch": "key status priority cancel wait report",
    "Rate": "amount per burst",
    "Retry": "on attempts wait_initial wait_max wait_jitter timeout",
    "BranchNursery": """
        start_soon cancel cancel_where breach pause resume completed statistics limiter result
        explain
    """,
}


def public_names(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }


NAMES = sorted(public_names(trio_parallel_steps))


def test_the_public_names_are_the_contracts() -> None:
    contract = {name for names in CONTRACT.values() for name in names.split()}
    assert set(NAMES) == contract | ADDED


def test_the_only_public_modules_are_those_of_the_contract_and_the_design() -> None:
    modules = {
        name
        for name, value in vars(trio_parallel_steps).items()
        if isinstance(value, ModuleType) and not name.startswith("_")
    }
    # The others are packages of the design; their insides are their own.
    assert modules - {"cache", "cli", "files", "pressure", "testing"} == {"abc", "hosts", "limits"}


def test_abc_holds_what_others_implement() -> None:
    module = trio_parallel_steps.abc
    own = {
        name
        for name in public_names(module)
        if getattr(getattr(module, name), "__module__", None) == module.__name__
    }
    assert own == {"Observer"}


TESTING = """
    explore replay Run Explored ScheduleFailed Hang NotDeterministic
    expose Fault Cancel Deadline Interrupt SetLimit TripBreach Call
    recorder Recorder Event check_invariants InvariantBroken assert_no_stall StallWatch Stalled
"""


def test_testing_has_its_names_and_no_others() -> None:
    assert public_names(trio_parallel_steps.testing) == set(TESTING.split())


FILES = "Plan pipeline_of plan_of read_file schema with_set Watch"


def test_files_has_its_names_and_no_others() -> None:
    assert public_names(trio_parallel_steps.files) == set(FILES.split())


def test_cache_has_its_names_and_no_others() -> None:
    assert public_names(trio_parallel_steps.cache) == {"Cache", "CacheWarning"}


LIMITS = """
    Limit Sample Outcome
    FixedLimit AIMDLimit VegasLimit GradientLimit Gradient2Limit WindowedLimit KneeLimit
"""


def test_limits_has_its_names_and_no_others() -> None:
    assert public_names(trio_parallel_steps.limits) == set(LIMITS.split())


def test_outcomes_are_spelled_as_the_contract_has_them() -> None:
    outcomes = {each.name: each.value for each in trio_parallel_steps.limits.Outcome}
    assert outcomes == {word: word.lower() for word in ("OK", "DROPPED", "IGNORED")}


@pytest.mark.parametrize("name", [name for name in LIMITS.split() if name != "Limit"])
def test_limits_are_not_made_to_be_subclassed(name: str) -> None:
    assert getattr(getattr(trio_parallel_steps.limits, name), "__final__", False)


PASSED_ON = [
    *((trio_parallel_steps.files, name) for name in FILES.split()),
    *((trio_parallel_steps.cache, name) for name in ("Cache", "CacheWarning")),
    *((trio_parallel_steps.testing, name) for name in TESTING.split()),
    *((trio_parallel_steps.limits, name) for name in LIMITS.split()),
]


@pytest.mark.parametrize(("module", "name"), PASSED_ON)
def test_what_another_module_has_is_documented(module: ModuleType, name: str) -> None:
    value = getattr(module, name)
    docstring = value.__doc__ or ""
    assert docstring.strip()
    if isinstance(value, type):
        assert not docstring.startswith(f"{name}(")
        members = [member for member, _ in public_members(value)]
        bare = [member for member in members if not inspect.getdoc(getattr(value, member))]
        assert bare == []


def test_an_observer_has_the_hooks_that_exist_by_now() -> None:
    hooks = {name for name in vars(trio_parallel_steps.abc.Observer) if not name.startswith("_")}
    assert hooks == set(HOOKS.split())


@pytest.mark.parametrize("name", MEMBERS)
def test_a_class_has_what_the_contract_lists(name: str) -> None:
    listed = set(MEMBERS[name].split())
    cls = getattr(trio_parallel_steps, name)
    assert listed <= set(dir(cls)) | set(getattr(cls, "__annotations__", ()))


def test_statuses_are_spelled_as_the_contract_has_them() -> None:
    statuses = {status.name: status.value for status in trio_parallel_steps.BranchStatus}
    words = "QUEUED RUNNING SUCCEEDED FAILED TIMED_OUT CANCELLED BREACHED SKIPPED".split()
    assert statuses == {word: word.lower() for word in words}


# ---------------------------------------------------------------- docstrings


def sources() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(Path(trio_parallel_steps.__file__).parent.glob("*.py")):
        yield path.stem, ast.parse(path.read_text("utf-8"))


def documented_values() -> set[str]:
    """Names of values that a string follows, which is how Sphinx takes their docstrings."""
    found = set()
    for _, tree in sources():
        for statement, following in zip(tree.body, tree.body[1:], strict=False):
            match statement, following:
                case (
                    ast.AnnAssign(target=ast.Name(id=name))
                    | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str())),
                ):
                    found.add(name)
    return found


@pytest.mark.parametrize("name", [*NAMES, "abc", "Observer"])
def test_every_public_object_has_a_docstring(name: str) -> None:
    if name == "Observer":
        value: Any = trio_parallel_steps.abc.Observer
    else:
        value = getattr(trio_parallel_steps, name)
    if isinstance(value, ModuleType | type) or inspect.isfunction(value):
        docstring = value.__doc__ or ""
        assert docstring.strip()
        assert not docstring.startswith(f"{name}(")  # what attrs would make up
    else:
        assert name in documented_values()


def public_members(cls: type) -> Iterator[tuple[str, Any]]:
    for base in cls.__mro__:
        if not base.__module__.startswith("trio_parallel_steps"):
            continue
        for name, value in vars(base).items():
            if name.startswith("_"):
                continue
            value = getattr(value, "__wrapped__", value)
            if isinstance(value, property) or inspect.isroutine(value):
                yield name, value


@pytest.mark.parametrize(
    "cls",
    [value for name in [*NAMES] if isinstance(value := getattr(trio_parallel_steps, name), type)],
    ids=lambda cls: cls.__name__,
)
def test_every_public_method_and_property_has_a_docstring(cls: type) -> None:
    bare = [
        name for name, value in public_members(cls) if not (inspect.getdoc(value) or "").strip()
    ]
    assert bare == []


def test_the_package_itself_has_one() -> None:
    assert trio_parallel_steps.__doc__


@pytest.mark.parametrize(
    ("module", "tree"), list(sources()), ids=lambda x: x if isinstance(x, str) else ""
)
def test_every_module_says_what_it_is(module: str, tree: ast.Module) -> None:
    assert ast.get_docstring(tree)


@pytest.mark.parametrize("name", ["Branch", "BranchNursery"])
def test_live_objects_have_no_public_constructor(name: str) -> None:
    cls = getattr(trio_parallel_steps, name)
    with pytest.raises(TypeError, match=rf"{name} has no public constructor"):
        cls()


@pytest.mark.parametrize(
    "name",
    "Branch BranchLimiter BranchNursery BranchStatus Breach Budget CancelRule CommandOutput "
    "Decision LimiterStatistics MergeStrategy NurseryStatistics ParallelResult Pressure "
    "PressureAction PressureLevel Rate ResourceLimits Retry StepResult Tally".split(),
)
def test_classes_that_are_not_made_to_be_subclassed_say_so(name: str) -> None:
    assert getattr(getattr(trio_parallel_steps, name), "__final__", False)
