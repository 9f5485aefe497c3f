"""Fixtures for the tests of single modules."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _pillows_limit() -> Iterator[None]:
    """Restore Pillow's limit of pixels, which decoding sets for the whole process."""
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def in_time() -> Iterator[None]:
    """Fail instead of hanging if something that blocks is opened."""

    def give_up(_number: int, _frame: object) -> None:
        raise AssertionError("opened something that blocks")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 5)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in tmp_path, so that sources can be named by relative paths."""
    monkeypatch.chdir(tmp_path)
