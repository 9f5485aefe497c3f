"""ZIP archives as sources: members by their names, bounded by what really comes out of them."""

from __future__ import annotations

import random
import stat
import struct
import tracemalloc
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, SourceError
from producer.sources import Sources

# Where a member's entry in the archive's directory has its fields.
FLAGS = (8, "<H")
CHECKSUM = (16, "<I")
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


def outcomes(sources: Sources) -> list[tuple[str, bytes | ErrorCode | None]]:
    return [(image.name, image.error.code if image.error else image.data) for image in sources]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_members_come_in_the_archives_order_under_its_name() -> None:
    pack("photos.zip", {"b.png": b"1", "a/c.png": b"2", "./d.png": b"3", "a.png": b""})
    sources = Sources(["./photos.zip"])
    expected = [
        ("photos.zip/b.png", b"1"),
        ("photos.zip/a/c.png", b"2"),
        ("photos.zip/./d.png", b"3"),
        ("photos.zip/a.png", b""),
    ]
    assert outcomes(sources) == expected
    assert outcomes(sources) == expected  # read anew
    assert sorted(path.name for path in Path().iterdir()) == ["photos.zip"]  # nothing is extracted


def test_an_archive_is_known_by_its_extension_or_by_its_first_bytes() -> None:
    pack("upper.ZIP", {"a.png": b"1"})
    pack("archive.bin", {"a.png": b"2"})
    pack("empty.zip", {})
    found = outcomes(Sources(["upper.ZIP", "archive.bin", "empty.zip"]))
    assert found == [("upper.ZIP/a.png", b"1"), ("archive.bin/a.png", b"2")]


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


def test_members_are_chosen_as_a_folders_files_are() -> None:
    names = ["a/", "a/1.png", "b.txt", ".c.png", ".git/d.png", "__MACOSX/._1.png", "e", "f.TIFF", "g.json"]
    pack("photos.zip", dict.fromkeys(names, b""))
    sources = Sources(["photos.zip"])
    assert [image.name for image in sources] == ["photos.zip/a/1.png", "photos.zip/e", "photos.zip/f.TIFF"]
    assert sources.skipped == 2


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


@pytest.mark.parametrize("name", ["evil.txt\0.png", "\0.png"])
def test_a_members_name_with_a_nul_is_forbidden_and_storable(name: str) -> None:
    # Given a name that zipfile would cut at the NUL (and not write, so that it's put in afterwards)
    pack("photos.zip", {name.replace("\0", "N"): b"1", "b.png": b"2"})
    content = Path("photos.zip").read_bytes()
    Path("photos.zip").write_bytes(content.replace(name.replace("\0", "N").encode(), name.encode()))
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/" + name.replace("\0", "\ufffd"), ErrorCode.SOURCE_FORBIDDEN),
        ("photos.zip/b.png", b"2"),
    ]


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_member_that_is_a_symlink_or_device_is_forbidden(kind: int) -> None:
    with zipfile.ZipFile("photos.zip", "w") as archive:
        for name, mode in [("a.png", kind), ("b.png", stat.S_IFREG)]:
            member = zipfile.ZipInfo(name)
            member.external_attr = (mode | 0o644) << 16
            archive.writestr(member, "/etc/passwd")
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", ErrorCode.SOURCE_FORBIDDEN),
        ("photos.zip/b.png", b"/etc/passwd"),
    ]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a ZIP at all", b"PK\x05\x06" + b"\xff" * 18])
def test_a_file_that_is_no_archive_is_refused_before_anything_is_read(content: bytes) -> None:
    Path("photos.zip").write_bytes(content)
    with pytest.raises(SourceError, match=r"photos.zip is not a ZIP archive .*: pack it anew, or unpack it"):
        Sources(["photos.zip"])


def test_a_truncated_archive_is_refused() -> None:
    pack("photos.zip", {"a.png": b"1" * 1000})
    Path("photos.zip").write_bytes(Path("photos.zip").read_bytes()[:-30])
    with pytest.raises(SourceError, match="not a ZIP archive"):
        Sources(["photos.zip"])


def test_an_archive_that_vanishes_is_told_of() -> None:
    pack("photos.zip", {"a.png": b"1"})
    sources = Sources(["photos.zip"])
    Path("photos.zip").unlink()
    with pytest.raises(SourceError, match="not a ZIP archive that can be read"):
        list(sources)


def test_an_encrypted_archive_is_refused_as_a_whole() -> None:
    pack("photos.zip", {"a.png": b"1", "b.png": b"2"})
    lie("photos.zip", "b.png", FLAGS, 0x1)
    with pytest.raises(SourceError, match=r"photos\.zip is encrypted: unpack it with its password"):
        Sources(["photos.zip"])


