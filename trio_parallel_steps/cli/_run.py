"""``trio-parallel-steps run``: a pipeline file.

1. The file, and all options, are checked as a whole before anything runs: exit code 2.
2. Options are changes of the file's content, so ``--dry-run`` shows what they make of it.
"""

import fnmatch
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import click
import trio

from trio_parallel_steps import ConfigError, JournalError
from trio_parallel_steps.files import Plan, pipeline_of, plan_of, read_file, with_set

from ._anew import begin_anew
from ._job_options import JobOptions, job_options
from ._joblog import JobLog
from ._json import check_writable, stdout_apart, why, write_json
from ._options import check_apart
from ._output import printable
from ._run_pipeline import PipelineRun


@click.command("run")
@click.argument("file", metavar="FILE")
@job_options
@click.option(
    "--set",
    "settings",
    metavar="KEY=VALUE",
    multiple=True,
    help="Change a value of the file, as steps.check.timeout=60; may be given more than once.",
)
@click.option(
    "--cancel",
    "rules",
    metavar="WHEN=CANCEL",
    multiple=True,
    help="In every parallel step: when a branch that matches WHEN succeeds, cancel those that "
    "match CANCEL; may be given more than once.",
)
@click.option(
    "--journal",
    metavar="FILE",
    help="Record there what succeeds, with its output, as it ends.  [with --resume: FILE.journal]",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip what the journal says has succeeded, and record what does.  To be able to go on "
    "after a kill, use it from the first run on.",
)
@click.pass_context
def run_file(
    ctx: click.Context,
    /,
    file: str,
    settings: tuple[str, ...],
    rules: tuple[str, ...],
    journal: str | None,
    **given: Any,
) -> None:
    """Run the pipeline that FILE describes, TOML or JSON.

    Output of a branch is kept, and shown if it fails; with --stream it is shown as it comes.  With
    --keep-going failed branches do not end the pipeline, as long as one of their step succeeds.

    The exit code is 0 if all went as it should, 1 if a branch failed, 2 for a bad option or file, 3
    after a breach or a step's timeout, 130 after Ctrl-C.
    """
    shared = JobOptions(**given)
    with stdout_apart(shared.json_file):
        ran = run_plan(ctx, file, shared, settings, rules, journal)
    if shared.json_file is not None:
        write_json(shared.json_file, ran)
    ctx.exit(ran["exit_code"])


def run_plan(
    ctx: click.Context,
    file: str,
    shared: JobOptions,
    settings: Sequence[str],
    rules: Sequence[str],
    journal: str | None,
) -> dict[str, Any]:
    """What became of it, as JSON has it."""
    with usage_errors(ctx):
        plan = read_plan(file, shared, settings, rules)
        if shared.dry_run:
            pipeline_of(plan)
            for line in plan.lines():
                click.echo(os.fsencode(line))  # an option may hold any byte
            ctx.exit(0)
        check_apart(file=file, json=shared.json_file, joblog=shared.joblog, journal=journal)
        if shared.json_file is not None:
            check_writable(shared.json_file)
        joblog = None if shared.joblog is None else JobLog(shared.joblog, shared.resume)
        running = PipelineRun(shared, joblog)
        pipeline = pipeline_of(plan, running.watch)
        kept = journal_of(file, journal, resume=shared.resume)
        began = time.monotonic()
        trio.run(running.run, pipeline, kept)
        if running.refusal is not None:
            raise running.refusal
    if joblog is not None:
        joblog.close()
    if running.error is not None:
        raise click.ClickException(f"could not write: {running.error}")
    if running.kept:
        click.echo(printable(f"{plan.name}: {running.kept} had succeeded before"), err=True)
    if (summary := running.summary) is not None:
        click.echo(printable(f"{plan.name}: {summary}"), err=True)
    seconds = time.monotonic() - began
    return {
        "pipeline": plan.name,
        "exit_code": running.exit_code,
        "seconds": seconds,
        **running.as_dict(),
    }


