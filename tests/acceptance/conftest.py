"""The HTTP API of the stack, which is up for all of these tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.console import Home
from tests.serving import served


@pytest.fixture(scope="session")
def url(stack: Home, session_folder: Path) -> Iterator[str]:
    """Return the URL of the stack's API."""
    with served(stack, session_folder / "serve.log") as url:
        yield url
