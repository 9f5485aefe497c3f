"""A worker's main process handles children that die or hang, whether the ledger is available or not."""

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
from jobs.ledger.learning.runs import claim_run, get_run, request_run
from jobs.ledger.maintenance import release_expired_claims
from jobs.ledger.workers import list_workers, owner_name
from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, RETRAIN_QUEUE
from jobs.queue import Publisher
from jobs.schema import ChunkState, RunState, chunks, db_now
from jobs.settings import Settings
from tests.conftest import Broker, Job, JobMaker, WorkerMaker
from tests.harness import Harness, digits
from worker import tasks
from worker.children import ClaimingRequest
from worker.reconciler import reconcile_step
from worker.tasks import register_tasks


@contextlib.contextmanager
def unavailable() -> Iterator[None]:
    """Make the ledger unavailable inside the context."""

    @contextlib.contextmanager
    def transaction(_ledger: Ledger, **_: object) -> Iterator[None]:
        raise Unavailable("The ledger cannot be reached")
        yield

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, "transaction", transaction)
        yield


# ---- the task -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_task_classifies_for_any_wake_up_and_for_nothing_else(
    harness: Harness,
    settings: Settings,
    app: Celery,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given three large chunks, and a process with the task
    monkeypatch.setattr(tasks, "process_context", lambda *_: harness.context)
    register_tasks(app, settings)
    task = app.tasks[CLASSIFY_TASK]
    job_id = harness.submit(digits(300), sizes=[100, 100, 100])
    chunk_id = harness.chunks(job_id)[2].id

    # when it gets two wake-ups, then each does the next chunk
    task()
    task()
    assert [row.state for row in harness.chunks(job_id)] == ["done", "done", "pending"]

    # and any other message is logged, and does no work
    task("no id")
    task(chunk_id)
    assert harness.status(job_id).done == 200
    assert [record.getMessage() for record in caplog.records if record.name == "worker.tasks"] == [
        "it is not a wake-up"
    ] * 2


# ---- a child dies -------------------------------------------------------------------------------------


@pytest.fixture
def take(app: Celery, settings: Settings, publisher: Publisher) -> Iterator[Callable[[], ClaimingRequest]]:
    """Return a function: `take()` returns a wake-up as the main process receives it."""
    register_tasks(app, settings)
    with app.connection_for_read() as connection, connection.channel() as channel:
        got: list[Any] = []
        with app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append):

            def take() -> ClaimingRequest:
                assert publisher.wake_up() == 1
                connection.drain_events(timeout=30)
                message = got.pop()
                return ClaimingRequest(
                    message,
                    app=app,
                    hostname="here",
                    task=app.tasks[CLASSIFY_TASK],
                    on_ack=message.ack_log_error,
                    on_reject=message.reject_log_error,
                )

            yield take


def let_its_process_die(request: ClaimingRequest) -> None:
    try:
        raise WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL) Job: 3.")
    except WorkerLostError:
        request.on_failure(ExceptionInfo())


def row_of(ledger: Ledger, job: Job) -> Any:
    with ledger.reading() as connection:
        return connection.execute(sa.select(chunks).where(chunks.c.job_id == job.id)).one()


@pytest.mark.parametrize("pid", [None, 4_711])
def test_all_that_a_dead_child_had_claimed_is_released(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    broker: Broker,
    take: Callable[[], ClaimingRequest],
    pid: int | None,
) -> None:
    # given a child that has claimed two small chunks together, and another child with a claim
    mine = [make_job([3]), make_job([2])]
    assert len(new_worker(owner_name(4_711)).claim_next()) == 2
    other = make_job([1])
    new_worker(owner_name(4_712)).claim_next()
    request = take()
    request.worker_pid = pid  # None: the child has not reported that it has the message
    assert broker.waiting() == 0

    # when the child dies, then its message is returned to the queue
    let_its_process_die(request)
    assert broker.waiting() == 1

    # and if the child is known, its claims count as crashed, and nobody else's do
    for job in mine:
        row = row_of(ledger, job)
        if pid is None:
            assert (row.state, row.crashes) == (ChunkState.CLAIMED, 0)
        else:
            assert (row.state, row.crashes, row.crash_code) == (ChunkState.PENDING, 1, ErrorCode.QUARANTINED)
            assert row.error == "its process died: signal 9 (SIGKILL)"
    assert row_of(ledger, other).state == ChunkState.CLAIMED


