"""The commands in the documentation's console blocks, and what they are said to print."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A command as a reader types it, without its comment, and the output shown below it."""

    command: str
    output: tuple[str, ...] = ()


def console_examples(page: str) -> list[Example]:
    """Return the examples in the console blocks of a page, in order."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [_example(text) for block in blocks for text in re.split(r"^ *\$ ", block, flags=re.MULTILINE)[1:]]


def _example(text: str) -> Example:
    command, *output = text.splitlines()
    return Example(command.partition("  #")[0].strip(), tuple(output))
