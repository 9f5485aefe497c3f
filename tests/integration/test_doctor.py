"""The doctor's checks, each both ways: what is well is said to be, and what is not comes with what helps."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import fsspec
import psycopg
import pytest
import sqlalchemy as sa
from fsspec.implementations.memory import MemoryFileSystem

import jobs.ledger.database
import jobs.settings
from jobs.ids import new_id
from jobs.ledger import Ledger, diagnosis
from jobs.ledger.claims import end_job
from jobs.ledger.intake import ABANDONED_SECONDS
from jobs.ledger.pausing import pause_job
from jobs.ledger.runs import request_run
from jobs.model import Model
from jobs.outcomes import Outcome
from jobs.queue import CLASSIFY_QUEUE, KEY_PREFIX, RETRAIN_TASK, Bell
from jobs.registry import fetch_model, model_key
from jobs.schema import JobState, RunState, chunks, db_now, locks, training_runs
from jobs.schema import jobs as jobs_table
from jobs.schema import models as models_table
from jobs.settings import Settings
from jobs.store import Store
from labelmill import doctor, looking
from labelmill.doctor import broker as broker_checks
from labelmill.doctor import configuration, disk, home, training, work
from labelmill.doctor import ledger as ledger_checks
from labelmill.doctor import models as model_checks
from labelmill.doctor import store as store_checks
from labelmill.doctor.findings import Area, Finding, Level
from labelmill.looking import words_of
from tests.conftest import Broker, PostgresqlServer, plans_of
from worker.reconcile import Reconciler

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM

on_sqlite = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
on_postgresql = pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)

Check = Callable[[Settings], Iterator[Finding]]


def said(check: Check, settings: Settings, about: str) -> Finding:
    """The one finding of a check that has these words in it."""
    findings = list(check(settings))
    found = [finding for finding in findings if about in finding.what]
    assert len(found) == 1, f"{about!r} in {findings}"
    return found[0]


def assert_problem(finding: Finding, *, fix: str) -> None:
    assert finding.level == PROBLEM
    assert fix in (finding.fix or "")


def assert_warning(finding: Finding, *, fix: str) -> None:
    assert finding.level == WARNING
    assert fix in (finding.fix or "")


def all_well(check: Check, settings: Settings) -> bool:
    return [finding for finding in check(settings) if finding.level != OK] == []


@pytest.fixture
def anybody(short_folder: Path) -> Settings:
    """Settings of somebody who has nothing yet."""
    return Settings.load(home=short_folder / "home")


@pytest.fixture(autouse=True)
def _any_room_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """How full the disk is on which the tests run says nothing of what they test."""
    monkeypatch.setattr(disk, "_LEAST_BYTES", 0)
    monkeypatch.setattr(disk, "_LEAST_SHARE", 0.0)


# ---- all of it ----------------------------------------------------------------------------------------


def test_whatever_goes_wrong_no_area_keeps_the_others_from_speaking(anybody, monkeypatch):
    # Given an area that breaks off, one that hangs, and one that has something to say
    hangs = threading.Event()

    def breaks(_settings: Settings) -> Iterator[Finding]:
        yield Area("first").ok("so far so good")
        raise RuntimeError("a package's own")

    def waits(_settings: Settings) -> Iterator[Finding]:
        yield Area("second").ok("so far so good")
        hangs.wait(60)

    def speaks(_settings: Settings) -> Iterator[Finding]:
        yield Area("third").ok("all is well")

    monkeypatch.setattr(doctor, "AREAS", {"first": breaks, "second": waits, "third": speaks})

    # When the doctor looks
    findings = doctor.examine(anybody, patience=0.2)
    hangs.set()

    # Then each area has said what it could
    assert [(finding.area, finding.level) for finding in findings] == [
        ("first", OK),
        ("first", PROBLEM),
        ("second", OK),
        ("second", PROBLEM),
        ("third", OK),
    ]
    assert "RuntimeError: a package's own" in findings[1].what
    assert "no answer within 0.2 s" in findings[3].what


def test_every_finding_that_is_not_well_says_what_helps(settings):
    for finding in doctor.examine(settings):
        assert (finding.fix is None) == (finding.level == OK), finding


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach redis://:se%2Fcret@host/0 at all",
        "no such user with se/cret",
        "no such user with se%2Fcret",
    ],
)
def test_what_others_say_is_repeated_without_the_password(text):
    settings = Settings.load(broker_url="redis://:se%2Fcret@host/0")
    words = words_of(RuntimeError(text), settings)
    assert "cret" not in words
    assert "***" in words


@pytest.mark.parametrize(
    "url",
    [
        {"store_url": "s3://bucket/mill?key=secret"},
        {"store_url": "s3://bucket/mill?key=se%2Fcret"},
        {"ledger_url": "postgresql://host/mill?sslmode=require&sslpassword=secret"},
    ],
)
def test_what_others_say_is_repeated_without_what_a_url_asks_with(url):
    # Given a URL that has no password, but a key among its options
    settings = Settings.load(**url)
    (text,) = url.values()

    # When somebody's error quotes it, as it is written or as it is meant
    for quoted in (text, unquote(text)):
        words = words_of(RuntimeError(f"cannot reach {quoted} at all"), settings)

        # Then the rest of it is repeated
        assert words == f"cannot reach {text.partition('?')[0]}?*** at all"


def test_what_others_say_is_repeated_without_a_password_that_begins_like_another():
    settings = Settings.load(
        ledger_url="postgresql://mill:open@host/mill", store_url="s3://key:opensesame@bucket/mill"
    )
    assert words_of(RuntimeError("neither opensesame nor open"), settings) == "neither *** nor ***"


def test_the_doctor_looks_at_open_chunks_and_jobs_by_their_indexes(ledger, make_job, worker):
    # Given a ledger, which may hold millions of chunks that are done
    worker.must_claim(make_job([1, 1]).chunks[0])

    def ask(connection):
        diagnosis.work(connection)
        diagnosis.lost_chunks(connection, seconds=1)
        diagnosis.crashing_chunks(connection)
        diagnosis.returning_chunks(connection, releases=1)
        diagnosis.paused_jobs(connection, seconds=1)
        diagnosis.silent_jobs(connection, seconds=1)
        diagnosis.models_needed(connection)

    # When the database is asked how it goes about what the doctor asks, Then it reads by the small indexes
    looks = [(text, plan) for text, plan in plans_of(ledger, ask) if re.search(r"FROM (chunks|jobs)", text)]
    assert len(looks) == 9
    for text, plan in looks:
        assert "ix_chunks_open" in plan or "ix_jobs_open" in plan, f"{text}\n{plan}"
        assert not re.search(r"SCAN (chunks|jobs)", plan), f"{text}\n{plan}"


# ---- settings -----------------------------------------------------------------------------------------


def test_settings_that_agree_are_well(anybody):
    findings = list(configuration.check_settings(anybody))
    assert {finding.level for finding in findings} == {OK}
    assert len(findings) == 6


def test_time_limits_that_are_not_in_their_order(anybody, monkeypatch):
    monkeypatch.setattr(jobs.settings, "TIME_LIMIT_SHARE", 1.2)
    finding = said(configuration.check_settings, anybody, "time limits")
    assert_problem(finding, fix="install Labelmill afresh")
    assert "42 and 72 s, lease 60 s, redelivery 240 s" in finding.what


def test_a_redelivery_before_the_lease_is_over(anybody, monkeypatch):
    monkeypatch.setattr(jobs.settings, "VISIBILITY_LEASES", 0.9)
    assert said(configuration.check_settings, anybody, "time limits").level == PROBLEM


def test_an_image_that_may_take_longer_than_its_chunk(short_folder):
    settings = Settings.load(home=short_folder, lease_seconds=10, image_seconds=10)
    finding = said(configuration.check_settings, settings, "an image may take 10 s")
    assert_warning(finding, fix="LABELMILL_IMAGE_SECONDS=1.75, or everywhere LABELMILL_LEASE_SECONDS=29")
    better = Settings.load(home=short_folder, lease_seconds=29, image_seconds=10)
    assert said(configuration.check_settings, better, "an image may take 10 s").level == OK


def test_a_mistyped_setting_is_named_with_the_one_that_is_meant(anybody, monkeypatch):
    monkeypatch.setenv("LABELMILL_LEASE_SECOND", "300")
    finding = said(configuration.check_settings, anybody, "LABELMILL_LEASE_SECOND:")
    assert_warning(finding, fix="unset LABELMILL_LEASE_SECOND; is LABELMILL_LEASE_SECONDS meant?")


@pytest.mark.parametrize(
    ("urls", "missing"),
    [
        ({"broker_url": "redis://localhost/0"}, []),
        ({"broker_url": "redis://redis.example.org/0"}, ["LABELMILL_LEDGER_URL", "LABELMILL_STORE_URL"]),
        ({"ledger_url": "postgresql://db.example.org/mill"}, ["LABELMILL_BROKER_URL", "LABELMILL_STORE_URL"]),
        (
            {
                "ledger_url": "postgresql://db.example.org/mill",
                "broker_url": "redis://redis.example.org/0",
            },
            ["LABELMILL_STORE_URL"],
        ),
        (
            {
                "ledger_url": "postgresql://db.example.org/mill",
                "broker_url": "redis://redis.example.org/0",
                "store_url": "file:///mnt/mill",
            },
            [],
        ),
    ],
)
def test_a_deployment_of_which_a_part_stayed_at_home(short_folder, urls, missing):
    settings = Settings.load(home=short_folder, **urls)
    findings = [finding for finding in configuration.check_settings(settings) if "machine" in finding.what]
    assert len(findings) == 1
    if missing:
        assert_warning(findings[0], fix=" ".join(f"{name}=..." for name in missing))
    else:
        assert findings[0].level == OK


def test_more_processes_than_cores_and_than_memory(short_folder):
    settings = Settings.load(home=short_folder, processes=1024)
    cores = configuration.usable_cores()
    assert_warning(
        said(configuration.check_settings, settings, f"on {cores} cores"), fix=f"LABELMILL_PROCESSES={cores}"
    )
    settings = Settings.load(home=short_folder, processes=cores)
    assert said(configuration.check_settings, settings, f"on {cores} cores").level == OK


def test_a_container_that_has_less_memory_than_its_machine(short_folder, monkeypatch):
    # Given a container with room for one process
    limit = short_folder / "memory.max"
    limit.write_text(f"{800 * 1024**2}\n")
    monkeypatch.setattr(configuration, "_CONTAINER_MEMORY", limit)

    # When two are wanted, Then it is said how many there is room for
    settings = Settings.load(home=short_folder, processes=2)
    assert_problem(said(configuration.check_settings, settings, "GiB of 0.8"), fix="LABELMILL_PROCESSES=1")

    # And a container without a limit has its machine's
    limit.write_text("max\n")
    assert said(configuration.check_settings, settings, "take some").level == OK


# ---- the state folder ---------------------------------------------------------------------------------


def test_a_state_folder_that_is_not_there_yet_is_not_made(anybody):
    assert all_well(home.check_home, anybody)
    assert not anybody.home.exists()


def test_a_state_folder_that_others_may_look_into(anybody):
    anybody.home.mkdir(mode=0o700)
    assert all_well(home.check_home, anybody)

    anybody.home.chmod(0o755)
    finding = said(home.check_home, anybody, "mode 755")
    assert_warning(finding, fix=f"chmod 700 {anybody.home}")

    anybody.home.chmod(0o770)
    assert said(home.check_home, anybody, "mode 770").level == PROBLEM

    # And what is said to help helps
    subprocess.run(["sh", "-c", str(finding.fix)], check=True, timeout=60)
    assert all_well(home.check_home, anybody)


def test_a_state_folder_that_belongs_to_somebody_else(anybody, monkeypatch):
    anybody.home.mkdir(mode=0o700)
    me = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    assert_problem(said(home.check_home, anybody, "belongs to"), fix=f"as user {me}")


def test_a_state_folder_that_is_none(short_folder):
    (short_folder / "file").write_text("")
    settings = Settings.load(home=short_folder / "file")
    assert_problem(said(home.check_home, settings, "is no folder"), fix="LABELMILL_HOME=")
    settings = Settings.load(home=short_folder / "file" / "below")
    assert_problem(said(home.check_home, settings, "Not a directory"), fix="LABELMILL_HOME=")


def test_a_state_folder_that_may_not_be_written(anybody, short_folder, monkeypatch):
    # Given a folder in which this user may not write (who runs the tests may be root, who may)
    monkeypatch.setattr(os, "access", lambda path, _mode: path != short_folder)

    # When the state folder would have to be made in it, Then nothing is promised of what is in that
    assert_problem(said(home.check_home, anybody, "you may not make it"), fix="LABELMILL_HOME=")
    for check in (ledger_checks.check_ledger, store_checks.check_store):
        assert_problem(said(check, anybody, "none can be made"), fix="what is said of home")

    # And when it is that folder
    settings = Settings.load(home=short_folder)
    assert_problem(said(home.check_home, settings, "you may not write into"), fix=f"chmod 700 {short_folder}")


# ---- the broker ---------------------------------------------------------------------------------------


@pytest.fixture
def at_broker(anybody: Settings, broker: Broker) -> Settings:
    """Nothing but a broker."""
    return anybody.model_copy(update={"broker_url": broker.url})


@pytest.fixture
def configure(broker: Broker) -> Iterator[Callable[[str, str], None]]:
    """`configure("maxmemory", "1mb")` until the test ends."""
    before: dict[str, str] = {}

    def configure(name: str, value: str) -> None:
        before.setdefault(name, broker.client.config_get(name)[name])
        broker.client.config_set(name, value)

    yield configure
    for name, value in before.items():
        broker.client.config_set(name, value)


@pytest.fixture
def as_anna(anybody: Settings, broker: Broker) -> Iterator[Callable[..., Settings]]:
    """`as_anna("+@all", password="secret")`: settings in which the broker knows us as a user with these
    rights.
    """

    def as_anna(*rights: str, password: str = "right") -> Settings:
        broker.client.execute_command("ACL", "SETUSER", "anna", "reset", "on", ">right", *rights)
        url = broker.url.replace("redis+socket://", f"redis+socket://anna:{password}@")
        return anybody.model_copy(update={"broker_url": url})

    yield as_anna
    broker.client.execute_command("ACL", "DELUSER", "anna")


def test_a_broker_that_is_well(at_broker, broker):
    findings = list(broker_checks.check_broker(at_broker))
    assert {finding.level for finding in findings} == {OK}
    assert [finding.what.split()[0] for finding in findings] == [
        *("answers", "takes", "Valkey", "maxmemory-policy", "uses", "messages", "no", "is")
    ]

    # And nothing of the doctor's is left in it
    assert broker.client.keys("*doctor*") == []


def test_an_embedded_broker_that_does_not_run(anybody):
    [finding] = broker_checks.check_broker(anybody)
    assert finding.level == WARNING
    assert finding.what.startswith("the embedded broker is not running")
    assert finding.fix == "labelmill up"


def test_a_broker_that_is_not_where_it_is_said_to_be(anybody):
    settings = anybody.model_copy(update={"broker_url": "redis://127.0.0.1:1/0"})
    finding = said(broker_checks.check_broker, settings, "cannot be used")
    assert_problem(finding, fix="redis-cli -u URL ping")
    assert "Connection refused" in finding.what


def test_a_broker_with_another_password(as_anna):
    settings = as_anna("+@all", "~*", password="wrong")
    finding = said(broker_checks.check_broker, settings, "cannot be used")
    assert_problem(finding, fix="LABELMILL_BROKER_URL=redis://USER:PASSWORD@HOST:PORT/0")
    assert "password" in finding.what
    assert "wrong" not in repr(finding)


def test_a_database_that_the_broker_does_not_have(anybody, broker):
    settings = anybody.model_copy(update={"broker_url": f"{broker.url}?virtual_host=99"})
    finding = said(broker_checks.check_broker, settings, "cannot be used")
    assert_problem(finding, fix="such as /0")


def test_a_user_who_may_not_send_messages(as_anna, broker):
    settings = as_anna("+@all", f"~{KEY_PREFIX}*", "-lpush")
    finding = said(broker_checks.check_broker, settings, "takes no messages")
    assert_problem(finding, fix="redis-cli ACL SETUSER anna '+lpush'")

    # And what is said to help helps
    broker.client.execute_command("ACL", "SETUSER", "anna", "+lpush")
    assert said(broker_checks.check_broker, settings, "takes messages").level == OK


def test_a_user_who_may_not_touch_our_keys(as_anna):
    settings = as_anna("+@all", "~other:*")
    finding = said(broker_checks.check_broker, settings, "takes no messages")
    assert_problem(finding, fix="redis-cli ACL SETUSER anna '~labelmill:*'")
    finding = said(broker_checks.check_broker, settings, "does not say how many messages wait")
    assert_problem(finding, fix="redis-cli ACL SETUSER anna '~labelmill:*'")


def test_a_user_who_has_no_more_than_the_documented_rights(as_anna):
    # Given the rights that docs/how-to/deploy.md grants
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "deploy.md").read_text()
    rights = text.partition("ACL SETUSER labelmill reset on >PASSWORD ")[2].partition("\n```")[0].split()

    # When the doctor comes as that user, Then all can be checked, and is well
    assert all_well(broker_checks.check_broker, as_anna(*rights))


def test_a_user_who_may_not_ask_about_the_server(as_anna):
    settings = as_anna("+@all", "~*", "-info")
    finding = said(broker_checks.check_broker, settings, "version and memory are not checked")
    assert_warning(finding, fix="redis-cli ACL SETUSER anna +info")


def test_a_broker_that_throws_messages_away(at_broker, configure):
    configure("maxmemory-policy", "allkeys-lru")
    finding = said(broker_checks.check_broker, at_broker, "maxmemory-policy is allkeys-lru")
    assert_problem(finding, fix="CONFIG SET maxmemory-policy noeviction")

    # And what is said to help helps
    configure("maxmemory-policy", "noeviction")
    assert said(broker_checks.check_broker, at_broker, "maxmemory-policy").level == OK


def test_a_broker_whose_memory_is_full(at_broker, configure):
    configure("maxmemory", "1")
    finding = said(broker_checks.check_broker, at_broker, "takes no messages: its memory is full")
    assert_problem(finding, fix="raise maxmemory")


def test_a_broker_whose_memory_is_nearly_full(at_broker, broker, configure):
    used = broker.client.info("memory")["used_memory"]
    configure("maxmemory", str(int(used * 1.1)))
    assert_warning(said(broker_checks.check_broker, at_broker, "uses"), fix="CONFIG SET maxmemory ")
    configure("maxmemory", str(used * 10))
    assert said(broker_checks.check_broker, at_broker, "uses").level == OK


def test_a_broker_that_is_a_replica(at_broker, broker):
    broker.client.replicaof("127.0.0.1", 1)
    try:
        finding = said(broker_checks.check_broker, at_broker, "takes no messages: it is a read-only replica")
        assert_problem(finding, fix="LABELMILL_BROKER_URL=the primary's URL")
    finally:
        broker.client.replicaof("NO", "ONE")


def test_a_broker_that_is_too_old(at_broker, monkeypatch):
    monkeypatch.setattr(broker_checks, "_OLDEST", (99, 0))
    assert_problem(said(broker_checks.check_broker, at_broker, "is too old"), fix="Redis 99.0 or newer")


def test_messages_that_wait_are_counted(at_broker, broker):
    from jobs.queue import make_app

    with contextlib.closing(make_app(at_broker)) as app:
        Bell(app).ring([new_id(), new_id()])
        app.send_task(RETRAIN_TASK)
    assert broker.waiting(CLASSIFY_QUEUE) == 2
    finding = said(broker_checks.check_broker, at_broker, "messages that wait")
    assert finding.what == "messages that wait: 2 to classify, 1 to retrain"


def test_another_celery_application_in_the_same_database(at_broker, broker):
    broker.client.hset("unacked", "tag", "message")
    finding = said(broker_checks.check_broker, at_broker, "another Celery application")
    assert_warning(finding, fix="a database number of its own")


@pytest.mark.parametrize(
    ("url", "what"),
    [
        ("redis://redis.example.org/0", "no password and no TLS"),
        ("redis://:secret@redis.example.org/0", "no TLS"),
        ("rediss://redis.example.org/0", "no password"),
        ("rediss://:secret@redis.example.org/0?ssl_cert_reqs=none", "no check of the server's certificate"),
    ],
)
def test_a_broker_that_anybody_on_the_network_may_read(url, what):
    finding = broker_checks._protection(Settings.load(broker_url=url))
    assert_warning(finding, fix="LABELMILL_BROKER_URL=rediss://USER:PASSWORD@...")
    assert finding.what == f"is reached over a network with {what}"
    assert "secret" not in repr(finding)


@pytest.mark.parametrize("url", ["rediss://:secret@redis.example.org/0", "redis://127.0.0.1/0"])
def test_a_broker_that_is_protected_or_on_this_machine(url):
    assert broker_checks._protection(Settings.load(broker_url=url)).level == OK


# ---- the ledger ---------------------------------------------------------------------------------------


def test_a_ledger_that_is_well(settings):
    findings = list(ledger_checks.check_ledger(settings))
    # SQLite's version is this Python's affair: it has a test of its own.
    assert {finding.level for finding in findings if "SQLite" not in finding.what} == {OK}
    assert len(findings) == 8


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_a_ledger_that_was_never_migrated(anybody, empty_ledger_url, database):
    settings = anybody.model_copy(update={"ledger_url": empty_ledger_url(database)})
    finding = said(ledger_checks.check_ledger, settings, "was never migrated")
    assert finding.level == PROBLEM
    assert finding.fix == "labelmill db upgrade"


@pytest.fixture
def empty_ledger_url(request: pytest.FixtureRequest) -> Callable[[str], str]:
    """`empty_ledger_url("sqlite")`: of a database that is there and has no table."""

    def empty_ledger_url(database: str) -> str:
        url: str = request.getfixturevalue(f"empty_{database}_url")
        Ledger(url).close()
        return url

    return empty_ledger_url


def test_an_embedded_ledger_that_is_not_migrated_migrates_itself(anybody):
    Ledger(anybody.ledger).close()
    assert_warning(
        said(ledger_checks.check_ledger, anybody, "was never migrated"), fix="labelmill db upgrade"
    )


def test_a_ledger_of_a_newer_labelmill(ledger, settings):
    with ledger.transaction() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    finding = said(ledger_checks.check_ledger, settings, "is at migration 9999")
    assert_problem(finding, fix="upgrade Labelmill here")


def test_an_embedded_ledger_that_is_not_there_yet_is_not_made(anybody):
    assert all_well(ledger_checks.check_ledger, anybody)
    assert not anybody.home.exists()


def test_a_ledgers_file_that_is_named_and_not_there(anybody):
    settings = anybody.model_copy(update={"ledger_url": f"sqlite:///{anybody.home}/other.sqlite3"})
    finding = said(ledger_checks.check_ledger, settings, "names a file that is not there")
    assert_problem(finding, fix="labelmill db upgrade")
    assert not anybody.home.exists()


@on_sqlite
def test_a_ledger_whose_write_lock_somebody_holds(settings, sqlite_url, monkeypatch):
    monkeypatch.setattr(looking, "ANSWER_SECONDS", 0.1)
    path = sqlite_url.removeprefix("sqlite:///")
    Ledger(sqlite_url).check()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        finding = said(ledger_checks.check_ledger, settings, "locked")
        holder.execute("ROLLBACK")
    assert_problem(finding, fix=f"fuser {path}")
    assert said(ledger_checks.check_ledger, settings, "takes writes").level == OK


@on_sqlite
def test_a_ledgers_file_that_is_no_database(settings, sqlite_url):
    Path(sqlite_url.removeprefix("sqlite:///")).write_bytes(b"not a database, by any means" * 100)
    finding = said(ledger_checks.check_ledger, settings, "file is not a database")
    assert_problem(finding, fix="backup")


def test_a_ledgers_file_that_is_a_folder(anybody):
    (anybody.home / "ledger.sqlite3").mkdir(parents=True, mode=0o700)
    finding = said(ledger_checks.check_ledger, anybody, "Is a directory")
    assert_problem(finding, fix=f"ls -ld {anybody.home}/ledger.sqlite3")


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 44, 5), WARNING),
        ((3, 44, 6), OK),
        ((3, 46, 1), WARNING),
        ((3, 50, 6), WARNING),
        ((3, 50, 7), OK),
        ((3, 51, 2), WARNING),
        ((3, 51, 3), OK),
        ((3, 53, 0), OK),
    ],
)
def test_versions_of_sqlite_that_may_damage_a_database(version, level):
    finding = ledger_checks._sqlite_version(version)
    assert finding.level == level
    assert ".".join(map(str, version)) in finding.what


@on_sqlite
def test_the_version_of_sqlite_is_that_of_this_python(settings):
    assert sqlite3.sqlite_version in said(ledger_checks.check_ledger, settings, "SQLite").what


@on_sqlite
def test_a_journal_mode_in_which_readers_and_writers_block_each_other(settings, sqlite_url, monkeypatch):
    # Given a file system on which SQLite stays at its old way
    with contextlib.closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"))) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    monkeypatch.setattr(jobs.ledger.database, "_set_up_sqlite", lambda _connection, _record: None)

    finding = said(ledger_checks.check_ledger, settings, "journal mode")
    assert_problem(finding, fix="a local disk")
    assert "delete" in finding.what


@on_sqlite
def test_a_ledger_on_a_network_file_system(settings, sqlite_url, tmp_path, monkeypatch):
    folder = Path(sqlite_url.removeprefix("sqlite:///")).parent
    mounts = tmp_path / "mounts"
    monkeypatch.setattr(disk, "_MOUNTS", mounts)

    mounts.write_text(f"/dev/vda / ext4 rw 0 0\nserver:/export {folder} nfs4 rw 0 0\n")
    finding = said(ledger_checks.check_ledger, settings, "network file system (nfs4)")
    assert_warning(finding, fix="a local disk")

    # And a local disk below the network's is a local disk
    mounts.write_text(f"server:/export {folder.parent} nfs4 rw 0 0\n/dev/vdb {folder} xfs rw 0 0\n")
    assert said(ledger_checks.check_ledger, settings, "is on a local disk").level == OK


def test_a_mount_point_with_a_space_in_its_name(tmp_path, monkeypatch):
    mounts = tmp_path / "mounts"
    mounts.write_text("//nas/share /mnt/my\\040disk cifs rw 0 0\n")
    monkeypatch.setattr(disk, "_MOUNTS", mounts)
    assert disk.network_file_system(Path("/mnt/my disk/ledger.sqlite3")) == "cifs"
    assert disk.network_file_system(Path("/mnt/my")) is None


@on_sqlite
def test_a_ledgers_file_that_others_may_read(settings, sqlite_url):
    path = Path(sqlite_url.removeprefix("sqlite:///"))
    path.chmod(0o644)
    finding = said(ledger_checks.check_ledger, settings, "others may look into")
    assert finding.level == WARNING

    # And what is said to help helps
    subprocess.run(["sh", "-c", str(finding.fix)], check=True, timeout=60)
    assert said(ledger_checks.check_ledger, settings, "nobody else may look into").level == OK


@on_sqlite
def test_a_disk_that_is_nearly_full(settings, monkeypatch):
    assert said(ledger_checks.check_ledger, settings, "free on the disk").level == OK
    monkeypatch.setattr(disk, "_LEAST_BYTES", 2**62)
    assert_warning(said(ledger_checks.check_ledger, settings, "free on the disk"), fix="du -xh")
    monkeypatch.setattr(disk, "_LEAST_BYTES", 0)
    monkeypatch.setattr(disk, "_LEAST_SHARE", 1.1)
    assert_warning(said(ledger_checks.check_ledger, settings, "free on the disk"), fix="du -xh")


def test_a_postgresql_that_is_not_where_it_is_said_to_be(anybody):
    settings = anybody.model_copy(update={"ledger_url": "postgresql+psycopg://u:secret@127.0.0.1:1/mill"})
    finding = said(ledger_checks.check_ledger, settings, "cannot be used")
    assert_problem(finding, fix="pg_isready")
    assert "secret" not in repr(finding)


def test_a_postgresql_that_does_not_know_us_or_the_database(anybody, postgresql_server: PostgresqlServer):
    url = sa.make_url(postgresql_server.url("nowhere"))
    settings = anybody.model_copy(update={"ledger_url": url.render_as_string(hide_password=False)})
    assert_problem(said(ledger_checks.check_ledger, settings, '"nowhere" does not exist'), fix="createdb")

    url = url.set(username="nobody", password="secret")
    settings = anybody.model_copy(update={"ledger_url": url.render_as_string(hide_password=False)})
    finding = said(ledger_checks.check_ledger, settings, "nobody")
    assert_problem(finding, fix="postgresql://USER:PASSWORD@HOST/DATABASE")
    assert "secret" not in repr(finding)


@on_postgresql
def test_a_postgresql_that_takes_no_writes(settings, postgresql_server: PostgresqlServer):
    database = sa.make_url(settings.ledger).database
    postgresql_server.execute(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    finding = said(ledger_checks.check_ledger, settings, "takes no writes")
    assert_problem(finding, fix="LABELMILL_LEDGER_URL=the primary's URL")


@pytest.fixture
def as_limited(settings: Settings, ledger: Ledger, postgresql_server: PostgresqlServer) -> Iterator[Settings]:
    """The ledger as a role sees it that has no rights yet."""
    postgresql_server.execute("CREATE ROLE limited")
    url = sa.make_url(settings.ledger).update_query_dict({"options": "-c role=limited"})
    yield settings.model_copy(update={"ledger_url": url.render_as_string(hide_password=False)})
    with ledger.transaction() as connection:
        connection.execute(sa.text("DROP OWNED BY limited"))
    postgresql_server.execute("DROP ROLE limited")


@on_postgresql
def test_a_role_that_lacks_rights(ledger, as_limited):
    def grant(rights: str) -> None:
        with ledger.transaction() as connection:
            connection.execute(sa.text(f"GRANT {rights} ON ALL TABLES IN SCHEMA public TO limited"))

    # Given a role without any right, with too few, with all: the ones that are said to help
    finding = said(ledger_checks.check_ledger, as_limited, "permission denied")
    assert_problem(finding, fix="GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO")

    grant("SELECT, INSERT")
    finding = said(ledger_checks.check_ledger, as_limited, "its role may not read and write all of")
    assert_problem(finding, fix="GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO")
    assert "chunks" in finding.what

    grant("SELECT, INSERT, UPDATE, DELETE")
    assert said(ledger_checks.check_ledger, as_limited, "takes writes").level == OK


@on_postgresql
def test_a_postgresql_that_gets_no_repairs(settings, monkeypatch):
    monkeypatch.setattr(ledger_checks, "_POSTGRESQL_REPAIRED", (99,))
    assert_warning(said(ledger_checks.check_ledger, settings, "gets no repairs"), fix="PostgreSQL 99")


@on_postgresql
def test_clocks_that_are_apart(settings, monkeypatch):
    assert said(ledger_checks.check_ledger, settings, "its clock is 0.").level == OK
    monkeypatch.setattr(ledger_checks, "_CLOCK_SECONDS", 0.0)
    assert_warning(said(ledger_checks.check_ledger, settings, "its clock"), fix="timedatectl set-ntp true")


@on_postgresql
def test_a_postgresql_with_hardly_a_connection_left(settings, monkeypatch):
    assert said(ledger_checks.check_ledger, settings, "connections are taken").level == OK
    monkeypatch.setattr(ledger_checks, "_FULL_SHARE", 0.0)
    finding = said(ledger_checks.check_ledger, settings, "connections are taken")
    assert_warning(finding, fix="ALTER SYSTEM SET max_connections")


@on_postgresql
def test_a_transaction_that_somebody_left_open(settings, monkeypatch):
    monkeypatch.setattr(ledger_checks, "_OLD_TRANSACTION_SECONDS", 0.0)
    assert said(ledger_checks.check_ledger, settings, "no transaction has been open").level == OK

    url = str(settings.ledger).replace("+psycopg", "")
    with psycopg.connect(url) as forgetful:
        forgetful.execute("SELECT 1")
        pid = forgetful.info.backend_pid
        finding = said(ledger_checks.check_ledger, settings, "transactions are open")
    assert_warning(finding, fix=f"SELECT pg_terminate_backend({pid})")


@pytest.mark.parametrize(
    ("host", "encrypted", "level"),
    [("db.example.org", False, WARNING), ("db.example.org", True, OK), ("localhost", False, OK)],
)
def test_a_postgresql_that_is_reached_without_tls(host, encrypted, level):
    settings = Settings.load(ledger_url=f"postgresql://{host}/mill")
    finding = ledger_checks._protection(settings, encrypted=encrypted)
    assert finding.level == level
    assert (finding.fix is not None and "sslmode=verify-full" in finding.fix) == (level == WARNING)


# ---- the store ----------------------------------------------------------------------------------------


def test_a_store_that_is_well_has_nothing_more_in_it_afterwards(anybody):
    folder = Path(anybody.store)
    folder.mkdir(parents=True)
    assert all_well(store_checks.check_store, anybody)
    assert said(store_checks.check_store, anybody, "keeps what it is given").level == OK
    assert list(folder.iterdir()) == []


def test_a_store_that_is_not_there_yet_is_not_made(anybody):
    assert all_well(store_checks.check_store, anybody)
    assert not anybody.home.exists()


def test_a_store_on_a_disk_that_is_not_mounted(anybody, short_folder):
    folder = short_folder / "mnt"
    settings = anybody.model_copy(update={"store_url": f"file://{folder}"})
    assert_warning(
        said(store_checks.check_store, settings, "is its disk mounted"), fix=f"mkdir -m 700 {folder}"
    )
    assert not folder.exists()


def test_a_store_that_cannot_be_written(anybody, short_folder):
    # Given a file where the folder should be
    (short_folder / "store").write_text("")
    settings = anybody.model_copy(update={"store_url": str(short_folder / "store")})
    finding = said(store_checks.check_store, settings, "cannot be written")
    assert_problem(finding, fix=f"ls -ld {short_folder}/store")


def test_a_store_of_a_kind_that_is_not_known(anybody):
    settings = anybody.model_copy(update={"store_url": "nosuch://bucket"})
    assert_problem(said(store_checks.check_store, settings, "nosuch"), fix="LABELMILL_STORE_URL")


class Forgetful(MemoryFileSystem):
    """Gives back something else than it was given."""

    protocol = "forgetful"

    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **kwargs: object
    ) -> bytes:
        return super().cat_file(path, start, end, **kwargs)[:-1]


def test_a_store_that_is_no_folder(anybody):
    assert all_well(store_checks.check_store, anybody.model_copy(update={"store_url": "memory://mill"}))

    fsspec.register_implementation("forgetful", Forgetful, clobber=True)
    settings = anybody.model_copy(update={"store_url": "forgetful://mill"})
    finding = said(store_checks.check_store, settings, "something else than it was given")
    assert_problem(finding, fix="credentials")


def test_a_stores_disk_that_is_nearly_full(anybody, monkeypatch):
    monkeypatch.setattr(disk, "_LEAST_BYTES", 2**62)
    assert_warning(said(store_checks.check_store, anybody, "free on the disk"), fix="labelmill purge")


# ---- the models ---------------------------------------------------------------------------------------


@pytest.fixture
def registered(make_model, store: Store) -> Model:
    """The champion, its file in the store that the settings name."""
    model: Model = make_model(b"the champion's file", store=store)
    return model


def model_file(settings: Settings, model: Model) -> Path:
    return Path(settings.store) / model_key(model.sha256)


def test_models_that_are_well(settings, registered, make_model, store):
    make_model(b"another one", champion=False, store=store)
    assert all_well(model_checks.check_models, settings)
    assert registered.id in said(model_checks.check_models, settings, "champion is").what
    assert said(model_checks.check_models, settings, "2 of 2 files").level == OK


def test_no_champion(settings):
    [finding] = model_checks.check_models(settings)
    assert finding.level == PROBLEM
    assert finding.fix == "labelmill train"


def test_models_and_no_champion(settings, make_model, ledger, store):
    # Given a model that nobody promoted, when the doctor looks, then what helps is no training
    model = make_model(b"evaluated", champion=False, store=store)
    finding = said(model_checks.check_models, settings, "no model is the champion")
    assert (finding.level, finding.fix) == (WARNING, f"labelmill models promote {model.id}")
    # and for one that was not evaluated it is the word that promotes it
    with ledger.transaction() as connection:
        connection.execute(models_table.update().values(accuracy=None))
    assert_warning(
        said(model_checks.check_models, settings, "no model is the champion"),
        fix=f"labelmill models promote {model.id} --force",
    )


def test_no_ledger_yet_is_no_champion(anybody):
    [finding] = model_checks.check_models(anybody)
    assert finding.fix == "labelmill train"
    assert not anybody.home.exists()


@on_sqlite
def test_a_champion_whose_file_was_changed(settings, registered):
    model_file(settings, registered).write_bytes(b"something else")
    finding = said(model_checks.check_models, settings, "its SHA-256 differs")
    assert_problem(finding, fix=f"backup of the store: {model_file(settings, registered)}")


@on_sqlite
def test_a_champion_whose_file_is_gone_and_still_in_the_cache(settings, registered, store):
    # Given a worker that had fetched it
    fetch_model(store, registered, settings.cache_dir)
    shutil.rmtree(Path(settings.store) / "models")
    (Path(settings.store) / "models").mkdir()

    # When the doctor looks, Then it knows where there is another copy
    finding = said(model_checks.check_models, settings, "is gone from the store")
    assert finding.level == PROBLEM
    assert str(finding.fix).startswith("cp ")

    # And what is said to help helps
    subprocess.run(["sh", "-c", str(finding.fix)], check=True, timeout=60)
    assert all_well(model_checks.check_models, settings)


@on_sqlite
def test_a_copy_in_the_cache_that_is_damaged_is_no_help(settings, registered, store):
    fetch_model(store, registered, settings.cache_dir).write_bytes(b"damaged")
    model_file(settings, registered).unlink()
    assert_problem(said(model_checks.check_models, settings, "is gone from the store"), fix="backup")


def test_a_model_that_only_a_job_needs_and_one_that_nobody_does(
    settings, ledger, make_model, make_job, store
):
    # Given two models without an alias, the first of which a job is pinned to that goes on
    pinned = make_model(b"pinned to", store=store)
    job = make_job([1])
    with ledger.transaction() as connection:
        connection.execute(jobs_table.update().values(model_id=pinned.id))
    free = make_model(b"free", champion=False, store=store)
    make_model(b"champion", store=store)
    model_file(settings, pinned).unlink()
    model_file(settings, free).unlink()

    # When the doctor looks, Then the job's is a problem, and the other is none
    assert said(model_checks.check_models, settings, pinned.id).level == PROBLEM
    assert said(model_checks.check_models, settings, free.id).level == WARNING

    # And when the job has ended, neither is
    with ledger.transaction() as connection:
        end_job(connection, job.id, JobState.CANCELLED)
    assert said(model_checks.check_models, settings, pinned.id).level == WARNING


@on_sqlite
def test_models_that_nobody_needs_are_not_read_at_any_price(
    settings, registered, make_model, store, monkeypatch
):
    make_model(b"another one", champion=False, store=store)
    monkeypatch.setattr(model_checks, "_SPARE_BYTES", 3)
    assert "1 others not looked at" in said(model_checks.check_models, settings, "1 of 2 files").what

    # But the champion's is, whatever it takes
    model_file(settings, registered).unlink()
    assert said(model_checks.check_models, settings, registered.id + " is gone").level == PROBLEM


def test_a_ledger_that_cannot_be_used_is_one_finding_of_other_areas(anybody):
    settings = anybody.model_copy(update={"ledger_url": "postgresql+psycopg://127.0.0.1:1/mill"})
    for check in (model_checks.check_models, work.check_work):
        [finding] = check(settings)
        assert_warning(finding, fix="what is said of the ledger")


@on_sqlite
def test_a_store_of_no_known_kind_keeps_no_champion_from_being_seen(settings, registered):
    settings = settings.model_copy(update={"store_url": "nosuch://bucket"})
    assert said(model_checks.check_models, settings, f"champion is {registered.id}").level == OK
    assert_warning(said(model_checks.check_models, settings, "files not looked at"), fix="of the store")


# ---- training -----------------------------------------------------------------------------------------


def test_training_that_is_well(anybody, mnist_dir):
    settings = anybody.model_copy(update={"mnist_dir": mnist_dir})
    assert all_well(training.check_training, settings)
    assert said(training.check_training, settings, "MNIST is in").level == OK
    assert said(training.check_training, settings, "retraining at 0 3 * * 0").level == OK


def test_a_schedule_that_is_none(anybody):
    settings = anybody.model_copy(update={"retrain_cron": "every day"})
    assert_problem(said(training.check_training, settings, "every day"), fix="LABELMILL_RETRAIN_CRON=")
    settings = anybody.model_copy(update={"retrain_cron": "never"})
    assert said(training.check_training, settings, "switched off").level == OK


def test_mnist_that_is_not_where_it_is_said_to_be(anybody, tmp_path):
    settings = anybody.model_copy(update={"mnist_dir": tmp_path})
    finding = said(training.check_training, settings, "cannot train")
    assert_warning(finding, fix="LABELMILL_MNIST_DIR=")
    assert "train-images-idx3-ubyte" in finding.what


def test_mnist_that_was_or_will_be_downloaded(anybody):
    settings = anybody.model_copy(update={"mnist_dir": None})
    assert said(training.check_training, settings, "the first training downloads it").level == OK
    settings.cache_dir.mkdir(parents=True)
    (settings.cache_dir / "mnist.npz").write_bytes(b"")
    assert said(training.check_training, settings, "was downloaded before").level == OK


def begun(ledger: Ledger, **values: object) -> str:
    """A training run that was asked for, and changed."""
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
    if values:
        change(ledger, training_runs, **values)
    return run_id


def test_a_training_run_that_waits_for_a_trainer(settings, ledger):
    # Given a run that was asked for a moment ago, Then all is well
    run_id = begun(ledger)
    assert said(training.check_training, settings, f"{run_id} waits for a trainer").level == OK
    assert said(training.check_training, settings, "no training run has finished").level == OK

    # But not when nobody has taken it for minutes
    change(ledger, training_runs, requested_at=db_now(-1_000))
    finding = said(
        training.check_training, settings, f"{run_id} has been waiting for a trainer for 17 minutes"
    )
    assert_warning(finding, fix=f"labelmill worker --trainer, or labelmill runs cancel {run_id}")

    # And one that somebody is at is well, however long it takes
    change(ledger, training_runs, state=RunState.RUNNING, owner="host/3", lease_until=db_now(60))
    assert said(training.check_training, settings, "under way: host/3 trains").level == OK

    # But not where nobody has heard of them for a week
    change(ledger, training_runs, lease_until=db_now(-7 * 86_400))
    finding = said(training.check_training, settings, "its trainer host/3 gave no sign of life for 7 days")
    assert_warning(finding, fix=f"labelmill runs show {run_id} --watch")


@pytest.mark.parametrize(
    ("state", "level"), [(RunState.FAILED, WARNING), (RunState.INTERRUPTED, OK), (RunState.DONE, OK)]
)
def test_how_the_latest_training_run_ended(settings, ledger, state, level):
    run_id = begun(ledger, state=state, active=None, error="no data", verdict="no data")
    finding = said(training.check_training, settings, f"the latest training run {run_id} is {state}: no data")
    assert finding.level == level
    assert (finding.fix is None) == (level == OK)
    assert said(training.check_training, settings, "no training run is under way").level == OK


# ---- the jobs -----------------------------------------------------------------------------------------


@pytest.fixture
def reconciled(ledger: Ledger, bell: Bell) -> None:
    """A worker's reconciler has just looked."""
    Reconciler(ledger, bell, holder="host/17").tick()


