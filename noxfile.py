"""What CI runs, and what to run before asking for a merge.

1. `nox` runs all that CI needs.  CI only adds that a missing interpreter is an error.
2. Tests and docs see the built wheel, never the tree: what was forgotten in it is missed here.
3. Nothing is written into the tree but what .gitignore names.
"""

import os
import shutil
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["build", "tests", "oldest", "lint", "typing", "docs"]
nox.options.error_on_missing_interpreters = bool(os.environ.get("CI"))

PYTHONS = ["3.11", "3.13"]  # the oldest and the newest that we promise
PACKAGE = "trio_parallel_steps"
ROOT = Path(__file__).parent
DIST = ROOT / "dist"
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")


def install(session: nox.Session, *groups: str, wheel: str | None = None) -> None:
    """Install dependency groups, and the built wheel with `wheel` as its extras, in one solve."""
    wanted = nox.project.dependency_groups(PYPROJECT, *groups)
    if wheel is None:
        session.install(*wanted)
        return
    (built,) = DIST.glob("*.whl")
    # Another build of the same version is not another version, for pip: leave none behind.
    session.run("pip", "uninstall", "--yes", "--quiet", PACKAGE, silent=True)
    session.install(f"{built}[{wheel}]", *wanted)


@nox.session
def build(session: nox.Session) -> None:
    """Build sdist and wheel into dist/, the wheel from the sdist, and check what they say."""
    install(session, "build")
    shutil.rmtree(DIST, ignore_errors=True)
    session.run("python", "-m", "build", "--outdir", str(DIST))
    session.run("twine", "check", "--strict", *map(str, DIST.iterdir()))


@nox.session(python=PYTHONS, requires=["build"])
def tests(session: nox.Session) -> None:
    """Run the tests on the wheel; all of them must cover L0-L4.  Arguments go to pytest."""
    install(session, "test", wheel="all")
    # Without it the tree, our working directory, would be imported in place of the wheel.
    data = Path(session.virtualenv.location, ".coverage")
    env = {"PYTHONSAFEPATH": "1", "COVERAGE_FILE": str(data)}
    session.run("coverage", "erase", env=env)
    session.run("coverage", "run", "-m", "pytest", *session.posargs, env=env)
    session.run("coverage", "combine", "--quiet", env=env)
    gate = ["--fail-under=0"] if session.posargs else []
    session.run("coverage", "report", *gate, env=env)


@nox.session(python=PYTHONS[0], requires=["build"])
def oldest(session: nox.Session) -> None:
    """Run some of the tests with the oldest releases of what we need that we say we work with."""
    install(session, "test", wheel="all")
    needs = PYPROJECT["project"]["dependencies"]
    session.install(*(need.replace(">=", "==") for need in needs))
    modules = [f"tests/test_{name}.py" for name in ("testing", "scenarios", "nesting", "limiter")]
    session.run("pytest", *(session.posargs or modules), env={"PYTHONSAFEPATH": "1"})


@nox.session(requires=["build"])
def explore(session: nox.Session) -> None:
    """Run larger programs under thousands of schedules.  `nox -s explore -- all` also runs one
    under all that it has, which takes minutes.  Other arguments go to pytest."""
    install(session, "test", wheel="all")
    arguments = [argument for argument in session.posargs if argument != "all"]
    chosen = [] if "all" in session.posargs else ["-k", "not all_schedules"]
    env = {"PYTHONSAFEPATH": "1"}
    modules = ["tests/test_explored.py", "tests/test_asyncio_schedules.py"]
    session.run("pytest", "-m", "long", *chosen, *modules, *arguments, env=env)


@nox.session(requires=["build"])
def chaos(session: nox.Session) -> None:
    """Interrupt programs two thousand times; each has to be gone within a second, so the machine
    should have nothing else to do.  Arguments go to pytest."""
    install(session, "test", wheel="all")
    env = {"PYTHONSAFEPATH": "1"}
    session.run("pytest", "-m", "long", "tests/test_signals.py", *session.posargs, env=env)


@nox.session(requires=["build"])
def mutants(session: nox.Session) -> None:
    """Break the engine in more than a hundred ways: a test has to fail for each.  It takes some
    minutes; `nox -s mutants -- token` breaks it in those whose names have that word."""
    install(session, "test", wheel="all")
    session.run("python", str(ROOT / "tests" / "mutants.py"), *session.posargs)


@nox.session(requires=["build"])
def soak(session: nox.Session) -> None:
    """Run a million branches on each host, in minutes, and see that nothing is left of them.
    Arguments go to tests/soak.py: `nox -s soak -- --branches 50000`."""
    install(session, "test", wheel="all")
    env = {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(ROOT / "tests")}
    session.run("python", "tests/soak.py", *session.posargs, env=env)


@nox.session(requires=["build"])
def reliability(session: nox.Session) -> None:
    """Run all proofs, for some hours, and write what they have told into docs/reliability.md."""
    told = Path(session.create_tmp(), "figures").absolute()
    told.unlink(missing_ok=True)
    os.environ["FIGURES"] = str(told)
    for python in PYTHONS:
        session.notify(f"tests-{python}")
    session.notify("explore", ["all"])
    for name in ("chaos", "soak", "mutants", "mutmut", "model"):
        session.notify(name)
    session.notify("reliability_page")


@nox.session(default=False)
def reliability_page(session: nox.Session) -> None:
    """Write docs/reliability.md from the file that FIGURES names."""
    session.install(*PYPROJECT["project"]["dependencies"])
    session.run("python", str(ROOT / "tests" / "reliability.py"), os.environ["FIGURES"])


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format.  `nox -s lint -- --fix` mends what can be mended."""
    install(session, "lint")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []), ".")
    session.run("ruff", "format", *([] if fix else ["--check"]), ".")


@nox.session(requires=["build"])
def typing(session: nox.Session) -> None:
    """Check our own types, and that every public name has one for our users."""
    install(session, "typing", wheel="all")
    session.run("mypy")
    session.run("pyright", "--verifytypes", PACKAGE, "--ignoreexternal")


@nox.session(requires=["build"])
def docs(session: nox.Session) -> None:
    """Build the docs, where a dangling reference is an error, and draft the changelog."""
    install(session, "docs", wheel="all")
    out = ROOT / "docs" / "_build"
    session.run("sphinx-build", "-n", "-W", "--keep-going", "-E", "docs", str(out))
    session.run("towncrier", "build", "--draft", "--version", "unreleased")


@nox.session(requires=["build"])
def bench(session: nox.Session) -> None:
    """Run the benchmarks, quickly unless told otherwise: `nox -s bench -- --json out.json`."""
    install(session, "bench", wheel="all")
    for script in sorted((ROOT / "bench").glob("bench_*.py")):
        session.run("python", str(script), *(session.posargs or ["--quick"]))


@nox.session
def model(session: nox.Session) -> None:
    """Check the model of admission with spin, in minutes: `nox -s model -- two HOLD` for some."""
    env = {"PYTHONPATH": str(ROOT / "tests")}
    session.run("python", str(ROOT / "tests" / "models" / "check.py"), *session.posargs, env=env)


@nox.session
def mutmut(session: nox.Session) -> None:
    """Change the core in one place at a time, and see that tests fail: that takes hours.
    `nox -s mutmut -- "_queue.*"` for some."""
    session.install(*PYPROJECT["project"]["dependencies"])
    install(session, "mutmut")
    session.run("python", str(ROOT / "tests" / "mutation" / "check.py"), *session.posargs)
