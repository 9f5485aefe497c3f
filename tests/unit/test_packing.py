"""Images that are packed to be uploaded are the same when they are read again."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.limits import ArchiveLimits
from jobs.reading import too_large
from producer.packing import pack
from producer.sources import SourceImage, Sources
from producer.sources.tars import is_packed, read_packed
from tests.memory import peak_of

#: Names that an ordinary archive would not give back: skipped, refused, or cut.
NAMES = [
    "a.png",
    "/home/me/a.png",
    "../a.png",
    ".hidden/a.png",
    "__MACOSX/a",
    "notes.txt",
    "C:\\a.png",
    "two\nlines.png",
    "größe/ 1.png ",
    "x" * 300 + ".png",
    ".labelmill-images",
]


def read(path: Path, max_bytes: int = 1000) -> list[tuple[str, bytes | None, str | None]]:
    assert is_packed(str(path))
    found = read_packed(str(path), max_bytes=max_bytes, limits=ArchiveLimits())
    return [(name, data, error and f"{error.code} {error.detail}") for name, data, error, *_ in found]


def test_all_names_contents_and_errors_come_back(tmp_path: Path) -> None:
    images = [SourceImage(name, bytes(size), None) for size, name in enumerate(NAMES)]
    images += [
        SourceImage("gone.png", None, ImageError(ErrorCode.SOURCE_MISSING, "No such file or directory")),
        SourceImage("large.png", bytes(1001), None),
    ]
    path = tmp_path / "packed"
    path.write_bytes(b"".join(pack(images)))
    assert read(path) == [
        *((name, bytes(size), None) for size, name in enumerate(NAMES)),
        ("gone.png", None, "source_missing No such file or directory"),
        ("large.png", None, f"too_large {too_large(1000).detail}"),
    ]
    # And so do their true labels
    labelled = tmp_path / "labelled"
    labelled.write_bytes(b"".join(pack([image._replace(label="ändern") for image in images])))
    found = read_packed(str(labelled), max_bytes=1000, limits=ArchiveLimits())
    assert {image.label for image in found} == {"ändern"}
    # And the same images give the same bytes, which any program can list
    assert b"".join(pack(images)) == path.read_bytes()
    with tarfile.open(path) as archive:
        assert archive.getnames()[1:] == [image.name for image in images]


def test_a_packed_file_that_is_cut_short_is_damaged(tmp_path: Path) -> None:
    packed = b"".join(pack([SourceImage("a.png", bytes(900), None)]))
    path = tmp_path / "packed"
    for length in (len(packed) - 1024, 1500, 700):
        path.write_bytes(packed[:length])
        with pytest.raises(SourceError):
            read(path)


def test_no_images_are_an_error_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(SourceError, match=r"no images \(files skipped because of their names: 1\)"):
        list(pack(Sources([str(tmp_path)])))


def test_memory_does_not_grow_with_the_number_of_images() -> None:
    def images(number: int) -> Iterator[SourceImage]:
        return (SourceImage(f"{index}.png", bytes(300), None) for index in range(number))

    def peak(number: int) -> int:
        return peak_of(lambda: sum(1 for _ in pack(images(number))))

    peak(10)
    assert peak(20_000) < peak(2_000) * 1.1