def change(ledger: Ledger, table: sa.Table, **values: object) -> None:
    with ledger.transaction() as connection:
        connection.execute(table.update().values(**values))


def test_jobs_that_are_well(settings, make_job, worker, reconciled):  # noqa: ARG001
    # Given a chunk that waits, one that is being worked on and one that is done
    job = make_job([1, 1, 1])
    worker.must_claim(job.chunks[0])
    worker.work(job.chunks[1])

    assert all_well(work.check_work, settings)
    assert said(work.check_work, settings, "chunks: 1 waiting, 1 under way").level == OK
    assert said(work.check_work, settings, "host/17 reconciles").level == OK


def test_no_ledger_yet_is_no_jobs_yet(anybody):
    assert all_well(work.check_work, anybody)
    assert not anybody.home.exists()


def test_no_worker_ever_ran(settings, make_job):
    finding = said(work.check_work, settings, "no worker is running")
    assert_warning(finding, fix="labelmill worker")
    assert "nobody ever has" in finding.what

    # And where there is work it is a problem
    make_job([1])
    assert_problem(said(work.check_work, settings, "and there is work"), fix="labelmill worker")


def test_the_last_worker_went(settings, ledger, reconciled):  # noqa: ARG001
    change(ledger, locks, until=db_now(-7200))
    finding = said(work.check_work, settings, "no worker is running")
    assert finding.level == WARNING
    assert "host/17 stopped 2 hours ago" in finding.what


