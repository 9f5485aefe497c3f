"""The format of a log line, and what must never be in one."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from celery.signals import task_postrun
from structlog.contextvars import bind_contextvars

import worker.tasks
from jobs.settings import ENV_PREFIX, Settings
from tests.programs import run_python
from worker.logs import FIELDS, JsonFormatter, _redactor


def record(message: str, *arguments: object, level: int = logging.INFO, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("worker.test").makeRecord(
        "worker.test", level, __file__, 1, message, arguments, None, extra=extra
    )


def parsed(line: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter(str).format(line)
    assert "\n" not in text
    found: dict[str, Any] = json.loads(text)
    return found


def said(program: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with these arguments and settings."""
    environment = {ENV_PREFIX + name.upper(): value for name, value in settings.items()}
    return run_python(program, *arguments, check=False, **environment)


def test_a_line_says_when_how_bad_who_and_what() -> None:
    # when a line is formatted
    made = record("%d images\nof %s", 3, "a chunk")
    made.created = datetime(2026, 11, 25, 3, 4, 5, 678_000, tzinfo=UTC).timestamp()

    # then its time is UTC, and a message of several lines is one field
    assert parsed(made) == {
        "time": "2026-11-25T03:04:05.678Z",
        "level": "info",
        "logger": "worker.test",
        "message": "3 images\nof a chunk",
        "process": "MainProcess",
        "pid": os.getpid(),
    }


def test_ids_are_forgotten_when_celery_is_done_with_a_task() -> None:
    # given ids that a task has bound
    assert worker.tasks
    bind_contextvars(job="J", chunk="C")

    # when Celery is done with the task
    task_postrun.send(sender=None)

    # then the next line has no ids
    assert "job" not in parsed(record("a line"))


def test_a_line_has_our_facts_and_nothing_else_that_hangs_on_it() -> None:
    # Celery attaches a task's arguments to its log records, as `data`
    line = parsed(record("a line", images=3, seconds={"read": 0.1}, data={"args": "('secret',)"}))
    assert (line["images"], line["seconds"]) == (3, {"read": 0.1})
    assert "data" not in line
    assert "data" not in FIELDS


def test_what_is_no_json_is_told_all_the_same() -> None:
    assert parsed(record("a line", images=object()))["images"].startswith("<object")


# ---- secrets ------------------------------------------------------------------------------------------


@pytest.fixture
def settings_with_passwords() -> Settings:
    return Settings.load(
        ledger_url="postgresql://mill:br%40ke@db.example.org/mill",
        broker_url="redis://:br%40ker@redis.example.org:6379/0",
        store_url="s3://key:st%3Fore@bucket/mill?token=abc",
    )


@pytest.mark.parametrize(
    "secret",
    # Some begin like another, of which no rest must be left.
    ["br%40ke", "br@ke", "br%40ker", "br@ker", "st%3Fore", "st?ore", "token=abc"],
)
def test_passwords_of_the_settings_are_in_no_line(settings_with_passwords: Settings, secret: str) -> None:
    redact = _redactor(settings_with_passwords)
    assert redact(f"cannot use '{secret}' there") == "cannot use '***' there"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("no answer of ftp://anna:hers@host/x", "no answer of ftp://anna:***@host/x"),
        ("no answer of redis://host:6379/0 for a@b", "no answer of redis://host:6379/0 for a@b"),
        ("/home/a:b@c/.labelmill is a path", "/home/a:b@c/.labelmill is a path"),
    ],
)
def test_a_password_in_any_other_url_is_in_no_line(text: str, redacted: str) -> None:
    assert _redactor(Settings(home="/home/a:b@c/.labelmill"))(text) == redacted


def test_secrets_are_taken_out_of_messages_exceptions_and_ids(settings_with_passwords: Settings) -> None:
    # given a record with a password in each of its parts
    try:
        raise OSError("br@ker refused")
    except OSError:
        made = record("no br@ker", job="br@ker")
        made.exc_info = sys.exc_info()

    # then it is nowhere in the line
    line = JsonFormatter(_redactor(settings_with_passwords)).format(made)
    assert "br@ker" not in line
    assert json.loads(line)["message"] == "no ***"


