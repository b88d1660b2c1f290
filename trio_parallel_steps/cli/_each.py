"""``trio-parallel-steps each``: one command for each of many items, as GNU parallel does it."""

import math
import sys
import time
from collections import Counter
from typing import Any

import click
import trio

from ._each_run import EachOptions, EachRun
from ._job_options import JobOptions, check_positive, check_retries, job_options
from ._joblog import JobLog, succeeded
from ._json import check_writable, write_json
from ._options import check_apart


def write_result(file: str, run: EachRun, exit_code: int, seconds: float) -> None:
    content = {
        "exit_code": exit_code,
        "seconds": seconds,
        "endings": run.endings,
        "jobs": sorted(run.records, key=lambda record: record["number"]),
    }
    write_json(file, content)


def check_done(run: EachRun) -> None:
    """That all could be read and written."""
    if run.error is not None:
        raise click.ClickException(run.error)


@click.command()
@click.argument("template", metavar="COMMAND")
@click.argument("files", metavar="[FILES]...", nargs=-1)
@job_options
@click.option("--resume", is_flag=True, help="Skip what the joblog says has succeeded.")
@click.option("--timeout", metavar="SECONDS", callback=check_positive, help="Of each job.")
@click.option("--step-timeout", metavar="SECONDS", callback=check_positive, help="Of all together.")
@click.option(
    "--retry",
    metavar="N",
    callback=check_retries,
    default="0",
    help="Run a job that has failed again, up to N times.",
)
@click.option("--keep-order", is_flag=True, help="Write output in the order of the items.")
@click.option("-0", "--null", is_flag=True, help="Items on stdin end with a null character.")
@click.pass_context
def each(
    ctx: click.Context,
    /,
    template: str,
    files: tuple[str, ...],
    timeout: float | None,
    step_timeout: float | None,
    retry: int,
    keep_order: bool,
    null: bool,
    **given: Any,
) -> None:
    """Run the shell's COMMAND once for each of FILES, or for each line of standard input, some at
    the same time.

    In it {} is the item, {.} without its extension, {/} its last part, {//} its folder, {/.} its
    last part without extension, {#} its number; without any of them the item is put at its end.
    By default as many run as there are CPUs, and a failure stops all.

    The exit code is 0 if all went as it should, 1 if a job failed, 2 for a bad option, 3 after the
    step's timeout or a breach, 130 after Ctrl-C.
    """
    shared = JobOptions(**given)
    if shared.resume and shared.joblog is None:
        raise click.UsageError("`--resume` must have a `--joblog` to go by")
    if keep_order and shared.stream:
        raise click.UsageError("`--keep-order` and `--stream` exclude each other")
    if not template.strip() or "\0" in template:
        raise click.UsageError(f"`COMMAND` must be a command of the shell's, got {template!r}")
    own = EachOptions(
        math.inf if timeout is None else timeout,
        math.inf if step_timeout is None else step_timeout,
        retry,
        keep_order,
        null,
    )
    check_apart(json=shared.json_file, joblog=shared.joblog)
    if shared.json_file is not None and not shared.dry_run:
        check_writable(shared.json_file)
    if shared.dry_run:
        done = succeeded(shared.joblog) if shared.resume and shared.joblog else Counter[str]()
        run = EachRun(shared, own, template, done)
        trio.run(run.print_all, files)
        check_done(run)
        ctx.exit(run.exit_code or 0)
    joblog = None if shared.joblog is None else JobLog(shared.joblog, shared.resume)
    done = Counter() if joblog is None else joblog.succeeded
    run = EachRun(shared, own, template, done, joblog)
    began = time.monotonic()
    trio.run(run.run, files)
    if joblog is not None:
        joblog.close()
    check_done(run)
    failed = run.endings["failed"]
    exit_code = run.exit_code if run.exit_code is not None else int(failed > 0)
    if run.endings and (failed or exit_code == 3):
        counts = ", ".join(f"{count} {ending}" for ending, count in run.endings.items())
        print(f"each: {counts}", file=sys.stderr)
    if shared.json_file is not None:
        write_result(shared.json_file, run, exit_code, time.monotonic() - began)
    ctx.exit(exit_code)
