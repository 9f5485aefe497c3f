"""The messages if an optional dependency is missing."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PROJECT = Path(__file__).parents[2]


def test_every_extra_that_is_hinted_at_exists() -> None:
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    sources = [path for part in ("jobs", "labelmill", "producer") for path in (PROJECT / part).rglob("*.py")]
    calls = [
        call
        for path in sources
        for call in re.findall(r"install_hint\(((?:['\"]\w+['\"](?:, )?)+)(?:\*\w+)?\)", path.read_text())
    ]

    named = {name for call in calls for name in re.findall(r"\w+", call)}

    assert named <= set(extras)
    assert named >= {"worker", "local", "postgres", "parquet", "otel"}
