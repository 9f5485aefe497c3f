"""Globs as sources: what they match, and that they neither wander off nor fill the memory."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs.errors import ErrorCode, SourceError
from producer.sources import Sources, files


def put(*paths: str) -> None:
    for path in paths:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(path.encode())


def names(*patterns: str) -> list[str]:
    return [image.name for image in Sources(patterns)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_pattern_names_files_in_order_whatever_their_extension() -> None:
    put("photos/b.png", "photos/a.png", "photos/c.txt", "photos/.hidden.png")
    assert names("photos/*") == ["photos/a.png", "photos/b.png", "photos/c.txt"]
    assert names("./photos/[ab].png") == ["photos/a.png", "photos/b.png"]
    assert names("photos/?.png") == ["photos/a.png", "photos/b.png"]
    assert names("photos/.h*") == ["photos/.hidden.png"]


def test_a_pattern_names_folders_which_are_read_as_such() -> None:
    put("2023/a.png", "2024/b/c.png", "2024/notes.txt", "2025", "other/d.png")
    sources = Sources(["202*"])
    assert [image.name for image in sources] == ["2023/a.png", "2024/b/c.png", "2025"]
    assert sources.skipped == 1
    assert names("202*/") == ["2023/a.png", "2024/b/c.png"]
    assert names("*/b/*.png") == ["2024/b/c.png"]


def test_an_absolute_pattern_gives_absolute_names(tmp_path: Path) -> None:
    put("a.png")
    assert names(f"{tmp_path}/*.png") == [f"{tmp_path}/a.png"]


def test_two_stars_stand_for_any_folders_and_name_each_file_once() -> None:
    put("photos/a.png", "photos/b/c.png", "photos/b/d/e.png", "photos/b/f.txt", "photos/.git/g.png")
    every = ["photos/a.png", "photos/b/c.png", "photos/b/f.txt", "photos/b/d/e.png"]
    assert names("photos/**/*.png") == ["photos/a.png", "photos/b/c.png", "photos/b/d/e.png"]
    assert names("photos/**") == every
    assert names("photos/**/*") == every
    assert names("**/d/*") == ["photos/b/d/e.png"]


def test_two_stars_follow_no_symlinked_folders() -> None:
    # Given two links that lead back up, which would double the paths at each level, and one that leads out
    put("photos/a.png", "outside/b.png")
    Path("photos/up").symlink_to(".")
    Path("photos/again").symlink_to("../photos")
    Path("photos/out").symlink_to("../outside")
    assert names("photos/**/*.png") == ["photos/a.png"]


@pytest.mark.parametrize("pattern", ["*.gif", "photos/*/x", "absent/*", "photos/**/b", "photos/a.png/*"])
def test_a_pattern_that_matches_nothing_is_refused(pattern: str) -> None:
    put("photos/a.png", "photos/b/.hidden")
    with pytest.raises(SourceError, match=r"no file matches .*: check the spelling"):
        Sources([pattern])


def test_a_file_whose_name_looks_like_a_pattern_is_that_file() -> None:
    put("image[1].png", "image1.png")
    assert names("image[1].png") == ["image[1].png"]


def test_a_pattern_sorts_in_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "WINDOW", 4)
    put(*(f"photos/{number}.png" for number in range(10)))
    listed = [entry.path for entry in os.scandir("photos")]
    assert names("photos/*") == sorted(listed[:4]) + sorted(listed[4:8]) + sorted(listed[8:])


def test_what_is_wrong_with_a_match_stops_only_itself() -> None:
    # Given a symlink to nowhere and a ZIP that is none, beside good files
    put("a.png", "b.zip", "d.png")
    Path("c.png").symlink_to("absent.png")
    found = {image.name: image.error and image.error.code for image in Sources(["*"])}
    assert found == {
        "a.png": None,
        "b.zip": ErrorCode.FORMAT_NOT_ALLOWED,
        "c.png": ErrorCode.SOURCE_MISSING,
        "d.png": None,
    }
