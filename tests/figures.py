"""What the proofs have to tell: their figures go where ``docs/reliability.md`` is made from them.

`add` appends a line of JSON to the file that the environment variable FIGURES names, and does
nothing without it.
"""

import json
import os
from pathlib import Path


def add(proof: str, **figures: float | str) -> None:
    path = os.environ.get("FIGURES")
    if path:
        with Path(path).open("a") as file:
            file.write(json.dumps({"proof": proof, **figures}) + "\n")
