"""The console command's messages for people, on stderr and in its tables."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from jobs.models.model import Model
from labelmill.cli import app
from tests.conftest import JobMaker, Worker

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

Command = Callable[..., Result]


@pytest.fixture
def labelmill(
    run_command: Command,
    champion: Model,  # noqa: ARG001 -- submitting needs one
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Return a function: `labelmill("submit", folder)` runs the command, with a champion in the ledger."""
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: run_command(app, *arguments)


def test_submit_says_which_images_cannot_be_read(labelmill: Command, photos: Path) -> None:
    # Given a folder with a dangling symlink, and a file that is not an image
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "notes.txt").write_text("notes")

    # when it is submitted with a device, then the job is accepted, and stderr says what cannot be read
    done = labelmill("submit", photos, "/dev/null")
    assert done.exit_code == 0
    assert "skipped 1 file: not images by their names" in done.stderr
    assert "2 of 4 images could not be read, and will get an error" in done.stderr
    assert f"the first: {photos}/gone.png, source_missing: No such file or directory" in done.stderr

    # and if all images can be read, stderr does not mention it
    (photos / "gone.png").unlink()
    assert "could not" not in labelmill("submit", photos).stderr


def test_a_job_without_results_waits_for_a_worker(
    labelmill: Command, make_job: JobMaker, worker: Worker
) -> None:
    # Given a submitted job, when its status is printed, then it says that it waits for a worker
    job = make_job([1, 1])
    for command in (["jobs"], ["status", job.id], ["predictions", job.id]):
        done = labelmill(*command)
        assert "running, waits for a worker" in done.stdout + done.stderr, command
    assert json.loads(labelmill("status", job.id, "--json").stdout)["state"] == "running"

    # and once a worker has recorded images, it does not
    worker.finish(worker.must_claim(job.chunks[0]))
    assert "waits for a worker" not in labelmill("jobs").stdout


def test_a_purge_counts_jobs_whether_or_not_they_had_payloads_left(
    labelmill: Command, make_job: JobMaker, worker: Worker
) -> None:
    for _ in range(2):
        worker.work(make_job([1]).chunks[0])
    assert labelmill("purge", "--jobs", "0").stderr.splitlines() == [
        "purging: 2, 0 bytes, 2 predictions",
        "removed: 2 jobs with 2 predictions",
    ]


def test_submit_says_what_was_passed_over_if_there_was_nothing_else(
    labelmill: Command, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    done = labelmill("submit", tmp_path / "notes")
    assert done.exit_code == 2
    assert "contain no images (files skipped because of their names: 1)" in done.stderr


def test_a_sample_without_a_share_is_refused(labelmill: Command, photos: Path) -> None:
    done = labelmill("submit", photos, "--min-sample", "10", "--max-errors", "1")
    assert done.exit_code == 2
    assert "--min-sample needs --max-error-rate: give both" in done.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Return a folder with two files that are named like images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    return folder
