"""The JSON Schema of pipeline files, on stdout."""

import json

from trio_parallel_steps.files import schema


def print_schema() -> None:
    print(json.dumps(schema(), indent=2))
