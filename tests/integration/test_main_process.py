"""A worker's main process where the ledger is away: it says so, and goes on with what else it has to do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery import Celery

from jobs.errors import ErrorCode, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.runs import claim_run, get_run, request_run
from jobs.ledger.workers import list_workers
from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, RETRAIN_QUEUE
from jobs.queue import Publisher
from jobs.schema import ChunkState, RunState, chunks, db_now
from jobs.settings import Settings
from tests.conftest import Broker, Job, JobMaker, WorkerMaker
from worker.context import owner_name
from worker.reconcile import reconcile_step
from worker.requests import ChunkRequest
from worker.tasks import register_tasks


@contextlib.contextmanager
def away() -> Iterator[None]:
    """The ledger is out of reach in here."""

    @contextlib.contextmanager
    def transaction(_ledger: Ledger, **_: object) -> Iterator[None]:
        raise Unavailable("The ledger cannot be reached")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "transaction", transaction)
        yield


# ---- a child dies -----------------------------------------------------------------------------------------


@pytest.fixture
def take(app: Celery, settings: Settings, publisher: Publisher) -> Iterator[Callable[[str], ChunkRequest]]:
    """`take(chunk_id)`: the chunk's message, as the main process has it."""
    register_tasks(app, settings)
    with app.connection_for_read() as connection, connection.channel() as channel:
        got: list[Any] = []
        with app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append):

            def take(chunk_id: str) -> ChunkRequest:
                assert publisher.ring([chunk_id]) == 1
                connection.drain_events(timeout=30)
                message = got.pop()
                return ChunkRequest(
                    message,
                    app=app,
                    hostname="here",
                    task=app.tasks[CLASSIFY_TASK],
                    on_ack=message.ack_log_error,
                    on_reject=message.reject_log_error,
                )

            yield take


def its_process_died(request: ChunkRequest) -> None:
    try:
        raise WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 3.")
    except WorkerLostError:
        request.on_failure(ExceptionInfo())


def row_of(ledger: Ledger, job: Job) -> Any:
    with ledger.reading() as connection:
        return connection.execute(sa.select(chunks).where(chunks.c.job_id == job.id)).one()


