"""`labelmill doctor` as a person uses it: what it prints, and what it exits with."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.queue import KEY_PREFIX
from jobs.settings import ENV_PREFIX
from tests.conftest import Broker
from tests.console import Home, until

AREAS = ["settings", "home", "broker", "ledger", "store", "models", "training", "jobs"]


def findings(home: Home, *, code: int) -> dict[str, Any]:
    """What `labelmill doctor --json` prints, which must exit with this code."""
    done = home.run("doctor", "--json")
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr == ""
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def about(said: dict[str, Any], area: str, level: str) -> list[dict[str, Any]]:
    return [finding for finding in said["findings"] if (finding["area"], finding["level"]) == (area, level)]


@pytest.fixture
def fresh(tmp_path: Path) -> Home:
    """Nobody has used it yet."""
    return Home(tmp_path / "home")


def test_on_a_fresh_machine_it_says_what_to_type_first_and_leaves_nothing(fresh: Home) -> None:
    # When nothing was ever done
    done = fresh.run("doctor")

    # Then the one problem is that there is no model, and the broker is no problem yet
    assert done.returncode == 1
    lines = done.stdout.splitlines()
    [problem] = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert "no champion" in lines[problem]
    assert lines[problem + 1].split() == ["fix:", "labelmill", "train"]
    warnings = [number for number, line in enumerate(lines) if line.startswith("warning")]
    # How full the disk is on which the tests run is not the doctor's fault.
    [warning] = [number for number in warnings if "free on the disk" not in lines[number]]
    assert "embedded broker is not running" in lines[warning]
    assert lines[warning + 1].split() == ["fix:", "labelmill", "up"]

    # And it says how much was looked at
    checks = sum(line.startswith(("ok ", "warning ", "problem ")) for line in lines)
    assert lines[-1] == f"{checks} checks; problems: 1, warnings: {len(warnings)}"
    assert {line.split()[1] for line in lines[:-1] if "fix:" not in line} == set(AREAS)

    # And nothing was made
    assert not fresh.path.exists()


def test_while_the_stack_runs_all_is_well(stack: Home) -> None:
    # Given a stack whose reconciler has begun
    until(
        lambda: any(
            "reconciles" in finding["what"] for finding in about(findings(stack, code=0), "jobs", "ok")
        ),
        "somebody reconciles",
    )

    # When the doctor looks, Then there is no problem, and every area was looked at
    said = findings(stack, code=0)
    assert said["well"] is True
    assert said["problems"] == 0
    assert said["checks"] == len(said["findings"])
    assert list(dict.fromkeys(finding["area"] for finding in said["findings"])) == AREAS

    # And what is not quite well is this Python's SQLite, or that tests use up their machine
    assert {finding["area"] for finding in said["findings"] if finding["level"] == "warning"} <= {
        *("ledger", "store", "jobs")
    }
    assert not about(said, "broker", "warning")


def test_while_nothing_runs_jobs_that_wait_are_a_problem(new_home: Home, few_digits: Path) -> None:
    # Given a home with a model and no stack: that alone is no problem
    said = findings(new_home, code=0)
    assert [finding["fix"] for finding in about(said, "broker", "warning")] == ["labelmill up"]

    # When a job is submitted
    new_home.ok("submit", few_digits)

    # Then nobody is there to do it
    said = findings(new_home, code=1)
    [problem] = about(said, "jobs", "problem")
    assert problem["fix"] == "labelmill up"


def test_a_broker_that_is_away_keeps_nothing_else_from_being_looked_at(new_home: Home) -> None:
    new_home.extra = {ENV_PREFIX + "BROKER_URL": "redis://:geheim@127.0.0.1:1/0"}
    said = findings(new_home, code=1)

    [problem] = about(said, "broker", "problem")
    assert "Connection refused" in problem["what"]
    assert len(about(said, "ledger", "ok")) > 3
    assert len(about(said, "models", "ok")) == 2
    assert "geheim" not in json.dumps(said)


@pytest.fixture
def anna(broker: Broker) -> Iterator[str]:
    """A user of the broker's, whose password is `richtig`."""
    broker.client.execute_command(
        "ACL", "SETUSER", "anna", "reset", "on", ">richtig", "+@all", f"~{KEY_PREFIX}*"
    )
    yield "anna"
    broker.client.execute_command("ACL", "DELUSER", "anna")


def test_a_wrong_password_is_said_without_the_password(new_home: Home, broker: Broker, anna: str) -> None:
    # Given a broker that wants another password
    def url(password: str) -> str:
        return broker.url.replace("redis+socket://", f"redis+socket://{anna}:{password}@")

    new_home.extra = {ENV_PREFIX + "BROKER_URL": url("geheim")}

    # When the doctor looks
    done = new_home.run("doctor")

    # Then it says so, and which setting helps, and neither the password nor a stack trace
    assert done.returncode == 1
    assert re.search(r"problem +broker .*password", done.stdout)
    assert "fix: LABELMILL_BROKER_URL=redis://USER:PASSWORD@HOST:PORT/0" in done.stdout
    assert "geheim" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr

    # And with the right one all is well
    new_home.extra = {ENV_PREFIX + "BROKER_URL": url("richtig")}
    assert not about(findings(new_home, code=0), "broker", "problem")


def test_a_changed_model_file_is_a_problem_and_the_fix_helps(new_home: Home) -> None:
    # Given a champion whose file in the store was overwritten, and a good copy in the cache
    [file] = (new_home.path / "store" / "models").iterdir()
    cached = new_home.path / "cache" / "models" / file.name
    cached.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, cached)
    file.write_bytes(b"not what was registered")

    # When what the doctor says is done
    [problem] = about(findings(new_home, code=1), "models", "problem")
    assert problem["fix"] == f"cp {cached} {file}"
    shutil.copy(cached, file)

    # Then it is well again
    findings(new_home, code=0)


def test_a_state_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    fresh = Home(tmp_path / os.fsdecode(b"h\xff"))
    assert r"h\xff is not there yet" in fresh.run("doctor").stdout
    assert r"h\xff is not there yet" in about(findings(fresh, code=1), "home", "ok")[0]["what"]


def test_a_malformed_setting_is_named_and_nothing_is_looked_at(fresh: Home) -> None:
    fresh.extra = {ENV_PREFIX + "LEASE_SECONDS": "soon"}
    done = fresh.run("doctor", "--json")
    assert done.returncode == 2
    assert "LABELMILL_LEASE_SECONDS" in done.stderr
    assert done.stdout == ""
