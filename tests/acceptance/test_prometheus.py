"""Real workers, the real exporter, and a real Prometheus: what is watched is what happens.

The workers have the classifier of the fault tests, which starts in no time (`tests.faults.harness`).
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import sqlalchemy as sa

from jobs.ledger.counters import CounterName, totals
from jobs.ledger.workers import GONE_SECONDS
from jobs.messages import CLASSIFY_QUEUE
from jobs.schema import chunks
from tests.console import Home, folder_for_sockets, stop, until
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.programs import need_program
from tests.scraping import exporter, scrape

IMAGES = 3_000
CHUNK_IMAGES = 100

#: A scrape a second: a job of these tests takes some seconds.
CONFIGURATION = """
global: {scrape_interval: 1s, scrape_timeout: 1s}
scrape_configs:
  - job_name: labelmill
    static_configs: [{targets: ["127.0.0.1:PORT"]}]
"""


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A harness without a worker."""
    # A pace at which a job lasts for some scrapes.
    with (
        folder_for_sockets() as folder,
        Harness(folder / "home", workers=0, lease_seconds=10.0, FAULT_PACE_SECONDS="0.05") as harness,
    ):
        yield harness


def test_the_exporter_tells_a_job_as_it_goes(harness: Harness) -> None:
    # given a job that waits, and the exporter
    with exporter(harness.settings) as port:
        job = harness.submit(pictures(IMAGES), chunk_images=CHUNK_IMAGES)
        before = scrape(port)
        assert (before["pending_images"], before["claimed_images"]) == (IMAGES, 0)
        assert before.by("jobs") == {"running": 1}
        assert before.by("workers") == {}

        # when a worker comes, then it is seen, and images go from waiting to done
        harness.add_worker("worker")
        until(lambda: scrape(port).by("worker_processes") == {CLASSIFY_QUEUE: 2}, "the worker is seen")
        seen = []
        while not harness.is_over(job):
            seen.append(scrape(port))
        after = scrape(port)
    assert any(now["claimed_chunks"] for now in seen)
    done = [now.by("images_total").get("ok", 0) for now in seen]
    assert done == sorted(done)
    assert all(now["pending_images"] >= 0 for now in seen)

    # and in the end each image is counted once, and its time, by stage
    assert after.by("images_total") == {"ok": IMAGES}
    # A chunk that was cut has become several.
    with harness.ledger.reading() as connection:
        done_chunks = connection.scalar(sa.select(sa.func.count()).where(chunks.c.job_id == job))
    assert after.by("attempts_total")["done"] == done_chunks == after["chunk_seconds_count"]
    assert done_chunks >= IMAGES / CHUNK_IMAGES
    assert (after["pending_images"], after["claimed_images"]) == (0, 0)
    stages = after.by("chunk_stage_seconds_total")
    assert set(stages) == {"claim", "read", "fetch", "load", "decode", "predict", "record"}
    # The parts are the whole, but for what is between them.
    assert 0.9 * after["chunk_seconds_sum"] < sum(stages.values()) <= after["chunk_seconds_sum"]
    # Each batch of 16 waits for a twentieth of a second.
    assert stages["predict"] >= IMAGES / 16 * 0.05


def test_messages_that_come_twice_count_once(harness: Harness) -> None:
    # given a job whose every message is there three times
    job = harness.submit(pictures(200), chunk_images=20)
    with harness.redis() as client:
        key = f"labelmill:{CLASSIFY_QUEUE}"
        messages: Any = client.lrange(key, 0, -1)
        client.lpush(key, *messages, *messages)

    # when workers go through them
    harness.add_worker("worker")
    harness.wait(job)
    harness.wait_for_silence()

    # then each image is counted once
    with harness.ledger.reading() as connection:
        counted = totals(connection)
    assert counted[CounterName.IMAGES, "ok"] == 200
    assert counted[CounterName.ATTEMPTS, "done"] == 10
    assert counted[CounterName.JOBS, "done"] == 1


