"""ZIP archives as sources: members with their names, bounded by what is actually unpacked."""

from __future__ import annotations

import errno
import os
import struct
import zipfile
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, SourceError
from jobs.limits import ArchiveLimits
from producer.sources import SourceImage, Sources
from tests.memory import peak_of
from tests.sources import outcomes

pytestmark = pytest.mark.usefixtures("here")

# The positions of fields in a member's entry in the archive's directory.
FLAGS = (8, "<H")
SIZE = (24, "<I")
OFFSET = (42, "<I")


def pack(path: str, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def lie(path: str, name: str, field: tuple[int, str], value: int) -> None:
    """Overwrite a field of a member's entry in the archive's directory, which comes after all data."""
    content = bytearray(Path(path).read_bytes())
    at, form = field
    struct.pack_into(form, content, content.rindex(name.encode()) - 46 + at, value)
    Path(path).write_bytes(content)


def test_a_file_called_an_image_never_unfolds() -> None:
    pack("photo.png", {"a.png": b"1"})
    assert [image.name for image in Sources(["photo.png"])] == ["photo.png"]


def test_an_archive_in_a_folder_is_passed_over_and_one_on_stdin_is_read() -> None:
    Path("folder").mkdir()
    pack("folder/photos.zip", {"a.png": b"1"})
    in_folder = Sources(["folder"])
    assert outcomes(in_folder) == []
    assert in_folder.skipped == 1
    on_stdin = Sources(["-"], stdin=["folder/photos.zip\n"])
    assert outcomes(on_stdin) == [("folder/photos.zip/a.png", b"1")]


@pytest.mark.parametrize(
    "name", ["/etc/a.png", "../a.png", "a/../b.png", "a/..", "a\\b.png", "..\\b.txt", "C:a.png", "c:/a.png"]
)
def test_a_members_name_that_leaves_the_archive_is_forbidden(name: str) -> None:
    pack("photos.zip", {"1.png": b"1", name: b"2", "3.png": b"3"})
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/1.png", b"1"),
        (f"photos.zip/{name}", ErrorCode.SOURCE_FORBIDDEN),
        ("photos.zip/3.png", b"3"),
    ]


def test_an_archive_that_vanishes_is_told_of() -> None:
    pack("photos.zip", {"a.png": b"1"})
    sources = Sources(["photos.zip"])
    Path("photos.zip").unlink()
    with pytest.raises(SourceError, match=r"photos.zip cannot be read \(No such.*check that it is there"):
        list(sources)


@pytest.mark.parametrize("name", ["photos.zip", "photos.tar", "photos.tar.gz"])
def test_an_archive_that_may_not_be_read_is_not_called_damaged(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    # Given an archive without permission to read it, patched because the tests may run as root
    Path(name).write_bytes(b"whatever it holds")

    def refuse(path: str, _flags: int) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "open", refuse)
    # When it is named, then the error is about permissions, and does not ask for a new archive
    with pytest.raises(SourceError) as refused:
        Sources([name])
    assert str(refused.value) == f"{name} cannot be read (Permission denied): check its permissions"


def test_a_damaged_archive_on_stdin_stops_only_itself() -> None:
    pack("locked.zip", {"a.png": b"1"})
    lie("locked.zip", "a.png", FLAGS, 0x1)
    for name in ("broken.zip", "broken.tar"):
        Path(name).write_bytes(b"not an archive")
    pack("good.zip", {"a.png": b"1"})
    lines = [f"{name}\n" for name in ("locked.zip", "broken.zip", "broken.tar", "good.zip")]
    assert outcomes(Sources(["-"], stdin=lines)) == [
        ("locked.zip", ErrorCode.FORMAT_NOT_ALLOWED),
        ("broken.zip", ErrorCode.FORMAT_NOT_ALLOWED),
        ("broken.tar", ErrorCode.FORMAT_NOT_ALLOWED),
        ("good.zip/a.png", b"1"),
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("damaged", ["name", "content"])
def test_a_damaged_member_is_corrupt_and_its_neighbours_go_on(method: int, damaged: str) -> None:
    # Given a member whose content is damaged, or whose own header has another name than the directory
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": bytes(range(50)), "c.png": b"c"}, method)
    content = bytearray(Path("photos.zip").read_bytes())
    start = content.index(b"b.png") + (0 if damaged == "name" else 5)
    content[start : start + 10] = b"\xff" * 10
    Path("photos.zip").write_bytes(content)
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", b"a" * 50),
        ("photos.zip/b.png", ErrorCode.CORRUPT),
        ("photos.zip/c.png", b"c"),
    ]


