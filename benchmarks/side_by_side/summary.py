"""The results of the ways after some rounds: a table for people, JSON for programs."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import machine, spread, three, versions
from benchmarks.side_by_side.turns import Turn


@dataclass
class Summary:
    """The turns of one way so far."""

    name: str
    images: int
    start_seconds: list[float] = field(default_factory=list)
    work_seconds: list[float] = field(default_factory=list)

    def add(self, turn: Turn) -> None:
        """Add one turn."""
        self.start_seconds.append(turn.start)
        self.work_seconds.append(turn.work)

    @property
    def speeds(self) -> list[float]:
        """Images per second of each turn, warm."""
        return [self.images / seconds for seconds in self.work_seconds]

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "name": self.name,
            "images": self.images,
            "images_per_second": spread(self.speeds),
            "start_seconds": spread(self.start_seconds),
            "turns": [
                {"start": start, "work": work}
                for start, work in zip(self.start_seconds, self.work_seconds, strict=True)
            ],
        }


def print_summaries(summaries: list[Summary], console: Console) -> None:
    """Print one row per way: seconds from nothing to warm, then images per second.

    The first way is ours. The other rows end with how many times as fast it was, the median of the rounds.
    """
    ours = summaries[0]
    table = Table(title=f"PNG files to PostgreSQL rows, rounds: {len(ours.work_seconds)}")
    table.add_column("")
    for heading in ("images", "start, s", "images/s", "least", "most", "ours/its"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in summaries:
        faster = median(mine / theirs for mine, theirs in zip(ours.speeds, one.speeds, strict=True))
        table.add_row(
            one.name,
            f"{one.images:,}",
            f"{median(one.start_seconds):.1f}",
            *(f"{figure:,.0f}" for figure in three(one.speeds)),
            "" if one is ours else f"{faster:.2f}",
        )
    console.print(table)


def facts(summaries: list[Summary], others: dict[str, str]) -> dict[str, Any]:
    """Return the JSON file's content. `others`: the versions in the environment of the other ways."""
    return {
        "work": "side-by-side",
        "ways": [one.to_json() for one in summaries],
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "python": sys.version.split()[0],
        "packages": versions(),
        "packages_of_other_ways": others,
    }