def test_where_the_broker_is_embedded_up_is_what_helps(anybody, make_job, ledger_url):
    make_job([1])
    settings = anybody.model_copy(update={"ledger_url": ledger_url})
    assert said(work.check_work, settings, "no worker is running").fix == "labelmill up"


def test_chunks_that_wait_and_nothing_is_finished(settings, ledger, make_job, worker, reconciled):  # noqa: ARG001
    # Given a job that has waited for long
    job = make_job([1, 1, 1])
    change(ledger, chunks, created_at=db_now(-300))
    assert_problem(said(work.check_work, settings, "none was finished for 3 minutes"), fix="its log says")

    # When one is being worked on, Then it is only slow
    claim = worker.must_claim(job.chunks[0])
    assert said(work.check_work, settings, "chunks: 2 waiting, 1 under way").level == OK

    # And when one was just finished
    worker.finish(claim)
    assert said(work.check_work, settings, "chunks: 2 waiting, 0 under way").level == OK

    # But not when that is long ago
    with ledger.transaction() as connection:
        connection.execute(
            chunks.update().where(chunks.c.id == job.chunks[0].id).values(finished_at=db_now(-300))
        )
    assert said(work.check_work, settings, "chunks: 2 waiting, 0 under way").level == PROBLEM


def test_a_longer_lease_is_more_patience(settings, ledger, make_job):
    make_job([1])
    change(ledger, chunks, created_at=db_now(-300))
    settings = settings.model_copy(update={"lease_seconds": 200.0})
    assert said(work.check_work, settings, "chunks: 1 waiting").level == OK


