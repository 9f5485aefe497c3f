"""IDX files, MNIST's own format, as sources: every image becomes a PGM, and errors say what is wrong."""

from __future__ import annotations

import errno
import gzip
import os
import struct
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import pytest

from jobs.errors import ErrorCode, SourceError
from producer.sources import SourceImage, Sources
from producer.sources.idx import labels_beside

pytestmark = pytest.mark.usefixtures("here")


def idx(count: int, rows: int = 2, columns: int = 3) -> bytes:
    """Return an IDX file with that many images, each filled with its number."""
    pixels = b"".join(bytes([number % 256]) * (rows * columns) for number in range(count))
    return struct.pack(">IIII", 0x0803, count, rows, columns) + pixels


LABELS = struct.pack(">II", 0x0801, 3) + bytes(3)


@pytest.mark.parametrize(
    "name", ["t10k-images-idx3-ubyte", "t10k-images-idx3-ubyte.gz", "t10k.idx3-ubyte", "x.bin", "x.gz"]
)
def test_every_image_becomes_a_pgm(name: str) -> None:
    # Given an IDX file, gzipped or not, recognised by its name or by its content
    content = idx(3)
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    # When it is read twice
    sources = Sources([f"./{name}"])
    expected = [
        SourceImage(f"{name}/{number:05}", b"P5\n3 2\n255\n" + bytes([number]) * 6, None)
        for number in range(3)
    ]
    # Then each image is a PGM, three columns wide and two rows high
    assert list(sources) == expected
    assert list(sources) == expected


def test_numbers_are_as_wide_as_the_last_one_needs() -> None:
    Path("images-idx3-ubyte").write_bytes(idx(100_001, 1, 1))
    names = [image.name for image in Sources(["images-idx3-ubyte"])]
    assert names[0] == "images-idx3-ubyte/000000"
    assert names[-1] == "images-idx3-ubyte/100000"
    assert names == sorted(names)


def test_images_are_streamed() -> None:
    # Given a file that declares four billion images and has two
    Path("images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x0803, 2**32 - 1, 1, 1) + b"ab")
    found = islice(Sources(["images-idx3-ubyte"]), 2)
    assert [image.data for image in found] == [b"P5\n1 1\n255\na", b"P5\n1 1\n255\nb"]


def test_a_truncated_file_says_how_many_images_it_has() -> None:
    Path("images-idx3-ubyte").write_bytes(idx(10)[:-7])
    reading = iter(Sources(["images-idx3-ubyte"]))
    assert len(list(islice(reading, 8))) == 8
    with pytest.raises(SourceError, match=r"images-idx3-ubyte .*it declares 10 images, 8 could be read"):
        next(reading)


def test_a_truncated_or_damaged_gzip_is_told_of() -> None:
    packed = gzip.compress(idx(3))
    wrong_checksum = packed[:-8] + bytes(4) + packed[-4:]
    for content in (packed[:-12], wrong_checksum):
        Path("images-idx3-ubyte.gz").write_bytes(content)
        with pytest.raises(SourceError, match="damaged or cut short: it declares 3 images"):
            list(Sources(["images-idx3-ubyte.gz"]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("images-idx3-ubyte", b"", "not an IDX file of images"),
        ("images-idx3-ubyte", b"\x00\x00\x08\x03", "not an IDX file of images"),
        ("images-idx3-ubyte", b"not an IDX file at all", "not an IDX file of images"),
        ("images-idx3-ubyte", idx(3)[:15], "not an IDX file of images"),
        ("images-idx3-ubyte", b"\x1f\x8bnot gzip", "cannot be read"),
        # Headers that would fill the memory or the job
        ("images-idx3-ubyte", struct.pack(">IIII", 0x0803, 1, 2**31, 2**31), "the limit is"),
        ("images-idx3-ubyte", struct.pack(">IIII", 0x0803, 2**32 - 1, 0, 28), "28 x 0 pixels"),
        # Labels
        ("t10k-labels-idx1-ubyte", LABELS, "holds labels: name the file with the images"),
        ("t10k-labels-idx1-ubyte.gz", gzip.compress(LABELS, mtime=0), "holds labels"),
        ("x.bin", LABELS, "holds labels"),
        ("x.gz", gzip.compress(LABELS, mtime=0), "holds labels"),
    ],
)
def test_a_file_that_is_no_idx_of_images_is_refused(name: str, content: bytes, message: str) -> None:
    Path(name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        Sources([name])


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EACCES, "images-idx3-ubyte cannot be read (Permission denied): check its permissions"),
        (errno.EIO, "images-idx3-ubyte cannot be read (Input/output error): check that it is there"),
    ],
)
def test_a_file_that_may_not_or_cannot_be_read_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    # Given an IDX file that cannot be opened, patched because the tests may run as root
    Path("images-idx3-ubyte").write_bytes(idx(3))

    def refuse(path: str) -> BinaryIO:
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr("producer.sources.idx._open", refuse)
    # When it is named, then the error has the system's reason, and does not ask for a new copy
    with pytest.raises(SourceError) as refused:
        Sources(["images-idx3-ubyte"])
    assert str(refused.value).startswith(message)
    assert "again" not in str(refused.value)


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_the_labels_beside_images_have_a_path_of_the_same_form(ending: str) -> None:
    Path(f"t10k-labels-idx1-ubyte{ending}").write_bytes(LABELS)
    for folder in ("", "./", ".//", f"{Path.cwd()}/"):
        labels = labels_beside(f"{folder}t10k-images-idx3-ubyte.gz")
        assert labels == f"{folder}t10k-labels-idx1-ubyte{ending}"


def test_another_gzip_file_is_a_file() -> None:
    for content in (gzip.compress(b"something else"), b"\x1f\x8bnot gzip"):
        Path("other.gz").write_bytes(content)
        assert list(Sources(["other.gz"])) == [SourceImage("other.gz", content, None, "other.gz")]


def test_what_comes_out_is_bounded_by_the_files_size() -> None:
    # Given 200,000 images that gzip has compressed to a thousandth
    content = struct.pack(">IIII", 0x0803, 200_000, 4, 5) + bytes(4_000_000)
    Path("bomb.gz").write_bytes(gzip.compress(content))
    # When they are read, then reading stops at the allowed expansion
    came: list[SourceImage] = []
    with pytest.raises(SourceError, match="more than 200 times its own size"):
        came.extend(Sources(["bomb.gz"]))
    assert len(came) == 200 * Path("bomb.gz").stat().st_size // 20


def test_what_is_wrong_on_stdin_stops_only_itself() -> None:
    Path("labels-idx1-ubyte").write_bytes(LABELS)
    Path("short-idx3-ubyte").write_bytes(idx(2)[:-1])
    Path("whole-idx3-ubyte").write_bytes(idx(1))
    lines = ["labels-idx1-ubyte\n", "short-idx3-ubyte\n", "whole-idx3-ubyte\n"]
    found = [(image.name, image.error and image.error.code) for image in Sources(["-"], stdin=lines)]
    assert found == [
        ("labels-idx1-ubyte", ErrorCode.FORMAT_NOT_ALLOWED),
        ("short-idx3-ubyte/00000", None),
        ("short-idx3-ubyte", ErrorCode.CORRUPT),
        ("whole-idx3-ubyte/00000", None),
    ]
