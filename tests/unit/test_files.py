"""Temporary folders, and what a killed process left in them."""

from __future__ import annotations

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


def test_what_was_left_by_a_killed_process_goes_a_day_later(tmp_path: Path) -> None:
    # Given folders left by killed processes, of this kind and of another, and a folder in use
    left = aged(tmp_path / "training-abc", DAY + 60)
    others = aged(tmp_path / "mnist", 9 * DAY)
    now = aged(tmp_path / "training-def", DAY - 60)
    # and a link with such a name to a foreign folder
    (tmp_path / "training-link").symlink_to(others)
    os.utime(tmp_path / "training-link", (0, 0), follow_symlinks=False)
    # When another process makes a folder
    with temporary_folder(tmp_path, "training-"):
        pass
    # Then only the old one is removed
    assert not left.exists()
    assert (others / "model.keras").exists()
    assert (now / "model.keras").exists()
