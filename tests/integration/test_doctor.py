"""The doctor's findings: one test for each, on the real service, with the fix that it names."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Any

import fsspec
import pytest
import sqlalchemy as sa
from fsspec.implementations.memory import MemoryFileSystem

from jobs.ids import new_id
from jobs.ledger import Ledger, metrics
from jobs.ledger.api.batches import INTAKE_LEASE_SECONDS, add_batch, claim_intake
from jobs.ledger.api.keys import Role, create_key, revoke_key
from jobs.ledger.jobs.submission import open_job
from jobs.ledger.learning.models import save_evaluation
from jobs.ledger.learning.runs import request_run
from jobs.ledger.learning.runtimes import save_runtimes
from jobs.ledger.learning.schedules import set_schedule
from jobs.ledger.workers import BEAT, WorkerRow, report_worker
from jobs.messages import RETRAIN_QUEUE
from jobs.models.model import Model
from jobs.models.runtime import ModelRuntime, Runtime, RuntimeState
from jobs.queue import KEY_PREFIX
from jobs.schema import (
    ChunkState,
    JobState,
    RunState,
    batches,
    chunks,
    db_now,
    jobs,
    locks,
    schedules,
    training_runs,
    workers,
)
from jobs.schema import models as models_table
from jobs.settings import Settings
from jobs.storage.registry import fetch_model, model_key
from jobs.storage.store import Store
from labelmill.operations import doctor, probes
from labelmill.operations.doctor import Finding, Level
from labelmill.operations.doctor.api import check_api
from labelmill.operations.doctor.broker import check_broker
from labelmill.operations.doctor.certificates import check_certificate
from labelmill.operations.doctor.commands import commands_of
from labelmill.operations.doctor.configuration import check_home, check_settings
from labelmill.operations.doctor.findings import ok
from labelmill.operations.doctor.ledger import check_ledger
from labelmill.operations.doctor.models import check_models
from labelmill.operations.doctor.store import check_store
from labelmill.operations.doctor.work import check_jobs, check_training
from labelmill.operations.probes import redacted_message
from labelmill.server.serving import announced, listen_on
from tests.conftest import Broker, plans_of
from tests.console import until
from tests.evaluations import made_evaluation
from tests.postgresql import PostgresqlServer
from tests.small_disk import small_disk

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM

on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)

Check = Callable[[Settings], Iterator[Finding]]


def find(check: Check, settings: Settings, what: str, level: Level, fix: str = "") -> Finding:
    """Return the only finding with these words, which must have this level and fix."""
    findings = list(check(settings))
    found = [finding for finding in findings if what in finding.what]
    assert [(finding.level, fix in (finding.fix or "")) for finding in found] == [(level, True)], findings
    return found[0]


def is_well(check: Check, settings: Settings) -> bool:
    return {finding.level for finding in check(settings)} == {OK}


def change(ledger: Ledger, table: sa.Table, *which: sa.ColumnElement[bool], **values: Any) -> None:
    with ledger.transaction() as connection:
        connection.execute(table.update().where(*which).values(**values))


@pytest.fixture
def fresh(short_folder: Path) -> Settings:
    """Return the settings of a user whose home is empty."""
    return Settings.load(home=short_folder / "home")


# ---- all areas ----------------------------------------------------------------------------------------


def test_an_area_that_fails_or_hangs_does_not_hide_the_others(fresh, monkeypatch):
    hangs = threading.Event()

    def fails(_settings: Settings) -> Iterator[Finding]:
        yield ok("so far so good")
        raise RuntimeError("a package's own")

    def waits(_settings: Settings) -> Iterator[Finding]:
        hangs.wait(60)
        yield ok("too late")

    def speaks(_settings: Settings) -> Iterator[Finding]:
        yield ok("all is well")

    monkeypatch.setattr(doctor, "AREAS", {"first": fails, "second": waits, "third": speaks})
    findings = doctor.examine(fresh, timeout=0.2)
    hangs.set()
    levels = {area: [finding.level for finding in found] for area, found in findings.items()}
    assert levels == {"first": [OK, PROBLEM], "second": [PROBLEM], "third": [OK]}
    assert "RuntimeError: a package's own" in findings["first"][1].what
    assert "no answer within 0.2 s" in findings["second"][0].what


def test_where_there_is_nothing_yet_the_doctor_says_what_comes_first_and_makes_nothing(fresh):
    findings = doctor.examine(fresh)
    assert [(area, finding.fix) for area, found in findings.items() for finding in found if finding.fix] == [
        ("broker", "labelmill up"),
        ("models", "labelmill train"),
    ]
    assert not fresh.home.exists()


def test_every_finding_that_is_not_ok_names_a_fix(settings):
    for finding in chain.from_iterable(doctor.examine(settings).values()):
        assert (finding.fix is None) == (finding.level == OK), finding


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ({"broker_url": "redis://:se%2Fcret@host/0"}, "cannot reach redis://:se%2Fcret@host/0 at all"),
        ({"broker_url": "redis://:se%2Fcret@host/0"}, "no such user with se/cret"),
        ({"store_url": "s3://bucket/mill?key=secret"}, "cannot reach s3://bucket/mill?key=secret"),
    ],
)
def test_no_finding_repeats_a_secret(url, text):
    words = redacted_message(RuntimeError(text), Settings.load(**url))
    assert "cret" not in words
    assert "***" in words


def test_in_compose_a_fix_is_what_its_operator_types(fresh):
    there = fresh.model_copy(update={"deployment": "compose", "broker_url": "redis://127.0.0.1:1/0"})
    find(check_broker, there, "cannot be used", PROBLEM, "docker compose logs redis")
    find(check_models, there, "no model", PROBLEM, "docker compose run --rm trainer train")
    assert commands_of(there).run == "docker compose run --rm producer"


def test_only_the_list_of_commands_names_commands():
    # Another string would not be what an operator of the compose file types
    [folder] = map(Path, doctor.__path__)
    for file in folder.glob("*.py"):
        named = re.findall(r"""["']labelmill [a-z]|fix=.*labelmill [a-z]""", file.read_text())
        assert bool(named) == (file.name == "commands.py"), file


