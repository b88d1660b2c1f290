"""The command for one item: GNU parallel's common placeholders, each value quoted for the shell.

``{}`` the item, ``{.}`` without its extension, ``{/}`` its last part, ``{//}`` its folder, ``{/.}``
its last part without extension, ``{#}`` its number from 1.  A command that names no item gets it at
its end.
"""

import re
import shlex
from collections.abc import Callable

PLACEHOLDER = re.compile(r"\{(?:|\.|/|//|/\.|#)\}")
EXTENSION = re.compile(r"\.[^/.]+$")


def last_part(item: str) -> str:
    return item.rpartition("/")[2]


def folder(item: str) -> str:
    head, slash, _ = item.rpartition("/")
    return (head or slash) if slash else "."


def without_extension(item: str) -> str:
    return EXTENSION.sub("", item)


VALUES: dict[str, Callable[[str], str]] = {
    "{}": lambda item: item,
    "{.}": without_extension,
    "{/}": last_part,
    "{//}": folder,
    "{/.}": lambda item: without_extension(last_part(item)),
}


def fill(template: str, item: str, number: int) -> str:
    """The shell's command."""
    if not any(name in template for name in VALUES):
        template += " {}"

    def value(found: re.Match[str]) -> str:
        name = found.group()
        return str(number) if name == "{#}" else shlex.quote(VALUES[name](item))

    return PLACEHOLDER.sub(value, template)
