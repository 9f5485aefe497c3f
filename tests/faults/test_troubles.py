"""Prove the table of troubles in docs/how-to/troubleshoot.md: five sources name each cause within a minute.

Each trouble is real. `test_disk_full.py` has the row of the full database.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest
import sqlalchemy as sa

from jobs.ids import new_id
from jobs.ledger.learning.models import find_champion
from jobs.ledger.learning.runs import request_run
from jobs.ledger.learning.schedules import set_schedule
from jobs.ledger.workers import BEAT, GONE_SECONDS
from jobs.messages import RETRAIN_QUEUE
from jobs.schema import db_now, training_runs, workers
from jobs.settings import Settings
from jobs.storage.registry import model_key
from labelmill.local.celery_commands import CELERY, beat_arguments
from labelmill.operations.readiness import Part, readiness
from tests.console import folder_for_sockets, until
from tests.faults.harness import Harness
from tests.faults.servers import FaultyPostgresql
from tests.faults.signs import Signs, missing_signs, scrape
from tests.secured import TlsBroker, TlsLedger
from tests.small_disk import small_disk
from tests.tls import tls_before
from worker.children import MANY_DEATHS

#: How long the sources have.
MINUTE: Final = 60.0

Trouble = Callable[["Deployment"], Iterator[None]]


class Deployment:
    """A worker, a trainer and beat on PostgreSQL, with a weekly schedule."""

    def __init__(self, harness: Harness, postgresql: FaultyPostgresql) -> None:
        self.harness = harness
        self.postgresql = postgresql
        self.worker = harness.workers[0]
        self.trainer = harness.add_worker("trainer", processes=1, queue=RETRAIN_QUEUE)
        self.beat = harness.add_process("beat", [*CELERY, *beat_arguments()])
        with harness.ledger.transaction() as connection:
            set_schedule(connection, "mnist", cron="0 3 * * 0", after_corrections=None, request={})
        self.wait_until_well()

    def wait_until_well(self) -> None:
        for part in (Part.WORKER, Part.TRAINER, Part.BEAT):
            until(lambda part=part: readiness(self.harness.settings, part).ready, f"{part} is ready")

    def execute(self, *statements: str) -> None:
        with self.harness.ledger.transaction() as connection:
            for statement in statements:
                connection.execute(sa.text(statement))

    def log_sizes(self) -> dict[Path, int]:
        """Return how many bytes each process has logged, by its file."""
        return {path: path.stat().st_size for path in self.harness.faults.glob("*.log")}

    def logged_since(self, sizes: dict[Path, int]) -> str:
        """Return what all processes have logged since then."""
        return "".join(path.read_bytes()[size:].decode() for path, size in sizes.items())


@pytest.fixture(scope="module")
def deployment(faulty_postgresql: FaultyPostgresql) -> Iterator[Deployment]:
    url = faulty_postgresql.create(f"troubles_{new_id()}")
    with folder_for_sockets() as folder, Harness(folder / "home", ledger_url=url) as harness:
        yield Deployment(harness, faulty_postgresql)


# ---- the troubles -------------------------------------------------------------------------------------


@contextmanager
def redis_down(deployment: Deployment) -> Iterator[None]:
    broker = deployment.harness.broker
    broker.retire(signal.SIGKILL)
    yield
    broker.start_again()
    deployment.harness.wait_for_broker()


@contextmanager
def postgresql_down(deployment: Deployment) -> Iterator[None]:
    deployment.postgresql.stop()
    yield
    deployment.postgresql.start()


@contextmanager
def store_full(deployment: Deployment) -> Iterator[None]:
    # Over the store's folder, with all its files
    folder = Path(str(deployment.harness.settings.store_folder))
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with small_disk(folder, megabytes=4) as disk:
        for name, data in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(data)
        disk.fill()
        yield


@contextmanager
def clock_wrong(deployment: Deployment) -> Iterator[None]:
    # PostgreSQL finds this function before its own
    database = sa.make_url(deployment.harness.url).database
    deployment.execute(
        "CREATE FUNCTION clock_timestamp() RETURNS timestamptz LANGUAGE sql "
        "AS 'SELECT pg_catalog.clock_timestamp() - interval ''5 minutes'''",
        f"ALTER DATABASE {database} SET search_path = public, pg_catalog",
    )
    yield
    deployment.execute(f"ALTER DATABASE {database} RESET search_path", "DROP FUNCTION public.clock_timestamp")


@contextmanager
def model_damaged(deployment: Deployment) -> Iterator[None]:
    # It matters when a process loads it, from the store: in a container nothing else survives a restart.
    harness = deployment.harness
    with harness.ledger.reading() as connection:
        champion = find_champion(connection)
    assert champion is not None
    file = Path(str(harness.settings.store_folder)) / model_key(champion.sha256)
    intact = file.read_bytes()
    file.write_bytes(intact[:-1])
    shutil.rmtree(harness.settings.cache_dir / "models", ignore_errors=True)
    _kill_children(deployment, 1)
    yield
    file.write_bytes(intact)
    _kill_children(deployment, 1)


@contextmanager
def trainer_gone(deployment: Deployment) -> Iterator[None]:
    with deployment.harness.ledger.transaction() as connection:
        run = new_id()
        deployment.trainer.retire(signal.SIGKILL)
        request_run(connection, run, recipe={})
    with _heartbeat_expired(deployment, RETRAIN_QUEUE):
        yield
    with deployment.harness.ledger.transaction() as connection:
        connection.execute(training_runs.delete().where(training_runs.c.id == run))
    deployment.trainer.start_again()


@contextmanager
def beat_gone(deployment: Deployment) -> Iterator[None]:
    deployment.beat.retire(signal.SIGKILL)
    with _heartbeat_expired(deployment, BEAT):
        yield
    deployment.beat.start_again()


@contextmanager
def processes_die(deployment: Deployment) -> Iterator[None]:
    _kill_children(deployment, MANY_DEATHS)
    yield
    # It would not be ready for minutes, and other tests may follow.
    deployment.worker.retire()
    deployment.worker.start_again()


def _kill_children(deployment: Deployment, times: int) -> None:
    """Kill both processes of the worker, and those that are started in their place."""
    killed: set[int] = set()

    def are_all_killed() -> bool:
        for child in set(deployment.worker.children()) - killed:
            os.kill(child, signal.SIGKILL)
            killed.add(child)
        return len(killed) >= 2 * times

    until(are_all_killed, f"both processes are killed {times} times")


@contextmanager
def _heartbeat_expired(deployment: Deployment, queue: str) -> Iterator[None]:
    """Make the last heartbeat of a killed process old, and forget it at the end."""
    is_its = workers.c.queue == queue
    with deployment.harness.ledger.transaction() as connection:
        connection.execute(workers.update().where(is_its).values(seen_at=db_now(-GONE_SECONDS - 1)))
    yield
    with deployment.harness.ledger.transaction() as connection:
        connection.execute(workers.delete().where(is_its))


@pytest.mark.parametrize(
    ("trouble", "part", "signs"),
    [
        (
            redis_down,
            Part.WORKER,
            Signs(
                health="the broker does not answer: Error .* connecting to",
                doctor="the broker cannot be used: Error|the embedded broker is not running",
                metrics=r"^labelmill_broker_up 0\.0$",
                firing="LabelmillBrokerAway",
                log="the broker cannot be reached, this worker waits",
            ),
        ),
        (
            postgresql_down,
            Part.WORKER,
            Signs(
                health="The ledger cannot be reached: connection .* failed",
                doctor="the ledger cannot be used: connection .* failed",
                metrics=r"^labelmill_ledger_up 0\.0$",
                firing="LabelmillLedgerAway",
                log="no heartbeat is sent, and reconciling waits: The ledger cannot be reached",
            ),
        ),
        (
            store_full,
            Part.WORKER,
            Signs(
                health="the store cannot be used: .*No space left on device",
                doctor="No space left on device",
                metrics=r'^labelmill_disk_free_bytes\{disk="store"\} 0\.0$',
                firing="LabelmillDiskFillsUp",
                log="the disk of the store is nearly full: 0 of 4 MiB are free",
            ),
        ),
        (
            clock_wrong,
            Part.BEAT,
            Signs(
                health="its clock is wrong, more than 30 s ahead of the database's",
                doctor=r"this machine's clock is (5 min|4 min 59) .*ahead of the database's",
                metrics=r'problem="clock",queue="labelmill.beat"\} 1\.0$',
                firing="LabelmillWorkerProblem",
                log="its clock is wrong, more than 30 s ahead of the database's",
            ),
        ),
        (
            model_damaged,
            Part.WORKER,
            Signs(
                health="the champion of dataset mnist was not loaded: .*its SHA-256 differs",
                doctor="has another SHA-256 than registered",
                metrics=r'problem="model",queue="labelmill.classify"\} 1\.0$',
                firing="LabelmillWorkerProblem",
                log="the champion of dataset mnist was not loaded: .*its SHA-256 differs",
            ),
        ),
        (
            trainer_gone,
            Part.TRAINER,
            Signs(
                health="and not since",
                doctor="no trainer is running, and training run",
                metrics=r'^labelmill_lost_workers\{queue="labelmill.retrain"\} 1\.0$',
                firing="LabelmillWorkersLost",
                log=r"\(labelmill.retrain\) has sent no heartbeat for 30 s",
            ),
        ),
        (
            beat_gone,
            Part.BEAT,
            Signs(
                health="and not since",
                doctor="beat is not running",
                metrics=r'^labelmill_lost_workers\{queue="labelmill.beat"\} 1\.0$',
                firing="LabelmillWorkersLost",
                log=r"\(labelmill.beat\) has sent no heartbeat for 30 s",
            ),
        ),
        (
            processes_die,
            Part.WORKER,
            Signs(
                health="its processes keep dying, killed by SIGKILL, perhaps for lack of memory",
                doctor="its processes keep dying, killed by SIGKILL, perhaps for lack of memory",
                metrics=r'problem="deaths",queue="labelmill.classify"\} 1\.0$',
                firing="LabelmillWorkerProblem",
                log="its processes keep dying, killed by SIGKILL, perhaps for lack of memory",
            ),
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_five_sources_name_the_cause(
    deployment: Deployment, tmp_path: Path, trouble: Trouble, part: Part, signs: Signs
) -> None:
    # Given a deployment that is well
    settings = deployment.harness.settings
    deployment.wait_until_well()
    before, sizes = scrape(settings), deployment.log_sizes()

    # When the trouble begins
    with trouble(deployment):  # nothing is raised here, so that it ends
        deadline = time.monotonic() + MINUTE
        while missing := missing_signs(
            signs, settings, part, before, tmp_path, deployment.logged_since(sizes)
        ):
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)

    # Then within a minute all five name it, and no alert names another
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize("service", ["broker", "ledger"])
def test_an_expired_certificate_is_named(
    tls_broker: TlsBroker, tls_ledger: TlsLedger, guest: sa.URL, tmp_path: Path, service: str
) -> None:
    # Given a broker and a ledger whose certificates are valid
    settings = Settings.load(home=tmp_path, broker_url=tls_broker.url(), ledger_url=tls_ledger.url())
    before = scrape(settings)

    # When one of them expires, Then health check, doctor, metrics and alert say so
    expired = tls_broker.certificates.server(days=-1)
    with ExitStack() as stack:
        if service == "broker":
            port = stack.enter_context(tls_before(tls_broker.socket, expired, "redis"))
            url = {"broker_url": replace(tls_broker, port=port).url()}
        else:
            socket = Path(str(guest.query["host"])) / ".s.PGSQL.5432"
            port = stack.enter_context(tls_before(socket, expired, "postgresql"))
            url = {"ledger_url": replace(tls_ledger, port=port).url()}
        signs = Signs(
            health="certificate verify failed: (certificate|it) has expired",
            doctor=f"the {service} cannot be used: .*certificate verify failed: (certificate|it) has expired",
            metrics=rf'^labelmill_certificate_valid_seconds\{{service="{service}"\}} -86',
            firing="LabelmillCertificateExpired",
        )
        now = settings.model_copy(update=url)
        assert not missing_signs(signs, now, Part.PRODUCER, before, tmp_path, "")
