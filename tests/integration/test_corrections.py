"""Corrections are checked and stored with a copy of the image, and the next training run learns from them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.errors import Conflict, ErrorCode, NotFound, Unavailable, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import (
    correction_key,
    live_accuracy,
    without_correction,
)
from jobs.ledger.learning.runs import request_run
from jobs.limits import ImageLimits
from jobs.network.references import Roots
from jobs.schema import corrections, db_now, jobs, models, training_runs
from jobs.storage.payloads import payload_folder
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.purging import Purge
from labelmill.commands.correct import app as correct_command
from labelmill.commands.purge import app as purge_command
from labelmill.labels import correcting
from labelmill.labels import image_copies as removing
from labelmill.labels.correcting import Corrector
from labelmill.labels.correction_files import CorrectionRequest
from labelmill.labels.next_training import NextTraining
from producer.export import write_csv
from producer.sources import SourceImage, Sources
from producer.sources.image import failed
from tests.conftest import Job, plans_of
from tests.digits import Digits
from tests.ledger_probes import chunks_of, count_rows
from tests.outcomes import Outcome
from worker.learning.corrections import add_corrections
from worker.learning.data import Data


def finish(worker, job: Job, errors: dict[int, ErrorCode] | None = None) -> None:
    """Record the label 7 for every image except those with an error."""
    for chunk in job.chunks:
        indices = range(chunk.first_index, chunk.first_index + chunk.images)
        worker.work(
            chunk,
            [
                Outcome(f"{index}.png", None, None, errors[index])
                if errors and index in errors
                else Outcome(f"{index}.png", "7", 0.75)
                for index in indices
            ],
        )


@pytest.fixture
def finished(submitted, worker) -> Callable[..., Job]:
    """Return a function: `finished(7)` submits and finishes a job of seven images (or those given)."""

    def finished(
        images: int | Iterable[SourceImage], errors: dict[int, ErrorCode] | None = None, **options: Any
    ) -> Job:
        job: Job = submitted(images, **options)
        finish(worker, job, errors)
        return job

    return finished


def purge(ledger: Ledger, store: Store, *, jobs_too: bool = False) -> None:
    """Purge all payloads of finished jobs, or the jobs themselves."""
    run = Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None)
    if jobs_too:
        run.whole_jobs(days=-1)
    run.payloads(days=-1)
    run.strays()


def copies(store: Store) -> set[str]:
    """Return the names of the copies in the store."""
    assert store.folder is not None
    folder = store.folder / correction_key("")
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# ---- one at a time ------------------------------------------------------------------------------------


def test_a_correction_is_a_row_and_a_copy_of_the_image(client, store, finished, champion) -> None:
    # given a finished job of three chunks, when an image in the middle is corrected
    job = finished(7)
    made = client.correct(job.id, 4, "1")

    # then the row has its new label, its prediction and the model
    assert (made.job_id, made.index, made.name, made.label) == (job.id, 4, "4.png", "1")
    assert (made.predicted, made.confidence, made.model_id) == ("7", 0.75, champion.id)
    assert client.corrections() == [made]

    # and a copy of the image is stored under its hash
    assert made.image_sha256 == sha256(b"pixels 4")
    assert store.get(correction_key(made.image_sha256)) == b"pixels 4"

    # and when it is corrected again, the label is replaced
    again = client.correct(job.id, 4, "2")
    assert client.corrections() == [again] == [replace(made, label="2", created_at=again.created_at)]
    assert again.created_at >= made.created_at


def test_undoing_removes_the_row_and_the_copy(client, store, finished) -> None:
    # given two images with the same bytes, both corrected
    job = finished([SourceImage(f"{n}.png", b"same", None) for n in range(2)])
    client.correct(job.id, 0, "1")
    client.correct(job.id, 1, "2")

    # when one correction is undone, then the copy stays, because the other one needs it
    assert client.undo_correction(job.id, 0).label == "1"
    assert copies(store) == {sha256(b"same")}

    # when the other one is undone too, then the copy is removed, and nothing is left to undo
    client.undo_correction(job.id, 1)
    assert copies(store) == set()
    assert client.corrections() == []
    with pytest.raises(NotFound, match=f"Image 1 of job '{job.id}' has no correction"):
        client.undo_correction(job.id, 1)

    # and for an unknown job, the error is about the job and not the image
    for job_id in ("nosuch", new_id()):
        with pytest.raises(NotFound, match=f"There is no job '{job_id}'"):
            client.undo_correction(job_id, 1)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (ErrorCode.QUARANTINED, "stopped its worker"),
        (ErrorCode.TIMEOUT, "stopped its worker"),
        (ErrorCode.UNIDENTIFIED, "cannot be decoded"),
        (ErrorCode.FORMAT_NOT_ALLOWED, "cannot be decoded"),
        (ErrorCode.CORRUPT, "cannot be decoded"),
    ],
)
def test_what_stopped_a_worker_or_is_no_picture_does_not_come_near_the_trainer(
    client, store, finished, code, why
) -> None:
    job = finished(2, {1: code})

    with pytest.raises(Conflict, match=f"Image 1 of job {job.id} {why} \\({code}\\)"):
        client.correct(job.id, 1, "1")

    assert copies(store) == set()


@pytest.fixture
def correct(run_command) -> Callable[..., str]:
    """Return a function: `correct(job.id, 0, "1")` runs the command and returns its stderr."""

    def correct(*arguments: object, stdin: bytes | None = None) -> str:
        done = run_command(correct_command, *arguments, stdin=stdin)
        assert done.exit_code == 0, done.stderr
        return done.stderr

    return correct


def test_what_no_training_learns_is_said(correct, ledger, finished, make_model, tmp_path: Path) -> None:
    # given a job of a registered model, and no training run
    job = finished(2)
    file = tmp_path / "corrections.csv"
    file.write_text(f"job,index,label\n{job.id},0,1\n{job.id},1,7\n")

    # when its images are corrected, then nothing is said about training
    assert "training" not in correct(job.id, 0, "1")

    # when a training run used the same classes, then still nothing is said
    trained = make_model(b"trained", champion=False)
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={})
        connection.execute(training_runs.update().values(model_id=trained.id, active=None))
    assert "training" not in correct(job.id, 0, "1")

    # when it used other classes, then the command says that the next run skips this label
    with ledger.transaction() as connection:
        others = models.update().where(models.c.id == trained.id)
        connection.execute(others.values(classes=["0", "7"]))
    said = correct(job.id, 0, "1")
    assert "skips it: its label is not a class of the training data\n  (0, 7)" in said
    said = correct("--from", file, "--confirm-unchanged")
    assert "skips 1 of them: their labels are not classes of the training data" in said
    assert "training" not in correct(job.id, 1, "7")


def test_only_a_class_of_the_jobs_model_is_a_label(client, finished, champion) -> None:
    # whether the image already has a correction or not
    job = finished(1)
    for label in ("1", "2"):
        with pytest.raises(UserError, match=f"'seven' is not a class of model {champion.id}"):
            client.correct(job.id, 0, "seven")
        client.correct(job.id, 0, label)


def test_what_is_not_there_is_not_corrected(client, submitted, worker) -> None:
    job = submitted(4)
    worker.work(job.chunks[0])

    for job_id in (new_id(), "no id", "\0"):
        with pytest.raises(NotFound, match="There is no job"):
            client.correct(job_id, 0, "1")
    for index in (-1, 4, 2**63):
        with pytest.raises(NotFound, match="it has 4, counted from 0"):
            client.correct(job.id, index, "1")
    with pytest.raises(NotFound, match=f"Image 3 of job {job.id} has no prediction"):
        client.correct(job.id, 3, "1")
    assert client.correct(job.id, 2, "1").index == 2


def test_the_half_of_a_chunk_that_was_split_has_its_image(client, store, submitted, worker, ledger) -> None:
    # given a chunk that crashed and was split, with both halves done
    job = submitted(3)
    while not (claim := worker.must_claim(job.chunks[0])).was_cut:
        worker.crash(claim)
    worker.release(claim)
    finish(worker, Job(job.id, chunks_of(ledger, job.id)))

    made = client.correct(job.id, 2, "1")

    assert store.get(correction_key(made.image_sha256)) == b"pixels 2"


# ---- images that cannot be read -----------------------------------------------------------------------


def test_an_image_that_was_never_read_has_nothing_to_learn_from(client, finished) -> None:
    job = finished([failed("a.png", ErrorCode.SOURCE_MISSING, "it went away")], {0: ErrorCode.SOURCE_MISSING})

    with pytest.raises(Conflict, match=r"cannot be read \(source_missing\)"):
        client.correct(job.id, 0, "1")


def test_an_image_by_reference_is_copied(ledger, store, settings, finished, tmp_path: Path) -> None:
    # given a job by reference, one of whose files has changed since
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(name.encode())
    job = finished(Sources([str(tmp_path)]), by_reference=Roots([str(tmp_path)]))
    (tmp_path / "b.png").write_bytes(b"x")
    corrector = Corrector(ledger, store, settings.model_copy(update={"reference_roots": (str(tmp_path),)}))

    # when both images are corrected, then one is copied, and the changed one is refused
    assert corrector.correct(CorrectionRequest(job.id, 0, "1")).image_sha256 == sha256(b"a")
    with pytest.raises(Conflict, match=r"cannot be read \(source_changed\)"):
        corrector.correct(CorrectionRequest(job.id, 1, "1"))
    (tmp_path / "a.png").unlink()
    assert copies(store) == {sha256(b"a")}


def test_purging_leaves_corrections_alone(client, ledger, store, finished) -> None:
    # given a correction
    job = finished(2)
    made = client.correct(job.id, 0, "1")

    # when the payloads are purged, and then the whole job
    purge(ledger, store)
    purge(ledger, store, jobs_too=True)
    assert count_rows(ledger, jobs) == 0

    # then the correction and its copy are still there, and it can be changed and undone
    assert client.corrections() == [made]
    assert store.get(correction_key(made.image_sha256)) == b"pixels 0"
    assert client.correct(job.id, 0, "2").label == "2"
    with pytest.raises(NotFound, match=f"Image 1 of job '{job.id}' has no correction"):
        client.undo_correction(job.id, 1)
    client.undo_correction(job.id, 0)
    assert copies(store) == set()
    with pytest.raises(NotFound, match=f"There is no job '{job.id}'"):
        client.undo_correction(job.id, 0)


# ---- concurrency --------------------------------------------------------------------------------------


@pytest.fixture
def twins(client, finished) -> Job:
    """Return a finished job of two images with the same bytes, the first one corrected."""
    job = finished([SourceImage(f"{n}.png", b"same", None) for n in range(2)])
    client.correct(job.id, 0, "1")
    return job


@pytest.mark.parametrize(
    ("image", "purged"),
    [(1, False), (0, False), (1, True)],
    ids=["the other image", "the same image", "a purge as well"],
)
def test_a_copy_that_goes_before_its_row_comes_is_put_there_again(
    client, ledger, settings, store, twins, monkeypatch, image, purged
) -> None:
    # given somebody who undoes the first image's correction while an image with the same bytes is being
    # corrected: after its copy is found or made, and before its row is written; and maybe a purge
    def slow(*args: Any) -> Any:
        with Client(settings) as another:
            another.undo_correction(twins.id, 0)
        assert copies(store) == set()
        if purged:
            purge(ledger, store)
        return original(*args)

    original = correcting._Batch.save
    monkeypatch.setattr(correcting._Batch, "save", slow)
    client.correct(twins.id, image, "2")

    # then the row has its copy, unless the image is gone: then a training run will report that
    assert [(each.index, each.label) for each in client.corrections()] == [(image, "2")]
    assert copies(store) == (set() if purged else {sha256(b"same")})


def test_a_copy_that_is_needed_again_while_it_is_removed_is_written_again(
    client, settings, store, twins, monkeypatch
) -> None:
    # given the only correction of these bytes is being undone, and somebody else corrects the same bytes
    # after the copy was found unneeded and before it is removed
    def correct() -> None:
        with Client(settings) as another:
            another.correct(twins.id, 1, "2")

    other = threading.Thread(target=correct)

    def slow(*args: Any) -> None:
        other.start()
        other.join(1)
        assert other.is_alive()  # it waits for the removal
        original(*args)

    original = Store.remove
    monkeypatch.setattr(Store, "remove", slow)
    client.undo_correction(twins.id, 0)
    other.join()

    # then the row has its copy
    assert [(each.index, each.label) for each in client.corrections()] == [(1, "2")]
    assert store.get(correction_key(sha256(b"same"))) == b"same"


# ---- leftover copies ----------------------------------------------------------------------------------


def age(store: Store, name: str, days: float = 2) -> None:
    """Make the copy that many days old."""
    assert store.folder is not None
    then = time.time() - days * 24 * 3600
    os.utime(store.folder / correction_key(name), (then, then))


def test_labels_are_stored_and_removed_together_over_http(
    api: httpx.Client, client: Client, store: Store, finished
) -> None:
    # given a corrected image
    job = finished(4)
    client.correct(job.id, 0, "1")

    def change(*changes: tuple[int, str | None]) -> httpx.Response:
        rows = [{"batch_id": job.id, "index": index, "label": label} for index, label in changes]
        return api.post("/corrections", json={"corrections": rows})

    # when one request removes its correction, adds one, and removes one that was never there
    found = change((0, None), (1, "2"), (2, None)).json()

    # then the answer has what is stored, and says what it changes
    assert [(each["index"], each["label"]) for each in found["data"]] == [(1, "2")]
    said = "mnist has 1 correction for its next training, which leaves out test images; with about 199 more"
    assert found["effect"] == f"{said}, models are judged by a part of them."
    assert [each.index for each in client.corrections()] == [1]
    assert copies(store) == {sha256(b"pixels 1")}

    # and if one label is wrong, nothing is changed
    assert change((1, None), (3, "cat")).status_code == 409
    assert [each.index for each in client.corrections()] == [1]

    # and a correction of one image says it, too
    url = f"/batches/{job.id}/images/3/label"
    assert "has 2 corrections" in api.put(url, json={"label": "5"}).json()["effect"]
    assert "has 1 correction " in api.delete(url).json()["effect"]


@pytest.mark.fast
def test_what_there_is_for_the_next_training_is_one_sentence() -> None:
    assert str(NextTraining("mnist", 240, 0)) == (
        "mnist has 240 corrections for its next training, which leaves out test images; "
        "models are judged by a part of them."
    )
    assert str(NextTraining("mnist", 1, None)) == (
        "mnist has 1 correction for its next training, which leaves out test images."
    )


def test_a_copy_that_cannot_be_removed_is_told_and_purged_later(
    ledger, store, finished, correct, monkeypatch
) -> None:
    # given a store that is unavailable when a correction is undone
    job = finished(2)
    for index in range(2):
        correct(job.id, index, "1")

    def away(*_: Any) -> None:
        raise Unavailable("The store cannot be cleaned: it is away")

    with monkeypatch.context() as patch:
        patch.setattr(Store, "remove", away)
        done = CliRunner().invoke(correct_command, [job.id, "1", "--undo"])

    # then the command says that the copy stays
    assert done.exit_code == Unavailable.exit_code == 1
    assert "no longer has a correction, but its copy stays until `labelmill purge` removes it" in done.stderr
    assert "it is away" in done.stderr
    assert CliRunner().invoke(correct_command, [job.id, "1", "--undo"]).exit_code == NotFound.exit_code

    # when purged within a day, then the copy stays; later it is removed, and the copy in use stays
    purge(ledger, store)
    assert copies(store) == {sha256(b"pixels 0"), sha256(b"pixels 1")}
    for name in copies(store):
        age(store, name)
    done = CliRunner().invoke(purge_command, ["--json"])
    assert "removed: 1 copy of images without a correction" in done.stderr
    assert json.loads(done.stdout)["copies"] == 1
    assert copies(store) == {sha256(b"pixels 0")}


def test_a_purge_removes_old_copies_that_nobody_needs_and_nothing_else(
    client, ledger, store, finished
) -> None:
    # given an image whose correction was undone in one job, and is still there in another
    one, two = (finished([SourceImage("a.png", b"same", None)]) for _ in range(2))
    for job in (one, two):
        client.correct(job.id, 0, "1")
    client.undo_correction(one.id, 0)

    # and leftovers: an old and a young copy, parts of an unneeded and a needed copy, and foreign files
    needed, old, young, part = (sha256(data) for data in (b"same", b"old", b"young", b"part"))
    theirs = {"README", "0123", f".{old}", f".{old}.rsync"}
    parts = {f".{part}.0123abcd", f".{needed}.0123abcd"}
    for name in {old, young, *parts, *theirs}:
        store.put(correction_key(name), b"x")
    for name in copies(store) - {young}:
        age(store, name)

    # when it is a dry run, then they are only counted; a real purge removes just our old files
    look = Purge(ledger, store, dry_run=True, on_progress=lambda _purged: None)
    look.strays()
    assert look.purged.copies == look.done == 3
    assert old in copies(store)
    purge(ledger, store)
    assert copies(store) == {needed, young, *theirs}


def test_a_copy_that_was_made_anew_is_as_young_as_that(ledger, store, monkeypatch) -> None:
    # given an old unneeded copy that is rewritten after the purge has found it unneeded
    name = sha256(b"x")
    store.put(correction_key(name), b"x")
    age(store, name)

    def slow(*args: Any) -> list[str]:
        found = original(*args)
        store.put(correction_key(name), b"x")
        monkeypatch.setattr(removing, "without_correction", original)
        return found

    original = removing.without_correction
    monkeypatch.setattr(removing, "without_correction", slow)

    # then it stays
    purge(ledger, store)
    assert copies(store) == {name}


# ---- many at a time -----------------------------------------------------------------------------------


def test_a_file_of_corrections_reads_each_payload_once(client, store, finished, monkeypatch) -> None:
    # given two jobs
    one, two = finished(7), finished(3)
    read: list[str] = []

    def reading(store: Store, key: str, *args: Any, **options: Any) -> Any:
        read.append(key)
        return original(store, key, *args, **options)

    original = correcting.read_payload
    monkeypatch.setattr(correcting, "read_payload", reading)

    # when many of their images are corrected by one file, unordered, with an unknown column
    lines = ["label,why,job,index\n"]
    lines += [f"{n},,{one.id},{n}\n" for n in (6, 0, 2, 1, 5)]
    lines += [f'{n},"a ""reason""\nof two lines",{two.id},{n}\n' for n in range(3)]
    stored = client.correct_from(lines)

    # then all are stored, with copies of their images
    assert {(each.job_id, each.index): each.label for each in stored} == {
        (job.id, n): str(n)
        for job, n in [*((one, n) for n in (0, 1, 2, 5, 6)), *((two, n) for n in range(3))]
    }
    assert sorted(client.corrections(), key=lambda each: (each.job_id, each.index)) == stored
    for each in stored:
        assert store.get(correction_key(each.image_sha256)) == f"pixels {each.index}".encode()

    # and each payload was read once
    assert sorted(read) == sorted(chunk.payload for chunk in [*one.chunks, *two.chunks])


def test_exported_predictions_are_fed_back(client, submitted, finished, correct, tmp_path: Path) -> None:
    # given an export in which a person corrected the labels
    job = finished(3)
    file = io.StringIO()
    write_csv(client.predictions(job.id), file)
    path = tmp_path / "predictions.csv"
    path.write_text(file.getvalue().replace(",7,", ",1,"))

    # when it is read as corrections, then naming the job is enough
    assert "3 corrections stored" in correct(job.id, "--from", path)
    assert [each.label for each in client.corrections()] == ["1", "1", "1"]

    # and the JSON that lists corrections can be read too, if it is of that job
    lines = [json.dumps({"job_id": job.id, "index": index, "label": "2"}) for index in range(3)]
    assert {each.label for each in client.correct_from(lines, jsonl=True)} == {"2"}
    assert len(client.correct_from(lines, jsonl=True, job_id=job.id, confirm_unchanged=True)) == 3
    other = submitted(3)
    with pytest.raises(UserError, match=f"line 1: it belongs to job {job.id}, not to {other.id}"):
        client.correct_from(lines, jsonl=True, job_id=other.id)
    assert client.correct_from(["job_id,index,label\n", f"{job.id.upper()},1,5\n"])[0].label == "5"


def test_a_file_can_name_images_by_their_custom_ids(
    client, submitted, worker, correct, tmp_path: Path
) -> None:
    # given a job of images with names, two of which are the same
    names = ("cat-1", "cat-2", "same", "same")
    job = submitted(SourceImage(name, name.encode(), None) for name in names)
    for chunk in job.chunks:
        worker.work(chunk, [Outcome(name, "7", 0.75) for name in names[chunk.first_index :][: chunk.images]])
    path = tmp_path / "t.csv"

    # when a file names two by their names, and one by its index, then all are stored, and can be taken back
    path.write_text("custom_id,index,label\ncat-2,,1\ncat-1,,2\nsame,3,4\n")
    assert "3 corrections stored" in correct(job.id, "--from", path)
    assert {each.index: each.label for each in client.corrections()} == {0: "2", 1: "1", 3: "4"}
    assert "3 corrections removed" in correct(job.id, "--undo", "--from", path)

    # and a name that several images have, or none, is a wrong row
    lines = ["custom_id,label\n", "same,1\n", "dog,1\n", "cat-1,1\n"]
    with pytest.raises(UserError) as raised:
        client.correct_from(lines, job_id=job.id)
    assert "line 2: 2 images of the job have the custom_id 'same': give the index." in str(raised.value)
    assert "line 3: no image of the job has the custom_id 'dog'" in str(raised.value)
    assert client.corrections() == []


def test_an_edited_export_stores_only_what_was_changed(client, finished, correct, tmp_path: Path) -> None:
    # given an export of 85 images, all predicted as 7; a colleague corrected image 20 and confirmed image 21
    job = finished(85)
    client.correct(job.id, 20, "9")
    client.correct(job.id, 21, "7")
    file = io.StringIO()
    write_csv(client.predictions(job.id), file)
    lines = file.getvalue().splitlines(keepends=True)

    # when seven rows are edited, and the whole file is stored
    lines[1:8] = [line.replace(",7,", ",1,") for line in lines[1:8]]
    path = tmp_path / "t.csv"
    path.write_text("".join(lines))
    said = correct(job.id, "--from", path)

    # then seven corrections are stored, and the colleague's answers stay
    assert "7 changed, 78 unchanged: ignored" in said
    assert "7 corrections stored" in said
    labels = {each.index: each.label for each in client.corrections()}
    assert labels == dict.fromkeys(range(7), "1") | {20: "9", 21: "7"}

    # and a second time nothing is
    assert "0 changed, 85 unchanged: ignored" in correct(job.id, "--from", path)

    # when it is taken back in one command, then a colleague's answers stay, one to an edited row among them
    client.correct(job.id, 3, "5")
    assert "6 corrections removed" in correct(job.id, "--undo", "--from", path)
    assert {each.index: each.label for each in client.corrections()} == {3: "5", 20: "9", 21: "7"}

    # and predictions are confirmed if asked for, those of corrected images, too
    said = correct(job.id, "--from", path, "--confirm-unchanged")
    assert "85 corrections stored" in said
    assert "unchanged" not in said
    assert {each.label for each in client.corrections()} == {"1", "7"}
    assert "85 corrections removed" in correct(job.id, "--undo", "--from", path, "--confirm-unchanged")


def test_all_wrong_rows_are_told_and_nothing_is_stored(client, store, finished, monkeypatch) -> None:
    # given a file in which most rows are wrong; the payload of the last one is gone
    job, gone = finished(4, {3: ErrorCode.QUARANTINED}), finished(1)
    store.remove_folder(payload_folder(gone.id))
    stranger = new_id()
    put: list[str] = []
    monkeypatch.setattr(Store, "put", lambda _store, key, *_pieces: put.append(key))
    text = f"""job,index,label
{job.id},0,1
{job.id},1,seven
{job.id},nine,1
{job.id},9,1
{stranger},0,1
{job.id},2
{job.id},3,1
{job.id},0,2
{job.id}
{job.id},0,1
{gone.id},0,1
"""

    # when it is read
    with pytest.raises(UserError) as told:
        client.correct_from(io.StringIO(text))

    # then each wrong row is reported with its line number
    lines = str(told.value).splitlines()
    assert lines[0] == "9 rows are wrong, and nothing is changed:"
    assert [line.partition(":")[0] for line in lines[1:]] == [f"line {n}" for n in (*range(3, 11), 12)]
    for line, words in zip(
        lines[1:],
        [
            "'seven' is not a class",
            "index is 'nine'",
            "has no image 9",
            f"There is no job '{stranger}'",
            "it has no label",
            "stopped its worker",
            "its label is '2', but line 2 says '1'",
            "it has no index and no label",
            "is gone from the store",
        ],
        strict=True,
    ):
        assert words in line

    # and nothing is stored: no row, and not for a moment a copy
    assert client.corrections() == []
    assert put == []


@pytest.mark.parametrize(
    ("text", "jsonl", "words"),
    [
        ("", False, "The first line must name the columns job, index, label"),
        ("job,index\nx,1\n", False, "The first line must name the columns"),
        ("index,label\n0,1\n", False, "`labelmill correct JOB --from FILE`"),
        ("job;index;label\nx;1;2\n", False, "job, index, label, with commas between them"),
        ('{"job": "x", "index": 1, "label": "2"}\n', False, "whose name ends in .jsonl or .ndjson"),
        ("job,index,label,label\nx,1,2,3\n", False, "The first line names the column label twice"),
        (
            "job,index,name,label\nx,1,a,b,2\n",
            False,
            "line 2: it has 5 cells, and the first line names 4 col",
        ),
        ('job,index,label\na,1,2\n"x"y,1,2\n', False, "line 3: it is not CSV"),
        ("{\n", True, "line 1: it is not JSON"),
        ("[1]\n", True, "line 1: it is not a JSON object"),
        ("[" * 100_000 + "\n", True, "line 1: it is not a JSON object"),
        ('{"job": "x"}\n', True, "line 1: it has no index and no label"),
        ('{"job": "x", "index": 1.5, "label": "1"}\n', True, "line 1: its index is '1.5'"),
        ('{"job": "x", "index": %s, "label": "1"}\n' % ("9" * 100), True, "not a whole number from 0"),
    ],
)
def test_what_is_no_file_of_corrections_says_why(client, text: str, jsonl: bool, words: str) -> None:
    with pytest.raises(UserError) as told:
        client.correct_from(io.StringIO(text), jsonl=jsonl)
    assert words in str(told.value)


#: A correction, and a row without a label. The CSV is a spreadsheet's; in JSON, a number is as good as
#: its text.
CSV = '\ufeffJob, Index ,LABEL,why\r\nJOB,0,3,"of two\r\nlines"\r\nJOB,1,,\r\n'
JSON_LINES = '{"job": "JOB", "index": "0", "label": 3}\n\n{"job": "JOB", "index": 1, "label": null}\n'


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", CSV), ("-", CSV), ("A.JSONL", JSON_LINES), ("a.ndjson", JSON_LINES)]
)
def test_a_file_is_read_by_its_name_and_a_header_in_any_case(
    client, correct, finished, tmp_path, name: str, text: str
) -> None:
    # given corrections in a file or on stdin
    data = text.replace("JOB", finished(2).id).encode()
    file = name if name == "-" else tmp_path / name
    if name != "-":
        file.write_bytes(data)

    # when they are read, then the correction is stored, and the other row is skipped and counted
    said = correct("--from", file, stdin=data)
    assert "skipped 1 row without a label" in said
    assert "1 correction stored" in said
    assert [(each.index, each.label) for each in client.corrections()] == [(0, "3")]

    # and what is not UTF-8 is refused
    done = CliRunner().invoke(correct_command, ["--from", "-"], input=b"job,index,label\n\xff,0,1\n")
    assert (done.exit_code, "- is not UTF-8" in done.stderr) == (2, True)


def test_copies_whose_rows_cannot_be_stored_are_removed_again(client, store, finished, monkeypatch) -> None:
    # given 40 images that are copied, one of which has a correction, and a ledger that rejects their rows
    job = finished(40)
    client.correct(job.id, 7, "1")

    def lost(*_: Any) -> None:
        assert len(copies(store)) == 40
        raise Unavailable("The ledger is away")

    monkeypatch.setattr(correcting, "save_corrections", lost)

    # when the copies are removed again, then the needed copy is still there
    with pytest.raises(Unavailable):
        client.correct_from(["index,label\n", *(f"{n},1\n" for n in range(40))], job_id=job.id)
    assert copies(store) == {sha256(b"pixels 7")}


# ---- live accuracy ------------------------------------------------------------------------------------


def test_live_accuracy_counts_what_was_right(client, ledger, finished, champion, make_model) -> None:
    # given five corrections: three wrong predictions, one confirmed prediction, one image with an error
    job = finished(5, {4: ErrorCode.MODEL_ERROR})
    for index, label in enumerate(["1", "2", "3", "7", "7"]):
        client.correct(job.id, index, label)

    # and a confirmed prediction of another model
    other = make_model(b"other")
    theirs = finished(1)
    client.correct(theirs.id, 0, "7")

    with ledger.reading() as connection:
        live = live_accuracy(connection, champion.id)
        assert (live.right, live.labelled, live.accuracy) == (1, 4, 0.25)
        assert live_accuracy(connection, other.id).accuracy == 1.0
        assert live_accuracy(connection, make_model(b"new").id).accuracy is None


# ---- the next training run ----------------------------------------------------------------------------


def square(value: int) -> npt.NDArray[np.uint8]:
    """Return a grey square on black, 28 x 28."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 8:20] = value
    return pixels


