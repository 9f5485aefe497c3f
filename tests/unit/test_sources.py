"""Files, folders and stdin as sources: which files are taken, their names, and errors of single images."""

from __future__ import annotations

import errno
import inspect
import io
import os
import shutil
import sys
import zipfile
from collections.abc import Iterator
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NoReturn

import pytest

from jobs.errors import ErrorCode, SourceError
from producer.sources import SourceImage, SourceImages, Sources, files
from producer.sources import readers as sources_module
from producer.sources.lines import read_lines
from tests.memory import peak_of
from tests.sources import outcome, outcomes

pytestmark = pytest.mark.usefixtures("here")

KINDS = (
    "png jpg jpeg jpe jfif gif bmp dib webp pgm ppm pnm pbm "
    "tif tiff psd eps ps fits fit jp2 j2k wmf emf pdf ico heic heif avif tga PNG Jpg"
)


def put(path: str, data: bytes = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read files of a folder one by one, not ahead."""
    monkeypatch.setattr(files, "_GROUP_FILES", 1)


# Files


@pytest.mark.parametrize("name", ["absent.png", "link.png", "one.png/below.png", "nul\0.png", "x" * 300])
def test_a_missing_file_is_refused_before_anything_is_read(name: str) -> None:
    put("one.png")
    Path("link.png").symlink_to("absent.png")
    with pytest.raises(SourceError, match=r"cannot find .*: check the spelling"):
        Sources(["one.png", name])


def test_what_is_behind_a_folder_that_may_not_be_entered_is_not_called_misspelt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_path: str) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(sources_module, "_mode", refuse)  # patched, because the tests may run as root
    with pytest.raises(SourceError, match=r"cannot find .* \(Permission denied\): check the permissions"):
        Sources(["locked/a.png"])


def test_a_named_symlink_to_a_file_is_followed() -> None:
    put("elsewhere/one.png")
    Path("link.png").symlink_to("elsewhere/one.png")
    assert outcomes(Sources(["link.png"])) == [("link.png", b"x")]


@pytest.mark.skipif(sys.platform == "darwin", reason="no /proc there")
def test_a_file_longer_than_it_says_is_read_to_its_end_or_to_the_limit() -> None:
    # Given a file whose size is reported as 0, and which has content
    path = "/proc/version"
    content = Path(path).read_bytes()
    assert Path(path).stat().st_size == 0
    # Then all of it is read, if it is within the limit
    assert outcomes(Sources([path], max_bytes=len(content))) == [(path, content)]
    assert outcomes(Sources([path], max_bytes=len(content) - 1)) == [(path, ErrorCode.TOO_LARGE)]


# Names


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("photos", "photos/3/1.png"),
        ("./photos/", "photos/3/1.png"),
        ("photos//", "photos/3/1.png"),
        (".", "photos/3/1.png"),
        ("photos/../photos/3", "photos/3/1.png"),
        ("./photos/3/1.png", "photos/3/1.png"),
        ("././photos/*", "photos/3/1.png"),
    ],
)
def test_an_image_is_called_by_the_path_as_given_without_detours(given: str, name: str) -> None:
    put("photos/3/1.png")
    assert [image.name for image in Sources([given])] == [name]


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems take no such name")
def test_a_name_that_is_no_utf8_is_made_storable_and_still_read() -> None:
    os.mkdir(b"photos")  # noqa: PTH102 - pathlib takes no bytes
    Path(os.fsdecode(b"photos/\xff\xc3\xa9.png")).write_bytes(b"x")
    named = os.fsdecode(b"photos/\xff\xc3\xa9.png")
    assert outcomes(Sources(["photos", named])) == [("photos/\\xffé.png", b"x")] * 2


# Folders


def test_a_folder_is_read_to_the_bottom_in_name_order() -> None:
    for name in ["b.png", "a/2.png", "a/10.png", "c/d/e.png", "a.png"]:
        put(f"photos/{name}", name.encode())
    expected = ["a/10.png", "a/2.png", "a.png", "b.png", "c/d/e.png"]
    assert outcomes(Sources(["photos"])) == [(f"photos/{name}", name.encode()) for name in expected]


def test_of_a_folder_only_files_called_images_are_taken() -> None:
    # Given images of every known kind, a file without extension, and other files
    taken = KINDS.split()
    for kind in taken:
        put(f"photos/{kind}/image.{kind}")
    put("photos/image")
    for other in ["notes.txt", "image.png.bak", "archive.zip", "dot."]:
        put(f"photos/{other}")
    # When the folder is read
    sources = Sources(["photos"])
    found = [image.name for image in sources]
    # Then the images and the file without extension are taken, and the others are counted
    assert sorted(found) == sorted([f"photos/{kind}/image.{kind}" for kind in taken] + ["photos/image"])
    assert sources.skipped == 4


def test_svg_files_are_passed_over_in_a_folder_or_archive_and_taken_if_named() -> None:
    # Given SVG drawings beside an image, in a folder and in an archive: no worker can decode them
    put("page/logo.svg")
    put("page/photo.png")
    with zipfile.ZipFile("page.zip", "w") as archive:
        archive.writestr("icons/Logo.SVG", b"<svg/>")
        archive.writestr("photo.png", b"")
    # When both are read
    sources = Sources(["page", "page.zip"])
    # Then the drawings are counted as skipped
    assert [image.name for image in sources] == ["page/photo.png", "page.zip/photo.png"]
    assert sources.skipped == 2
    # And a drawing that is named itself is submitted, so that its owner gets an error
    assert [image.name for image in Sources(["page/logo.svg"])] == ["page/logo.svg"]


def test_hidden_entries_are_passed_over_in_silence() -> None:
    for name in [".a.png", ".git/b.png", "__MACOSX/c.png", "__MACOSX/d.txt", "e.png"]:
        put(f"photos/{name}")
    sources = Sources(["photos"])
    assert [image.name for image in sources] == ["photos/e.png"]
    assert sources.skipped == 0


def test_a_hidden_folder_that_is_named_is_read() -> None:
    put(".photos/a.png")
    assert [image.name for image in Sources([".photos"])] == [".photos/a.png"]


def test_each_iteration_reads_and_counts_again() -> None:
    put("photos/a.png", b"before")
    put("photos/notes.txt")
    sources = Sources(["photos"])
    assert outcomes(sources) == [("photos/a.png", b"before")]
    put("photos/a.png", b"after")
    assert sources.skipped == 1
    assert outcomes(sources) == [("photos/a.png", b"after")]
    assert sources.skipped == 1


def test_a_folders_entries_are_sorted_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a folder of three windows
    monkeypatch.setattr(files, "WINDOW", 4)
    for number in range(10):
        put(f"photos/{number}.png")
    # When it is read twice
    sources = Sources(["photos"])
    found = [image.name for image in sources]
    # Then each window is sorted, nothing is missing, and both readings are equal
    listed = [entry.path for entry in os.scandir("photos")]
    assert found == sorted(listed[:4]) + sorted(listed[4:8]) + sorted(listed[8:])
    assert [image.name for image in sources] == found


@pytest.mark.usefixtures("one_by_one")
def test_a_large_folder_takes_the_memory_of_one_window(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        put(f"photos/{number:05}.png")

    def peak(window: int) -> int:
        monkeypatch.setattr(files, "WINDOW", window)
        return peak_of(lambda: sum(1 for _ in Sources(["photos"])))

    peak(2000)  # the first run also imports and caches
    assert peak(100) < peak(2000) / 4


def test_files_of_a_folder_are_handed_on_together_so_many_and_so_many_bytes() -> None:
    # Given small files, large files, and a pipe between them
    for number in range(600):
        put(f"photos/a{number:03}.png")
    os.mkfifo("photos/b.png")
    for number in range(5):
        put(f"photos/c{number}.png", b"x" * 400_000)
    put("photos/d/1.png")
    put("photos/e.png", b"x" * 3_000_000)

    # When they are read, Then each group keeps both limits, and an image without bytes is alone
    found = list(Sources(["photos"]).batches())
    sizes = [len(one.names) if isinstance(one, SourceImages) else 1 for one in found]
    assert sizes == [256, 256, 88, 1, 3, 2, 1, 1]
    assert [type(one) for one in found].index(SourceImage) == 3

    # And read one by one, they are the same in the same order
    each = chain.from_iterable(one.one_by_one() if isinstance(one, SourceImages) else [one] for one in found)
    alone = outcomes(Sources(["photos"]))
    assert alone == [outcome(image) for image in each]
    assert [name for name, _ in alone] == sorted(name for name, _ in alone)
    assert len(alone) == 608


@pytest.mark.usefixtures("one_by_one")
def test_a_file_of_a_folder_that_vanishes_stops_only_itself() -> None:
    for name in ["a.png", "b.png", "c.png"]:
        put(f"photos/{name}")
    reading = iter(Sources(["photos"]))
    assert outcome(next(reading)) == ("photos/a.png", b"x")
    Path("photos/b.png").unlink()
    assert [outcome(image) for image in reading] == [
        ("photos/b.png", ErrorCode.SOURCE_MISSING),
        ("photos/c.png", b"x"),
    ]


def test_an_entry_of_a_folder_that_cannot_be_told_stops_only_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems list only names, and asking for an entry's type can fail."""

    class Untold:
        name, path = "b.png", "photos/b.png"

        def is_file(self, *, follow_symlinks: bool) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO), self.path, follow_symlinks)

    # Given a folder with an entry of unknown type, which is a pipe
    for name in ["a.png", "c.png"]:
        put(f"photos/{name}")
    os.mkfifo("photos/b.png")
    real = files._windows

    def windows(folder: str) -> Iterator[list[os.DirEntry[str] | Untold]]:
        for window in real(folder):
            yield [Untold() if entry.name == Untold.name else entry for entry in window]

    monkeypatch.setattr(files, "_windows", windows)
    # When the folder is read, Then the pipe is recognised when it is opened, and its neighbours are read
    assert outcomes(Sources(["photos"])) == [
        ("photos/a.png", b"x"),
        ("photos/b.png", ErrorCode.SOURCE_FORBIDDEN),
        ("photos/c.png", b"x"),
    ]