@contextmanager
def usage_errors(ctx: click.Context) -> Iterator[None]:
    """One line for each fault."""
    try:
        yield
    except ConfigError as error:
        file = f"{error.file}: " if error.file else ""
        refuse(ctx, [f"{file}{fault}" for fault in error.faults])
    except JournalError as error:
        refuse(ctx, [str(error)])
    except RecursionError:
        refuse(ctx, ["`FILE` must not be nested so deeply"])


def refuse(ctx: click.Context, faults: Sequence[str]) -> NoReturn:
    for fault in faults:
        click.echo(f"Error: {' '.join(fault.split())}", err=True)
    ctx.exit(2)


# ---------------------------------------------------------------- the plan


def read_plan(file: str, shared: JobOptions, settings: Sequence[str], rules: Sequence[str]) -> Plan:
    """What the file and the options say together."""
    try:
        content: Any = read_file(file)
    except OSError as error:
        raise click.UsageError(
            f"`FILE` must be a pipeline file, got {file!r}: {why(error)}"
        ) from None
    for setting in settings:
        key, value = split("--set", "KEY=VALUE", setting)
        content = with_set(content, key.strip(), value.strip())
    overrides: list[tuple[str, str]] = []
    if shared.limit is not None and shared.limit != math.inf:
        overrides.append(("execution_config.max_parallel_steps", str(shared.limit)))
    if shared.max_memory_mb is not None:
        limits = "execution_config.resource_limits"
        overrides.append((f"{limits}.max_memory_mb", repr(shared.max_memory_mb)))
        overrides.append((f"{limits}.action", repr(shared.on_memory)))
    for key, value in overrides:
        content = with_set(content, key, value)
    execution = content.get("execution_config")
    if shared.limit == math.inf and isinstance(execution, dict):
        execution.pop("max_parallel_steps", None)
    added = [split("--cancel", "WHEN=CANCEL", rule) for rule in rules]
    check_rules(added, [list(step["branches"]) for step in parallel_steps(content)])
    for step in parallel_steps(content):
        if shared.keep_going:
            step["on_branch_failure"] = "ignore"
        concurrency = step.setdefault("concurrency", {}) if added else {}
        kept = concurrency.setdefault("cancel_rules", []) if isinstance(concurrency, dict) else None
        if isinstance(kept, list):  # else it is a fault of the file, to be told with the others
            kept += [{"when": when, "cancel": cancel} for when, cancel in added]
    return plan_of(content, file)


def split(option: str, what: str, given: str) -> tuple[str, str]:
    before, equals, after = given.partition("=")
    if not (before and equals):
        raise click.UsageError(f"`{option}` must be {what}, got {given!r}")
    return before, after


def check_rules(rules: Sequence[tuple[str, str]], steps: Sequence[Sequence[str]]) -> None:
    """One that matches nothing is a slip."""
    for rule in rules:
        if not any(all(fnmatch.filter(names, glob) for glob in rule) for names in steps):
            raise click.UsageError(
                f"`--cancel` must match branches of a parallel step, got {'='.join(rule)!r}"
            )


def parallel_steps(table: Any) -> Iterator[dict[str, Any]]:
    """Those in the content of a file, however deep, as far as it has the shape of one."""
    if not isinstance(table, dict):
        return
    branches, steps = table.get("branches"), table.get("steps")
    if isinstance(branches, dict):
        yield table
        for branch in branches.values():
            yield from parallel_steps(branch)
    for step in steps if isinstance(steps, list) else ():
        yield from parallel_steps(step)


def journal_of(file: str, journal: str | None, *, resume: bool) -> Path | None:
    """Where to record; what an earlier run has left there is taken away, if it isn't wanted."""
    if journal is None and not resume:
        return None
    path = Path(f"{file}.journal" if journal is None else journal)
    if not resume:
        begin_anew(path)
    return path
