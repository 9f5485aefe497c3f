"""`labelmill doctor` as a person uses it: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.console import Home

AREAS = ["settings", "home", "broker", "ledger", "store", "models", "training", "jobs", "api"]


def findings(home: Home, *, code: int) -> dict[str, Any]:
    """Return what `labelmill doctor --json` prints, which must exit with this code."""
    done = home.run("doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def about(said: dict[str, Any], area: str, level: str) -> list[dict[str, Any]]:
    return [finding for finding in said["findings"] if (finding["area"], finding["level"]) == (area, level)]


@pytest.fixture
def fresh(tmp_path: Path) -> Home:
    """Return a home that nobody has used yet."""
    return Home(tmp_path / "home")


def test_on_a_fresh_machine_it_says_what_to_type_first(fresh: Home) -> None:
    # When nothing was ever done, then the only problem is that there is no model
    done = fresh.run("doctor")
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    [problem] = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert lines[problem].split(maxsplit=2)[:2] == ["problem", "models"]
    assert lines[problem + 1].split() == ["fix:", "labelmill", "train"]

    # And the last line counts the checks
    checks = sum(line.startswith(("ok ", "warning ", "problem ")) for line in lines)
    assert lines[-1] == f"{checks} checks; problems: 1, warnings: 1"
    assert list(dict.fromkeys(line.split()[1] for line in lines[:-1] if "fix:" not in line)) == AREAS


def test_a_state_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    fresh = Home(tmp_path / os.fsdecode(b"h\xff"))
    assert r"h\xff does not exist yet" in fresh.run("doctor").stdout
    assert r"h\xff does not exist yet" in about(findings(fresh, code=1), "home", "ok")[0]["what"]
