"""The console command writes UTF-8 in any locale, and writes its output to files, pipes and object stores."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Final

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from typer.testing import Result

from labelmill.cli import app
from tests.console import LABELMILL, Home, rows
from tests.outcomes import Outcome

#: Latin-1 has only the first character; the last one is a byte that is not UTF-8, as the ledger stores it.
NAME: Final = "\u00e9\u4e03\\xff.png"

LATIN_1: Final = {"PYTHONIOENCODING": "latin-1", "COLUMNS": "200"}


@pytest.fixture(autouse=True)
def _buffered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Python buffer stdout, as it does for users: what is left at the end is written at shutdown."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)


@pytest.fixture
def written(settings):
    """Return a function: `written("jobs")` returns the bytes that the command writes into a pipe."""

    def written(*arguments: str, said: bool = False) -> bytes:
        done = subprocess.run(
            [LABELMILL, *arguments],
            env=os.environ | settings.environment() | LATIN_1,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
        assert (done.returncode, bool(done.stderr)) == (0, said), done.stderr
        return done.stdout

    return written


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_names_and_labels_are_utf8_whatever_the_locale(make_job, worker, written, tmp_path):
    # Given a prediction whose name and label the locale cannot encode
    job = make_job([1])
    worker.work(job.chunks[0], [Outcome(NAME, "\u4e03", 0.75)])

    # When it is exported, Then it is UTF-8 in each format, and the same as in a file
    as_csv = written("predictions", job.id, "--format", "csv")
    [row] = rows(as_csv.decode())
    assert (row["name"], row["label"]) == (NAME, "\u4e03")
    assert json.loads(written("predictions", job.id, "--json"))["name"] == NAME
    assert "\u4e03" in written("predictions", job.id).decode()
    path = tmp_path / "job.csv"
    done = written("predictions", job.id, "--format", "csv", "--output", str(path), said=True)
    assert (done, path.read_bytes()) == (b"", as_csv)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_files_name_says_its_format_and_a_file_that_is_there_stays(
    home, make_job, worker, tmp_path, run_command, monkeypatch
):
    # Given a job with a prediction
    job = make_job([1])
    worker.work(job.chunks[0])
    monkeypatch.setenv("COLUMNS", "200")

    def exported(*arguments: object) -> Result:
        return run_command(app, "predictions", job.id, *arguments)

    # When it is written to a file, Then the format follows from the file's name
    path = tmp_path / "job.CSV"
    assert exported("-o", path).exit_code == 0
    assert [row["label"] for row in rows(path.read_text())] == ["7"]
    lines = tmp_path / "job.jsonl"
    assert exported("-o", lines).exit_code == 0
    assert json.loads(lines.read_text())["label"] == "7"

    rows_of_json = tmp_path / "job.ndjson"
    assert exported("-o", rows_of_json).exit_code == 0
    assert rows_of_json.read_text() == lines.read_text()
    for table in (tmp_path / "job.txt", tmp_path / "job"):
        assert exported("-o", table).exit_code == 0
        assert table.read_text().split()[:3] == ["index", "name", "label"]

    # And an unknown ending is an error, unless an option names the format
    for name in ("job.json", "job.xlsx", "job.csv.gz"):
        failed = exported("-o", tmp_path / name)
        assert (failed.exit_code, failed.stdout) == (2, "")
        assert (
            f"No format ends in {Path(name).suffix}: choose one with --format (table, csv," in failed.stderr
        )
        assert "end the file's name in .csv, .jsonl," in failed.stderr
        assert not (tmp_path / name).exists()
    assert exported("-o", tmp_path / "job.json", "--json").exit_code == 0
    assert json.loads((tmp_path / "job.json").read_text())["label"] == "7"

    # And an existing file is overwritten only with --force; a device needs no --force
    path.write_text("mine")
    refused = exported("-o", path)
    assert (refused.exit_code, path.read_text()) == (2, "mine")
    assert "exists already: --force overwrites it" in refused.stderr
    assert exported("-o", path, "--force").exit_code == 0
    assert path.read_text().startswith("index,")
    device = home.ok("predictions", job.id, "-o", "/dev/stdout", "--format", "csv")
    assert device == path.read_text()

    # And contradicting options and paths that cannot be written are usage errors
    for arguments, words in [
        (["--json", "--format", "csv"], "csv by --format and jsonl by --json"),
        (["--format", "csv", "-o", tmp_path / "job.parquet"], "leave one of them out"),
        (["-o", tmp_path / "nowhere" / "job.csv"], "cannot be written (No such file or directory)"),
        (["-o", tmp_path], "cannot be written (Is a directory)"),
        (["-o", ""], "cannot be written (Is a directory)"),
    ]:
        failed = exported(*arguments)
        assert (failed.exit_code, failed.stdout) == (2, "")
        assert words in failed.stderr


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_dash_is_stdout(settings, make_job, worker, run_command, tmp_path, monkeypatch):
    # Given a job with predictions
    monkeypatch.chdir(tmp_path)
    job = make_job([3])
    worker.work(job.chunks[0])

    # When they are written to a dash, Then they are on stdout, and there is no such file
    for form in ("table", "csv", "jsonl", "parquet"):
        arguments = ("predictions", job.id, "--format", form)
        to_a_dash = run_command(app, *arguments, "-o", "-").stdout_bytes
        assert to_a_dash == run_command(app, *arguments).stdout_bytes != b""
    assert list(tmp_path.glob("-")) == []

    # And a closed pipe is not an error
    ours, theirs = os.pipe()
    os.close(ours)
    for form in ("csv", "parquet"):
        command = [LABELMILL, "predictions", job.id, "--format", form, "-o", "-"]
        environment = os.environ | settings.environment()
        done = subprocess.run(command, env=environment, stdout=theirs, stderr=subprocess.PIPE, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    os.close(theirs)


class Cabinet(LocalFileSystem):
    """A local folder that counts as an object store."""

    protocol = "cabinet"

    @classmethod
    def _strip_protocol(cls, path):
        return LocalFileSystem._strip_protocol(path.removeprefix("cabinet://"))


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_predictions_go_to_an_object_store(make_job, worker, run_command, tmp_path, form):
    # Given a job with predictions, and an object store
    fsspec.register_implementation("cabinet", Cabinet, clobber=True)
    job = make_job([3])
    worker.work(job.chunks[0])
    path = tmp_path / f"job.{form}"
    url = f"cabinet://{path}"

    def exported(*arguments: object) -> Result:
        return run_command(app, "predictions", job.id, *arguments)

    # When they are written to its URL, Then the URL decides the format, and the bytes are those of a file
    done = exported("--output", url)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.endswith(f"3 predictions written to {url}\n")
    as_file = tmp_path / f"file.{form}"
    assert exported("--output", as_file).exit_code == 0
    assert path.read_bytes() == as_file.read_bytes()

    # And the error says why a URL cannot be written
    for arguments, words in [
        (
            ["--output", "https://anna:sesame@host/job.csv?key=1"],
            "https://anna@host/job.csv cannot be written",
        ),
        (["--output", "nothing://bucket/job.csv"], "cannot be written (Protocol not known: nothing)"),
        (["--output", "file://elsewhere/job.csv"], "it names the host 'elsewhere'"),
        (["--output", url, "--format", "jsonl"], f"jsonl by --format and {form} by {url}"),
    ]:
        failed = exported(*arguments)
        assert (failed.exit_code, failed.stdout) == (2, "")
        assert words in failed.stderr
        assert "sesame" not in failed.stderr


def test_a_mistyped_setting_is_told_with_the_one_that_is_meant(tmp_path):
    # Given a mistyped setting for the ledger, and a variable that resembles no setting
    said = {"labelmill_ledger_ulr": "sqlite:////nowhere/x.sqlite3", "LABELMILL_QQQQ": "1"}

    # When any command runs, Then stderr says once for each that it has no effect
    for command in (["runs", "show", "nothing"], ["worker", "--processes", "5000"]):
        done = Home(tmp_path / "home", said).run(*command)
        assert done.stderr.splitlines()[:2] == [
            "LABELMILL_QQQQ is not a setting and has no effect",
            "labelmill_ledger_ulr is not a setting and has no effect: did you mean LABELMILL_LEDGER_URL?",
        ]
        assert done.stderr.count("no effect") == 2


def test_a_state_folder_that_cannot_be_used_is_told_with_what_names_it(tmp_path):
    # Given a state folder that is a file, or inside one
    (tmp_path / "file").write_text("")
    for home in (tmp_path / "file", tmp_path / "file" / "below"):
        # When a command needs it, Then the error says so, and is a usage error
        done = Home(home).run("jobs")
        assert done.returncode == 2
        assert done.stderr.startswith(f"labelmill: Not a directory: {home}")
        assert "LABELMILL_HOME says where the state folder is" in done.stderr


def test_a_disk_that_is_full_is_no_number(tmp_path):
    with open("/dev/full", "wb") as full:  # noqa: PTH123 -- a device
        done = subprocess.run(
            [LABELMILL, "jobs"],
            env=os.environ | {"LABELMILL_HOME": str(tmp_path / "home")},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == ("labelmill: No space left on device: free some space, and run the command again\n")


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), (["submit", "--help"], 0), ([], 0), (["submit"], 2)]
)
def test_help_that_nobody_reads_to_its_end_is_no_error(arguments, code):
    # Given a closed pipe in the place of stdout and stderr
    ours, theirs = os.pipe()
    os.close(ours)
    try:
        done = subprocess.run([LABELMILL, *arguments], stdout=theirs, stderr=theirs, check=False)
    finally:
        os.close(theirs)
    assert done.returncode == code


def test_where_stdout_is_closed_there_is_no_data(tmp_path):
    done = subprocess.run(
        ["sh", "-c", f"'{LABELMILL}' jobs >&-"],
        env=os.environ | {"LABELMILL_HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


#: The console command with a replaced app that prints what it reads, and a file name that is not UTF-8.
_ECHO: Final = r"""
import sys
from labelmill import cli
cli.app = lambda: print(sys.stdin.readline().rstrip(), "\u2581", "a\udcff", flush=True)
cli.main()
"""


def test_what_is_read_is_utf8_and_a_path_keeps_its_bytes():
    done = _echo("\u4e03\n".encode(), stdout=subprocess.PIPE)
    assert done.stdout == "\u4e03 \u2581 a".encode() + b"\xff\n"


def test_a_terminal_is_spoken_to_in_its_own_encoding():
    # Given a terminal with the encoding Latin-1
    ours, theirs = pty.openpty()
    try:
        done = _echo("\u00e9\n".encode(), stdout=theirs)
        # Then it gets Latin-1 where possible, and escapes otherwise
        assert os.read(ours, 1000).rstrip() == b"\xe9 \\u2581 a\\udcff"
        assert done.returncode == 0
    finally:
        os.close(ours)
        os.close(theirs)


def _echo(line: bytes, *, stdout: int) -> subprocess.CompletedProcess[bytes]:
    done = subprocess.run(
        [sys.executable, "-c", _ECHO],
        env=os.environ | LATIN_1,
        input=line,
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=60,
    )
    assert done.stderr == b""
    return done
