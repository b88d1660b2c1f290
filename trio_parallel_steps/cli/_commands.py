"""The commands.

1. A bad option is one line on stderr and exit code 2, before anything has started.
2. With ``--json -`` the JSON has stdout to itself, and the rest goes to stderr.
3. A stream that was closed (``>&-``) is as /dev/null: its number is not given to another file, that
   would get what was for the stream.
4. What can't be written to stdout is one line on stderr, and nothing if its reader has gone.
"""

import os
import platform
import sys
from collections.abc import Sequence
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, version

import click
import trio
from rich.console import Console
from rich.text import Text

from . import _json
from ._census import Package, parser_warnings_off, standard_library
from ._demo import run_jobs
from ._each import each
from ._jobs import Job, census_jobs, sample_jobs
from ._options import check_count, check_seconds, check_tokens
from ._progress import Progress
from ._run import run_file
from ._tables import endings_table, totals_table
from ._view import open_view, print_line

PROGRAM = "trio-parallel-steps"


def run(args: Sequence[str] | None) -> int:
    """Run the command line and return its exit code."""
    open_closed_streams()
    try:
        exit_code = cli.main(args, PROGRAM, standalone_mode=False) or 0
        sys.stdout.flush()
        return exit_code
    except click.ClickException as error:
        print(f"Error: {' '.join(error.format_message().split())}", file=sys.stderr)
        return error.exit_code
    except click.Abort:  # Ctrl-C before the step was open
        return 130
    except OSError as error:
        if not isinstance(error, BrokenPipeError):
            print(f"Error: {error}", file=sys.stderr)
        drop_stdout()
        return 1
    except BaseExceptionGroup as group:
        leaving, rest = group.split((KeyboardInterrupt, SystemExit))
        if leaving is None or rest is not None:
            raise
        # A second Ctrl-C; else rich, when whoever read its output has gone.
        return 130 if leaving.subgroup(KeyboardInterrupt) else 1


def open_closed_streams() -> None:
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest that is free: this one
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def drop_stdout() -> None:
    """What it still holds, which the interpreter would try to write as it ends."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def show_version(ctx: click.Context, param: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    try:
        number = version(PROGRAM)
    except PackageNotFoundError:
        number = "(not installed)"
    click.echo(f"{PROGRAM} {number}")
    ctx.exit()


@click.group(no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=show_version,
    help="Show the version and exit.",
)
def cli() -> None:
    """Run the named branches of a parallel step: under a limit, each cancellable, every one
    accounted for."""


cli.add_command(each)
cli.add_command(run_file)


@cli.command()
@click.option(
    "--limit",
    metavar="N",
    callback=check_tokens,
    help="Branches in flight at most, or inf.  [default: the library's own]",
)
@click.option(
    "--fail",
    metavar="N",
    callback=check_count,
    default="0",
    help="Make the branches of the first N packages, by name, raise.",
)
@click.option(
    "--breach-after",
    metavar="SECONDS",
    callback=check_seconds,
    help="Stop the whole step after that long; 0: before anything runs.",
)
@click.option(
    "--samples",
    is_flag=True,
    help="Add high_priority_1..3 and low_priority_1..5, which read the largest packages once more "
    "and go first; once a high one is in, the low ones are dropped.",
)
@click.option(
    "--only",
    metavar="GLOB",
    multiple=True,
    help="Only the packages whose name matches; may be given more than once.",
)
@click.option(
    "--json",
    "json_file",
    metavar="FILE",
    help="Write the full result there; - is standard output.",
)
@click.pass_context
def demo(
    ctx: click.Context,
    limit: int | float | None,
    fail: int,
    breach_after: float | None,
    samples: bool,
    only: tuple[str, ...],
    json_file: str | None,
) -> None:
    """Take a census of this Python's own standard library: a branch for each top-level package or
    module, reading and parsing its files in a worker thread.

    Ctrl-C stops it and shows what there is.  The exit code is 0 if all went as it should, 1 if a
    branch failed, 2 for a bad option, 3 after a breach, 130 after Ctrl-C.
    """
    jobs = choose_jobs(choose_packages(only), fail, samples)
    if json_file is not None:
        _json.check_writable(json_file)
    console = Console(stderr=json_file == "-")
    announce(console, jobs)
    progress = Progress()
    with parser_warnings_off(), open_view(console, progress) as view:
        finish = trio.run(run_jobs, jobs, limit, breach_after, progress, view)
    console.print(totals_table(finish))
    console.print(endings_table(finish))
    if json_file is not None:
        _json.write(json_file, finish)
    ctx.exit(finish.exit_code)


@cli.command("schema")
def show_schema() -> None:
    """Print the JSON Schema of pipeline files, for editors that check TOML or JSON by one."""
    from ._schema import print_schema  # with cattrs, which no other command needs

    print_schema()


def choose_packages(only: Sequence[str]) -> list[Package]:
    packages = standard_library()
    if not packages:
        raise click.ClickException("this Python keeps no .py files of its standard library")
    if not only:
        return packages
    chosen = [p for p in packages if any(fnmatchcase(p.name, glob) for glob in only)]
    if not chosen:
        given = ", ".join(map(repr, only))
        raise click.UsageError(
            f"`--only` must match a package or module of the standard library, got {given}"
        )
    return chosen


def choose_jobs(packages: Sequence[Package], fail: int, samples: bool) -> list[Job]:
    if fail > len(packages):
        raise click.UsageError(
            f"`--fail` must be at most the number of packages, {len(packages)}, got {fail}"
        )
    census = census_jobs(packages, fail)
    return [*sample_jobs(packages), *census] if samples else census


def announce(console: Console, jobs: Sequence[Job]) -> None:
    python = platform.python_version()
    count = sum(not job.sample for job in jobs)
    line = f"Census of the standard library of Python {python}: {count} packages and modules"
    print_line(console, Text(line))
    told = [job.key for job in jobs if job.fails]
    if told:
        print_line(console, Text(f"Told to fail: {', '.join(told)}"))
