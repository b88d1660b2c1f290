"""Sphinx's configuration.

1. The docs are of the installed package, and nothing is fetched to build them.
2. A name in single backticks is a Python object, or an argument of one, and must exist.
"""

from __future__ import annotations

import inspect
from contextlib import suppress
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docutils.nodes import Element, TextElement
    from sphinx.addnodes import pending_xref
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

project = "trio_parallel_steps"
author = "the trio_parallel_steps authors"
copyright = f"2026, {author}"  # noqa: A001  (Sphinx's word)
release = version = installed_version(project)

extensions = ["sphinx.ext.autodoc", "sphinxcontrib_trio", "myst_parser"]
source_suffix = {".rst": "restructuredtext", ".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = project

autodoc_default_options = {"members": True, "undoc-members": True, "member-order": "bysource"}

default_role = "py:obj"
nitpicky = True
nitpick_ignore_regex = [
    # Of others, whose inventories would have to be fetched.
    (r"py:.*", r"(asyncio|collections\.abc|contextlib|enum|fnmatch|types|typing)\.\w+"),
    (r"py:.*", r"trio\.[\w.]+"),
    (r"py:class", r"AbstractAsyncContextManager|(pathlib\.)?Path"),  # as signatures have them
    # What steps, parallel steps and pipelines have in common; the names of a command's two outputs.
    (r"py:class", r"Stream|Unit"),
    # What a pipeline file holds is told in a page of its own.
    (r"py:class", rf"{project}\._tables\.PipelineTable"),
    # Type variables, which have no entry.
    (r"py:class", rf"({project}\.(\w+\.)?_\w+\.)?(K|P|T|T_co)"),
]

# Classes that users meet but don't construct: how we do is not for the docs.
MADE_BY_US = {
    *("Branch", "BranchNursery", "LimiterStatistics", "NurseryStatistics", "ParallelResult"),
    *("StepResult", "Tally", "files.Plan"),
}

ARGUMENTS: set[str] = set()  # of all callables in the docs


def note_arguments(app: Sphinx, obj: Any, bound_method: bool) -> None:
    with suppress(ValueError):  # some built-in types tell none
        ARGUMENTS.update(inspect.signature(obj).parameters)


def leave_out_constructor(
    app: Sphinx, what: str, name: str, obj: object, options: Any, args: str, returns: str
) -> tuple[str, str] | None:
    return ("", "") if name.removeprefix(f"{project}.") in MADE_BY_US else None


def find_target(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: TextElement
) -> Element | None:
    """A type hint names the private module that a class is from, or no module at all; its entry is
    the public name.  An argument has no entry, and is shown as it is."""
    target: str = node.get("reftarget", "")
    if target in ARGUMENTS and node["reftype"] == "obj":
        return content
    if target.startswith(f"{project}._"):
        target = target.rpartition(".")[2]
    public = f"{project}.{target}"
    domain = env.domains.python_domain
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", public, node, content)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-before-process-signature", note_arguments)
    app.connect("autodoc-process-signature", leave_out_constructor)
    app.connect("missing-reference", find_target)
