"""Globs as sources: what they match, that they stay in their folder, and that they need little memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, SourceError
from producer.sources import Sources
from producer.sources import readers as sources_module

pytestmark = pytest.mark.usefixtures("here")


def put(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(path.encode())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        # Files in order, whatever their extension
        ("flat/*", "flat/a.png flat/b.png flat/c.txt"),
        ("./flat/[ab].png", "flat/a.png flat/b.png"),
        ("flat/?.png", "flat/a.png flat/b.png"),
        # Folders, which are read as such
        ("202*", "2023/a.png 2024/b/c.png 2025"),
        ("202*/", "2023/a.png 2024/b/c.png"),
        ("202*/b/*.png", "2024/b/c.png"),
        # Two stars stand for any folders
        ("photos/**/*.png", "photos/a.png photos/b/c.png photos/b/d/e.png"),
        ("photos/**", "photos/a.png photos/b/c.png photos/b/d/e.png photos/b/f.txt"),
        ("photos/**/*", "photos/a.png photos/b/c.png photos/b/d/e.png photos/b/f.txt"),
        ("**/d/*.png", "photos/b/d/e.png"),
        # Each file is named once: b/a, b/b/c and b/b/d/b/e are below a folder b in one, two and three ways
        ("many/**/b/**", "many/b/a many/b/b/c many/b/b/d/b/e"),
        ("many/**/**/b/**/e", "many/b/b/d/b/e"),
        ("many/**/b/*/**", "many/b/b/c many/b/b/d/b/e"),
        ("many/**/*/**/*", "many/b/a many/b/b/c many/b/b/d/b/e"),
        # A file whose name looks like a pattern, and a backslash that takes a wildcard's meaning away
        ("image[1].png", "image[1].png"),
        ("image\\[1\\].*", "image[1].png"),
        ("a\\*/*.png", "a*/b.png"),
        # What is hidden, where the pattern writes the dot
        ("flat/.h*", "flat/.hidden.png"),
        ("hidden/**/.cache/*.png", "hidden/.cache/a.png hidden/b/.cache/a.png"),
    ],
)
def test_a_pattern_names_what_it_matches_in_order(pattern: str, expected: str) -> None:
    put("flat/b.png", "flat/a.png", "flat/c.txt", "flat/.hidden.png")
    put("2023/a.png", "2024/b/c.png", "2024/notes.txt", "2025", "other/d.png")
    put("photos/a.png", "photos/b/c.png", "photos/b/d/e.png", "photos/b/f.txt", "photos/.git/g.png")
    put("many/b/a", "many/b/b/c", "many/b/b/d/b/e", "many/x")
    put("image[1].png", "image1.png", "a*/b.png", "ab/b.png")
    put("hidden/.cache/a.png", "hidden/b/.cache/a.png", "hidden/__MACOSX/a.png")
    assert [image.name for image in Sources([pattern])] == expected.split()


def _a_folder_with_links() -> None:
    """Make `named`, a link to a folder with images, and with links inside it, out of it, and to nowhere."""
    put("photos/a.png", "photos/deep/b.png", "secret.png", "elsewhere/c.png")
    Path("named").symlink_to("photos")
    for name, target in {
        "in.png": "a.png",
        "deep/up.png": "../a.png",
        "out.png": "../secret.png",
        "deep/out.png": "../../secret.png",
        "lost.png": "absent.png",
        "lost-out.png": "../absent.png",
        "folder-in": "deep",
        "folder-out": "../elsewhere",
    }.items():
        Path("photos", name).symlink_to(target)


def _outcomes(source: str) -> dict[str, bytes | ErrorCode | None]:
    found = list(Sources([source]))
    assert len({image.name for image in found}) == len(found)
    return {image.name: image.error.code if image.error else image.data for image in found}


@pytest.mark.parametrize("pattern", ["photos/*", "named/*", "./named/*", "photos/**", "named/**/*"])
def test_a_pattern_and_its_folder_agree_about_symlinks(pattern: str) -> None:
    # Given links that stay in the folder, and links that leave it, some of them dangling
    _a_folder_with_links()
    # When the folder is named, and when a pattern matches everything in it
    by_pattern = _outcomes(pattern)
    # Then both give the same: links out are forbidden, and nothing outside is read
    folder = pattern.removeprefix("./").partition("/")[0]
    assert by_pattern == _outcomes(folder)
    assert {name.removeprefix(f"{folder}/"): found for name, found in by_pattern.items()} == {
        "a.png": b"photos/a.png",
        "deep/b.png": b"photos/deep/b.png",
        "deep/up.png": b"photos/a.png",
        "in.png": b"photos/a.png",
        "lost.png": ErrorCode.SOURCE_MISSING,
        "lost-out.png": ErrorCode.SOURCE_FORBIDDEN,
        "out.png": ErrorCode.SOURCE_FORBIDDEN,
        "deep/out.png": ErrorCode.SOURCE_FORBIDDEN,
        "folder-out": ErrorCode.SOURCE_FORBIDDEN,
    }


@pytest.mark.parametrize(
    ("pattern", "forbidden"),
    [
        ("photos/*.png", ["photos/lost-out.png", "photos/out.png"]),
        ("photos/**/o*.png", ["photos/deep/out.png", "photos/out.png"]),
        ("photos/*/*.png", ["photos/deep/out.png", "photos/folder-out"]),
        ("photos/*/", ["photos/deep/out.png", "photos/folder-out"]),
        ("photos/f*", ["photos/folder-out"]),
        ("photos/folder-o[u]t/c.png", ["photos/folder-out"]),
    ],
)
def test_what_a_pattern_names_through_a_link_out_of_its_folder_is_forbidden(
    pattern: str, forbidden: list[str], tmp_path: Path
) -> None:
    # Given links out of the pattern's folder, when the pattern is read
    _a_folder_with_links()
    found = _outcomes(pattern)
    # Then they are forbidden, and not followed
    assert sorted(name for name, code in found.items() if code == ErrorCode.SOURCE_FORBIDDEN) == forbidden
    assert not {b"secret.png", b"elsewhere/c.png"} & set(found.values())
    # And it is the same with an absolute path
    absolute = _outcomes(f"{tmp_path}/{pattern}")
    assert {name.removeprefix(f"{tmp_path}/"): each for name, each in absolute.items()} == found


def test_a_link_that_stays_in_the_folder_a_pattern_begins_with_leaves_nothing() -> None:
    # Given the same links, when a pattern begins in the folder above
    _a_folder_with_links()
    # Then a link to a file is read, and a link to a folder is not followed
    assert _outcomes("p*/out.png") == {"photos/out.png": b"secret.png"}
    with pytest.raises(SourceError, match="no file matches"):
        Sources(["p*/folder-out/*.png"])


def test_a_match_swapped_for_another_link_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a link whose target is replaced by a link out of the folder after the check
    put("photos/a.png", "secret.png")
    Path("photos/link.png").symlink_to("a.png")
    sources = Sources(["photos/l*"])
    seen = sources_module._mode

    def swapped(path: str) -> int:
        mode = seen(path)
        Path("photos/a.png").unlink()
        Path("photos/a.png").symlink_to("../secret.png")
        return mode

    # When it is read
    monkeypatch.setattr(sources_module, "_mode", swapped)
    # Then nothing outside is read
    assert [image.data for image in sources] == [None]


@pytest.mark.parametrize(
    "pattern", ["*.gif", "photos/*/x", "absent/*", "photos/**/b", "photos/a.png/*", "photos/**/c.png"]
)
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    put("photos/a.png", "photos/b/.hidden", "photos/.cache/c.png", "photos/__MACOSX/c.png")
    with pytest.raises(SourceError, match=r"no file matches .*: check the spelling"):
        Sources([pattern])


@pytest.fixture
def locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make folders called `locked` unreadable, also for root."""

    def scandir(folder: str) -> Iterator[os.DirEntry[str]]:
        if Path(folder).name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
        return real(folder)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("pattern", ["photos/**/*.png", "photos/**/**/a*", "photos/**", "photos/*/*"])
def test_a_folder_that_may_not_be_listed_is_an_error_and_its_neighbours_come(pattern: str) -> None:
    put("photos/b/a.png", "photos/locked/c.png", "photos/x/a.png")
    found = {image.name: image.error for image in Sources([pattern])}
    assert list(found) == sorted(found, key=["photos/b/a.png", "photos/locked", "photos/x/a.png"].index)
    assert len(found) == 3
    error = found["photos/locked"]
    assert error is not None
    assert (error.code, error.detail) == (ErrorCode.SOURCE_MISSING, "Permission denied")


@pytest.mark.usefixtures("locked")
@pytest.mark.parametrize("pattern", ["locked/*.png", "locked/**", "*/*.png"])
def test_where_nothing_else_matches_it_is_the_folder_that_is_named(pattern: str) -> None:
    put("locked/c.png")
    with pytest.raises(SourceError, match=r"locked cannot be listed \(Permission denied\), check"):
        Sources([pattern])


@pytest.mark.usefixtures("locked")
def test_a_named_folder_that_may_not_be_listed_is_refused() -> None:
    put("locked/c.png", "photos/a.png")
    with pytest.raises(SourceError, match=r"^locked cannot be listed \(Permission denied\): check its per"):
        Sources(["photos", "locked"])