def test_a_damaged_archive_on_stdin_stops_only_itself() -> None:
    pack("locked.zip", {"a.png": b"1"})
    lie("locked.zip", "a.png", FLAGS, 0x1)
    Path("broken.zip").write_bytes(b"not a ZIP")
    pack("good.zip", {"a.png": b"1"})
    assert outcomes(Sources(["-"], stdin=["locked.zip\n", "broken.zip\n", "good.zip\n"])) == [
        ("locked.zip", ErrorCode.FORMAT_NOT_ALLOWED),
        ("broken.zip", ErrorCode.FORMAT_NOT_ALLOWED),
        ("good.zip/a.png", b"1"),
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_member_is_corrupt_and_its_neighbours_go_on(method: int) -> None:
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": bytes(range(50)), "c.png": b"c"}, method)
    content = bytearray(Path("photos.zip").read_bytes())
    start = content.index(b"b.png") + 5
    content[start : start + 10] = b"\xff" * 10
    Path("photos.zip").write_bytes(content)
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", b"a" * 50),
        ("photos.zip/b.png", ErrorCode.CORRUPT),
        ("photos.zip/c.png", b"c"),
    ]


@pytest.mark.parametrize(
    ("field", "value"), [(CHECKSUM, 1), (SIZE, 5), (SIZE, 2**31), (OFFSET, 0), (OFFSET, 2**31)]
)
def test_a_member_that_the_directory_lies_about_is_corrupt(field: tuple[int, str], value: int) -> None:
    # OFFSET 0 makes it overlap with the first member
    pack("photos.zip", {"a.png": b"a" * 50, "b.png": b"b" * 50, "c.png": b"c" * 50})
    lie("photos.zip", "b.png", field, value)
    assert outcomes(Sources(["photos.zip"])) == [
        ("photos.zip/a.png", b"a" * 50),
        ("photos.zip/b.png", ErrorCode.CORRUPT),
        ("photos.zip/c.png", b"c" * 50),
    ]


def test_whatever_is_wrong_with_an_archive_is_a_source_error_or_a_members() -> None:
    # Given an archive with some bytes overwritten, anywhere and in 500 ways that are the same each time
    pack("photos.zip", {"a.png": b"a" * 50, "b/c.png": bytes(range(50)), "dé.png": b"d"})
    whole = Path("photos.zip").read_bytes()
    chance = random.Random(7)
    for _ in range(500):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        Path("photos.zip").write_bytes(content)
        # Then reading it raises nothing else
        with suppress(SourceError):
            outcomes(Sources(["photos.zip"]))


@pytest.mark.parametrize("declared", [None, 2**32 - 2])
def test_a_zip_bomb_is_too_large_in_bounded_memory(declared: int | None) -> None:
    # Given a member of 64 MiB packed into some 64 KiB, whatever the directory says of it
    with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("bomb.png", "w") as member:
            for _ in range(64):
                member.write(bytes(1024 * 1024))
        archive.writestr("good.png", b"1")
    if declared is not None:
        lie("bomb.zip", "bomb.png", SIZE, declared)
    # When it's read with a limit of 1 MiB
    limit = 1024 * 1024
    tracemalloc.start()
    found = outcomes(Sources(["bomb.zip"], max_bytes=limit))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Then it is refused on what came out of it, and little more than the limit was ever in memory
    assert found == [("bomb.zip/bomb.png", ErrorCode.TOO_LARGE), ("bomb.zip/good.png", b"1")]
    assert peak < 5 * limit


def test_a_bomb_that_says_it_is_small_is_corrupt_in_bounded_memory() -> None:
    pack("bomb.zip", {"bomb.png": bytes(16 * 1024 * 1024)})
    lie("bomb.zip", "bomb.png", SIZE, 100)
    tracemalloc.start()
    found = outcomes(Sources(["bomb.zip"], max_bytes=1024 * 1024))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [("bomb.zip/bomb.png", ErrorCode.CORRUPT)]
    assert peak < 5 * 1024 * 1024


def test_a_member_at_the_limit_is_read_and_one_byte_more_is_too_large() -> None:
    pack("photos.zip", {"at.png": b"x" * 10, "over.png": b"x" * 11})
    assert outcomes(Sources(["photos.zip"], max_bytes=10)) == [
        ("photos.zip/at.png", b"x" * 10),
        ("photos.zip/over.png", ErrorCode.TOO_LARGE),
    ]


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_member_whose_unpacking_cannot_be_bounded_is_not_allowed(method: int) -> None:
    pack("photos.zip", {"a.png": bytes(16 * 1024 * 1024)}, method)
    tracemalloc.start()
    found = outcomes(Sources(["photos.zip"], max_bytes=1000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [("photos.zip/a.png", ErrorCode.FORMAT_NOT_ALLOWED)]
    assert peak < 1_000_000
