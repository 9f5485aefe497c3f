"""Programs that are no Python packages."""

from __future__ import annotations

import os
import shutil

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
