"""`load_pipeline`: a pipeline from a file, TOML or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._pipeline import Pipeline


def load_pipeline(path: str | Path) -> Pipeline:
    """The pipeline that a TOML or JSON file describes.

    While the file is loaded, its folder is first on the import path, for the modules that its
    ``call`` and ``on`` name.  Nothing is run but these imports.

    Raises `ConfigError`, with a line for each fault: what is no TOML or JSON, a key that is not
    known (with the nearest one that is), a wrong type or value, a function that is not there.
    OSError if the file can't be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder, "hello.toml")
    ...     _ = file.write_text("[[steps]]\\nname = 'hello'\\ncommand = 'echo hello'\\n")
    ...     load_pipeline(file).name
    'hello'
    """
    # With cattrs and a parser, which programs without files need not wait for.
    from ._plan import pipeline_of
    from ._read import read_file
    from ._structure import plan_of

    return pipeline_of(plan_of(read_file(path), path))