def test_a_child_that_dies_while_the_ledger_is_away_leaves_its_lease_and_its_message(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    broker: Broker,
    take: Callable[[str], ChunkRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # Given a child that has a message and a claim
    job = make_job([3])
    new_worker(owner_name(4_711)).must_claim(job.chunks[0])
    request = take(job.chunks[0].id)
    request.worker_pid = 4_711
    assert broker.waiting() == 0

    # When it dies, and that cannot be written down
    with away():
        its_process_died(request)

    # Then the message is back, and who finds the chunk when its lease has run out knows that it was a crash
    assert "has to run out by itself: The ledger cannot be reached" in caplog.text
    assert broker.waiting() == 1
    assert (row_of(ledger, job).state, row_of(ledger, job).crashes) == (ChunkState.CLAIMED, 0)
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(lease_until=db_now(-1)))
    assert new_worker("another").must_claim(job.chunks[0]).crashes == 1


@pytest.mark.parametrize("pid", [None, 4_711])
def test_a_child_that_dies_is_buried_where_it_had_begun(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    broker: Broker,
    take: Callable[[str], ChunkRequest],
    pid: int | None,
) -> None:
    # Given a message whose child has claimed its chunk, or had not said that it has the message
    job = make_job([3])
    new_worker(owner_name(4_711)).must_claim(job.chunks[0])
    request = take(job.chunks[0].id)
    request.worker_pid = pid

    # When it dies, Then its claim is over where it is known whose it was
    its_process_died(request)
    assert broker.waiting() == 1
    row = row_of(ledger, job)
    if pid is None:
        assert row.state == ChunkState.CLAIMED
    else:
        assert (row.state, row.crashes, row.crash_code) == (ChunkState.PENDING, 1, ErrorCode.QUARANTINED)
        assert row.error == "its process died: signal 9 (SIGKILL)"


@pytest.mark.parametrize("is_away", [True, False])
def test_a_child_that_hangs_is_killed_whether_the_ledger_is_there_or_not(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    take: Callable[[str], ChunkRequest],
    is_away: bool,
) -> None:
    # Given a child that hangs with a claim
    job = make_job([3])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        new_worker(owner_name(child.pid)).must_claim(job.chunks[0])
        request = take(job.chunks[0].id)
        request.worker_pid = child.pid

        # When its time is up, Then it is dead
        with away() if is_away else contextlib.nullcontext():
            request.on_timeout(soft=False, timeout=51)
        assert child.wait(30) == -9
    finally:
        child.kill()
        child.wait()

    # And its claim is over, or will be
    row = row_of(ledger, job)
    if is_away:
        assert row.state == ChunkState.CLAIMED
    else:
        assert (row.state, row.crashes, row.crash_code) == (ChunkState.PENDING, 1, ErrorCode.TIMEOUT)


# ---- the timer --------------------------------------------------------------------------------------------


class Main(SimpleNamespace):
    """Of a worker's main process what its reconciler asks for. Its timer has rung when the test says so."""

    def __init__(self, app: Celery, *, children: list[int]) -> None:
        pool = SimpleNamespace(info={"processes": children}, _pool=SimpleNamespace(_waiting_to_start=[]))
        super().__init__(app=app, pool=pool, timer=self, cancelled=False)

    def call_repeatedly(self, _seconds: float, tick: Callable[[], None]) -> Main:
        self.tick = tick
        return self

    def cancel(self) -> None:
        self.cancelled = True


def a_run(ledger: Ledger, owner: str) -> str:
    """A training run that is under way."""
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim_run(connection, run_id, owner=owner)
    return run_id


def state_of(ledger: Ledger, run_id: str) -> RunState:
    with ledger.reading() as connection:
        return get_run(connection, run_id).state


def test_a_reconciler_whose_ledger_is_away_looks_again(
    ledger: Ledger, settings: Settings, app: Celery, caplog: pytest.LogCaptureFixture
) -> None:
    # Given a worker that has begun
    app.amqp.queues.select([CLASSIFY_QUEUE])
    main = Main(app, children=[17])
    reconcile_step(settings)(main).start(main)

    # When it is to look while the ledger is away, Then it says so, and lives
    with away():
        main.tick()
    assert "reconciling is put off: The ledger cannot be reached" in caplog.text

    # And the next time it has looked, and given its sign
    main.tick()
    with ledger.reading() as connection:
        assert [worker.processes for worker in list_workers(connection)] == [1]


@pytest.mark.parametrize("queue", [CLASSIFY_QUEUE, RETRAIN_QUEUE])
@pytest.mark.parametrize("is_away", [True, False])
def test_a_worker_stops_whether_the_ledger_is_there_or_not(
    ledger: Ledger,
    settings: Settings,
    app: Celery,
    caplog: pytest.LogCaptureFixture,
    queue: str,
    is_away: bool,
) -> None:
    # Given a worker or a trainer, and a run that is its child's
    app.amqp.queues.select([queue])
    main = Main(app, children=[17])
    step = reconcile_step(settings)(main)
    step.start(main)
    main.tick()
    run_id = a_run(ledger, owner_name(17))

    # When it is told to stop
    with away() if is_away else contextlib.nullcontext():
        step.stop(main)

    # Then it does, and what could not be written is said: others find out when nothing is heard of it
    assert main.cancelled
    is_trainer = queue == RETRAIN_QUEUE
    assert ("this worker still counts as there for a while" in caplog.text) == is_away
    assert ("the training under way is not told to end" in caplog.text) == (is_away and is_trainer)
    with ledger.reading() as connection:
        assert len(list_workers(connection)) == is_away
    assert state_of(ledger, run_id) == (
        RunState.INTERRUPTED if is_trainer and not is_away else RunState.RUNNING
    )
