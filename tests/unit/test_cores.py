"""The number of usable cores: the machine's, or those that a container may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobs import cores
from jobs.settings import Settings


@pytest.mark.parametrize(
    ("limit", "there_are"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # a part of a core counts as a whole one
        ("10000 100000", 1),
        ("1600000 100000", 8),  # more than the machine has
        ("", 8),
        (None, 8),  # no container
    ],
)
def test_a_containers_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, there_are: int
) -> None:
    # Given eight cores that this process may run on, and a container's limit as Linux reports it
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    if limit is not None:
        (tmp_path / "cpu.max").write_text(f"{limit}\n")
    monkeypatch.setattr(cores, "_CONTAINER_CORES", tmp_path / "cpu.max")

    # Then as many processes classify, unless a setting says otherwise
    assert cores.usable_cores() == there_are
    assert Settings().processes == there_are
