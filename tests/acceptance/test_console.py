"""The console command: what goes where, exit codes, and messages for a person's mistakes."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.settings import ENV_PREFIX
from labelmill.cli import COMMANDS, app
from tests.console import LABELMILL, Home, killed_at_the_end, until


@pytest.fixture
def idle(new_home: Home) -> Home:
    """A home with a model in which nothing runs: what is submitted there waits."""
    return new_home


def test_help_lists_every_command_and_each_has_its_own_with_an_example() -> None:
    def help_of(*command: str) -> str:
        done = CliRunner().invoke(app, [*command, "--help"])  # a process would take a second
        assert done.exit_code == 0, done.output
        return done.stdout

    listing = help_of()
    for name in COMMANDS:
        assert f" {name} " in listing
        help_text = help_of(name)
        assert "Examples:" in help_text or "Commands" in help_text, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nonsense"], "There is no job 'nonsense'"),
        (["predictions", "nonsense"], "There is no job 'nonsense'"),
        (["cancel", "nonsense"], "There is no job 'nonsense'"),
        (["models", "show", "nonsense"], "There is no model 'nonsense'"),
        (["submit", "no/such/folder"], "no/such/folder"),
        (["submit"], "Missing argument"),
        (["frobnicate"], "No such command"),
    ],
)
def test_a_mistake_gets_a_message_and_exit_code_2(trained: Home, arguments: list[str], message: str) -> None:
    done = trained.run(*arguments)

    assert done.returncode == 2
    assert message in " ".join(done.stderr.split())
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "\udcff"], "\\xff is not UTF-8"),
        (["predictions", "x", "--label", "\udcff"], "\\xff is not UTF-8"),
        (["submit", "nowhere", "--key", "\udcff"], "\\xff is not UTF-8"),
        (["submit", "nowhere\udcff\x1b[31m"], "nowhere\\xff\\x1b[31m"),
        (["jobs", "--limit", str(2**63)], "is too large: the largest number is"),
        (["predictions", "x", "--after", str(-(2**63) - 1)], "is too large: the largest number is"),
        (["train", "--seed", str(2**31)], "--seed"),
        (["retrain", "--seed", str(2**31)], "--seed"),
        (["purge", "--jobs", "9999999"], "--jobs': '9999999' should be less than or equal to 36500"),
        (["purge", "--payloads", "inf"], "--payloads': 'inf' should be less than or equal to 36500"),
    ],
)
def test_what_no_ledger_could_hold_is_a_mistake_too(idle: Home, arguments: list[str], message: str) -> None:
    done = idle.run(*arguments)

    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CHUNK_IMAGES", "many"),
        ("LEASE_SECONDS", "-1"),
        ("LEDGER_URL", "mysql://somewhere/else"),
        ("BROKER_URL", "amqp://somewhere"),
    ],
)
def test_a_malformed_setting_is_named_at_start(trained: Home, name: str, value: str) -> None:
    home = Home(trained.path, {ENV_PREFIX + name: value})

    for command in ["jobs", "up", "worker"]:
        done = home.run(command)
        assert done.returncode == 2
        assert ENV_PREFIX + name in done.stderr
        assert "Traceback" not in done.stderr


def test_without_a_broker_a_job_waits_in_the_ledger(idle: Home, few_digits: Path) -> None:
    # given nothing runs, when a job is submitted
    done = idle.run("submit", few_digits)

    # then it is accepted, and the person is told
    assert done.returncode == 0
    assert "labelmill up" in done.stderr
    status = idle.json("status", done.stdout.strip())
    assert (status["state"], status["total"], status["succeeded"]) == ("running", 50, 0)
    assert status["oldest_waiting_seconds"] > 0


def test_ctrl_c_while_watching_leaves_the_job_alone(idle: Home, few_digits: Path, tmp_path: Path) -> None:
    # given somebody watches a job that cannot move
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        begun = subprocess.Popen(
            [LABELMILL, "submit", str(few_digits), "--watch"],
            env=idle.environment,
            stdout=stdout,
            stderr=stderr,
        )
    with killed_at_the_end(begun) as watching:
        until(lambda: out.read_text().strip() != "", "the job's id is printed")

        # when Ctrl-C is pressed
        watching.send_signal(signal.SIGINT)

        # then the exit code says so, the hint is there, and the job goes on
        assert watching.wait(60) == 130
    job = out.read_text().strip()
    assert f"labelmill status {job} --watch" in err.read_text()
    assert f"labelmill cancel {job}" in err.read_text()
    assert idle.json("status", job)["state"] == "running"


def test_a_reader_that_has_seen_enough_is_no_error(stack: Home, digits: Path) -> None:
    job = stack.ok("submit", digits / "1", "--watch").strip()

    for command, begins in ((f"predictions {job} --format csv", "index,"), ("doctor", "ok ")):
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", f'"{LABELMILL}" {command} | head -n 1'],
            env=stack.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0
        assert done.stdout.startswith(begins)
        assert done.stderr == ""
