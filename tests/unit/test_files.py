"""Temporary folders, and what a killed process left in them."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

import pytest

from jobs.files import temporary_folder

DAY = 24 * 3600


def aged(folder: Path, seconds: float) -> Path:
    """Make a folder with a file in it, as a killed process leaves it."""
    folder.mkdir()
    (folder / "model.keras").write_bytes(b"half a model")
    then = time.time() - seconds
    os.utime(folder, (then, then))
    return folder


def test_a_folder_for_now_is_private_and_gone_afterwards(tmp_path: Path) -> None:
    with temporary_folder(tmp_path / "state" / "cache", "training-") as folder:
        (folder / "model.keras").write_bytes(b"a model")
        assert (folder.parent, folder.stat().st_mode & 0o777) == (tmp_path / "state" / "cache", 0o700)
    assert list(folder.parent.iterdir()) == []
    with pytest.raises(KeyError), temporary_folder(tmp_path, "training-") as folder:
        raise KeyError
    assert not folder.exists()


def test_what_a_killed_process_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    # Given a folder that a killed process left, an old one of another kind, and a link to that
    left = aged(tmp_path / "training-abc", 1)
    others = aged(tmp_path / "mnist", 9 * DAY)
    (tmp_path / "training-link").symlink_to(others)
    # and an old folder that a process still uses
    with temporary_folder(tmp_path, "training-") as used:
        os.utime(used, (0, 0))
        # When another folder is made
        with temporary_folder(tmp_path, "training-"):
            # Then only the first one is removed
            assert not left.exists()
            assert (others / "model.keras").exists()
            assert used.exists()


def test_without_locks_it_is_removed_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    left = aged(tmp_path / "training-abc", DAY + 60)
    recent = aged(tmp_path / "training-def", DAY - 60)
    with temporary_folder(tmp_path, "training-") as folder:
        assert folder.exists()
    assert not left.exists()
    assert recent.exists()
