"""Compare what health check, doctor, metrics, alerts and log say about a trouble.

The alerts are those that Prometheus would derive: `promtool` gets the exporter's scrapes.
"""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobs.settings import Settings
from labelmill.operations.doctor import Level, examine
from labelmill.operations.metrics import LabelmillCollector
from labelmill.operations.readiness import Part, readiness
from tests.faults.harness import PROJECT
from tests.programs import need_program
from tests.scraping import Scrape, collected

ALERTS: Final = PROJECT / "deploy" / "monitoring" / "alerts.yml"

#: Seconds between two scrapes and two evaluations, as in deploy/monitoring/prometheus.yml.
SCRAPE_SECONDS: Final = 15

#: Scrapes before the trouble, and in the minute after it.
BEFORE: Final = 40
AFTER: Final = 60 // SCRAPE_SECONDS


@dataclass(frozen=True)
class Signs:
    """What each source says about a trouble within a minute."""

    health: str  # a pattern in the reason of the health check; empty: it is not asked
    doctor: str  # a pattern in a finding that is not ok
    metrics: str  # a pattern in a line of the scrape
    firing: str  # the alert that fires; no other critical one does
    log: str = ""  # a pattern in the log


def scrape(settings: Settings) -> Scrape:
    """Return what the exporter says."""
    return collected(LabelmillCollector(settings))


def missing_signs(
    signs: Signs, settings: Settings, part: Part, before: Scrape, folder: Path, log: str
) -> list[str]:
    """Return which sources do not name the cause, with what they say instead."""
    health = readiness(settings, part)
    findings = [each for found in examine(settings).values() for each in found if each.level != Level.OK]
    now = scrape(settings)
    found = {
        "health": not signs.health or (not health.ready and re.search(signs.health, health.reason)),
        "doctor": any(re.search(signs.doctor, each.what) for each in findings),
        "metrics": re.search(signs.metrics, now.text, re.MULTILINE),
        "log": re.search(signs.log, log),
    }
    said = {"health": health.reason, "doctor": str(findings), "metrics": now.text, "log": log}
    missing = [f"{source}: {said[source]}" for source, is_there in found.items() if not is_there]
    return missing or _wrong_alerts(signs, before, now, folder)


def _wrong_alerts(signs: Signs, before: Scrape, now: Scrape, folder: Path) -> list[str]:
    """Return which alerts are wrong after scrapes like `before`, and then a minute of those like `now`."""
    expected = [
        (f'ALERTS{{alertname="{signs.firing}",alertstate="firing"}}', True),
        (f'ALERTS{{severity="critical",alertstate="firing",alertname!="{signs.firing}"}}', False),
    ]
    path = folder / "alerts.json"
    tests = {
        "interval": f"{SCRAPE_SECONDS}s",
        "input_series": _series(before, now),
        "promql_expr_test": [
            {
                "expr": f"count({query}) > bool 0",
                "eval_time": f"{(BEFORE + AFTER) * SCRAPE_SECONDS}s",
                "exp_samples": [{"labels": "{}", "value": 1}] if is_there else [],
            }
            for query, is_there in expected
        ],
    }
    told = {
        "rule_files": [str(ALERTS)],
        "evaluation_interval": f"{SCRAPE_SECONDS}s",
        "tests": [tests],
    }
    path.write_text(json.dumps(told))
    promtool = need_program("promtool", package="prometheus")
    done = subprocess.run([promtool, "test", "rules", path], capture_output=True, text=True, timeout=60)
    return [] if done.returncode == 0 else [f"alerts: {done.stdout}{done.stderr}"]


def _series(before: Scrape, now: Scrape) -> list[dict[str, Any]]:
    """Return each series with its values, in promtool's notation: `_` where there is none."""
    of_before, of_now = _values(before), _values(now)
    series = []
    for name in sorted(of_before | of_now):
        first = f"{of_before[name]}x{BEFORE}" if name in of_before else f"_x{BEFORE + 1}"
        then = f"{of_now[name]}x{AFTER - 1}" if name in of_now else f"stale _x{AFTER - 1}"
        series.append({"series": name, "values": f"{first} {then}"})
    return series


def _values(found: Scrape) -> dict[str, float]:
    values = {}
    for family in found.families:
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            values[f"{sample.name}{{{labels}}}"] = sample.value
    return values
