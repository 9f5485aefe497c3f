"""Programs that run in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest


def need_program(name: str, *, package: str) -> str:
    """The path of the program. A laptop may be without it, and the test is skipped; CI may not."""
    found = shutil.which(name)
    if found is None:
        told = f"`{name}` is not installed: apt-get install {package}"
        if os.environ.get("CI"):
            pytest.fail(told)
        pytest.skip(told)
    return found


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