# ---- settings and home --------------------------------------------------------------------------------


def test_an_image_that_can_take_longer_than_its_chunk(short_folder):
    settings = Settings.load(home=short_folder, lease_seconds=10, image_seconds=10)
    find(check_settings, settings, "an image can take 10 s", WARNING, "everywhere LABELMILL_LEASE_SECONDS=29")
    assert is_well(check_settings, Settings.load(home=short_folder, lease_seconds=29, image_seconds=10))


LEDGER, BROKER = "postgresql://db.example.org/mill", "redis://redis.example.org/0"


@pytest.mark.parametrize(
    ("urls", "missing"),
    [
        ({"broker_url": "redis://localhost/0"}, ""),
        ({"broker_url": BROKER}, "LABELMILL_LEDGER_URL=... LABELMILL_STORE_URL=..."),
        ({"ledger_url": LEDGER, "broker_url": BROKER}, "LABELMILL_STORE_URL=..."),
        ({"ledger_url": LEDGER, "broker_url": BROKER, "store_url": "file:///mnt/mill"}, ""),
    ],
)
def test_a_part_that_other_machines_cannot_reach(short_folder, urls, missing):
    settings = Settings.load(home=short_folder, **urls)
    find(check_settings, settings, "machine", WARNING if missing else OK, missing)


def test_a_state_folder_that_others_can_use(fresh):
    fresh.home.mkdir(mode=0o770)
    fresh.home.chmod(0o770)
    find(check_home, fresh, "other users can write", PROBLEM)
    fresh.home.chmod(0o755)
    finding = find(check_home, fresh, "other users can read", WARNING, f"chmod 700 {fresh.home}")
    subprocess.run(["sh", "-c", str(finding.fix)], check=True, timeout=60)
    assert is_well(check_home, fresh)


