"""Programs that run in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

#: The packages of npm that tests use.
NODE: Final = Path(__file__).parent / "node"


def need_program(name: str, *, package: str) -> str:
    """The path of the program. A laptop may be without it, and the test is skipped; CI may not."""
    found = shutil.which(name)
    if found is None:
        told = f"`{name}` is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found


def node_packages() -> Path:
    """The folder of the packages in `tests/node/package.json`. Without npm, a test is skipped as above."""
    need_program("npm", package="npm")
    folder = NODE / "node_modules"
    if not folder.exists():
        pytest.fail("its packages are not installed: run `npm ci` in tests/node")
    return folder


def run_node(code: str, *arguments: str) -> str:
    """Run JavaScript that may import what is in `tests/node/package.json`. Return its output."""
    node_packages()
    command = ["node", "--input-type=module", "--eval", code, "--", *arguments]
    return subprocess.run(command, cwd=NODE, capture_output=True, text=True, timeout=60, check=True).stdout


def run_python(
    code: str, *arguments: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with these variables in addition to ours."""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=check,
    )
