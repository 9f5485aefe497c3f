"""Which SQLite opens an embedded ledger, and what the doctor reports about it."""

from __future__ import annotations

import json
import sqlite3
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from jobs.ledger.sqlite import is_repaired
from tests.programs import run_python

PROJECT = Path(__file__).parents[2]

#: Runs in a process of its own: the choice is made once per process, and depends on what it has imported.
CHOOSE = "from jobs.ledger.sqlite import driver; print(driver().__name__, driver().sqlite_version)"


#: Makes the import of the package fail: None in sys.modules does that.
WITHOUT_PACKAGE = "import sys; sys.modules['pysqlite3'] = None"


def run(code: str, *arguments: str, **environment: str) -> str:
    """Return what a process prints that runs this code."""
    done = run_python(code, *arguments, check=False, **environment)
    assert done.returncode in (0, 1), done.stderr  # 1: the doctor has found a problem
    return done.stdout


def wheel_exists() -> bool:
    """Tell whether pyproject.toml asks for the package on this platform."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    requirements = [Requirement(text) for text in project["dependencies"]]
    [package] = [each for each in requirements if each.name == "pysqlite3"]
    assert package.marker is not None
    return package.marker.evaluate()


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 46, 1), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 53, 0), True),
        ((4, 0, 0), True),
    ],
)
def test_versions_of_sqlite_that_may_damage_a_database(version, expected):
    assert is_repaired(version) is expected


@pytest.mark.skipif(not wheel_exists(), reason="pysqlite3 has no wheel for this platform")
def test_the_ledger_runs_on_a_sqlite_that_damages_nothing():
    version = run(CHOOSE).split()[1]
    assert is_repaired(tuple(map(int, version.split("."))))


def test_pythons_own_sqlite_is_used_if_it_is_repaired():
    own = f"sqlite3 {sqlite3.sqlite_version}\n"
    assert run(f"import sqlite3; sqlite3.sqlite_version_info = (3, 51, 3); {CHOOSE}") == own


def test_pythons_own_sqlite_is_used_if_the_package_is_missing():
    assert run(f"{WITHOUT_PACKAGE}; {CHOOSE}") == f"sqlite3 {sqlite3.sqlite_version}\n"


def test_the_doctor_names_the_sqlite_that_is_used_and_what_helps(tmp_path):
    def labelmill(*arguments: str) -> str:
        code = f"{WITHOUT_PACKAGE}; from labelmill.cli import main; main()"
        return run(code, *arguments, LABELMILL_HOME=str(tmp_path / "home"))

    # Given a ledger that was made without the package
    labelmill("db", "upgrade")

    # When the doctor looks at it
    findings: list[dict[str, Any]] = json.loads(labelmill("doctor", "--json"))["findings"]

    # Then it names Python's own SQLite, with a warning unless that one is repaired
    [finding] = [each for each in findings if "SQLite" in each["what"]]
    assert sqlite3.sqlite_version in finding["what"]
    if is_repaired(sqlite3.sqlite_version_info):
        assert finding["level"] == "ok"
    else:
        assert finding["level"] == "warning"
        assert "pip install pysqlite3" in finding["fix"]