def test_a_state_folder_that_cannot_be_used(short_folder):
    (short_folder / "file").write_text("")
    for home in (short_folder / "file", short_folder / "file" / "below"):
        find(check_home, Settings.load(home=home), "not a folder", PROBLEM, "LABELMILL_HOME=")


# ---- the broker ---------------------------------------------------------------------------------------


@pytest.fixture
def at_broker(fresh: Settings, broker: Broker) -> Settings:
    return fresh.model_copy(update={"broker_url": broker.url})


@pytest.fixture
def configure(broker: Broker) -> Iterator[Callable[[str, str], None]]:
    """Return a function: `configure("maxmemory", "1mb")` sets an option until the test ends."""
    before: dict[str, str] = {}

    def configure(name: str, value: str) -> None:
        before.setdefault(name, broker.client.config_get(name)[name])
        broker.client.config_set(name, value)

    yield configure
    for name, value in before.items():
        broker.client.config_set(name, value)


@pytest.fixture
def as_anna(fresh: Settings, broker: Broker) -> Iterator[Callable[..., Settings]]:
    """Return a function: `as_anna("+@all", password="right")` returns settings with these rights."""

    def as_anna(*rights: str, password: str = "right") -> Settings:
        broker.client.execute_command("ACL", "SETUSER", "anna", "reset", "on", ">right", *rights)
        url = broker.url.replace("redis+socket://", f"redis+socket://anna:{password}@")
        return fresh.model_copy(update={"broker_url": url})

    yield as_anna
    broker.client.execute_command("ACL", "DELUSER", "anna")


def test_a_broker_that_is_well_and_left_as_it_was(at_broker, broker):
    assert is_well(check_broker, at_broker)
    assert broker.client.keys("*doctor*") == []


@pytest.mark.parametrize(
    ("url", "what", "fix"),
    [
        ("redis://127.0.0.1:1/0", "Connection refused", "redis-cli -u URL ping"),
        ("DB", "DB index", "such as /0"),
    ],
)
def test_a_broker_that_cannot_be_used(fresh, broker, url, what, fix):
    url = f"{broker.url}?virtual_host=99" if url == "DB" else url
    find(check_broker, fresh.model_copy(update={"broker_url": url}), what, PROBLEM, fix)


def test_a_user_of_the_broker_who_lacks_rights(as_anna, broker):
    finding = find(
        check_broker,
        as_anna("+@all", "~*", password="wrong"),
        "cannot be used",
        PROBLEM,
        "USER:PASSWORD@HOST",
    )
    assert "wrong" not in repr(finding)
    find(check_broker, as_anna("+@all", "~other:*"), "accepts no messages", PROBLEM, f"'~{KEY_PREFIX}*'")
    find(check_broker, as_anna("+@all", "~*", "-info"), "was not checked", WARNING, "SETUSER anna '+info'")
    settings = as_anna("+@all", f"~{KEY_PREFIX}*", "-lpush")
    find(check_broker, settings, "accepts no messages", PROBLEM, "redis-cli ACL SETUSER anna '+lpush'")
    broker.client.execute_command("ACL", "SETUSER", "anna", "+lpush")
    assert is_well(check_broker, settings)


def test_a_broker_that_loses_messages(at_broker, configure):
    configure("maxmemory-policy", "allkeys-lru")
    find(check_broker, at_broker, "policy is allkeys-lru", PROBLEM, "CONFIG SET maxmemory-policy noeviction")


def test_a_broker_that_accepts_no_messages(at_broker, broker, configure):
    configure("maxmemory", "1")
    find(check_broker, at_broker, "accepts no messages", PROBLEM, "raise maxmemory")
    configure("maxmemory", "0")
    broker.client.replicaof("127.0.0.1", 1)
    try:
        find(check_broker, at_broker, "accepts no messages", PROBLEM, "the primary's URL")
    finally:
        broker.client.replicaof("NO", "ONE")


