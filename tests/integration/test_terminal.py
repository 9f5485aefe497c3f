"""Names given by others are printed escaped, so that the terminal never obeys them, on both databases."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pty
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.outcomes import Prediction
from jobs.ledger.jobs.shadows import Comparison, Disagreement
from jobs.ledger.learning.corrections import NewCorrection, save_corrections
from jobs.ledger.learning.models import save_evaluation
from jobs.ledger.learning.runs import request_run
from jobs.models.model import Model
from jobs.schema import JobState, RunState, training_runs
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.cli import app
from labelmill.client import Client
from labelmill.commands import demo, doctor
from labelmill.commands.models import registering, shadow
from labelmill.console import terminal as console
from labelmill.console.terminal import Console
from labelmill.labels.labelled_jobs import compare_with_known
from labelmill.operations.doctor import Finding, Level
from labelmill.reporting.evaluation_lines import labelled_lines, report_left_out
from tests.conftest import Job, JobMaker, Worker
from tests.evaluations import made_evaluation
from tests.kerasfile import keras_file
from tests.outcomes import Outcome
from tests.registering import register_digits

#: Classes that a terminal or rich would obey: red in two encodings, the cursor one line up, and markup.
CLASSES = ("\x1b[31mred", "\x9b31mred too", "up\x1b[1A", "[red]tin[/red]")
WRITTEN_OUT = ("\\x1b[31mred", "\\x9b31mred too", "up\\x1b[1A", "[red]tin[/red]")

#: Images of each class, enough for the model's health.
EACH = 60

#: An evaluation set of a hundred images of each class.
TRUTH = [number % len(CLASSES) for number in range(100 * len(CLASSES))]


def obeyed(text: str) -> list[str]:
    """Return the characters that a terminal would not print."""
    return [each for each in text if not each.isprintable() and each != "\n"]


@pytest.fixture
def champion(ledger: Ledger, store: Store) -> Model:
    """Return a model of these classes, with its evaluation."""
    model = register_digits(ledger, store, keras_file(), champion=True, classes=CLASSES)
    with ledger.transaction() as connection:
        save_evaluation(connection, model.id, "f" * 64, *made_evaluation(TRUTH, TRUTH, classes=CLASSES))
    return model


@pytest.fixture
def job(make_job: JobMaker, worker: Worker, champion: Model, ledger: Ledger, tmp_path: Path) -> Job:
    """Return a finished job with these labels, in folders of other classes, and with four corrections."""
    job = make_job([EACH * len(CLASSES)])
    folders = [tmp_path / f"{number}-x" for number in range(len(CLASSES))]
    for folder in folders:
        folder.mkdir()
        Image.fromarray(np.zeros((28, 28), np.uint8)).save(folder / "0.png")
    outcomes = [
        Outcome(f"{folders[number - 1]}/0.png", label, 0.75)
        for number, label in enumerate(CLASSES)
        for _ in range(EACH)
    ]
    worker.work(job.chunks[0], outcomes)
    rows = [
        NewCorrection(job.id, n, outcomes[n].name, label, CLASSES[n - 1], 0.75, champion.id, "0" * 64)
        for n, label in enumerate(CLASSES)
    ]
    with ledger.transaction() as connection:
        save_corrections(connection, rows)
    return job


@pytest.fixture
def run(run_command) -> Callable[..., str]:
    """Return a function: `run("status", job.id)` returns what the command prints."""

    def run(*arguments: str) -> str:
        done = run_command(app, *arguments)
        assert done.exit_code == 0, done.stderr
        return done.stdout

    return run


@pytest.mark.parametrize(
    "command",
    ["predictions JOB --format table", "correct --list", "models health", "models list"],
)
def test_classes_are_written_out(run, job: Job, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")  # in a narrower terminal, the list only counts the classes
    said = run(*command.replace("JOB", job.id).split())
    assert obeyed(said) == []
    for each in WRITTEN_OUT:
        assert each in said


@pytest.mark.parametrize(
    "command", ["predictions JOB --format jsonl", "correct --list --json", "models list --json"]
)
def test_json_is_the_same_and_nothing_is_obeyed(run, job: Job, command: str) -> None:
    said = run(*command.replace("JOB", job.id).split())
    assert obeyed(said) == []
    documents = said.splitlines() if "jsonl" in command else [said]
    assert {text for each in documents for text in _texts(json.loads(each))} >= set(CLASSES)


def test_csv_is_exact_in_a_pipe_and_obeyed_by_no_terminal(run, job: Job) -> None:
    command = ("predictions", job.id, "--format", "csv")
    assert set(CLASSES) <= set(run(*command).replace("\n", ",").split(","))

    # When it goes to a terminal, then control characters are written out
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-m", "labelmill", *command], stdout=theirs)
    os.close(theirs)
    said = b""
    with contextlib.suppress(OSError):  # the terminal's end
        while data := os.read(ours, 65536):
            said += data
    os.close(ours)
    assert process.wait() == 0
    assert obeyed(said.decode().replace("\r\n", "\n")) == []
    for each in WRITTEN_OUT:
        assert each in said.decode()


def _texts(value: object) -> Iterator[str]:
    """Yield all strings among the values."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