def test_a_folder_that_cannot_be_listed_is_one_missing_image() -> None:
    # Given a folder that vanishes after it was named, and one that vanishes after it was listed
    put("gone/a.png")
    for name in ["a.png", "b/1.png", "c.png"]:
        put(f"photos/{name}")
    sources = Sources(["./gone/", "photos"])
    shutil.rmtree("gone")
    reading = iter(sources)
    assert outcome(next(reading)) == ("gone", ErrorCode.SOURCE_MISSING)
    assert outcome(next(reading)) == ("photos/a.png", b"x")
    shutil.rmtree("photos/b")
    # Then each is one error under its own name, and its neighbours are read
    assert [outcome(image) for image in reading] == [
        ("photos/b", ErrorCode.SOURCE_MISSING),
        ("photos/c.png", b"x"),
    ]


def test_a_symlink_within_the_folder_is_read_and_one_that_leaves_it_is_forbidden(tmp_path: Path) -> None:
    put("outside/secret.png")
    put("photos/a.png", b"inside")
    put("photos/deep/b.png", b"deep")
    put("photos-too/c.png")
    links = {
        "f-inside.png": "a.png",
        "f-deep.png": "deep/b.png",
        "g-absolute.png": str(tmp_path / "photos/a.png"),
        "h-out.png": "../outside/secret.png",
        "i-out.txt": "/etc/passwd",
        "j-out-folder": "../outside",
        "k-sibling.png": "../photos-too/c.png",
        "l-nowhere.png": "absent.png",
        "m-loop.png": "m-loop.png",
        "n-self": ".",
        "o-folder": "deep",
        "p-notes.txt": "a.png",
        "q-out-and-nowhere.png": "../absent.png",
    }
    for name, target in links.items():
        Path("photos", name).symlink_to(target)
    # When the folder is named through a symlink
    Path("named").symlink_to("photos")
    sources = Sources(["named"])
    # Then links to files inside are read, links out are errors, and links to folders are not followed
    assert outcomes(sources) == [
        ("named/a.png", b"inside"),
        ("named/deep/b.png", b"deep"),
        ("named/f-deep.png", b"deep"),
        ("named/f-inside.png", b"inside"),
        ("named/g-absolute.png", b"inside"),
        ("named/h-out.png", ErrorCode.SOURCE_FORBIDDEN),
        ("named/i-out.txt", ErrorCode.SOURCE_FORBIDDEN),
        ("named/j-out-folder", ErrorCode.SOURCE_FORBIDDEN),
        ("named/k-sibling.png", ErrorCode.SOURCE_FORBIDDEN),
        ("named/l-nowhere.png", ErrorCode.SOURCE_MISSING),
        ("named/m-loop.png", ErrorCode.SOURCE_MISSING),
        ("named/q-out-and-nowhere.png", ErrorCode.SOURCE_FORBIDDEN),
    ]
    assert sources.skipped == 1