def test_a_broker_that_cannot_save_cannot_be_used(at_broker, broker, configure):
    # Given a broker that saves, and a folder in the place of its dump file
    configure("save", "3600 1")
    file = Path(broker.client.config_get("dir")["dir"]) / "dump.rdb"
    file.mkdir()
    broker.client.bgsave()
    until(lambda: broker.client.info()["rdb_last_bgsave_status"] == "err", "it has failed to save")
    find(check_broker, at_broker, "cannot be used: MISCONF", PROBLEM, "free space")

    # When the broker can save again, then all is well
    file.rmdir()
    broker.client.bgsave()
    until(lambda: broker.client.info()["rdb_last_bgsave_status"] == "ok", "it has saved")
    assert is_well(check_broker, at_broker)
    file.unlink()


# ---- the ledger ---------------------------------------------------------------------------------------


def test_a_ledger_that_is_well(settings):
    # The SQLite of this Python has a test of its own.
    assert {finding.level for finding in check_ledger(settings) if "SQLite" not in finding.what} == {OK}


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_ledger_that_is_not_migrated(fresh, request, database):
    url: str = request.getfixturevalue(f"empty_{database}_url")
    Ledger(url).close()
    settings = fresh.model_copy(update={"ledger_url": url})
    find(check_ledger, settings, "was never migrated", PROBLEM, "labelmill db upgrade")
    find(check_models, settings, "not checked", WARNING, "see ledger")


def test_an_embedded_ledger_that_is_not_migrated_will_be(fresh):
    Ledger(fresh.ledger).close()
    find(check_ledger, fresh, "the next command migrates it", WARNING)


def test_a_ledger_of_a_newer_labelmill(ledger, settings):
    with ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    find(check_ledger, settings, "migrated it to 9999, and this one can use it", OK)
    with ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET compatible_since = '9998'"))
    find(check_ledger, settings, "is at migration 9999", PROBLEM, "upgrade Labelmill")


def test_a_ledger_file_that_does_not_exist(fresh):
    settings = fresh.model_copy(update={"ledger_url": f"sqlite:///{fresh.home}/other.sqlite3"})
    find(check_ledger, settings, "names no file", PROBLEM, "labelmill db upgrade")


@on_postgresql
def test_partitions_that_end_soon(settings, monkeypatch):
    now = time.time()
    find(check_ledger, settings, "has partitions", OK)
    for weeks in (3, 11):
        monkeypatch.setattr(time, "time", lambda weeks=weeks: now + weeks * 7 * 86_400)
        find(check_ledger, settings, "has partitions for predictions only", WARNING, "labelmill db upgrade")


def test_a_certificate_that_expires_soon():
    def found(days: float) -> Finding:
        [finding] = check_certificate(datetime.now(UTC) + timedelta(days=days), "broker")
        return finding

    assert found(15).level == OK
    assert found(13).level == WARNING


@on_sqlite
def test_a_ledger_file_that_is_locked_or_no_database(settings, sqlite_url, monkeypatch):
    monkeypatch.setattr(probes, "ANSWER_SECONDS", 0.1)
    path = sqlite_url.removeprefix("sqlite:///")
    # Not sqlite3: it can be another copy of SQLite than the ledger's, which ignores its locks.
    with contextlib.closing(Ledger(sqlite_url)) as holder, holder.transaction():
        find(check_ledger, settings, "locked", PROBLEM, f"fuser {path}")
    find(check_ledger, settings, "can be written", OK)
    Path(path).write_bytes(b"not a database, by any means" * 100)
    find(check_ledger, settings, "not a database", PROBLEM, f"restore {path} from its backup")


@on_sqlite
def test_a_database_whose_disk_is_full(settings, sqlite_url, short_folder):
    # Given a ledger on a disk that is full, which no process has open: SQLite has no room to open it
    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    with small_disk(short_folder / "disk", megabytes=4) as disk:
        file = shutil.copytree(folder, disk.path / "ledger") / "ledger.sqlite3"
        full = settings.model_copy(update={"ledger_url": f"sqlite:///{file}"})
        disk.fill()
        find(check_ledger, full, "disk is full", PROBLEM, f"df -h {file}")

        # When there is some room, but not for a large chunk, Then the disk counts as full, too
        disk.make_room()
        find(check_ledger, full, "disk is full", PROBLEM, f"df -h {file}")


