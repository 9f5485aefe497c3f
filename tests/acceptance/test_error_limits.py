"""The limits of errors, as a person sets them for a job."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.console import Home


@pytest.fixture
def mixed(few_digits: Path, tmp_path: Path) -> Path:
    """Fifty good digits and ten files that are none."""
    folder = tmp_path / "mixed"
    shutil.copytree(few_digits, folder)
    for number in range(10):
        (folder / f"letter{number}.png").write_text("Dear Sir or Madam")
    return folder


def test_too_many_errors_stop_a_job(stack: Home, mixed: Path) -> None:
    # given a job that may have nine errors, and has ten, when it is followed
    done = stack.run("submit", mixed, "--watch", "--max-errors", "9")

    # then it has failed and says why
    assert done.returncode == 1
    job = done.stdout.split()[-1]
    assert "more than its limit of 9" in done.stderr
    assert stack.json("status", job)["state"] == "failed"

    # and where the limit is ten, or the share is larger, it has not
    assert stack.run("submit", mixed, "--watch", "--max-errors", "10").returncode == 3
    done = stack.run("submit", mixed, "--watch", "--max-error-rate", "0.5", "--min-sample", "1")
    assert done.returncode == 3
    done = stack.run("submit", mixed, "--watch", "--max-error-rate", "0.1", "--min-sample", "1")
    assert done.returncode == 1
    assert "more than its limit of 10 %" in done.stderr
