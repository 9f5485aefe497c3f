"""How often each fault is tried, and the table of what came of it. A pytest plugin.

    pytest tests/faults                                   the short counts, as `make test` runs them
    pytest tests/faults --soak --soak-report FILE.md      the long ones, and the table as a file: `make soak`

No failure in n independent trials bounds the rate of failures at about 3/n with 95 % confidence, so n stands
beside every result.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from tests.faults.checker import Verdict

_COLUMNS: Final = ("fault", "checks", "trials", "failed", "images", "lost", "doubled", "wrong", "rate below")


@dataclass
class Row:
    """What came of one fault."""

    fault: str
    #: The invariants of docs/explanation/guarantees.md that a trial checks.
    checks: str
    trials: int = 0
    failed: int = 0
    images: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    seconds: float = 0.0

    @property
    def bound(self) -> str:
        """With 95 % confidence it fails less often: the rule of three, good only where nothing failed."""
        return f"{min(1.0, 3 / self.trials):.1%}" if self.trials and not self.failed else "-"

    def cells(self) -> list[str]:
        counts = (self.trials, self.failed, self.images, self.lost, self.doubled, self.wrong)
        return [self.fault, self.checks, *(f"{count:,}" for count in counts), self.bound]


class Trials:
    """The trials of one test: how many there shall be, and how each ended."""

    def __init__(self, row: Row, wanted: int) -> None:
        self._row = row
        #: How often the fault shall happen.
        self.wanted = wanted
        self._silences: set[Callable[[], None]] = set()

    def ran(self, times: int, *verdicts: Verdict) -> None:
        """The fault happened so often, and this is what became of the jobs it happened to. Fails on the
        first thing that is wrong.
        """
        row = self._row
        row.trials += times
        self._silences |= {wait for verdict in verdicts if (wait := verdict.wait_for_silence)}
        for verdict in verdicts:
            row.images += verdict.images
            row.lost += verdict.lost
            row.doubled += verdict.doubled
            row.wrong += verdict.wrong
        for verdict in verdicts:
            assert verdict.clean, str(verdict)

    def end(self) -> None:
        """All trials are through: who says I5 has empty queues now."""
        if "I5" in self._row.checks:
            assert self._silences, "no queue was named that could be empty"
            for wait in self._silences:
                wait()


class Matrix:
    """All rows of this session."""

    def __init__(self, *, soak: bool) -> None:
        self.soak = soak
        self.rows: dict[str, Row] = {}
        self._began = time.monotonic()

    @contextlib.contextmanager
    def trials(self, fault: str, checks: str, *, short: int, long: int) -> Iterator[Trials]:
        """Around the trials of one fault: whatever is raised inside is a failed one."""
        row = self.rows.setdefault(fault, Row(fault, checks))
        began = time.monotonic()
        try:
            trials = Trials(row, long if self.soak else short)
            yield trials
            trials.end()
        except BaseException:
            row.failed += 1
            raise
        finally:
            row.seconds += time.monotonic() - began

    def add(self, row: Row) -> None:
        """What another process of this session has of a fault."""
        ours = self.rows.setdefault(row.fault, Row(row.fault, row.checks))
        for name in ("trials", "failed", "images", "lost", "doubled", "wrong", "seconds"):
            setattr(ours, name, getattr(ours, name) + getattr(row, name))

    def lines(self) -> list[list[str]]:
        """The table, its head first."""
        return [list(_COLUMNS), *(row.cells() for row in self.rows.values())]

    def markdown(self) -> str:
        """The table as a document."""
        rows = self.rows.values()
        head, *body = self.lines()
        table = [head, ["---", "---", *["---:"] * (len(head) - 2)], *body]
        memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        return "\n".join(
            [
                "# The fault suite's long run",
                "",
                "Written by `make soak`; docs/explanation/guarantees.md explains the faults.",
                "",
                f"- {datetime.now(UTC):%Y-%m-%d}, {(time.monotonic() - self._began) / 60:.0f} minutes",
                f"- {platform.system()} {platform.machine()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, "
                f"Python {platform.python_version()}",
                f"- {_sum(rows, 'trials')} faults: {_sum(rows, 'failed')} trials failed, "
                f"{_sum(rows, 'lost')} images lost, {_sum(rows, 'doubled')} doubled, "
                f"{_sum(rows, 'wrong')} wrong",
                "",
                *("| " + " | ".join(cells) + " |" for cells in table),
                "",
                "*Rate below*: no failure in n trials bounds the rate of failures at 3/n, with 95 % "
                "confidence.",
                "",
            ]
        )


def _sum(rows: Iterable[Row], count: str) -> str:
    return f"{sum(getattr(row, count) for row in rows):,}"


_MATRIX: Final = pytest.StashKey[Matrix]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption("--soak", action="store_true", help="run each fault's long count of trials")
    group.addoption("--soak-report", type=Path, metavar="FILE", help="write the faults' table as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_MATRIX] = Matrix(soak=config.getoption("--soak"))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where tests run in several processes, each sends what it has to the one that tells of it."""
    output: dict[str, object] | None = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["faults"] = [asdict(row) for row in session.config.stash[_MATRIX].rows.values()]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """One of the processes is through."""
    for row in getattr(node, "workeroutput", {}).get("faults", []):
        node.config.stash[_MATRIX].add(Row(**row))


@pytest.fixture(scope="session")
def matrix(pytestconfig: pytest.Config) -> Matrix:
    """Where trials are counted."""
    return pytestconfig.stash[_MATRIX]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    matrix = config.stash[_MATRIX]
    if not matrix.rows:
        return
    lines = matrix.lines()
    widths = [max(len(cells[column]) for cells in lines) for column in range(len(_COLUMNS))]
    terminalreporter.section("faults")
    for cells in lines:
        texts = (
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        terminalreporter.line("  ".join(texts).rstrip())
    if report := config.getoption("--soak-report"):
        report.write_text(matrix.markdown())
        terminalreporter.line(f"\nwritten to {report}")
