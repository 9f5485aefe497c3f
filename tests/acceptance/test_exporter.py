"""Real workers and the real exporter: what is watched is what happens.

The workers have the classifier of the fault tests, which starts in no time (`tests.faults.harness`).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest
import sqlalchemy as sa

from jobs.messages import CLASSIFY_QUEUE
from jobs.schema import chunks
from labelmill.server.exporter import MAX_CONNECTIONS
from tests.console import Home, folder_for_sockets, until
from tests.faults.harness import Harness
from tests.faults.pictures import pictures
from tests.scraping import exporter, scrape

IMAGES = 3_000
CHUNK_IMAGES = 100


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


def test_clients_that_send_half_a_request_keep_nobody_out(harness: Harness) -> None:
    with exporter(harness.settings) as port, ExitStack() as stack:
        # Given many connections, each with half a request
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(80)
        ]
        for client in clients:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
        # Then a scrape is answered, and all connections but the newest are closed
        scrape(port)
        for client in clients[: len(clients) - MAX_CONNECTIONS]:
            with suppress(ConnectionResetError):
                assert client.recv(1) == b""


# ---- Prometheus ---------------------------------------------------------------------------------------


def test_a_worker_is_ready_until_it_stops(harness: Harness) -> None:
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