def test_a_child_that_dies_while_the_ledger_is_unavailable_leaves_its_lease_and_its_message(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    broker: Broker,
    take: Callable[[], ClaimingRequest],
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a child that has a message and a claim
    job = make_job([3])
    new_worker(owner_name(4_711)).claim_next()
    request = take()
    request.worker_pid = 4_711

    # when the child dies, and the ledger is unavailable
    with unavailable():
        let_its_process_die(request)

    # then the message is back on the queue, and the reconciler counts the crash once the lease has expired
    assert "lease will expire: The ledger cannot be reached" in caplog.text
    assert broker.waiting() == 1
    assert (row_of(ledger, job).state, row_of(ledger, job).crashes) == (ChunkState.CLAIMED, 0)
    with ledger.transaction() as connection:
        connection.execute(chunks.update().values(lease_until=db_now(-1)))
        assert release_expired_claims(connection) == 1
    assert row_of(ledger, job).crashes == 1


@pytest.mark.parametrize("is_available", [True, False])
def test_a_child_that_hangs_is_killed_whether_the_ledger_answers_or_not(
    ledger: Ledger,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    take: Callable[[], ClaimingRequest],
    is_available: bool,
) -> None:
    # given a child that hangs with a claim
    job = make_job([3])
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        new_worker(owner_name(child.pid)).claim_next()
        request = take()
        request.worker_pid = child.pid

        # when the time limit is over, then the child is killed
        with contextlib.nullcontext() if is_available else unavailable():
            request.on_timeout(soft=False, timeout=51)
        assert child.wait(30) == -9
    finally:
        child.kill()
        child.wait()

    # and its claim is released, or its lease must expire
    row = row_of(ledger, job)
    if is_available:
        assert (row.state, row.crashes, row.crash_code) == (ChunkState.PENDING, 1, ErrorCode.TIMEOUT)
        assert row.error == "its process was killed after 51 s"
    else:
        assert row.state == ChunkState.CLAIMED


# ---- the timer ----------------------------------------------------------------------------------------


class Main(SimpleNamespace):
    """What the reconciler needs of a worker's main process; the test fires its timer."""

    def __init__(self, app: Celery, *, children: list[int]) -> None:
        ready = {number: SimpleNamespace(pid=pid) for number, pid in enumerate(children)}
        pool = SimpleNamespace(
            info={"processes": children}, _pool=SimpleNamespace(_fileno_to_inq=ready, died=[])
        )
        super().__init__(app=app, pool=pool, timer=self, cancelled=False)

    def call_repeatedly(self, _seconds: float, tick: Callable[[], None]) -> Main:
        self.tick = tick
        return self

    def cancel(self) -> None:
        self.cancelled = True


def start_run(ledger: Ledger, owner: str) -> str:
    """Start a training run, and return its id."""
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
        claim_run(connection, run_id, owner=owner)
    return run_id


def test_a_reconciler_whose_ledger_is_unavailable_tries_again_and_blames_no_worker(
    ledger: Ledger,
    settings: Settings,
    app: Celery,
    make_job: JobMaker,
    new_worker: WorkerMaker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # given a chunk that its worker could not release, and whose lease has expired
    new_worker().must_claim(make_job([1]).chunks[0], lease_seconds=-1)
    app.amqp.queues.select([CLASSIFY_QUEUE])
    main = Main(app, children=[17])
    reconcile_step(settings)(main).start(main)

    # when the timer fires while the ledger is unavailable, then that is logged once
    with unavailable():
        main.tick()
        main.tick()
    assert caplog.text.count("reconciling waits: The ledger cannot be reached") == 1

    # and the next time, the chunk is pending without a crash, and the worker's heartbeat is written
    main.tick()
    with ledger.reading() as connection:
        row = connection.execute(sa.select(chunks)).one()
        assert [worker.processes for worker in list_workers(connection)] == [1]
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert row.error == "its lease ran out while the ledger was unavailable"


@pytest.mark.parametrize("queue", [CLASSIFY_QUEUE, RETRAIN_QUEUE])
@pytest.mark.parametrize("is_available", [True, False])
def test_a_worker_stops_whether_the_ledger_answers_or_not(
    ledger: Ledger,
    settings: Settings,
    app: Celery,
    caplog: pytest.LogCaptureFixture,
    queue: str,
    is_available: bool,
) -> None:
    # given a worker or a trainer, and a training run of its child
    app.amqp.queues.select([queue])
    main = Main(app, children=[17])
    step = reconcile_step(settings)(main)
    step.start(main)
    main.tick()
    run_id = start_run(ledger, owner_name(17))

    # when it is told to stop
    with contextlib.nullcontext() if is_available else unavailable():
        step.stop(main)

    # then it stops; what it could not write is logged, and others will notice that its heartbeat is missing
    assert main.cancelled
    is_trainer = queue == RETRAIN_QUEUE
    assert ("this worker counts as alive until its heartbeat expires" in caplog.text) != is_available
    assert ("the training run was not interrupted" in caplog.text) == (not is_available and is_trainer)
    with ledger.reading() as connection:
        assert len(list_workers(connection)) == int(not is_available)
        state = get_run(connection, run_id).state
    assert state == (RunState.INTERRUPTED if is_trainer and is_available else RunState.RUNNING)
