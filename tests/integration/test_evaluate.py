"""Jobs and folders whose images are in folders named after classes are evaluated, and nothing is stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
from PIL import Image

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.browsing import count_confusions
from jobs.ledger.learning.corrections import NewCorrection, save_corrections
from jobs.ledger.learning.health import model_health
from jobs.ledger.learning.runs import request_run
from jobs.models.model import Model
from jobs.schema import corrections, db_now, evaluations, training_runs
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.commands.evaluate import app as evaluate_command
from labelmill.commands.models import app as models_command
from producer.sources import SourceImage, Sources
from tests.conftest import Job
from tests.labelled import picture
from tests.ledger_probes import count_rows
from tests.outcomes import Outcome
from tests.registering import register_digits

#: The folder of each image of a job, and the label that it got.
OUTCOMES = (("3", "3"), ("3", "3"), ("3", "8"), ("8", "8"), ("8", None), ("misc", "1"))


@pytest.fixture
def job(submitted, worker) -> Job:
    """Return a finished job; two of its images are in folders named 3 and 8."""
    return classify(submitted, worker, range(50, 50 + len(OUTCOMES)))


def pretend_training(ledger: Ledger, model: Model) -> None:
    """Add a training run that has made the model, half a minute from now."""
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={})
        started = {"model_id": model.id, "started_at": db_now(30), "active": None}
        connection.execute(training_runs.update().values(started))


def classify(submitted, worker, pictures: Iterable[int]) -> Job:
    """Classify these pictures as OUTCOMES says."""
    names = [f"pics/{folder}/{place}<b>.png" for place, (folder, _label) in enumerate(OUTCOMES)]
    images = zip(names, pictures, strict=True)
    job: Job = submitted(SourceImage(name, picture(number), None) for name, number in images)
    for chunk in job.chunks:
        worker.work(
            chunk,
            [
                Outcome(names[place], None, None, "corrupt")
                if (label := OUTCOMES[place][1]) is None
                else Outcome(names[place], label, 0.75)
                for place in range(chunk.first_index, chunk.first_index + chunk.images)
            ],
        )
    return job


def test_a_job_is_evaluated_by_the_folders_of_its_images(ledger: Ledger, run_command, job: Job) -> None:
    # When the job is evaluated, Then the image with an error counts as wrong, and the folder misc not at all
    done = run_command(evaluate_command, job.id, "--json")
    told = json.loads(done.stdout)
    assert (told["job"], told["total"], told["correct"], told["errors"]) == (job.id, 5, 3, 1)
    assert told["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert told["accuracy_low"] < 0.6 < told["accuracy_high"]
    assert told["confusion"][8][-1] == 1
    assert [mistake["index"] for mistake in told["mistakes"]] == [2]
    assert "left out 1 image whose label or folder is not a class of the model (misc)" in done.stderr
    done = run_command(evaluate_command, job.id)
    assert "right               3 of 5" in done.stdout
    assert "most confident mistakes" in done.stdout

    # And nothing is stored
    assert count_rows(ledger, evaluations) == 0


def test_a_correction_counts_instead_of_the_folder(client: Client, job: Job) -> None:
    # Given an image in the folder 3 that a person has found to be an 8, as the model has
    client.correct(job.id, 2, "8")
    found = client.evaluate_job(job.id)
    assert (found.figures.correct, found.figures.total, found.corrected) == (4, 5, 1)
    assert found.mistakes == ()


def test_the_labels_of_a_manifest_are_the_truth(
    client: Client, ledger: Ledger, run_command, submitted, worker, champion: Model, tmp_path: Path
) -> None:
    # Given a job of a manifest with labels, one of them for an image in another class's folder
    (tmp_path / "8").mkdir()
    names = ("a.png", "b.png", "8/c.png", "8/d.png")
    for place, name in enumerate(names):
        (tmp_path / name).write_bytes(picture(50 + place))
    manifest = tmp_path / "labels.csv"
    manifest.write_text("path,label\na.png,3\nb.png,8\n8/c.png,3\n8/d.png,\n")
    job: Job = submitted(Sources([str(manifest)], max_bytes=1_000_000))
    for chunk in job.chunks:
        worker.work(chunk, [Outcome(name, "3", 0.75) for name in names[chunk.first_index :][: chunk.images]])

    # Then the labels count, and without one the folder
    told = json.loads(run_command(evaluate_command, job.id, "--json").stdout)
    assert (told["total"], told["correct"], told["unlabelled"]) == (4, 2, 0)
    assert [mistake["index"] for mistake in told["mistakes"]] == [1, 3]

    # And all that asks for the truth gets the same
    assert [each.index for each in client.predictions(job.id, mistakes=True)] == [1, 3]
    with ledger.reading() as connection:
        known = model_health(connection, champion.id).known
        counted = count_confusions(connection, job.id, champion.classes)
    assert (known.right, known.images) == (2, 4)
    assert (counted.confusion[3][3], counted.confusion[8][3]) == (2, 2)


def test_images_that_the_model_has_learnt_are_left_out(
    client: Client, ledger: Ledger, run_command, submitted, worker, job: Job, champion: Model
) -> None:
    # Given corrections of three images, two of which came before the training run of the model
    for index in (0, 1, 2):
        client.correct(job.id, index, "8")
    pretend_training(ledger, champion)
    with ledger.transaction() as connection:
        later = corrections.update().where(corrections.c.index == 1)
        connection.execute(later.values(created_at=db_now(60)))

    # When the same images are submitted again, one of them as another picture of that name
    again = classify(submitted, worker, [50, 51, 99, 53, 54, 55])

    # Then the one that the model may have learnt is left out, and that is said
    done = run_command(evaluate_command, again.id, "--json")
    told = json.loads(done.stdout)
    assert (told["total"], told["learnt"], told["unlabelled"], told["corrected"]) == (4, 1, 1, 0)
    assert "left out 1 image that had been corrected before the model was trained" in done.stderr


def test_the_report_on_a_job_shows_its_mistakes(run_command, store: Store, job: Job, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    assert run_command(evaluate_command, job.id, "--output", path).exit_code == 0
    page = path.read_text()
    assert "Balanced accuracy" in page
    assert page.count("data:image/png;base64,") == 1
    assert "pics/3/2&lt;b&gt;.png" in page
    assert "<b>.png" not in page

    # When the payloads are gone, Then the page still lists the mistakes by name
    for chunk in job.chunks:
        store.remove(chunk.payload)
    assert run_command(evaluate_command, job.id, "--output", path, "--force").exit_code == 0
    assert "data:image/png;base64," not in path.read_text()
    assert "pics/3/2&lt;b&gt;.png" in path.read_text()


def test_a_labelled_folder_is_evaluated_with_a_model(
    ledger: Ledger, store: Store, run_command, model_file: bytes, little_mnist, tmp_path: Path
) -> None:
    # Given a model, and digits in folders named after them, one of which is broken
    model: Model = register_digits(ledger, store, model_file, champion=True)
    for place in range(60):
        folder = tmp_path / "digits" / str(little_mnist.test_labels[place])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(little_mnist.test_images[place]).save(folder / f"{place}.png")
    (tmp_path / "digits" / "0" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (tmp_path / "digits" / "x.png").write_bytes(picture(9))

    # And one that was corrected before the model was trained
    (tmp_path / "digits" / "0" / "learnt.png").write_bytes(picture(8))
    image_sha256 = hashlib.sha256(picture(8)).hexdigest()
    row = NewCorrection(new_id(), 0, "a.png", "0", "8", 0.5, model.id, image_sha256)
    with ledger.transaction() as connection:
        save_corrections(connection, [row])
    pretend_training(ledger, model)

    # When the model is evaluated on them
    done = run_command(models_command, "evaluate", model.id, "--images", tmp_path / "digits", "--json")
    told = json.loads(done.stdout)

    # Then the figures are those of the classifier's own answers
    from jobs.storage.registry import fetch_model
    from worker.predicting.classifier import Classifier

    path = fetch_model(store, model, tmp_path / "cache")
    classifier = Classifier.load(path, model.classes, model.input_spec)
    right = int(
        (classifier.predict(little_mnist.test_images[:60]).class_index == little_mnist.test_labels[:60]).sum()
    )
    assert (told["total"], told["correct"], told["errors"], told["unlabelled"]) == (61, right, 1, 1)
    assert told["learnt"] == 1
    assert "left out 1 image whose label or folder is not a class of the model (digits)" in done.stderr

    # When a manifest gives the image in no class's folder a label, Then that counts
    manifest = tmp_path / "digits" / "labels.csv"
    manifest.write_text("path,label\nx.png,9\n")
    done = run_command(models_command, "evaluate", model.id, "--images", manifest, "--json")
    assert json.loads(done.stdout)["confusion"][9] != [0] * 11

    # And nothing is stored
    assert count_rows(ledger, evaluations) == 0