def file_of(pixels: npt.NDArray[np.uint8], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


@pytest.fixture
def data() -> Data:
    """Return squares of brightness 1 to 20 for training, and 101 to 110 for evaluation."""
    return Digits(
        np.stack([square(value) for value in range(1, 21)]),
        np.arange(20, dtype=np.uint8) % 10,
        np.stack([square(value) for value in range(101, 111)]),
        np.arange(10, dtype=np.uint8),
    ).prepared(validation=0)


@pytest.fixture
def corrected(client, finished) -> Callable[..., str]:
    """Return a function: `corrected((bytes, "3"), ...)` corrects images of a new job and returns its id."""

    def corrected(*images: tuple[bytes, str]) -> str:
        job = finished([SourceImage(f"{n}.png", data, None) for n, (data, _) in enumerate(images)])
        for index, (_, label) in enumerate(images):
            client.correct(job.id, index, label)
        return job.id

    return corrected


@pytest.fixture
def learn(ledger, store) -> Callable[[Data], Data]:
    """Return a function: `learn(data)` returns the data of the next training run."""

    def learn(data: Data, *, live_share: float = 0.0) -> Data:
        return add_corrections(data, ledger, store, ImageLimits(), live_share=live_share)

    return learn


@pytest.mark.fast
def test_whether_a_copy_is_needed_is_looked_up_by_its_name(ledger: Ledger) -> None:
    [(_, plan)] = plans_of(ledger, lambda connection: without_correction(connection, ["0" * 64, "1" * 64]))
    assert "ix_corrections_image_sha256" in plan, plan


def test_without_corrections_the_data_stay_as_they_are(data, learn) -> None:
    assert learn(data) is data


def test_corrected_images_join_the_training_images(data, learn, corrected, client) -> None:
    # given two corrected images, one of them dark on a light background
    job_id = corrected((file_of(square(200)), "3"), (file_of(~square(210)), "4"))

    # when the data of the next training run are built
    found = learn(data)

    # then both are among the training images, as the model sees them, and the evaluation set is unchanged
    assert (len(found.train.images), found.corrections, found.left_out) == (22, 2, 0)
    assert np.array_equal(found.train.images[:20], data.train.images)
    added = {
        int(image.max()): int(label)
        for image, label in zip(found.train.images[20:], found.train.labels[20:], strict=True)
    }
    assert added == {200: 3, 210: 4}
    assert found.train.labels.dtype == np.uint16
    assert found.evaluation_fingerprint == data.evaluation_fingerprint

    # and if one is undone, the data are different
    client.undo_correction(job_id, 0)
    assert learn(data).fingerprint != found.fingerprint


def test_the_same_corrections_are_the_same_data(data, learn, corrected, client) -> None:
    # given some corrections
    files = {file_of(square(200 + number)): str(number) for number in range(8)}
    job_id = corrected(*files.items())
    found = learn(data)

    # then they are ordered by the images' hashes
    in_order = [int(label) for _, label in sorted(files.items(), key=lambda each: sha256(each[0]))]
    assert found.train.labels[20:].tolist() == in_order

    # and if they are made in another order, the data are the same
    for index in (3, 0, 5):
        client.undo_correction(job_id, index)
        client.correct(job_id, index, str(index))
    assert learn(data).fingerprint == found.fingerprint


def test_an_image_of_the_evaluation_set_is_never_learnt_from(data, learn, corrected, caplog) -> None:
    # given corrected images of the evaluation set, in other formats
    job_id = corrected(
        (file_of(square(101)), "0"),
        (file_of(square(102), "BMP"), "1"),
        (file_of(square(103), "GIF"), "2"),
        (file_of(square(200)), "3"),
    )

    # when the data of the next training run are built
    found = learn(data)

    # then none of them is in the training images, and the log says so
    assert (found.corrections, found.left_out) == (1, 3)
    seen = {image.tobytes() for image in found.train.images}
    assert not seen & {image.tobytes() for image in data.test.images}
    [line] = [message for message in caplog.messages if "left out" in message]
    assert line.startswith("3 corrections are left out: the image is in the evaluation set (image ")
    assert all(f"image {index} of job {job_id}" in line for index in range(3))


def test_an_image_counts_once_with_its_latest_label(data, learn, corrected, client, ledger) -> None:
    # given three corrections of the same image, two of them of the same bytes, with different labels
    first = corrected((file_of(square(200)), "3"))
    second = corrected((file_of(square(200)), "4"))
    third = corrected((file_of(square(200), "BMP"), "5"))
    for ago, job_id in enumerate([third, second, first], 1):
        with ledger.transaction() as connection:
            connection.execute(
                corrections.update()
                .where(corrections.c.job_id == job_id)
                .values(created_at=db_now(-60.0 * ago))
            )

    # then the latest label counts
    found = learn(data)
    assert (found.corrections, found.left_out, found.train.labels[20:].tolist()) == (1, 0, [5])

    # and when the first one is corrected again, its label counts
    client.correct(first, 0, "6")
    assert learn(data).train.labels[20:].tolist() == [6]

    # and if the latest label is no class of the data, the one before counts, and nothing is left out
    client.undo_correction(third, 0)
    found = learn(replace(data, classes=(*"012345", "sechs", *"789")))
    assert (found.corrections, found.left_out, found.train.labels[20:].tolist()) == (1, 0, [4])


def test_a_share_of_the_corrected_images_is_never_learnt(data, learn, corrected, client) -> None:
    # given many corrections, one of them of a training image
    files = [(file_of(square(value)), "3") for value in (1, *range(201, 251))]
    job_id = corrected(*files)

    # when the data of the next training run are built
    found = learn(data, live_share=0.3)

    # then about that share of them is the live set, and no picture is on two sides
    assert found.corrections + len(found.live.images) == len(files)
    assert 5 < len(found.live.images) < 26
    assert set(found.live.labels.tolist()) == {3}
    learnt = {image.tobytes() for image in found.train.images}
    live = {image.tobytes() for image in found.live.images}
    assert len(learnt) == len(found.train.images)
    assert not learnt & live

    # and each picture stays on its side when there are fewer or more of them, and in another format
    for index in range(0, 50, 2):
        client.undo_correction(job_id, index)
    corrected(*((file_of(square(value), "BMP"), "4") for value in range(201, 251)))
    again = learn(data, live_share=0.3)
    assert {image.tobytes() for image in again.live.images} - live <= {square(1).tobytes()}
    assert live - {image.tobytes() for image in again.live.images} <= {square(1).tobytes()}


def test_what_cannot_be_learnt_is_left_out_and_told(data, learn, corrected, store, caplog) -> None:
    # given an image that is not a picture, an unknown class, a missing copy, and a copy with other bytes
    good, gone, other = (file_of(square(value)) for value in (200, 201, 202))
    corrected((b"no picture", "1"), (file_of(square(203)), "9"), (gone, "1"), (other, "1"), (good, "1"))
    store.remove(correction_key(sha256(gone)))
    store.put(correction_key(sha256(other)), good)

    # when the data have eight classes
    found = learn(
        replace(
            data,
            train=replace(data.train, labels=data.train.labels % 8),
            test=replace(data.test, labels=data.test.labels % 8),
            classes=tuple("01234567"),
        )
    )

    # then only the good image is learnt
    assert (found.corrections, found.left_out) == (1, 4)
    assert found.train.images[20:].max() == 200
    for reason in (
        "the image cannot be decoded: unidentified",
        "the label '9' is not a class of the training data",
        "the image is missing from the store",
        "the stored image has changed",
    ):
        assert sum(message.endswith(reason) for message in caplog.messages) == 1

    # and if none is good, the data are unchanged
    none = learn(replace(data, classes=tuple("abcdefghij")))
    assert (none.corrections, none.left_out, none.fingerprint) == (0, 5, data.fingerprint)