def test_a_chunk_whose_worker_vanished_long_ago(settings, make_job, worker, reconciled):  # noqa: ARG001
    job = make_job([1, 1])
    worker.must_claim(job.chunks[0], lease_seconds=-179)
    assert said(work.check_work, settings, "no chunk's lease ran out long ago").level == OK
    worker.must_claim(job.chunks[1], lease_seconds=-181)
    finding = said(work.check_work, settings, "the worker of 1 chunk vanished")
    assert_problem(finding, fix="labelmill worker")
    assert job.id in finding.what


def test_a_job_whose_producer_vanished(settings, ledger, make_job):
    job = make_job([1], sealed=False)
    assert said(work.check_work, settings, "every job that is being received").level == OK
    change(ledger, jobs_table, touched_at=db_now(-ABANDONED_SECONDS - 60))
    finding = said(work.check_work, settings, "vanished in mid-submission")
    assert_warning(finding, fix=f"labelmill cancel {job.id}")

    # And a job that was submitted whole needs no producer
    change(ledger, jobs_table, state=JobState.RUNNING)
    assert said(work.check_work, settings, "every job that is being received").level == OK


def test_a_chunk_that_crashed_and_is_tried_again(settings, make_job, worker, reconciled):  # noqa: ARG001
    job = make_job([2])
    worker.crash(worker.must_claim(job.chunks[0]))
    finding = said(work.check_work, settings, "1 chunk crashed")
    assert finding.level == WARNING
    assert job.id in finding.what


