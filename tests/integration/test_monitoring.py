"""The alerts and the dashboard for Prometheus and Grafana use only metrics that exist."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

from labelmill.operations.metric_families import METRICS, PREFIX, exported_name
from tests.programs import need_program

PROJECT: Final = Path(__file__).parents[2]
METRICS_PAGE: Final = PROJECT / "docs" / "reference" / "metrics.md"
MONITORING: Final = PROJECT / "deploy" / "monitoring"
ALERTS: Final = (MONITORING / "alerts.yml").read_text()
DASHBOARD: Final[dict[str, Any]] = json.loads(
    (MONITORING / "grafana" / "dashboards" / "labelmill.json").read_text()
)
QUERIES: Final = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
NAME: Final = re.compile(r"labelmill_\w+")


def documented() -> set[str]:
    """Return the name of every metric, as Prometheus shows it."""
    names = {exported_name(name) for name in METRICS} | {f"{PREFIX}api_request_seconds"}
    histograms = (f"{PREFIX}chunk_seconds", f"{PREFIX}api_request_seconds")
    return names | {name + part for name in histograms for part in ("_bucket", "_count")}


def test_the_dashboard_and_the_alerts_ask_for_what_there_is() -> None:
    asked = {name for text in (ALERTS, *QUERIES) for name in NAME.findall(text)}
    assert asked <= documented()
    # and the dashboard shows the main metrics of the work
    seen = {name for query in QUERIES for name in NAME.findall(query)}
    assert {"labelmill_pending_images", "labelmill_images_total", "labelmill_workers"} <= seen


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    # The reference is made from these texts.
    [group] = yaml.safe_load(ALERTS)["groups"]
    assert len(group["rules"]) > 10
    for each in group["rules"]:
        assert sorted(each["annotations"]) == ["description", "summary"], each["alert"]


def test_prometheus_takes_the_configuration_with_the_alerts_that_it_names() -> None:
    run_promtool("check", "config", str(MONITORING / "prometheus.yml"))


def run_promtool(*arguments: str) -> None:
    promtool = need_program("promtool", package="prometheus")
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


#: A healthy installation's scrapes: two hours, one per minute, in promtool's notation.
WELL: Final = {
    "labelmill_ledger_up": "1x120",
    "labelmill_broker_up": "1x120",
    "labelmill_pending_images": "500x120",
    "labelmill_pending_chunk_oldest_age_seconds": "20x120",
    "labelmill_held_images": "0x120",
    "labelmill_claimed_images": "200x120",
    'labelmill_jobs{state="running"}': "1x120",
    'labelmill_images_total{outcome="ok"}': "0+600x120",
    'labelmill_images_total{outcome="unidentified"}': "0+1x120",
    'labelmill_attempts_total{end="done"}': "0+2x120",
    'labelmill_attempts_total{end="crashed"}': "0x120",
    'labelmill_attempts_total{end="expired"}': "0x120",
    'labelmill_training_runs_total{state="failed"}': "0x120",
    'labelmill_chunk_seconds_bucket{le="1.0"}': "0+1x120",
    'labelmill_chunk_seconds_bucket{le="+Inf"}': "0+2x120",
    'labelmill_chunk_stage_seconds_total{stage="decode"}': "0+1x120",
    'labelmill_api_request_seconds_count{status="2xx"}': "0+100x120",
    'labelmill_api_request_seconds_count{status="5xx"}': "0x120",
    'labelmill_api_request_seconds_bucket{le="1.0"}': "0+99x120",
    'labelmill_api_request_seconds_bucket{le="2.5"}': "0+100x120",
    'labelmill_api_request_seconds_bucket{le="+Inf"}': "0+100x120",
    "labelmill_champion_accuracy_ratio": "0.98x120",
    "labelmill_champion_live_accuracy_ratio": "0.97x120",
    "labelmill_champion_corrections": "200x120",
    'labelmill_workers{queue="labelmill.classify"}': "2x120",
    'labelmill_workers{queue="labelmill.retrain"}': "1x120",
    'labelmill_worker_processes{queue="labelmill.classify"}': "8x120",
    'labelmill_workers{queue="labelmill.beat"}': "1x120",
    'labelmill_worker_problems{queue="labelmill.classify",problem="memory"}': "0x120",
    'labelmill_lost_workers{queue="labelmill.beat"}': "0x120",
    'labelmill_lost_workers{queue="labelmill.classify"}': "1x120",  # it was replaced
    'labelmill_schedule_overdue_seconds{dataset="mnist"}': "0x120",
    'labelmill_certificate_valid_seconds{service="ledger"}': "5000000x120",
    "labelmill_pending_training_runs": "0x120",
    'labelmill_child_deaths_total{signal="SIGKILL"}': "0x120",
    'labelmill_jobs_finished_total{state="failed"}': "0x120",
    'labelmill_webhook_attempts_total{result="retried"}': "0x120",
    'labelmill_disk_free_bytes{disk="store"}': "50x120",
    'labelmill_disk_bytes{disk="store"}': "100x120",
    'labelmill_broker_messages{queue="labelmill.classify"}': "3x120",
    "labelmill_broker_memory_bytes": "20x120",
    "labelmill_broker_memory_max_bytes": "100x120",
    "labelmill_broker_evicted_keys_total": "0x120",
}

#: For each alert: the changes that make it fire, and similar changes that must not.
NO_WORKER: Final = {'labelmill_workers{queue="labelmill.classify"}': "0x120"}
NO_OUTCOMES: Final = {
    'labelmill_images_total{outcome="ok"}': "600x120",
    'labelmill_images_total{outcome="unidentified"}': "1x120",
}
NOTHING_WAITS: Final = {"labelmill_pending_images": "0x120"}
RUN_WAITS: Final = {"labelmill_pending_training_runs": "1x120"}
BEAT_DIED: Final = {
    'labelmill_workers{queue="labelmill.beat"}': "1x99 0x20",
    'labelmill_lost_workers{queue="labelmill.beat"}': "0x99 1x20",
}
OFTEN_CORRECTED: Final = {"labelmill_champion_live_accuracy_ratio": "0.5x120"}
CASES: Final[dict[str, tuple[dict[str, str | None], dict[str, str | None]]]] = {
    "LabelmillMetricsAway": ({"labelmill_ledger_up": None}, {"labelmill_ledger_up": "0x120"}),
    "LabelmillLedgerAway": ({"labelmill_ledger_up": "0x120"}, {"labelmill_ledger_up": "1x98 0 1x20"}),
    "LabelmillBrokerAway": ({"labelmill_broker_up": "0x120"}, {"labelmill_broker_up": "1x98 0 1x20"}),
    "LabelmillNoWorker": ({**NO_WORKER}, {**NO_WORKER, **NOTHING_WAITS}),
    "LabelmillWorkerProblem": (
        {'labelmill_worker_problems{queue="labelmill.classify",problem="memory"}': "1x120"},
        {'labelmill_worker_problems{queue="labelmill.classify",problem="memory"}': "0x98 1 0x20"},
    ),
    "LabelmillWorkersLost": (
        {**BEAT_DIED},
        {**BEAT_DIED, "labelmill_ledger_up": "1x98 0 1x20"},
    ),
    "LabelmillNoTrainer": (
        {**RUN_WAITS, 'labelmill_workers{queue="labelmill.retrain"}': "0x120"},
        {**RUN_WAITS},
    ),
    "LabelmillNoBeat": (
        {'labelmill_workers{queue="labelmill.beat"}': "0x120"},
        {'labelmill_workers{queue="labelmill.beat"}': "1x95 0x5 1x20"},
    ),
    "LabelmillScheduleOverdue": (
        {'labelmill_schedule_overdue_seconds{dataset="mnist"}': "0x93 0+60x20"},
        {'labelmill_schedule_overdue_seconds{dataset="mnist"}': "0x94 0+60x20"},
    ),
    "LabelmillBacklogStandsStill": ({**NO_OUTCOMES}, {**NO_OUTCOMES, **NOTHING_WAITS}),
    "LabelmillBacklogIsOld": (
        {"labelmill_pending_chunk_oldest_age_seconds": "3700x120"},
        {"labelmill_pending_chunk_oldest_age_seconds": "3500x120"},
    ),
    "LabelmillChunksCrash": (
        {'labelmill_attempts_total{end="crashed"}': "0+1x120"},
        {'labelmill_attempts_total{end="crashed"}': "0+0.5x120"},
    ),
    "LabelmillProcessesDie": (
        {'labelmill_child_deaths_total{signal="SIGKILL"}': "0+1x120"},
        {'labelmill_child_deaths_total{signal="SIGKILL"}': "0+0.5x120"},
    ),
    "LabelmillJobFails": (
        {'labelmill_jobs_finished_total{state="failed"}': "0x60 1x60"},
        {'labelmill_jobs_finished_total{state="failed"}': "1x120"},
    ),
    "LabelmillManyErrors": (
        {'labelmill_images_total{outcome="unidentified"}': "0+60x120"},
        {'labelmill_images_total{outcome="unidentified"}': "0+20x120"},
    ),
    "LabelmillDiskFillsUp": (
        {'labelmill_disk_free_bytes{disk="store"}': "9x120"},
        # a large disk, of which less than a tenth is free, but many gigabytes
        {
            'labelmill_disk_free_bytes{disk="store"}': "11000000000x120",
            'labelmill_disk_bytes{disk="store"}': "1000000000000x120",
        },
    ),
    "LabelmillCertificateExpired": (
        {'labelmill_certificate_valid_seconds{service="ledger"}': "-10x120"},
        {'labelmill_certificate_valid_seconds{service="ledger"}': "10x120"},
    ),
    "LabelmillCertificateExpires": (
        {'labelmill_certificate_valid_seconds{service="ledger"}': "1200000x120"},
        {'labelmill_certificate_valid_seconds{service="ledger"}': "1300000x120"},
    ),
    "LabelmillBrokerIsFull": (
        {"labelmill_broker_memory_bytes": "95x120"},
        {"labelmill_broker_memory_bytes": "95x120", "labelmill_broker_memory_max_bytes": "0x120"},
    ),
    "LabelmillBrokerForgets": (
        {"labelmill_broker_evicted_keys_total": "0+1x120"},
        {"labelmill_broker_evicted_keys_total": "7x120"},
    ),
    "LabelmillTrainingFails": (
        {'labelmill_training_runs_total{state="failed"}': "0x60 1x60"},
        {'labelmill_training_runs_total{state="failed"}': "1x120"},
    ),
    "LabelmillWebhooksFail": (
        {'labelmill_webhook_attempts_total{result="retried"}': "0+1x120"},
        {'labelmill_webhook_attempts_total{result="retried"}': "0+0.3x120"},
    ),
    "LabelmillApiFails": (
        {'labelmill_api_request_seconds_count{status="5xx"}': "0+10x120"},
        {'labelmill_api_request_seconds_count{status="5xx"}': "0+4x120"},
    ),
    "LabelmillApiIsSlow": (
        {'labelmill_api_request_seconds_bucket{le="1.0"}': "0+40x120"},
        {'labelmill_api_request_seconds_bucket{le="1.0"}': "0+60x120"},
    ),
    "LabelmillModelIsOftenWrong": (
        {**OFTEN_CORRECTED},
        {**OFTEN_CORRECTED, "labelmill_champion_corrections": "99x120"},
    ),
}


def scrape_of(changes: dict[str, str | None]) -> list[dict[str, str]]:
    """Return the series as Prometheus stores them, with the labels that a scrape adds."""
    series = []
    for name, values in (WELL | changes).items():
        metric, _, labels = name.removesuffix("}").partition("{")
        scraped = ",".join(filter(None, ['instance="metrics:9187"', 'job="labelmill"', labels]))
        if values is not None:
            series.append({"series": f"{metric}{{{scraped}}}", "values": values})
    return series


def story(changes: dict[str, str | None], *expected: tuple[str, bool]) -> dict[str, Any]:
    """Return a promtool test that says for each query whether it returns anything after 100 minutes."""
    return {
        "interval": "1m",
        "input_series": scrape_of(changes),
        "promql_expr_test": [
            {
                "expr": f"count({query}) > bool 0",
                "eval_time": "100m",
                "exp_samples": [{"labels": "{}", "value": 1}] if found else [],
            }
            for query, found in expected
        ],
    }


def goes_off(alert: str) -> str:
    return f'ALERTS{{alertname="{alert}",alertstate="firing"}}'


def run_stories(tmp_path: Path, *stories: dict[str, Any]) -> None:
    path = tmp_path / "stories.yml"
    told = {"rule_files": [str(MONITORING / "alerts.yml")], "evaluation_interval": "1m", "tests": stories}
    path.write_text(json.dumps(told))
    run_promtool("test", "rules", str(path))


def test_every_alert_goes_off_where_it_should_and_only_there(tmp_path: Path) -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS)
    assert list(CASES) == alerts
    assert {NAME.findall(series)[0] for series in WELL} <= documented()
    run_stories(
        tmp_path,
        story({}, *((goes_off(alert), False) for alert in alerts)),
        *(story(trouble, (goes_off(alert), True)) for alert, (trouble, _) in CASES.items()),
        *(story(harmless, (goes_off(alert), False)) for alert, (_, harmless) in CASES.items()),
    )


def test_every_query_of_the_document_and_the_dashboard_has_an_answer(tmp_path: Path) -> None:
    table = METRICS_PAGE.read_text().partition("## Queries")[2].partition("## ")[0]
    queries = [
        query.replace("\\|", "|") for query in re.findall(r"^\| .* \| `(.*)` \|$", table, re.MULTILINE)
    ]
    assert len(queries) >= 6
    # >= 0 is false for NaN, the quotient of two zeros
    run_stories(tmp_path, story({}, *((f"({query}) >= 0", True) for query in queries + QUERIES)))
