"""`labelmill review` lists the images of a job that are most worth checking."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from jobs.errors import Conflict
from jobs.ledger.jobs import review as finding
from jobs.ledger.jobs.review import least_confident
from labelmill.client.purging import Purge
from labelmill.commands.correct import app as correct_command
from labelmill.commands.review import app as review_command
from producer.sources import SourceImage
from tests.conftest import Job
from tests.outcomes import Outcome


def picture(number: int) -> bytes:
    """Return a PNG file that looks like no other number's."""
    pixels = np.random.default_rng(number).integers(0, 256, (8, 8), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((32, 24), Image.Resampling.NEAREST).save(file, "PNG")
    return file.getvalue()


#: Of nine images, 0 and 1 look the same, and 5 got an error.
LOOKS = (3, 3, 4, 5, 6, 7, 8, 9, 10)
CONFIDENCES = (0.35, 0.30, 0.99, 0.40, 0.98, None, 0.20, 0.97, 0.45)
NAME = '<script>alert("1")</script>.png'


@pytest.fixture
def job(submitted, worker) -> Job:
    """Return a finished job of nine images, with the label 7 for each that has a confidence."""
    names = [f"{number}.png" for number in range(8)] + [NAME]
    names[6] = "=6.png"
    job: Job = submitted(
        SourceImage(name, picture(look), None) for name, look in zip(names, LOOKS, strict=True)
    )
    for chunk in job.chunks:
        part = range(chunk.first_index, chunk.first_index + chunk.images)
        worker.work(
            chunk,
            [
                Outcome(names[index], "7", confidence)
                if (confidence := CONFIDENCES[index]) is not None
                else Outcome(names[index], None, None, "corrupt")
                for index in part
            ],
        )
    return job


def test_the_least_confident_come_first_without_duplicates_errors_and_corrections(client, job: Job) -> None:
    # Given the job, and a correction of the least confident image
    client.correct(job.id, 6, "1")

    # When four images are asked for, Then they come in the order of their confidence
    told: list[tuple[int, int]] = []
    found = client.review(job.id, limit=4, on_progress=lambda done, total: told.append((done, total)))
    assert [image.index for image in found.images] == [1, 3, 8, 7]
    assert [image.label for image in found.images] == ["7"] * 4
    assert found.images[0].confidence == pytest.approx(0.30)
    assert told == [(9, 9)]

    # And the image that looks like the first one is only counted
    assert (found.duplicates, found.unreadable) == (1, 0)


def test_what_looks_like_a_corrected_image_is_not_listed_either(client, job: Job) -> None:
    # Given a correction of one of two images that look the same
    client.correct(job.id, 1, "1")
    # Then the other one is not listed
    found = client.review(job.id)
    assert [image.index for image in found.images] == [6, 3, 8, 7, 4, 2]
    assert found.duplicates == 1


def test_only_images_of_one_label_and_colour_look_the_same(client, run_command, submitted, worker) -> None:
    # Given three equal circles of one colour, one of them with another label, and one of another colour
    def circle(colour: str) -> bytes:
        image = Image.new("RGB", (32, 32), "white")
        ImageDraw.Draw(image).circle((16, 16), 10, fill=colour)
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()

    found = (("red", "7"), ("red", "7"), ("red", "1"), ("blue", "7"))
    job = submitted(SourceImage(f"{n}.png", circle(colour), None) for n, (colour, _) in enumerate(found))
    labels = [label for _, label in found]
    for chunk in job.chunks:
        part = range(chunk.first_index, chunk.first_index + chunk.images)
        worker.work(chunk, [Outcome(f"{n}.png", labels[n], 0.5 + n / 100) for n in part])

    # Then only the one with the same label and colour is left out, and --all lists it, too
    assert [each.index for each in client.review(job.id).images] == [0, 2, 3]
    assert "left out 1 near-duplicate (--all lists them)" in run_command(review_command, job.id).stderr
    done = run_command(review_command, job.id, "--all", "--json")
    assert [each["index"] for each in json.loads(done.stdout)["images"]] == [0, 1, 2, 3]
    assert "near-duplicate" not in done.stderr


def test_a_job_is_read_in_pages(ledger, submitted, worker, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given 60 images with few different confidences, and pages of 7 images
    job = submitted(60, chunk_images=20)
    confidences = [round(float(each), 1) for each in np.random.default_rng(5).random(60)]
    for chunk in job.chunks:
        worker.work(
            chunk,
            [
                Outcome(f"{n}.png", "7", confidences[n])
                for n in range(chunk.first_index, chunk.first_index + 20)
            ],
        )
    monkeypatch.setattr(finding, "_PAGE_IMAGES", 7)

    # Then the images are those of the lowest confidences in the whole job, in their order
    for limit in (1, 5, 59, 100):
        found = least_confident(ledger, job.id, limit=limit, on_progress=lambda _done, _total: None)
        expected = sorted(range(60), key=lambda index: (confidences[index], index))[:limit]
        assert [each.index for each in found] == expected


def test_a_csv_file_is_filled_in_and_given_back(client, run_command, job: Job, tmp_path: Path) -> None:
    # Given a list of images to check as a file, in which a person fills in two labels
    path = tmp_path / "review.csv"
    done = run_command(review_command, job.id, "--output", path)
    assert done.exit_code == 0
    assert "7 images written to" in done.stderr
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["label"] for row in rows] == [""] * 7
    assert (rows[0]["job"], rows[0]["index"], rows[0]["predicted"]) == (job.id, "6", "7")
    assert rows[0]["name"] == "=6.png"
    path.write_text(path.read_text().replace(f"{job.id},6,,7,", f"{job.id},6,2,7,"))
    path.write_text(path.read_text().replace(f"{job.id},1,,7,", f"{job.id},1,7,7,"))

    # When it is given back, Then that image is corrected, another one is confirmed, and no other is
    done = run_command(correct_command, "--from", path)
    assert "skipped 5 rows without a label" in done.stderr
    assert {each.index: each.label for each in client.corrections()} == {6: "2", 1: "7"}


def test_a_spreadsheet_calculates_no_name(run_command, job: Job) -> None:
    done = run_command(review_command, job.id, "--format", "csv", "--spreadsheet")
    assert next(csv.DictReader(done.stdout.splitlines()))["name"] == "'=6.png"
    done = run_command(review_command, job.id, "--spreadsheet")
    assert (done.exit_code, "--spreadsheet is for CSV, and the format is table" in done.stderr) == (2, True)


def test_the_contact_sheet_is_one_page_and_escapes_every_name(run_command, job: Job, tmp_path: Path) -> None:
    path = tmp_path / "review.html"
    assert run_command(review_command, job.id, "--output", path).exit_code == 0
    page = path.read_text()

    # Then each image is in the page, small and upright
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) == page.count("<img") == 7
    for each in pictures:
        with Image.open(io.BytesIO(base64.b64decode(each))) as image:
            assert image.size == (32, 24)

    # And names are text, and nothing is fetched
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_the_list_is_a_table_or_json(run_command, job: Job) -> None:
    # When the list is printed, Then the rest is on stderr
    done = run_command(review_command, job.id, "--limit", 1)
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["index", "confidence", "predicted", "name"],
        ["6", "0.2000", "7", "=6.png"],
    ]
    told = json.loads(run_command(review_command, job.id, "--limit", 2, "--json").stdout)
    assert (told["job"], told["duplicates"], told["unreadable"]) == (job.id, 0, 0)
    assert [image["index"] for image in told["images"]] == [6, 1]
    assert set(told["images"][0]) == {"index", "name", "label", "confidence"}


def test_images_that_cannot_be_read_are_counted(client, submitted, worker, store) -> None:
    # Given a job of two chunks, one payload of which is gone from the store
    job = submitted((SourceImage(f"{n}.png", picture(n), None) for n in range(6)), chunk_images=3)
    for chunk in job.chunks:
        worker.work(chunk, [Outcome("x.png", "7", 0.5)] * 3)
    store.remove(job.chunks[0].payload)

    found = client.review(job.id)
    assert ([image.index for image in found.images], found.unreadable) == ([3, 4, 5], 3)


def test_of_a_purged_job_there_is_nothing_to_look_at(client, ledger, store, job: Job) -> None:
    Purge(ledger, store, dry_run=False, on_progress=lambda _purged: None).payloads(days=-1)
    with pytest.raises(Conflict, match="there is nothing left to look at"):
        client.review(job.id)