@pytest.mark.usefixtures("in_time", "one_by_one")
def test_a_file_of_a_folder_swapped_for_a_symlink_is_not_followed() -> None:
    put("secret.png", b"secret")
    put("photos/a.png")
    put("photos/b.png")
    reading = iter(Sources(["photos"]))
    next(reading)
    Path("photos/b.png").unlink()
    Path("photos/b.png").symlink_to("../secret.png")
    assert outcome(next(reading)) == ("photos/b.png", ErrorCode.SOURCE_MISSING)


def test_a_file_over_the_limit_in_a_folder_stops_only_itself() -> None:
    put("photos/a.png", b"x" * 11)
    put("photos/b.png", b"x" * 10)
    sources = Sources(["photos"], max_bytes=10)
    assert outcomes(sources) == [("photos/a.png", ErrorCode.TOO_LARGE), ("photos/b.png", b"x" * 10)]


def test_a_tree_deeper_than_pythons_stack_is_read() -> None:
    # Given a tree deeper than the recursion limit
    name = "photos/" + "a/" * 200 + "1.png"
    put(name)
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 100)
    # When it is read as a folder and through a pattern
    try:
        found = outcomes(Sources(["photos", "photos/**/*.png"]))
    finally:
        sys.setrecursionlimit(before)
    # Then the file at its bottom is found
    assert found == [(name, b"x")] * 2