@pytest.mark.usefixtures("job")
def test_what_comes_after_a_name_stays_in_its_column(run) -> None:
    bars = [line for line in run("models", "health").splitlines() if "  then " in line]
    assert len({line.index("  then ") for line in bars[: len(CLASSES)]}) == 1


def test_what_evaluations_and_a_challenger_say_is_written_out(capsys, champion: Model) -> None:
    evaluation = made_evaluation(TRUTH, TRUTH, classes=CLASSES)[0]
    figures = "\n".join(registering._evaluation_lines(evaluation, "mnist"))
    shadow._print_comparison(
        Comparison(new_id(), 1, 4, 4),
        [Disagreement(new_id(), 0, each, CLASSES[n - 1], 0.5, each, 0.5) for n, each in enumerate(CLASSES)],
    )
    challenger = capsys.readouterr().out
    wrong = [
        Prediction(n, f"pics/{CLASSES[n - 1]}/{n}\x1b[31m.png", each, 0.5, None, None, "m")
        for n, each in enumerate(CLASSES)
    ]
    labelled = compare_with_known([*wrong, replace(wrong[0], name="\x1b[31m\nred/0.png")], champion, {})
    folders = "\n".join(labelled_lines(labelled))
    report_left_out(labelled)
    assert obeyed(capsys.readouterr().err) == []
    for said in (figures, challenger, folders):
        assert obeyed(said) == []
        for each in WRITTEN_OUT:
            assert each in said


def test_what_the_demo_shows_is_written_out(settings: Settings, job: Job, monkeypatch) -> None:
    # given a program in a folder whose name looks like markup
    monkeypatch.setattr(console, "command_name", lambda: "[bold]/labelmill")
    out = io.StringIO()
    with Client(settings) as client:
        demo.show_results(
            client, client.status(job.id), CLASSES, Console(file=out, highlight=False, width=200)
        )
    said = out.getvalue()
    assert obeyed(said) == []
    for each in WRITTEN_OUT:
        assert f"{each} \u2502" in said
    assert "[bold]/labelmill up" in said


def test_why_something_ended_is_written_out(ledger: Ledger, run, make_job: JobMaker) -> None:
    # given a job and a training run that failed, with a name in the reason
    failed, run_id = make_job([1]), new_id()
    why = f"there is no {CLASSES[0]}"
    with ledger.transaction() as connection:
        end_job(connection, failed.id, JobState.FAILED, error=why)
        request_run(connection, run_id, recipe={})
        connection.execute(training_runs.update().values(state=RunState.FAILED, error=why, active=None))

    for command in (("status", failed.id), ("runs",), ("runs", "show", run_id)):
        said = run(*command)
        assert obeyed(said) == []
        assert f"there is no {WRITTEN_OUT[0]}" in said


def test_what_the_doctor_finds_is_written_out(capsys) -> None:
    findings = [Finding(Level.PROBLEM, f"no folder {each}", fix=f"mkdir {each}") for each in CLASSES]
    doctor._print_findings([("store", each) for each in findings], Counter(each.level for each in findings))
    said = capsys.readouterr().out
    assert obeyed(said) == []
    for each in WRITTEN_OUT:
        assert f"no folder {each}\n" in said
        assert f"mkdir {each}\n" in said
