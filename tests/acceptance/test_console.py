"""The console command: what goes where, exit codes, and messages for a person's mistakes."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.settings import ENV_PREFIX
from labelmill.cli import COMMANDS, app
from tests.console import LABELMILL, Home, killed_at_the_end, until


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
        *(
            (["correct", *arguments.split()], "Give JOB INDEX LABEL")
            for arguments in ("", "job 0", "job 0 1 --undo", "job 0 1 --list", "job 0 --from a.csv", "--undo")
        ),
        # What no ledger could hold
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
def test_a_mistake_gets_a_message_and_exit_code_2(
    trained: Home, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for name, value in trained.environment.items():
        monkeypatch.setenv(name, value)

    done = CliRunner().invoke(app, arguments)

    assert (done.exit_code, done.stdout) == (2, ""), done.stderr
    assert message in " ".join(done.stderr.split())
    assert "\x1b" not in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "name", "value"),
    [
        ("jobs", "CHUNK_IMAGES", "many"),
        ("jobs", "LEASE_SECONDS", "-1"),
        ("up", "LEDGER_URL", "mysql://somewhere/else"),
        ("worker", "BROKER_URL", "amqp://somewhere"),
    ],
)
def test_a_malformed_setting_is_named_at_start(trained: Home, command: str, name: str, value: str) -> None:
    done = Home(trained.path, {ENV_PREFIX + name: value}).run(command)

    assert done.returncode == 2
    assert ENV_PREFIX + name in done.stderr
    assert "Traceback" not in done.stderr


def test_the_doctor_says_what_to_type_first(tmp_path: Path) -> None:
    # given a machine on which nothing was ever done
    done = Home(tmp_path / "home").run("doctor")

    # then the only problem is that there is no model
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    [problem] = [number for number, line in enumerate(lines) if line.startswith("problem")]
    assert lines[problem].split()[:2] == ["problem", "models"]
    assert lines[problem + 1].split() == ["fix:", "labelmill", "train"]
    assert lines[-1].endswith("checks; problems: 1, warnings: 1")

    # and the name of a state folder may be no UTF-8
    odd = Home(tmp_path / os.fsdecode(b"h\xff")).run("doctor")
    assert r"h\xff does not exist yet" in odd.stdout


def test_ctrl_c_while_watching_leaves_the_job_alone(new_home: Home, few_digits: Path, tmp_path: Path) -> None:
    # given somebody watches a job that cannot move, because nothing runs
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        begun = subprocess.Popen(
            [LABELMILL, "submit", str(few_digits), "--watch"],
            env=new_home.environment,
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
    assert new_home.json("status", job)["state"] == "running"