# --- archives that contradict themselves


@pytest.mark.parametrize("size", [0, 5, 49, 51, 2**31])
def test_an_archive_that_lies_about_a_size_is_refused(size: int) -> None:
    # Given a valid member of 50 bytes, whose size in the directory is wrong
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": b"b" * 50, "c.png": b"c" * 50})
    lie("photos.zip", "b.png", SIZE, size)
    sources = iter(Sources(["photos.zip"]))
    assert next(sources).data == b"a" * 50
    # When it is read, then the actual size shows
    with pytest.raises(SourceError, match=rf"lies about sizes: b\.png does not have the {size:,} bytes"):
        next(sources)


@pytest.mark.parametrize(
    ("method", "field", "value", "message"),
    [
        (zipfile.ZIP_STORED, SIZE, 49, r"photos\.zip lies about sizes"),
        (zipfile.ZIP_DEFLATED, OFFSET, 2**31, "a member is not where it says"),
    ],
)
def test_an_archive_that_contradicts_itself_is_known_before_anything_is_read(
    method: int, field: tuple[int, str], value: int, message: str
) -> None:
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": b"b" * 50}, method)
    lie("photos.zip", "b.png", field, value)
    with pytest.raises(SourceError, match=message):
        Sources(["photos.zip"])


def test_a_member_that_reaches_into_the_next_by_its_own_header_is_corrupt() -> None:
    # Given two adjacent members, where the first one's own header shifts its content into the second
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": b"b" * 50})
    content = bytearray(Path("photos.zip").read_bytes())
    struct.pack_into("<H", content, 28, 5)
    Path("photos.zip").write_bytes(content)
    # Then it is an error: it cannot expand the archive much, because the directory's sizes do not overlap.
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", ErrorCode.CORRUPT),
        ("photos.zip/b.png", b"b" * 50),
    ]


def test_members_may_lie_in_any_order_and_have_gaps_between_them() -> None:
    # Given an archive with a replaced member, whose old bytes are still in it
    pack("photos.zip", {name: name.encode() for name in ("a.png", "b.png", "c.png")})
    with zipfile.ZipFile("photos.zip", "a") as archive:
        del archive.NameToInfo["a.png"]
        archive.filelist.pop(0)
        archive.writestr("a.png", b"new")
        archive.filelist.reverse()
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", b"new"),
        ("photos.zip/c.png", b"c.png"),
        ("photos.zip/b.png", b"b.png"),
    ]


# --- archives of every make


def test_what_stands_before_and_behind_an_archive_does_not_matter() -> None:
    # Given an archive after a self-extracting script, with a comment, and a byte after its end
    pack("photos.zip", {"a.png": b"1"})
    with zipfile.ZipFile("photos.zip", "a") as archive:
        archive.comment = b"a comment"
    Path("photos.zip").write_bytes(b"#!/bin/sh\n" * 7 + Path("photos.zip").read_bytes() + b"\n")
    assert outcomes(Sources(["photos.zip"])) == [("photos.zip/a.png", b"1")]


def test_a_large_archives_records_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given an archive with all numbers in ZIP64 fields, as in archives over 4 GB
    monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 10)
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 1)
    with zipfile.ZipFile("photos.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a.png", "b.png"):
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(name.encode() * 100)
    assert b"PK\x06\x07" in Path("photos.zip").read_bytes()
    found = outcomes(Sources(["photos.zip"]))
    assert found == [("photos.zip/a.png", b"a.png" * 100), ("photos.zip/b.png", b"b.png" * 100)]


def test_an_archive_that_was_written_into_a_pipe_is_read() -> None:
    # Given an archive in which sizes and checksums follow each member's content
    reading, writing = os.pipe()
    with open(writing, "wb") as pipe, zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # noqa: PTH123
        archive.writestr("a.png", b"a" * 100)
        archive.writestr("b.png", b"b" * 100)
    with open(reading, "rb") as pipe:  # noqa: PTH123 -- a descriptor
        Path("photos.zip").write_bytes(pipe.read())
    found = outcomes(Sources(["photos.zip"]))
    assert found == [("photos.zip/a.png", b"a" * 100), ("photos.zip/b.png", b"b" * 100)]


