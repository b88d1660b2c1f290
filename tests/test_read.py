"""What is in a pipeline file, and what is no such file."""

import math
from pathlib import Path

import pytest

from trio_parallel_steps import ConfigError
from trio_parallel_steps.files import read_file


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("x.toml", b"a = inf", {"a": math.inf}),
        ("x.toml", "a = 'ü'".encode(), {"a": "ü"}),
        ("x.json", b'{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
    ],
)
def test_it_is_plain_values(tmp_path: Path, name: str, content: bytes, read: object) -> None:
    (tmp_path / name).write_bytes(content)
    assert read_file(tmp_path / name) == read


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.yaml", b"", "x.yaml: the file's name must end in .toml or .json"),
        ("x.toml", b"a = " + b"[" * 9999, "x.toml: the file's tables are nested too deeply"),
        ("x.json", b"[" * 99999, "x.json: the file's tables are nested too deeply"),
        ("x.toml", b"a = 1\nb = = 2\n", "x.toml:2:5: Invalid value"),
        ("x.toml", b"a = 1\nb = [1,", "x.toml:2:8: Invalid value"),
        ("x.toml", b"a = 1\nb = \xff\n", "x.toml:2:5: not UTF-8"),
        ("x.json", b'{"a": 1,\n "b" 2}', "x.json:2:6: Expecting ':' delimiter"),
        ("x.json", rb'{"a": "\ud800"}', "x.json: '\\ud800', half of a pair, is no character"),
        ("x.json", b"[1]", "x.json: the file must be a table, got [1]"),
        ("x.json", b'{"b": 0, "a": 1, "a": 2}', "x.json: `a` is given twice in one table"),
        ("x.json", b'{"a": Infinity}', 'x.json: Infinity is no JSON: no limit is "inf"'),
    ],
)
def test_what_is_no_such_file_is_told_with_its_place(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        read_file(tmp_path / name)
    assert str(caught.value) == f"{tmp_path}/{said}"
