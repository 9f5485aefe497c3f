"""A real disk of a few megabytes that a test can fill: a tmpfs, which only root can mount."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


class SmallDisk:
    """A disk that can be full."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filling = path / "filling"

    def fill(self, *, but: int = 0) -> None:
        """Take all the room there is, but for so many bytes."""
        with self._filling.open("ab", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
        if but:
            os.truncate(self._filling, self._filling.stat().st_size - but)

    def make_room(self) -> None:
        """Undo `fill`."""
        self._filling.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(path: Path, *, megabytes: int) -> Iterator[SmallDisk]:
    """Mount a disk at this path, which any user can reach. Skip the test if mounting is not permitted."""
    path.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o711)
    size = f"size={megabytes}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs a disk of its own: {mounted.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)
