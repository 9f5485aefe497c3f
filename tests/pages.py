"""The commands in the documentation's console blocks, and what they are said to print."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.console import COMMAND_SECONDS, LABELMILL

#: The commands `labelmill` and `python` are those of this environment.
PROGRAMS: Final = {"PATH": f"{Path(LABELMILL).parent}:{os.environ['PATH']}"}

#: The shell variables that pages set in one command and use in later ones.
VARIABLES: Final = "JOB KEY API FILE BATCH"


@dataclass(frozen=True, slots=True)
class Example:
    """A command as a reader types it, without its comment, and the output shown below it."""

    command: str
    output: tuple[str, ...] = ()


def console_examples(page: str) -> list[Example]:
    """Return the examples in the console blocks of a page, in order."""
    blocks = re.findall(r"^ *```console\n(.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    return [_example(text) for block in blocks for text in re.split(r"^ *\$ ", block, flags=re.MULTILINE)[1:]]


def python_blocks(page: str) -> list[str]:
    """Return the page's blocks of Python, in order."""
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


def run_as_typed(command: str, folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run a page's command in the folder. Shell variables that it sets stay set for the next command."""
    variables = folder / ".variables"
    variables.touch()
    script = (
        f"source {variables}\n{command}\n"
        f"status=$?; declare -p {VARIABLES} >{variables} 2>/dev/null; exit $status"
    )
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=2 * COMMAND_SECONDS,  # a training is the longest command of all tests
        check=False,
    )


def _example(text: str) -> Example:
    command, *output = text.replace("\\\n", "").splitlines()
    return Example(command.partition("  #")[0].strip(), tuple(output))
