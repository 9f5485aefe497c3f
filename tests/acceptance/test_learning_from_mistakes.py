"""Mistakes that people put right change the next training set, and the report says so."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

from jobs.settings import ENV_PREFIX
from tests.console import Home, rows, wait_for_broker
from worker.learning import mnist

#: Few digits to train with, so that the model makes many mistakes.
SEEN = slice(0, 500)
#: Real digits that neither the training nor the evaluation set has: the sample has as many.
UNSEEN = slice(500, 4_000)


def test_two_hundred_corrected_mistakes_join_the_next_training(
    short_folder: Path, tmp_path: Path, mnist_dir: Path
) -> None:
    # Given a model that learnt from 500 digits, and 3,500 that it has never seen
    whole = mnist.read_folder(mnist_dir, lambda _line: None)
    data = replace(
        whole,
        train_images=whole.train_images[SEEN],
        train_labels=whole.train_labels[SEEN],
        test_images=whole.test_images[:500],
        test_labels=whole.test_labels[:500],
    )
    unseen = replace(data, train_images=whole.train_images[UNSEEN], train_labels=whole.train_labels[UNSEEN])
    for folder, content in (("data", data), ("unseen", unseen)):
        (tmp_path / folder).mkdir()
        mnist.write_folder(content, tmp_path / folder)
    home = Home(short_folder / "home", {ENV_PREFIX + "MNIST_DIR": str(tmp_path / "data")})
    home.ok("train")

    # and 200 of its mistakes among these, with what they are
    with home.started("up", log=tmp_path / "up.log"):
        wait_for_broker(home)
        job = home.ok("submit", tmp_path / "unseen" / "train-images-idx3-ubyte", "--watch").split()[-1]
    found = rows(home.ok("predictions", job, "--format", "csv"))
    mistakes = [
        (row["index"], str(label))
        for row, label in zip(found, unseen.train_labels, strict=True)
        if row["label"] != str(label)
    ][:200]
    assert len(mistakes) == 200
    with (tmp_path / "corrections.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("job", "index", "label"))
        writer.writerows((job, *mistake) for mistake in mistakes)

    # When they are corrected, and the model is trained again
    home.ok("correct", "--from", tmp_path / "corrections.csv")
    model = home.ok("train").split()[-1]

    # Then they were in its training set, and not in the one before
    after, before = home.json("runs")
    assert before["data"]["corrections"] == 0
    assert after["data"]["corrections"] == 200
    assert after["data"]["left_out"] == 0
    assert after["data_fingerprint"] != before["data_fingerprint"]
    assert after["data"]["evaluation_fingerprint"] == before["data"]["evaluation_fingerprint"]
    # and the page says so.
    home.ok("models", "report", model, "--output", tmp_path / "report.html")
    assert "200 corrections joined the training images" in (tmp_path / "report.html").read_text()
