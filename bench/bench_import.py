"""What does the import take beside `import trio, attrs`, and does it load anything optional?

CPU time in fresh interpreters, one after the other by turns, without their own start.  The first
round compiles everything, into a directory of its own: what is compared is loading.
"""

import json
import os
import subprocess
import sys
from tempfile import TemporaryDirectory

import attrs

from _harness import Report, Table, compared, open_report, rotated

CHILD = """
import json, sys, time
before = set(sys.modules)
began = time.process_time()
import {modules}
took = time.process_time() - began
print(json.dumps([took, sorted({{name.partition(".")[0] for name in set(sys.modules) - before}})]))
"""


@attrs.frozen
class Imported:
    name: str
    cache: str  # directory for compiled modules

    def measure(self) -> float:
        """Milliseconds."""
        return self._child()[0] * 1e3

    def loaded(self) -> set[str]:
        """Names of the top-level modules that it brings."""
        return set(self._child()[1])

    def _child(self) -> tuple[float, list[str]]:
        modules = self.name.removeprefix("import ")
        child = CHILD.format(modules=modules)
        command = [sys.executable, "-X", f"pycache_prefix={self.cache}", "-c", child]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # empty: do write
        output = subprocess.run(
            command, check=True, capture_output=True, text=True, env=environment
        ).stdout
        took, names = json.loads(output)
        return took, names


def main(report: Report, cache: str) -> None:
    ours = Imported("import trio_parallel_steps", cache)
    least = Imported("import trio, attrs", cache)
    rounds = 5 if report.quick else 21
    samples = rotated((ours, least), rounds, Imported.measure)
    report.add(compared(f"CPU time, {rounds} rounds", "ms", samples, (least.name,)))

    extra = ours.loaded() - least.loaded() - {"trio_parallel_steps"}
    stdlib = extra & sys.stdlib_module_names
    rows = [
        ("optional (must be none)", ", ".join(sorted(extra - stdlib)) or "none"),
        ("of the standard library", ", ".join(sorted(stdlib)) or "none"),
    ]
    report.add(Table("Top-level modules that ours loads beyond trio and attrs", ("", ""), rows))


if __name__ == "__main__":
    report = open_report(__doc__)
    with TemporaryDirectory() as cache:
        main(report, cache)
    report.save()