def test_a_postgresql_that_cannot_be_used(fresh, postgresql_server: PostgresqlServer):
    def find_at(url: sa.URL, what: str, fix: str) -> None:
        settings = fresh.model_copy(update={"ledger_url": url.render_as_string(hide_password=False)})
        assert "secret" not in repr(find(check_ledger, settings, what, PROBLEM, fix))

    url = sa.make_url(postgresql_server.url("nowhere"))
    find_at(sa.make_url("postgresql+psycopg://u:secret@127.0.0.1:1/mill"), "cannot be used", "pg_isready")
    find_at(url, '"nowhere" does not exist', "createdb")
    find_at(url.set(username="nobody", password="secret"), "nobody", "postgresql://USER:PASSWORD@")


@on_postgresql
def test_a_postgresql_that_is_read_only(settings, postgresql_server: PostgresqlServer):
    database = sa.make_url(settings.ledger).database
    postgresql_server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    find(check_ledger, settings, "read-only", PROBLEM, "LABELMILL_LEDGER_URL=the primary's URL")


@on_postgresql
def test_a_role_that_lacks_privileges(settings, ledger, postgresql_server: PostgresqlServer):
    postgresql_server.execute("CREATE ROLE limited")
    url = sa.make_url(settings.ledger).update_query_dict({"options": "-c role=limited"})
    limited = settings.model_copy(update={"ledger_url": url.render_as_string(hide_password=False)})
    grant = "GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO"
    try:
        find(check_ledger, limited, "permission denied", PROBLEM, grant)
        with ledger.transaction() as connection:
            connection.execute(sa.text("GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA public TO limited"))
        find(check_ledger, limited, "cannot read and write", PROBLEM, grant)
        with ledger.transaction() as connection:
            connection.execute(sa.text(f"{grant} limited"))
        find(check_ledger, limited, "can be written", OK)
    finally:
        with ledger.transaction() as connection:
            connection.execute(sa.text("DROP OWNED BY limited"))
        postgresql_server.execute("DROP ROLE limited")


# ---- the store ----------------------------------------------------------------------------------------


def test_a_store_that_is_well_and_left_as_it_was(fresh):
    folder = Path(fresh.store)
    folder.mkdir(parents=True)
    find(check_store, fresh, "written, read and removed", OK)
    assert list(folder.iterdir()) == []


def test_a_store_that_cannot_be_used(fresh, short_folder):
    folder = short_folder / "mnt"
    settings = fresh.model_copy(update={"store_url": f"file://{folder}"})
    find(check_store, settings, "is its disk mounted", WARNING, f"mkdir -m 700 {folder}")
    folder.write_text("a file where the folder should be")
    find(check_store, settings, "cannot be written", PROBLEM, f"ls -ld {folder}")
    unknown = fresh.model_copy(update={"store_url": "nosuch://bucket"})
    find(check_store, unknown, "nosuch", PROBLEM, "LABELMILL_STORE_URL")


class Forgetful(MemoryFileSystem):
    """A file system that returns truncated files."""

    protocol = "forgetful"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: object
    ) -> bytes:
        return super().cat_file(path, start, end, **kwargs)[:-1]


def test_a_store_that_returns_something_else(fresh):
    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    settings = fresh.model_copy(update={"store_url": "forgetful://mill"})
    find(check_store, settings, "other bytes than were written", PROBLEM, "credentials")


# ---- the models ---------------------------------------------------------------------------------------