def test_a_worker_is_ready_until_it_stops_or_is_killed(harness: Harness) -> None:
    # given a worker
    home = Home(harness.settings.home)
    assert home.run("ready", "worker").returncode == 1
    worker = harness.add_worker("worker")
    until(lambda: home.run("ready", "worker").returncode == 0, "the worker is ready")
    [listed] = home.json("workers")
    assert (listed["processes"], listed["alive"], listed["queue"]) == (2, True, CLASSIFY_QUEUE)
    assert home.ok("ready", "producer") == "ready: ledger and broker answer\n"

    # when it is told to stop, then it is gone at once
    assert harness.remove_worker(worker) == 0
    done = home.run("ready", "worker")
    assert done.returncode == 1
    assert done.stdout.startswith("not ready: no worker on this host")
    assert home.json("workers") == []

    # and when one is killed, in a while
    worker = harness.add_worker("worker")
    until(lambda: home.run("ready", "worker").returncode == 0, "the second worker is ready")
    harness.remove_worker(worker, signal.SIGKILL)
    until(lambda: home.run("ready", "worker").returncode == 1, "it is not ready", seconds=GONE_SECONDS + 60)
    assert "and not since" in home.run("ready", "worker").stdout
    assert "gone" in home.ok("workers")


# ---- Prometheus ---------------------------------------------------------------------------------------


@pytest.fixture
def prometheus() -> str:
    """The program."""
    return need_program("prometheus", package="prometheus")


class Prometheus:
    """A server that runs."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"

    def is_up(self) -> bool:
        try:
            with urlopen(f"{self._url}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def ask(self, query: str) -> list[float]:
        """The values of an instant query, or all of those of a range."""
        with urlopen(f"{self._url}/api/v1/query?{urlencode({'query': query})}", timeout=10) as answer:
            result = json.load(answer)["data"]["result"]
        return [
            float(value)
            for series in result
            for _, value in (series["values"] if "values" in series else [series["value"]])
        ]


@contextmanager
def _running(program: str, folder: Path, exporter_port: int) -> Iterator[Prometheus]:
    configuration = folder / "prometheus.yml"
    configuration.write_text(CONFIGURATION.replace("PORT", str(exporter_port)))
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={configuration}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        server = Prometheus(port)
        until(server.is_up, "Prometheus is up", seconds=60)
        yield server
    finally:
        stop(process, seconds=60)


def test_prometheus_sees_the_backlog_rise_and_fall(harness: Harness, prometheus: str, tmp_path: Path) -> None:
    # given Prometheus, which scrapes an idle harness
    with (
        exporter(harness.settings) as port,
        _running(prometheus, tmp_path, port) as server,
    ):
        until(lambda: server.ask("labelmill_ledger_up") == [1], "the harness is scraped")
        assert server.ask("labelmill_pending_images") == [0]

        # when a job is submitted, then its images are seen to wait
        job = harness.submit(pictures(IMAGES), chunk_images=CHUNK_IMAGES)
        until(lambda: server.ask("labelmill_pending_images") == [IMAGES], "the backlog has risen")

        # and when a worker comes, they are seen to go
        harness.add_worker("worker")
        harness.wait(job)
        until(lambda: server.ask("labelmill_pending_images") == [0], "the backlog has fallen")
        until(
            lambda: server.ask('labelmill_images_total{outcome="ok"}') == [IMAGES], "all images are counted"
        )

        # not all at once, at a rate that can be asked for, and all of the time both services were there
        backlog = server.ask("labelmill_pending_images[10m]")
        assert any(0 < waiting < IMAGES for waiting in backlog)
        assert max(server.ask("sum(max_over_time(rate(labelmill_images_total[5s])[10m:1s]))")) > 0
        assert server.ask("min_over_time(labelmill_ledger_up[10m])") == [1]
        assert server.ask("min_over_time(labelmill_broker_up[10m])") == [1]