def test_a_chunk_that_is_given_back_again_and_again(settings, make_job, worker, reconciled):  # noqa: ARG001
    job = make_job([2])
    for _ in range(4):
        worker.release(worker.must_claim(job.chunks[0]))
    assert said(work.check_work, settings, "no chunk is given back").level == OK
    worker.release(worker.must_claim(job.chunks[0]))
    finding = said(work.check_work, settings, "again and again, one 5 times: given back")
    assert finding.level == WARNING
    assert job.id in finding.what


def test_an_image_that_was_given_up_lately(settings, ledger, make_job, worker, reconciled):  # noqa: ARG001
    # Given an image that crashed alone until it was given up, and one that only crashed once
    given_up, lucky = make_job([1]), make_job([1])
    worker.crash(worker.must_claim(lucky.chunks[0]))
    worker.work(lucky.chunks[0])
    for _ in range(3):
        worker.crash(worker.must_claim(given_up.chunks[0]))
    worker.work(given_up.chunks[0], [Outcome("bad.png", None, None, "quarantined", "it crashed")])

    # Then the first is told of, and how to see it
    finding = said(work.check_work, settings, "given up after crashing all alone: 1 image, in")
    assert_warning(finding, fix=f"labelmill predictions {given_up.id} --errors")

    # And for a week
    change(ledger, chunks, finished_at=db_now(-8 * 86_400))
    assert said(work.check_work, settings, "no image was given up").level == OK


def test_a_job_that_has_been_paused_for_long(settings, ledger, make_job, reconciled):  # noqa: ARG001
    job = make_job([1])
    with ledger.transaction() as connection:
        pause_job(connection, job.id)
    assert said(work.check_work, settings, "no job has been paused for long").level == OK
    change(ledger, jobs_table, paused_at=db_now(-90_000))
    finding = said(work.check_work, settings, "paused for over a day")
    assert_warning(finding, fix=f"labelmill resume {job.id}")

    # And its chunks are not said to stand still
    change(ledger, chunks, created_at=db_now(-90_000))
    assert said(work.check_work, settings, "chunks: 0 waiting").level == OK


def test_many_jobs_are_not_all_named(settings, ledger, make_job, reconciled):  # noqa: ARG001
    for _ in range(5):
        make_job([1], sealed=False)
    change(ledger, jobs_table, touched_at=db_now(-ABANDONED_SECONDS - 60))
    assert "and 2 more" in said(work.check_work, settings, "the producer of 5 jobs").what