def test_there_is_no_champion(settings, ledger, make_model, store):
    find(check_models, settings, "there is no model", PROBLEM, "labelmill train")
    model = make_model(b"evaluated", champion=False, store=store)
    find(check_models, settings, "mnist has no champion", WARNING, f"labelmill models promote {model.id}")
    change(ledger, models_table, accuracy=None)
    find(check_models, settings, "mnist has no champion", WARNING, f"promote {model.id} --force")


@pytest.mark.usefixtures("mnist")
def test_only_a_model_with_the_datasets_classes_is_proposed(settings, ledger, make_model, store):
    # given models, of which the latest has other classes than the dataset's latest version
    good = make_model(b"good", champion=False, store=store)
    other = make_model(b"other", champion=False, store=store)
    change(ledger, models_table, models_table.c.id == other.id, classes=["cat", "dog"])

    # then the older one is proposed, and without it a training run
    find(check_models, settings, "mnist has no champion", WARNING, f"labelmill models promote {good.id}")
    change(ledger, models_table, classes=["cat", "dog"])
    find(check_models, settings, "mnist has no champion", WARNING, "labelmill retrain --dataset mnist")


@on_sqlite
def test_a_slow_champion_that_was_not_compiled(settings, ledger, make_model, store):
    # Given a champion that takes 3 ms per image
    model = make_model(store=store)
    measured, answers = made_evaluation([1], [1])
    with ledger.transaction() as connection:
        save_evaluation(connection, model.id, "f" * 64, replace(measured, image_microseconds=3000.0), answers)
    find(check_models, settings, "3.0 ms per image", WARNING, f"labelmill models compile {model.id}")
    # When it is compiled, with whatever result, then all is well.
    with ledger.transaction() as connection:
        save_runtimes(connection, model.id, [ModelRuntime(Runtime.KERAS, RuntimeState.PASSED, 1, images=1)])
    assert is_well(check_models, settings)


@on_sqlite
def test_a_model_file_that_is_gone_or_changed(settings, make_model, store: Store):
    # Given a champion that a worker has fetched
    champion: Model = make_model(b"the champion's file", store=store)
    cached = fetch_model(store, champion, settings.cache_dir)
    file = Path(settings.store) / model_key(champion.sha256)
    find(check_models, settings, "with the registered SHA-256", OK)

    # When its file is gone from the store, then the finding names the cached copy
    file.unlink()
    finding = find(check_models, settings, f"{champion.id} is not in the store", PROBLEM, f"cp {cached}")
    subprocess.run(["sh", "-c", str(finding.fix)], check=True, timeout=60)
    assert is_well(check_models, settings)

    # But not if that copy is damaged as well
    file.write_bytes(b"something else")
    cached.write_bytes(b"damaged")
    find(check_models, settings, "has another SHA-256", PROBLEM, f"backup of the store: {file}")
    shutil.rmtree(settings.store)
    unknown = settings.model_copy(update={"store_url": "nosuch://bucket"})
    find(check_models, unknown, "files not checked", WARNING, "see store")


def test_the_model_of_an_unfinished_job_is_needed(settings, ledger, make_model, make_job, store):
    pinned = make_model(b"pinned to", store=store)
    make_job([1])
    change(ledger, jobs, model_id=pinned.id)
    make_model(b"champion", store=store)
    (Path(settings.store) / model_key(pinned.sha256)).unlink()
    find(check_models, settings, f"{pinned.id} is not in the store", PROBLEM)
    change(ledger, jobs, state=JobState.CANCELLED)
    assert is_well(check_models, settings)


# ---- training -----------------------------------------------------------------------------------------


def alive(ledger: Ledger, queue: str) -> None:
    with ledger.transaction() as connection:
        report_worker(connection, WorkerRow(f"host/{queue}", "host", queue, ["host/3"], "0"), up_seconds=1)


def test_a_training_run_that_waits_for_a_trainer(settings, ledger):
    alive(ledger, BEAT)
    run = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run, recipe={})
    find(check_training, settings, f"no trainer is running, and training run {run}", WARNING, "--trainer")
    alive(ledger, RETRAIN_QUEUE)
    assert is_well(check_training, settings)
    change(ledger, training_runs, requested_at=db_now(-1_000))
    find(check_training, settings, "waited for a trainer for 16 min 4", WARNING, f"runs cancel {run}")
    change(ledger, training_runs, state=RunState.RUNNING, owner="host/3", lease_until=db_now(60))
    assert is_well(check_training, settings)


