"""What the console command says to people, on stderr and in its tables."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.model import Model
from jobs.settings import Settings
from tests.console import LABELMILL

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def labelmill(settings: Settings, champion: Model) -> Command:  # noqa: ARG001 -- submitting needs one
    """`labelmill("submit", folder)`: what comes of the command, where there is a model and a broker."""

    def labelmill(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [LABELMILL, *map(str, arguments)],
            env=os.environ | settings.environment() | {"COLUMNS": "200"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return labelmill


def test_images_that_cannot_be_read_are_told_when_they_are_submitted(
    labelmill: Command, photos: Path
) -> None:
    # Given a folder in which a symlink leads nowhere, and a file that is no image
    (photos / "gone.png").symlink_to(photos / "nowhere.png")
    (photos / "notes.txt").write_text("notes")

    # When it is submitted with a device, Then the job is accepted, and stderr says how many and why
    done = labelmill("submit", photos, "/dev/null")
    assert done.returncode == 0
    assert "passed over 1 file: no image by the name" in done.stderr
    assert "2 of 4 images could not be read, and will have an error" in done.stderr
    assert f"the first: {photos}/gone.png, source_missing: No such file or directory" in done.stderr

    # And not a word where all is well
    (photos / "gone.png").unlink()
    assert "could not" not in labelmill("submit", photos).stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with two files that are called images."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(name.encode())
    return folder
