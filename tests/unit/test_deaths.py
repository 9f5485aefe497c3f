"""A worker knows what its processes keep dying of."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker import children
from worker.children import MANY_DEATHS, Deaths, death_name


def test_a_death_has_the_name_of_its_signal() -> None:
    assert [death_name(code) for code in (-9, -11, -15, 1, -64)] == [
        *("SIGKILL", "SIGSEGV", "SIGTERM", "other", "other"),
    ]


@pytest.mark.parametrize("text", ["high 0\noom_kill {}\n", "under_oom 0\noom_kill {}\n"], ids=["2", "1"])
def test_the_kernel_says_whether_memory_was_short(tmp_path: Path, text: str) -> None:
    # Given a control group in which a process was killed before
    file = tmp_path / "memory.events"
    file.write_text(text.format(1))
    found = Deaths([tmp_path / "none", file])

    # When processes are killed, then memory is the cause only if the kernel has counted more
    found.add([-9] * MANY_DEATHS)
    assert "perhaps for lack of memory" in str(found.problem())
    # When the kernel has counted two kills, then memory is the cause of both deaths, and of no other
    file.write_text(text.format(3))
    for _ in range(2):
        found.add([-9])
        assert "killed for lack of memory" in str(found.problem())
    found.add([-9])
    assert "perhaps for lack of memory" in str(found.problem())
    found.add([-11])
    assert "the latest of SIGSEGV" in str(found.problem())


def test_some_deaths_are_no_problem_and_many_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(children.time, "monotonic", lambda: now)
    found = Deaths([])
    found.add([-11] * (MANY_DEATHS - 1))
    assert found.problem() is None
    found.add([-11])
    assert "SIGSEGV" in str(found.problem())
    now = children.DEATHS_SECONDS + 1
    found.add([])
    assert found.problem() is None
