"""What Prometheus and Grafana are given: alerts and a dashboard that ask for metrics which exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.programs import need_program

PROJECT: Final = Path(__file__).parents[2]
MONITORING: Final = PROJECT / "deploy" / "monitoring"
ALERTS: Final = (MONITORING / "alerts.yml").read_text()
DASHBOARD: Final[dict[str, Any]] = json.loads(
    (MONITORING / "grafana" / "dashboards" / "labelmill.json").read_text()
)
QUERIES: Final = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME: Final = re.compile(r"labelmill_\w+")


def documented() -> set[str]:
    """Every metric of docs/metrics.md, which the exporter's own tests hold to what it says."""
    names = set(
        re.findall(r"^\| `(labelmill_\w+)`", (PROJECT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    )
    assert names
    return names | {"labelmill_chunk_seconds_bucket"}


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    asked = {name for text in (ALERTS, *QUERIES) for name in NAME.findall(text)}
    assert asked <= documented()
    # and the dashboard leaves nothing of the work unseen
    seen = {name for query in QUERIES for name in NAME.findall(query)}
    assert {"labelmill_pending_images", "labelmill_images_total", "labelmill_workers"} <= seen


def test_the_queues_that_are_asked_for_exist() -> None:
    from jobs.queue import CLASSIFY_QUEUE, RETRAIN_QUEUE

    for text in (ALERTS, *QUERIES):
        for queue in re.findall(r'queue="([^"]*)"', text):
            assert queue in (CLASSIFY_QUEUE, RETRAIN_QUEUE)


def test_every_alert_is_told_of() -> None:
    operations = (PROJECT / "docs" / "operations.md").read_text()
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert len(alerts) > 10
    for alert in alerts:
        assert f"| `{alert}` |" in operations, alert


def test_prometheus_takes_the_configuration(tmp_path: Path) -> None:
    promtool = need_program("promtool", package="prometheus")
    # its own checks, of the configuration with the alerts that it names
    check(promtool, "config", MONITORING / "prometheus.yml")
    # and of each query of the dashboard, as a rule
    rules = [{"record": f"dashboard:query:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    check(promtool, "rules", path)

    # a query that is none is noticed
    path.write_text(path.read_text().replace("sum(rate(", "sum(rate((", 1))
    with pytest.raises(AssertionError):
        check(promtool, "rules", path)


def check(promtool: str, what: str, path: Path) -> None:
    done = subprocess.run([promtool, "check", what, str(path)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def test_panels_stand_beside_each_other() -> None:
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