def test_scheduled_trainings_without_beat(settings, ledger):
    # Given a schedule, no beat, and a slot that passed without a run
    with ledger.transaction() as connection:
        set_schedule(connection, "mnist", cron="* * * * *", after_corrections=None, request={})
    change(ledger, schedules, changed_at=db_now(-180))
    find(check_training, settings, "beat is not running", WARNING, "beat")
    find(check_training, settings, "UTC was not requested", WARNING, "labelmill retrain --dataset mnist")

    # When a run is requested and beat is running, then all is well; nor is beat missed without a schedule
    with ledger.transaction() as connection:
        request_run(connection, new_id(), recipe={})
    change(ledger, training_runs, requested_at=db_now(60))
    alive(ledger, RETRAIN_QUEUE)
    alive(ledger, BEAT)
    assert is_well(check_training, settings)
    change(ledger, schedules, cron=None)
    change(ledger, workers, workers.c.queue == BEAT, seen_at=db_now(-60))
    assert is_well(check_training, settings)


# ---- the jobs -----------------------------------------------------------------------------------------


def reconciled(ledger: Ledger, until: float = 10.0) -> None:
    """Make the ledger look as if a reconciler held its lock until then, in seconds."""
    with ledger.transaction() as connection:
        connection.execute(locks.delete())
        connection.execute(locks.insert().values(name="reconcile", holder="host/17", until=db_now(until)))


def claimed(ledger: Ledger, chunk_id: str, *, lease_seconds: float) -> None:
    values = {"state": ChunkState.CLAIMED, "lease_until": db_now(lease_seconds), "owner": "host/18"}
    change(ledger, chunks, chunks.c.id == chunk_id, **values)


def test_no_worker_is_running(settings, ledger, make_job):
    find(check_jobs, settings, "no worker is running (none has ever run)", WARNING, "labelmill worker")
    reconciled(ledger, until=-7200)
    find(check_jobs, settings, "the last one ended 2 h 00 min ago", WARNING)
    make_job([1])
    find(check_jobs, settings, "and jobs are waiting", PROBLEM, "labelmill worker")
    for update, start in (
        ({"broker_url": None}, "labelmill up"),
        ({"deployment": "compose"}, "docker compose up --detach worker"),
    ):
        there = settings.model_copy(update=update)
        assert find(check_jobs, there, "no worker is running", PROBLEM).fix == start
    reconciled(ledger)
    assert is_well(check_jobs, settings)


def test_chunks_that_wait_while_none_is_done(settings, ledger, make_job):
    # Given a job that has been pending for longer than three leases
    reconciled(ledger)
    job = make_job([1, 1, 1])
    change(ledger, chunks, created_at=db_now(-300))
    find(check_jobs, settings, f"none done for 3 min 00 s: 1 job, {job.id}", PROBLEM, "read its log")

    # When a chunk is claimed or was just finished, or the lease is longer, then the job is only slow
    claimed(ledger, job.chunks[0].id, lease_seconds=60)
    find(check_jobs, settings, "chunks: 2 pending, 1 in work", OK)
    change(ledger, chunks, chunks.c.id == job.chunks[0].id, state=ChunkState.DONE, finished_at=db_now())
    find(check_jobs, settings, "chunks: 2 pending, 0 in work", OK)
    change(ledger, chunks, chunks.c.id == job.chunks[0].id, finished_at=db_now(-300))
    find(check_jobs, settings, "2 pending, 0 in work, and none done", PROBLEM)
    assert is_well(check_jobs, settings.model_copy(update={"lease_seconds": 200.0}))


