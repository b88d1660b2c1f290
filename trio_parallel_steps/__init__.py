"""Run the named branches of a parallel step: under a limit, each cancellable, all breachable."""

from . import abc as abc
from ._branch import Branch as Branch, current_branch as current_branch
from ._breach import Breach as Breach
from ._command import CommandOutput as CommandOutput, command as command
from ._config import (
    ConcurrencyConfig as ConcurrencyConfig,
    ExecutionConfig as ExecutionConfig,
    OnBranchFailure as OnBranchFailure,
)
from ._cpus import usable_cpus as usable_cpus
from ._errors import (
    Backpressure as Backpressure,
    BranchErrors as BranchErrors,
    BranchNotDone as BranchNotDone,
    Breached as Breached,
    BudgetExceeded as BudgetExceeded,
    CommandFailed as CommandFailed,
    ConfigError as ConfigError,
    JournalError as JournalError,
    MergeConflict as MergeConflict,
    StepTimeout as StepTimeout,
)
from ._hedged import hedged as hedged
from ._limiter import (
    BranchLimiter as BranchLimiter,
    LimiterStatistics as LimiterStatistics,
    LimitLike as LimitLike,
)
from ._load import load_pipeline as load_pipeline
from ._map import map_branches as map_branches
from ._merge import MergeStrategy as MergeStrategy
from ._nursery import (
    BranchNursery as BranchNursery,
    NurseryStatistics as NurseryStatistics,
)
from ._open import (
    NurseryOptions as NurseryOptions,
    open_branch_nursery as open_branch_nursery,
)
from ._outcomes import (
    BranchStatus as BranchStatus,
    ParallelResult as ParallelResult,
    StepResult as StepResult,
)
from ._parallel import ParallelStep as ParallelStep
from ._pipeline import Pipeline as Pipeline, PipelineResult as PipelineResult
from ._policies import (
    COLLECT as COLLECT,
    FAIL_FAST as FAIL_FAST,
    FIRST_SUCCESS as FIRST_SUCCESS,
    Decision as Decision,
    Policy as Policy,
    Tally as Tally,
    quorum as quorum,
    tolerate as tolerate,
    until as until,
)
from ._processes import in_process as in_process
from ._rate import Rate as Rate
from ._resources import (
    Pressure as Pressure,
    PressureAction as PressureAction,
    PressureLevel as PressureLevel,
    ResourceLimits as ResourceLimits,
)
from ._retry import Retry as Retry
from ._rules import CancelRule as CancelRule
from ._run_branches import (
    run_branches as run_branches,
    run_branches_sync as run_branches_sync,
)
from ._spending import Budget as Budget, Reservation as Reservation
from ._steps import Step as Step, step as step
from ._threads import check_cancelled as check_cancelled, in_thread as in_thread
