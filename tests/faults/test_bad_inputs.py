"""Every row of the list of bad inputs, item by item, through a running stack.

All bad images go into one job, each between two good neighbours; then every test looks at one of them: it has
its code, and both neighbours have their label. Each refused archive is submitted behind a good image that is
stored before the archive is known for what it is; then nothing of either is left. What an input takes of
memory is measured in a process of its own. Nothing is written outside the state folder.

The whole list, and who has its other rows (`test_the_other_rows_have_the_tests_that_are_named_above`):

    no picture: empty, one byte, random, text, an error page        here
    broken: truncated, wrong checksum, header only, no pixels       here
    too large, from the header alone; exactly at the limit          here
    decompression bombs in zTXt, iCCP, iTXt                         here
    formats that are never decoded; a .png that is a TIFF           here
    unusual pictures: CMYK, alpha, 16 bits, 1 bit, EXIF, ...        here
    a PNG or a JPEG with a ZIP behind it                            here
    members that lead out of an archive, links, devices             here
    bombs, overlaps, a million members, lies, encryption            here
    a FIFO, a device, a symlink that leaves its folder              here
    an empty job, a job over its limits                             here
    an image that crashes its decoder
        tests/faults/test_poison.py::test_an_image_that_kills_its_process_costs_its_299_neighbours_nothing
    a legal image that takes too long
        tests/integration/test_pipeline.py::test_an_image_that_takes_too_long_to_decode_gets_a_timeout_and_its_neighbours_their_labels
    a model that answers NaN
        tests/integration/test_pipeline.py::test_an_answer_that_is_no_probability_is_an_error_of_that_image
        tests/unit/test_classifier.py::test_an_answer_that_is_no_probability_is_marked_and_its_neighbours_are_not
    a file that changed or vanished after a submit by reference
        tests/acceptance/test_by_reference.py::test_by_reference_each_image_gets_its_label_or_what_became_of_its_file
    the same submission key with other content
        tests/integration/test_submit.py::test_other_content_under_the_same_key_is_refused
    an unknown chunk, a foreign message, a pickle, 50 MB
        tests/faults/test_foreign_messages.py::test_a_worker_drops_what_is_not_ours_and_lives
    a tampered model file, .h5, a Lambda layer
        tests/integration/test_models.py::test_a_tampered_file_is_refused_before_anything_reads_it
        tests/unit/test_model_file.py::test_what_is_of_another_format_is_refused
        tests/integration/test_model_files.py::test_a_worker_does_not_load_a_model_with_code_in_it
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ErrorCode
from jobs.settings import ENV_PREFIX, Settings
from labelmill.local.stack import broker_answers
from tests.console import Home, rows
from tests.faults import bad_archives, corpus
from tests.faults.corpus import CASES

#: What one input may take of memory: a few times the largest file, far below what it could ask for.
MOST_BYTES: Final = 128 * 1024 * 1024

#: What one may take that is refused by its header, beside its file. Measured is less than 0.1 MB; decoded,
#: one that is over the limit of pixels would take 64 or more.
MOST_BYTES_UNDECODED: Final = 4 * 1024 * 1024

#: Members' archives, and how many there are of each kind in them.
MEMBERS: Final = {"members.zip": 8, "members.tar": 11, "members.tgz": 11}

#: What is no file of the folder that it lies in.
OF_FOLDER: Final = ["fifo.png", "link.png", "link-to-folder.png", "link-to-device.png"]


class Row(NamedTuple):
    """What became of one image."""

    label: str
    error: str


class Box(NamedTuple):
    """Where the bad inputs lie, and the good one they were made from."""

    path: Path
    good: bytes
    digit: np.ndarray

    def snapshot(self) -> dict[str, tuple[int, int, int]]:
        """Every file and folder here and beside: kind, size, time of the last change."""
        found = {}
        for path in [self.path.parent, *self.path.parent.rglob("*")]:
            status = path.lstat()
            size = 0 if path.is_dir() else status.st_size
            found[str(path)] = (status.st_mode, size, status.st_mtime_ns)
        return found


def _neighbours(number: int) -> tuple[str, str]:
    return f"images/{number:03}-a.png", f"images/{number:03}-c.png"


def _name(number: int, name: str) -> str:
    return f"images/{number:03}-b-{name}"


@pytest.fixture(scope="session")
def box(few_digits: Path, session_folder: Path) -> Iterator[Box]:
    """All bad inputs, each as a file."""
    box = session_folder / "bad" / "box"
    outside = session_folder / "bad" / "outside"
    good_path = min((few_digits / "0").iterdir())
    good = good_path.read_bytes()
    with Image.open(good_path) as image:
        digit = np.asarray(image)
    outside.mkdir(parents=True)
    (outside / "secret.png").write_bytes(good)

    (box / "images").mkdir(parents=True)
    cases = corpus.images(digit)
    for number, case in enumerate([*cases, *OF_FOLDER]):
        for neighbour in _neighbours(number):
            (box / neighbour).write_bytes(good)
        if isinstance(case, corpus.Case):
            (box / _name(number, case.name)).write_bytes(case.data)
    number = len(cases)
    os.mkfifo(box / _name(number, "fifo.png"))
    (box / _name(number + 1, "link.png")).symlink_to(outside / "secret.png")
    (box / _name(number + 2, "link-to-folder.png")).symlink_to(outside)
    (box / _name(number + 3, "link-to-device.png")).symlink_to("/dev/zero")

    bad_archives.zip_with_bad_members(box / "members.zip", good, outside)
    bad_archives.tar_with_bad_members(box / "members.tar", good, outside)
    bad_archives.tar_with_bad_members(box / "members.tgz", good, outside)
    bad_archives.zip_with_huge_member(box / "huge.zip", good)
    yield Box(box, good, digit)
    shutil.rmtree(session_folder / "bad")


@pytest.fixture(scope="session")
def outcomes(stack: Home, box: Box) -> dict[str, Row]:
    """One job of all of them, and what became of each image."""
    before = box.snapshot()
    sources = ["images", *MEMBERS, "huge.zip", "/dev/zero"]
    done = stack.run("submit", *sources, "--watch", cwd=box.path)
    assert done.returncode == 3, done.stderr
    assert box.snapshot() == before, "something was written outside of the state folder"
    assert _escaped(stack, box) == []
    predictions = rows(stack.ok("predictions", done.stdout.split()[-1], "--format", "csv"))
    assert len({row["name"] for row in predictions}) == len(predictions)
    return {row["name"]: Row(row["label"], row["error"]) for row in predictions}


def _escaped(home: Home, box: Box) -> list[Path]:
    """Files by the names of the members that lead out of their archives, wherever they would have come."""
    folders = [Path.cwd(), Path.cwd().parent, box.path.parents[2], Path(tempfile.gettempdir()), Path("/")]
    found = [path for folder in folders for path in folder.glob("*escaped*")]
    return found + [path for folder in (home.path, box.path.parents[1]) for path in folder.rglob("*escaped*")]


# ---- images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_a_bad_image_gets_its_code_in_little_memory_and_its_neighbours_their_labels(
    outcomes: dict[str, Row], appetites: dict[str, tuple[int, str]], box: Box, number: int
) -> None:
    case = CASES[number]
    before, after = (outcomes[name] for name in _neighbours(number))
    assert before == after == Row("0", "")
    # What is no error is the digit itself, whatever way it is written.
    expected = Row("0", "") if case.outcome is None else Row("", case.outcome)
    assert outcomes[_name(number, case.name)] == expected
    # And what reads it takes little memory.
    path = box.path / _name(number, case.name)
    grown, outcome = appetites[str(path)]
    assert outcome == (case.outcome or "pixels")
    assert grown < MOST_BYTES
    if case.outcome == ErrorCode.TOO_LARGE:
        assert grown < path.stat().st_size + MOST_BYTES_UNDECODED


@pytest.mark.parametrize("place", range(len(OF_FOLDER)), ids=lambda place: OF_FOLDER[place])
def test_what_is_no_file_of_the_folder_is_forbidden_and_its_neighbours_get_their_labels(
    outcomes: dict[str, Row], place: int
) -> None:
    number = len(CASES) + place
    before, after = (outcomes[name] for name in _neighbours(number))
    assert before == after == Row("0", "")
    forbidden = Row("", ErrorCode.SOURCE_FORBIDDEN)
    assert outcomes[_name(number, OF_FOLDER[place])] == outcomes["/dev/zero"] == forbidden


@pytest.fixture(scope="session")
def appetites(box: Box) -> dict[str, tuple[int, str]]:
    """What each image takes of memory, one after the other in a process of their own."""
    paths = [str(box.path / _name(number, case.name)) for number, case in enumerate(CASES)]
    return _appetites("image", paths)


def _appetites(kind: str, paths: list[str]) -> dict[str, tuple[int, str]]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.appetite", kind, *paths],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split(" ", 1) for line in done.stdout.splitlines()]
    return {rest.rpartition(" ")[2]: (int(grown), rest.rpartition(" ")[0]) for grown, rest in lines}


# ---- exactly at the limit -----------------------------------------------------------------------------


def test_exactly_at_each_limit_is_a_prediction_and_one_more_is_too_large(
    new_home: Home, box: Box, tmp_path: Path
) -> None:
    # Given pictures that are exactly at each limit, and one over it
    good, most = box.good, len(box.good) + 2000
    over = np.zeros((28, 29), np.uint8)
    over[:, :28] = box.digit
    for name, data in {
        "bytes-at.png": good.ljust(most, b"\0"),
        "bytes-over.png": good.ljust(most + 1, b"\0"),
        "pixels-at.png": good,
        "pixels-over.png": corpus.encode(Image.fromarray(over), "PNG"),
        "frames-at.gif": corpus.animation(3, "GIF", box.digit),
        "frames-over.gif": corpus.animation(4, "GIF", box.digit),
        "frames-at.webp": corpus.animation(3, "WEBP", box.digit),
        "frames-over.webp": corpus.animation(4, "WEBP", box.digit),
        "frames-at.png": corpus.animation(3, "PNG", box.digit),
        "frames-over.png": corpus.animation(4, "PNG", box.digit),
        "switched-off.bmp": corpus.encode(Image.fromarray(box.digit), "BMP"),
    }.items():
        (tmp_path / name).write_bytes(data)
        assert len(data) <= most + 1, name
    limits = {
        "MAX_IMAGE_BYTES": str(most),
        "MAX_IMAGE_PIXELS": str(28 * 28),
        "MAX_IMAGE_FRAMES": "3",
        "IMAGE_FORMATS": "png,gif,webp",
    }
    # When they are classified, and a format is switched off
    new_home.extra = {ENV_PREFIX + name: value for name, value in limits.items()}
    done = new_home.run("classify", tmp_path)
    assert done.returncode == 3, done.stderr
    assert not broker_answers(Settings.load(home=new_home.path))
    # Then those at a limit have their label
    [job] = new_home.json("jobs")
    predictions = rows(new_home.ok("predictions", job["id"], "--format", "csv"))
    found = {Path(row["name"]).name: Row(row["label"], row["error"]) for row in predictions}
    assert found.pop("switched-off.bmp") == Row("", ErrorCode.FORMAT_NOT_ALLOWED)
    too_large = Row("", ErrorCode.TOO_LARGE)
    assert found == {name: too_large if "over" in name else Row("0", "") for name in found}
    assert len(found) == 10


# ---- members of archives ------------------------------------------------------------------------------


@pytest.mark.parametrize("archive", MEMBERS)
def test_a_member_that_leads_elsewhere_is_forbidden_and_its_neighbours_get_their_labels(
    outcomes: dict[str, Row], box: Box, tmp_path: Path, archive: str
) -> None:
    # Given the names of what must not be read, as whoever made the archive knows them
    make = bad_archives.zip_with_bad_members if archive.endswith("zip") else bad_archives.tar_with_bad_members
    bad = make(tmp_path / archive, box.good, box.path.parent / "outside")
    assert len(bad) == MEMBERS[archive]
    # Then each is forbidden, and every other member has its label
    found = {name: row for name, row in outcomes.items() if name.startswith(f"{archive}/")}
    stored = [f"{archive}/{name}".replace("\0", "\ufffd") for name in bad]
    assert [found.pop(name) for name in stored] == [Row("", ErrorCode.SOURCE_FORBIDDEN)] * len(bad)
    assert list(found.values()) == [Row("0", "")] * (len(bad) + 1)


def test_a_member_that_is_too_large_is_and_its_neighbours_get_their_labels(outcomes: dict[str, Row]) -> None:
    assert outcomes["huge.zip/huge.png"] == Row("", ErrorCode.TOO_LARGE)
    assert outcomes["huge.zip/good.png"] == outcomes["huge.zip/last.png"] == Row("0", "")


# ---- what is refused as a whole -----------------------------------------------------------------------


def _stored(home: Home) -> tuple[object, list[str]]:
    """All jobs, and all payloads."""
    payloads = home.path / "store" / "payloads"
    return [job["id"] for job in home.json("jobs", "--limit", "1000")], sorted(map(str, payloads.rglob("*")))


@pytest.fixture
def refused(stack: Home, box: Box) -> Iterator[Home]:
    """The stack, for a submission in chunks of one image of which nothing may be left."""
    jobs, files = _stored(stack), box.snapshot()
    yield Home(stack.path, {ENV_PREFIX + "CHUNK_IMAGES": "1"})
    assert _stored(stack) == jobs
    assert box.snapshot() == files


@pytest.mark.parametrize("name", bad_archives.REFUSED)
def test_a_bad_archive_is_refused_in_little_memory_and_nothing_is_left(
    refused: Home, box: Box, tmp_path: Path, name: str
) -> None:
    # Given an archive, and good images that come before it
    make, message = bad_archives.REFUSED[name]
    make(tmp_path / name)
    # When they are submitted
    done = refused.run("submit", "images/000-a.png", "images/000-c.png", tmp_path / name, cwd=box.path)
    # Then the archive is refused for what it is, by its name, with what to do, and without a stack trace
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert re.search(f"{re.escape(name)} .*({message}).*: ?.*(unpack it|pack it)", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    # And it took little memory
    [(grown, outcome)] = _appetites("archive", [str(tmp_path / name)]).values()
    assert outcome == "SourceError"
    assert grown < MOST_BYTES


def test_an_empty_job_is_refused_and_nothing_is_left(refused: Home, tmp_path: Path) -> None:
    done = refused.run("submit", tmp_path)
    assert done.returncode == 2
    assert "The sources contain no images" in done.stderr


@pytest.mark.parametrize("limit", ["IMAGES", "BYTES"])
def test_a_job_over_its_limits_is_refused_and_nothing_is_left(refused: Home, box: Box, limit: str) -> None:
    # Given three good images, and room for one less, or for a byte less
    refused.extra[ENV_PREFIX + "MAX_JOB_" + limit] = str({"IMAGES": 2, "BYTES": 3 * len(box.good) - 1}[limit])
    three = ["images/000-a.png", "images/000-c.png", "images/001-a.png"]
    done = refused.run("submit", *three, cwd=box.path)
    assert done.returncode == 2
    assert f"set LABELMILL_MAX_JOB_{limit} higher" in done.stderr


def test_a_job_exactly_at_its_limits_is_accepted(stack: Home, box: Box) -> None:
    exactly = {"MAX_JOB_IMAGES": "3", "MAX_JOB_BYTES": str(3 * len(box.good))}
    home = Home(stack.path, {ENV_PREFIX + name: value for name, value in exactly.items()})
    three = ["images/000-a.png", "images/000-c.png", "images/001-a.png"]
    done = home.run("submit", *three, "--watch", cwd=box.path)
    assert done.returncode == 0, done.stderr


# ---- the other rows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("test", re.findall(r"tests/\S+::\w+", __doc__))
def test_the_other_rows_have_the_tests_that_are_named_above(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"\ndef {name}(" in Path(path).read_text()