def test_a_chunk_of_a_dead_worker(settings, ledger, make_job):
    reconciled(ledger)
    made = [make_job([1]) for _ in range(5)]
    for job in made:
        claimed(ledger, job.chunks[0].id, lease_seconds=-175)
    assert is_well(check_jobs, settings)
    change(ledger, chunks, lease_until=db_now(-181))
    find(check_jobs, settings, "a dead worker: 5 jobs, ", PROBLEM, "labelmill worker")
    assert "and 2 more" in find(check_jobs, settings, made[0].id, PROBLEM).what


def test_a_chunk_that_is_released_again_and_again(settings, ledger, make_job):
    reconciled(ledger)
    job = make_job([2])
    change(ledger, chunks, releases=4, error="the store is down")
    assert is_well(check_jobs, settings)
    change(ledger, chunks, releases=5)
    find(check_jobs, settings, f"up to 5 times (the store is down): 1 job, {job.id}", WARNING, "service")


def test_a_paused_job_is_not_stuck(settings, ledger, make_job):
    # Given no worker, and a job that waits for long
    make_job([1])
    change(ledger, chunks, created_at=db_now(-90_000))
    find(check_jobs, settings, "none done for", PROBLEM)

    # When it is paused, then no job waits
    change(ledger, chunks, state=ChunkState.HELD)
    change(ledger, jobs, paused_at=db_now(-90_000))
    find(check_jobs, settings, "no worker is running (none has ever run)", WARNING)
    find(check_jobs, settings, "chunks: 0 pending", OK)


def test_the_doctor_reads_only_unfinished_jobs(ledger, make_job):
    # Given a ledger with a running job; a real one may hold millions of finished chunks
    make_job([1, 1])

    def ask(connection):
        metrics.open_jobs(connection, lost_seconds=1, many_releases=1)
        metrics.seconds_since_last_result(connection)
        metrics.models_needed(connection)

    # When the doctor runs its queries, then they use the index on open jobs, and scan no chunks
    plans = plans_of(ledger, ask)
    assert len(plans) == 3
    for text, plan in plans:
        assert "ix_jobs_open" in plan, f"{text}\n{plan}"
        assert "SCAN chunks" not in plan, f"{text}\n{plan}"


# ---- the API ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("ledger")
def test_an_api_that_was_killed_is_a_problem(settings):
    find(check_api, settings, "none is served", OK)
    with listen_on("127.0.0.1", 0) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with announced(settings, url):
        find(check_api, settings, f"{url} does not answer", PROBLEM, "labelmill serve")
    find(check_api, settings, "none is served", OK)


def test_a_batch_that_nobody_takes_in_is_a_problem(settings, ledger, champion):
    job_id = new_id()
    with ledger.transaction() as connection:
        open_job(connection, job_id, model_id=champion.id)
        add_batch(connection, job_id, request={}, file_id=None)
    assert is_well(check_api, settings)
    change(ledger, batches, created_at=db_now(-90))
    find(check_api, settings, "no process takes in its images", PROBLEM, "labelmill serve")
    # While a process takes images in, others wait for it
    with ledger.transaction() as connection:
        claim_intake(connection, owner="test")
    assert is_well(check_api, settings)
    change(ledger, batches, lease_until=db_now(-INTAKE_LEASE_SECONDS))
    assert not is_well(check_api, settings)
    change(ledger, jobs, state=JobState.CANCELLED)
    assert is_well(check_api, settings)


def test_a_key_that_expires_soon_is_a_warning(settings, ledger):
    with ledger.transaction() as connection:
        for name, days in (("old", 0), ("soon", 3), ("later", 30), ("ever", None)):
            create_key(connection, name, Role.REVIEW, days=days)
        revoke_key(connection, create_key(connection, "revoked", Role.ADMIN, days=0)[0].id)
    find(check_api, settings, "'old' expired", WARNING, "labelmill keys create old --role review")
    find(check_api, settings, "'soon' expires in", WARNING, "labelmill keys revoke")
    assert len([found for found in check_api(settings) if found.level == WARNING]) == 2