def test_a_directory_that_zipfile_cannot_read_is_refused() -> None:
    # Given a name that is declared to be UTF-8, and is not
    pack("photos.zip", {"dé.png": b"1"})
    Path("photos.zip").write_bytes(Path("photos.zip").read_bytes().replace("é".encode(), b"\xff\xff"))
    with pytest.raises(SourceError, match=r"photos\.zip is not a ZIP archive that can be read .*decode"):
        Sources(["photos.zip"])


# --- limits


def test_a_directory_with_huge_entries_is_not_read() -> None:
    # Given 40 members with 64 KB of comments each
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for number in range(40):
            member = zipfile.ZipInfo(f"{number}.png")
            member.comment = b"c" * 65_535
            archive.writestr(member, b"")
    # Then so large a directory is refused for a limit of 100 members, and allowed for the default limit
    with pytest.raises(SourceError, match=r"directory of 2,\d+,\d+ bytes, too much for 100 members: unpack"):
        Sources(["photos.zip"], archives=ArchiveLimits(max_members=100))
    assert len(outcomes(Sources(["photos.zip"]))) == 40


def test_what_comes_out_of_an_archive_is_bounded_by_its_size() -> None:
    # Given members that unpack to many times the archive's size
    pack("bomb.zip", {f"{number}.png": bytes(100_000) for number in range(100)})
    times = 100 * 100_000 // Path("bomb.zip").stat().st_size
    # When that expansion is allowed, everything is read
    assert len(outcomes(Sources(["bomb.zip"], archives=ArchiveLimits(max_expansion=times + 1)))) == 100
    # And when it is not, reading stops at the limit
    came: list[SourceImage] = []
    with pytest.raises(SourceError, match=f"more than {times // 2} times its own size.*_EXPANSION higher"):
        came.extend(Sources(["bomb.zip"], archives=ArchiveLimits(max_expansion=times // 2)))
    assert 40 < len(came) < 60


def test_of_members_that_are_too_large_counts_what_came_out_of_them() -> None:
    # Given members that are all over the limit of bytes, so that none is an image
    pack("bomb.zip", {f"{number}.png": bytes(2_000_000) for number in range(20)})
    with pytest.raises(SourceError, match="more than 100 times its own size"):
        list(Sources(["bomb.zip"], max_bytes=1_000_000, archives=ArchiveLimits(max_expansion=100)))


def test_members_that_are_passed_over_are_not_unpacked() -> None:
    pack("photos.zip", {"bomb.txt": bytes(50_000_000), "a.png": b"1"})
    found = outcomes(Sources(["photos.zip"], archives=ArchiveLimits(max_expansion=1)))
    assert found == [("photos.zip/a.png", b"1")]


@pytest.mark.parametrize("declared", [None, 2**32 - 2])
def test_a_zip_bomb_is_too_large_in_bounded_memory(declared: int | None) -> None:
    # Given a member of 64 MiB packed into about 64 KiB, whatever size the directory declares
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("bomb.png", "w") as member:
            for _ in range(64):
                member.write(bytes(1024 * 1024))
        archive.writestr("good.png", b"1")
    if declared is not None:
        lie("bomb.zip", "bomb.png", SIZE, declared)
    # When it is read with a limit of 1 MiB
    limit = 1024 * 1024
    sources = Sources(["bomb.zip"], max_bytes=limit)
    # Then it is too large by its actual size, and memory holds little more than the limit
    assert peak_of(lambda: list(sources)) < 5 * limit
    assert outcomes(sources) == [("bomb.zip/bomb.png", ErrorCode.TOO_LARGE), ("bomb.zip/good.png", b"1")]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_unpacking_cannot_be_bounded_is_not_allowed(method: int) -> None:
    pack("photos.zip", {"a.png": bytes(16 * 1024 * 1024)}, method)
    sources = Sources(["photos.zip"], max_bytes=1000)
    assert peak_of(lambda: list(sources)) < 1_000_000
    assert outcomes(sources) == [("photos.zip/a.png", ErrorCode.FORMAT_NOT_ALLOWED)]
