"""The main job: image files in, SQL rows out, on the embedded stack and on servers named by settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

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

    # and a job that may have fewer errors has failed, and says why
    for limit, words in (
        (["--max-errors", "3"], "more than its limit of 3"),
        (["--max-error-rate", "0.07", "--min-sample", "1"], "more than its limit of 7 %"),
    ):
        stopped = stack.run("submit", folder, "--watch", *limit)
        assert (stopped.returncode, words in stopped.stderr) == (1, True), stopped.stderr
        assert stack.json("status", stopped.stdout.split()[-1])["state"] == "failed"
