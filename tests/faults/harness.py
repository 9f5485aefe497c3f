"""A harness: a broker, a ledger and workers with failpoints, which a test can break; it is kept running.

Workers are the real ones, started with the product's own command line but for the application
(`tests.faults.failpoints`), and a supervisor starts again what died, as an init system would. One harness
serves many trials: starting one takes longer than most of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest
import redis
from celery import Celery

from jobs.ledger import Ledger
from jobs.ledger.jobs.queries import job_status
from jobs.ledger.learning.models import find_champion
from jobs.messages import CLASSIFY_QUEUE, CLASSIFY_TASK, RETRAIN_QUEUE
from jobs.queue import KEY_PREFIX, Publisher, make_app
from jobs.schema import JobState
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.local.celery_commands import CELERY, worker_arguments
from labelmill.local.stack import _begin, _broker_command, broker_answers
from producer.submit import Submitter, submit
from tests.console import processes_below, until
from tests.faults.checker import Verdict, check_job, chunk_rows
from tests.faults.pictures import Picture
from tests.faults.plan import FOLDER_VARIABLE, STACK_SIGNAL, Plan
from tests.kerasfile import keras_file
from tests.registering import register_digits

PROJECT: Final = Path(__file__).parents[2]

#: Short, so that a trial that has to wait for a lease to run out is soon over.
LEASE_SECONDS: Final = 3.0

#: How long an image may take, as a share of the lease: less than the soft time limit of a chunk. A machine
#: that is very busy lets a process stand still for most of a second.
IMAGE_SHARE: Final = 0.5

#: When everything is well again, all work is at its end within this time. A worker that has lost its broker
#: tries again every few seconds, a lease and the reconciler's interval come on top.
HEALED_SECONDS: Final = 90.0

#: What is shown of a log where something hangs: all the stacks, and what came before.
_LOG_LINES: Final = 150

#: The supervisor's own pause: what dies is not started again at once, and never in a busy loop.
_RESTART_SECONDS: Final = 0.2


class Process:
    """One supervised process: started again when it ends, until it is retired."""

    def __init__(self, command: Sequence[str], environment: dict[str, str], log: Path) -> None:
        self._command = command
        self._environment = environment
        self._log = log
        self.supervised = True
        #: How often it was started again after it had ended otherwise than in order.
        self.deaths = 0
        self.groups: list[int] = []
        self.popen = self._start()

    @property
    def pid(self) -> int:
        return self.popen.pid

    def children(self) -> list[int]:
        """The processes of its pool."""
        return [pid for pid in processes_below(self.pid) if pid != self.pid]

    def keep(self) -> None:
        """Starts it again where it ended."""
        if self.supervised and (status := self.popen.poll()) is not None:
            self.deaths += status != 0
            time.sleep(_RESTART_SECONDS)
            self.popen = self._start()

    def retire(self, number: int = signal.SIGTERM) -> int:
        """Ends it for good; gives back its exit status."""
        self.supervised = False
        self.popen.send_signal(number)
        return self.popen.wait(60)

    def start_again(self) -> None:
        """Starts it after it was retired."""
        self.popen = self._start()
        self.supervised = True

    def clean_up(self) -> None:
        """Whatever it started and left behind is gone."""
        for group in self.groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        self.popen.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            popen = subprocess.Popen(
                self._command,
                env=self._environment,
                cwd=PROJECT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_begin,
            )
        self.groups.append(popen.pid)
        return popen


class Harness:
    """All of it, as a context manager."""

    def __init__(
        self,
        folder: Path,
        *,
        ledger_url: str | None = None,
        keras: bool = False,
        workers: int = 1,
        lease_seconds: float = LEASE_SECONDS,
        **extra: str,
    ) -> None:
        """`folder` is the state folder; with `keras` it holds a trained model, and without, the classifier
        is `tests.faults.light`.
        """
        self.settings = Settings.load(
            home=folder,
            ledger_url=ledger_url,
            lease_seconds=lease_seconds,
            image_seconds=lease_seconds * IMAGE_SHARE,
            processes=2,
        )
        self.url = ledger_url or f"sqlite:///{folder / 'ledger.sqlite3'}"
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.plan = Plan(self.faults)
        self.workers: list[Process] = []
        self._others: list[Process] = []
        #: Deaths of workers up to when the broker was last silent, and of workers that are no more.
        self._deaths_before = self._deaths_of_the_removed = 0
        self._keras = keras
        self._first_workers = workers
        self._environment = (
            os.environ
            | self.settings.environment()
            | {FOLDER_VARIABLE: str(self.faults), "FAULT_CLASSIFIER": "keras" if keras else "light"}
            | extra
        )
        self._over = threading.Event()
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)

    def __enter__(self) -> Harness:
        from labelmill.client.migrating import upgrade

        self.ledger = Ledger(self.settings.ledger)
        upgrade(self.ledger)
        self.store = Store(self.settings.store)
        if not self._keras:
            self._register_a_model()
        self.app: Celery = make_app(self.settings)
        self.broker = Process(_broker_command(self.settings), dict(os.environ), self.faults / "broker.log")
        self._supervisor.start()
        self.wait_for_broker()
        for number in range(self._first_workers):
            self.add_worker(f"worker{number}")
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._supervisor.join()
        for process in [*self._others, *self.workers, self.broker]:
            process.clean_up()
        self.app.close()
        self.ledger.close()

    # ---- processes --------------------------------------------------------------------------------------

    def add_worker(
        self,
        name: str,
        *,
        processes: int = 2,
        queue: str = CLASSIFY_QUEUE,
        loglevel: str = "info",
        **extra: str,
    ) -> Process:
        """One more worker, trainer or sender of webhooks; `extra`: its environment beside the harness's."""
        arguments = worker_arguments(queue=queue, processes=processes, name=name, loglevel=loglevel)
        arguments[arguments.index("worker.app")] = "tests.faults.failpoints:app"
        worker = Process([*CELERY, *arguments], self._environment | extra, self.faults / f"{name}.log")
        self.workers.append(worker)
        return worker

    def add_process(self, name: str, command: Sequence[str], **extra: str) -> Process:
        """One more process that is no worker; `extra`: its environment beside the harness's."""
        process = Process(command, self._environment | extra, self.faults / f"{name}.log")
        self._others.append(process)
        return process

    def remove_worker(self, worker: Process, number: int = signal.SIGTERM) -> int:
        """Ends a worker for good; gives back its exit status."""
        status = worker.retire(number)
        worker.clean_up()
        self.workers.remove(worker)
        self._deaths_of_the_removed += worker.deaths + (status != 0)
        return status

    def wait_for_broker(self) -> None:
        until(lambda: broker_answers(self.settings), "the broker answers", seconds=30)

    @contextlib.contextmanager
    def redis(self) -> Iterator[redis.Redis]:
        """A client of the broker's."""
        socket = str(self.settings.broker_socket)
        with contextlib.closing(redis.Redis(unix_socket_path=socket, socket_timeout=5)) as client:
            yield client

    def _supervise(self) -> None:
        while not self._over.wait(0.02):
            for process in [self.broker, *self.workers, *self._others]:
                process.keep()

    # ---- jobs -------------------------------------------------------------------------------------------

    def submit(
        self, images: Sequence[Picture], *, chunk_images: int, publisher: Publisher | None = None
    ) -> str:
        """Submits a job; gives back its id."""
        own = publisher or Publisher(self.app)
        try:
            submitter = Submitter(self.ledger, self.store, own, chunk_images)
            return submit(submitter, (image.source for image in images)).job_id
        finally:
            own.close()

    def state(self, job_id: str) -> JobState:
        with self.ledger.reading() as connection:
            return job_status(connection, job_id).state

    def done(self, job_id: str) -> int:
        """How many images have their outcome."""
        with self.ledger.reading() as connection:
            status = job_status(connection, job_id)
        return status.succeeded + status.failed

    def is_over(self, job_id: str) -> bool:
        return self.state(job_id) not in (JobState.RECEIVING, JobState.RUNNING)

    def wait(self, job_id: str, *, seconds: float = HEALED_SECONDS) -> None:
        """Until the job has ended. What hangs is shown: it may take hours to happen again."""
        try:
            until(lambda: self.is_over(job_id), f"job {job_id} has ended", seconds=seconds)
        except pytest.fail.Exception as failure:
            open_chunks = [chunk for chunk in chunk_rows(self.url, job_id) if chunk["state"] != "done"]
            pytest.fail("\n\n".join([str(failure), *map(str, open_chunks), self._look()]))

    def _look(self) -> str:
        """What everybody is at: each process's stack, each log's end."""
        for worker in self.workers:
            for pid in processes_below(worker.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, STACK_SIGNAL)
        time.sleep(1.0)  # they write when the kernel lets them; those that stand still do not at all
        logs = [
            f"{path.name}:\n" + "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_LINES:])
            for path in sorted(self.faults.glob("*.log"))
        ]
        return "\n\n".join(logs)

    def judge(self, job_id: str, images: Iterable[Picture], *, seconds: float = HEALED_SECONDS) -> Verdict:
        """Waits for the job's end, and compares what it got with what it must get."""
        self.wait(job_id, seconds=seconds)
        verdict = check_job(self.url, job_id, [image.expected for image in images])
        verdict.wait_for_silence = self.wait_for_silence
        return verdict

    def wake_ups(self, count: int) -> list[bytes]:
        """Wake-ups as they lie in the broker, each with an id of its own; they are not sent."""
        key = KEY_PREFIX + RETRAIN_QUEUE  # nobody here reads that queue: into it, and out again
        with self.app.connection_for_write() as connection, self.redis() as client:
            for _ in range(count):
                self.app.send_task(CLASSIFY_TASK, args=(), queue=RETRAIN_QUEUE, connection=connection)
            sent: list[bytes] = client.rpop(key, count)  # type: ignore[assignment]
        return [message.replace(RETRAIN_QUEUE.encode(), CLASSIFY_QUEUE.encode()) for message in sent]

    def wait_for_silence(self) -> None:
        """Until no message waits and none is out: what was doubled or redelivered has gone as it came. But
        for those that workers held which were killed since the broker was last silent: kombu looks for them
        every 100 seconds only. They are taken away, and disturb no other test.
        """
        unacknowledged = KEY_PREFIX + "unacked"

        def held() -> tuple[int, int]:
            waiting = client.llen(KEY_PREFIX + CLASSIFY_QUEUE)
            return waiting, client.hlen(unacknowledged)  # type: ignore[return-value]

        def is_silent() -> bool:
            waiting, out = held()
            return not waiting and out <= orphans()

        def orphans() -> int:
            return (self._deaths() - self._deaths_before) * self.settings.processes

        with self.redis() as client:
            try:
                until(is_silent, "the broker has nothing left", seconds=HEALED_SECONDS)
            except pytest.fail.Exception as failure:
                waiting, out = held()
                taken = client.zrange(unacknowledged + "_index", 0, -1, withscores=True)
                ages = [f"{time.time() - at:.0f} s" for _, at in taken]  # type: ignore[union-attr, misc]
                pytest.fail(
                    f"{failure}: {waiting} messages wait, {out} are not acknowledged (for {ages}), and "
                    f"killed workers explain {orphans()}\n{self._look()}"
                )
            client.delete(unacknowledged, unacknowledged + "_index")
        self._deaths_before = self._deaths()

    def _deaths(self) -> int:
        """How many workers were killed so far, each with as many messages as it had processes."""
        return self._deaths_of_the_removed + sum(worker.deaths for worker in self.workers)

    def _register_a_model(self) -> None:
        with self.ledger.reading() as connection:
            if find_champion(connection) is not None:
                return
        register_digits(self.ledger, self.store, keras_file(), champion=True)