# ---- processes ----------------------------------------------------------------------------------------

_SET_UP = "from worker.app import app; import logging; app.log.setup(loglevel='DEBUG'); "


def test_text_is_as_celery_writes_it_without_secrets() -> None:
    # given a process that logs as text, the default
    done = said(
        _SET_UP + "logging.getLogger('worker.x').info('no redis://:hers@host'); "
        "logging.getLogger('celery.task').warning('nor her%20s')",
        broker_url="redis://:her%20s@127.0.0.1:1/0",
    )

    # then its lines have Celery's format
    first, second = done.stderr.splitlines()
    assert re.fullmatch(r"\[[\d-]{10} [\d:,]{12}: INFO/MainProcess\] no redis://:\*\*\*@host", first)
    assert re.fullmatch(r"\[.*: WARNING/MainProcess\] .*nor \*\*\*", second)


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_other_libraries_begin_at_warning(log_format: str) -> None:
    done = said(
        _SET_UP + "[logging.getLogger(name).log(level, f'{name} {level}')"
        " for name in ('a_library', 'kombu', 'jobs.x', 'worker.x', 'celery.x') for level in (10, 20, 30)]",
        log_format=log_format,
    )
    found = re.findall(r"(a_library|kombu|jobs\.x|worker\.x|celery\.x) (\d+)", done.stderr)
    ours = [(name, str(level)) for name in ("jobs.x", "worker.x", "celery.x") for level in (10, 20, 30)]
    assert [*found] == [("a_library", "30"), ("kombu", "30"), *ours]


def test_in_json_whatever_a_process_says_is_a_line() -> None:
    # given a process that warns, prints, has an exception in a thread, and dies of another one, before and
    # after Celery has set up logging
    done = said(
        """
import logging, sys, threading, warnings
from worker.app import app
logging.getLogger("early").warning("an early line")
warnings.warn("an early warning")
app.log.setup(loglevel="INFO", redirect_stdouts=True)
warnings.warn("a late warning")
print("printed")
sys.stderr.write("written\\n")
def fail(): raise KeyError("in a thread")
thread = threading.Thread(target=fail); thread.start(); thread.join()
class Lost:
    def __del__(self): raise ValueError("in a finalizer")
Lost()
raise RuntimeError("the end of ftp://anna:hers@host")
""",
        log_format="json",
    )

    # then each of these is one line of JSON, once
    assert done.returncode == 1
    assert done.stdout == ""
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    messages = [line["message"] for line in lines]
    for number, expected in enumerate(
        ("an early line", "an early warning", "a late warning", "printed", "written", "in a thread")
    ):
        assert expected in messages[number]
    assert "in a finalizer" in lines[6]["exception"]
    assert lines[7]["level"] == "critical"
    assert "the end of ftp://anna:***@host" in lines[7]["exception"]
    assert len(lines) == 8


def test_a_log_file_that_celery_was_told_is_written_in_json(tmp_path: Any) -> None:
    path = tmp_path / "a.log"
    done = said(
        f"from worker.app import app; import logging; app.log.setup(loglevel='INFO', logfile={str(path)!r});"
        " logging.getLogger('worker.x').info('a line')",
        log_format="json",
    )
    assert done.stderr == ""
    assert json.loads(path.read_text())["message"] == "a line"


@pytest.mark.parametrize(("log_format", "begins"), [("text", "labelmill: "), ("json", '{"time": ')])
def test_a_wrong_setting_is_told_in_the_format_that_was_asked_for(log_format: str, begins: str) -> None:
    beat = ("-A", "worker.app", "beat")
    done = said("import celery.__main__ as c; c.main()", *beat, log_format=log_format, lease_seconds="long")
    assert done.returncode == 2
    assert done.stderr.startswith(begins)
    assert done.stderr.count("\n") == 1
    assert f"{ENV_PREFIX}LEASE_SECONDS" in done.stderr