def test_a_folder_called_like_an_archive_is_a_folder() -> None:
    put("photos.zip/a.png")
    assert [image.name for image in Sources(["photos.zip"])] == ["photos.zip/a.png"]


# stdin


def test_stdin_names_files_and_folders_one_a_line() -> None:
    put(" spaces .png ", b"spaces")
    put("notes.txt", b"notes")
    put("photos/a.png", b"a")
    put("last.png", b"last")
    lines = [" spaces .png \n", "\n", "  \n", "./notes.txt\n", "photos\n", "last.png"]
    assert outcomes(Sources(["-"], stdin=lines)) == [
        (" spaces .png ", b"spaces"),
        ("notes.txt", b"notes"),
        ("photos/a.png", b"a"),
        ("last.png", b"last"),
    ]


@pytest.mark.usefixtures("in_time")
def test_what_is_wrong_with_a_line_of_stdin_stops_only_itself() -> None:
    put("a.png")
    os.mkfifo("fifo.png")
    lines = ["absent.png\n", "nul\0.png\n", "\ud800.png\n", "fifo.png\n", "-\n", "*.png\n", "a.png\n"]
    codes = [outcome(image)[1] for image in Sources(["-"], stdin=lines)]
    missing, forbidden = ErrorCode.SOURCE_MISSING, ErrorCode.SOURCE_FORBIDDEN
    assert codes == [missing, missing, missing, forbidden, missing, missing, b"x"]


def test_stdin_without_end_is_read_as_far_as_it_is_wanted() -> None:
    put("a.png")
    images = iter(Sources(["-"], stdin=repeat("a.png\n")))
    assert [outcome(image) for image in islice(images, 3)] == [("a.png", b"x")] * 3


def test_stdin_must_be_there_and_be_named_once() -> None:
    with pytest.raises(SourceError, match="no stdin here: name the paths"):
        Sources(["-"])
    with pytest.raises(SourceError, match="given twice"):
        Sources(["-", "-"], stdin=[])


def test_stdin_cannot_be_read_again() -> None:
    put("a.png")
    sources = Sources(["-"], stdin=iter(["a.png\n"]))
    assert len(list(sources)) == 1
    with pytest.raises(SourceError, match="was read already"):
        list(sources)


def test_stdin_is_bytes_as_the_file_system_has_them() -> None:
    # Given files with names in UTF-8, in Latin-1, and with a trailing space; some lines of stdin end as on
    # Windows, and the last one has no end
    put("\u00e9.png", b"u")
    put("\udce9.png", b"l")
    put("a.png ", b"s")
    stdin = io.BytesIO("\u00e9.png\n".encode() + b"\xe9.png\r\n\r\na.png \r\na.png ")
    # When they are read, then each is found, with the same name as in a folder
    assert outcomes(Sources(["-"], stdin=read_lines(stdin))) == [
        ("\u00e9.png", b"u"),
        ("\\xe9.png", b"l"),
        ("a.png ", b"s"),
        ("a.png ", b"s"),
    ]
    assert outcomes(Sources(["-"], stdin=["a.png \r\n"])) == [("a.png ", b"s")]


class _Endless(io.RawIOBase):
    """A stream of the same byte, which fails after a million of them."""

    left = 1_000_000

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self.left -= len(buffer)
        assert self.left > 0, "read on and on"
        buffer[:] = b"x" * len(buffer)
        return len(buffer)


def test_a_line_of_stdin_without_end_is_refused() -> None:
    # Given the longest allowed line, it is read
    assert [len(line) for line in read_lines(io.BytesIO(b"x" * 65_536 + b"\r\n" + b"y\n"))] == [65_536, 1]
    # Given a longer line, or one that never ends, it is refused
    for too_long in (io.BytesIO(b"x" * 65_537 + b"\n"), io.BufferedReader(_Endless())):
        with pytest.raises(SourceError, match="line 1 of stdin has more than 65,536 bytes: stdin must be"):
            list(read_lines(too_long))


@pytest.mark.parametrize("found", [b"a.png\0b.png\0", b"\0" * 100_000, b"PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_what_is_no_list_of_paths_is_refused(found: bytes) -> None:
    with pytest.raises(SourceError, match=r"line \d of stdin contains a NUL byte: stdin must be paths"):
        list(read_lines(io.BytesIO(found)))
