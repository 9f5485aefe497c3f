"""The main job: image files in, SQL rows out, on the embedded stack and on servers named by settings."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import pytest

from jobs.settings import ENV_PREFIX
from labelmill import Client
from tests.console import Home, agreement, rows


@pytest.mark.usefixtures("published_mnist")
def test_the_model_is_as_accurate_as_promised(accuracy: float) -> None:
    assert accuracy >= 0.967


@pytest.mark.fast
def test_a_bad_image_costs_its_neighbours_nothing(stack: Home, few_digits: Path, tmp_path: Path) -> None:
    # given good digits and, among them, an empty file, a text, half a PNG and a TIFF
    folder = tmp_path / "mixed"
    shutil.copytree(few_digits, folder)
    good = next(few_digits.rglob("*.png")).read_bytes()
    (folder / "0" / "empty.png").write_bytes(b"")
    (folder / "1" / "letter.png").write_text("Dear Sir or Madam")
    (folder / "2" / "half.png").write_bytes(good[: len(good) // 2])
    (folder / "3" / "scan.tif").write_bytes(b"II*\0" + b"\0" * 64)

    # when they are submitted
    done = stack.run("submit", folder, "--watch")

    # then the exit code says that some images got an error, each has its own, and the others their labels
    assert done.returncode == 3, done.stderr
    job = done.stdout.split()[-1]
    errors = rows(stack.ok("predictions", job, "--errors", "--format", "csv"))
    assert {Path(row["name"]).name: row["error"] for row in errors} == {
        "empty.png": "unidentified",
        "letter.png": "unidentified",
        "half.png": "corrupt",
        "scan.tif": "format_not_allowed",
    }
    assert all(row["label"] == "" for row in errors)
    everything = rows(stack.ok("predictions", job, "--format", "csv"))
    assert len(everything) == 54
    assert sum(row["label"] != "" for row in everything) == 50
    assert agreement([row for row in everything if row["label"]]) >= 0.9


@pytest.mark.fast
def test_the_client_in_python(stack: Home, few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PREFIX + "HOME", str(stack.path))

    with Client() as client:
        job = client.submit(few_digits)
        status = client.wait(job, timeout=60)
        found = list(client.predictions(job))

    assert (status.state, status.succeeded) == ("done", 50)
    assert [prediction.index for prediction in found] == list(range(50))


def test_classify_starts_what_is_missing_and_leaves_nothing_running(new_home: Home, few_digits: Path) -> None:
    # given no stack is up, when an image is classified the short way
    [seven, *_] = sorted((few_digits / "7").iterdir())
    done = new_home.run("classify", seven, "--json")

    # then its label is printed and nothing is left running
    assert done.returncode == 0, done.stderr
    assert '"label": "7"' in done.stdout
    assert not _processes_that_mention(new_home.path)


def _processes_that_mention(path: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                environment = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
                if bytes(path) in environment:
                    found.append((entry / "cmdline").read_text())
    return found
