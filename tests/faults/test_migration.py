"""A migration while workers of an older version go on: nothing is lost, old and new work side by side. And
one that cannot have its lock: it gives up, and nobody waits behind it.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from functools import partial

import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory
from jobs.ledger.outcomes import Classified, record_outcomes

from jobs.errors import LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk
from jobs.ledger.database import revision
from jobs.outcomes import Outcome
from jobs.schema import metadata
from labelmill.migrating import alembic_config, upgrade
from tests.faults.checker import Expected, check_job
from tests.faults.trials import Matrix
from tests.secured import conninfo

CHUNKS = 150
IMAGES = 10

#: Times the upgrade may be run until it finds a moment without a lock in its way.
UPGRADES = 5

#: The statements of the version whose schema is migration 0001, as it sent them.
NOW = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')",
    "postgresql": "clock_timestamp()",
}
LATER = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '+2 seconds')",
    "postgresql": "clock_timestamp() + interval '2 seconds'",
}
OLD_CLAIM = """
UPDATE chunks
SET state = 'claimed', token = :token, owner = :owner, attempts = attempts + 1, lease_until = {later}
WHERE id = :id AND (state = 'pending' OR (state = 'claimed' AND lease_until < {now}))
RETURNING first_index
"""
OLD_FINISH = """
UPDATE chunks SET state = 'done', lease_until = NULL, finished_at = {now}
WHERE id = :id AND token = :token AND state = 'claimed'
"""
OLD_INSERT = """
INSERT INTO predictions (job_id, "index", name, label, confidence) VALUES (:job, :index, :name, :label, 0.5)
"""
OLD_COUNT = """
UPDATE jobs SET succeeded = succeeded + :images, chunks_done = chunks_done + 1,
  state = CASE WHEN state = 'running' AND chunks_done + 1 = chunks THEN 'done' ELSE state END,
  finished_at = CASE WHEN state = 'running' AND chunks_done + 1 = chunks THEN {now} ELSE finished_at END
WHERE id = :job
"""


@pytest.mark.parametrize("begin", ["the first version", "the version before"])
def test_a_migration_under_load_loses_nothing(empty_ledger: Ledger, matrix: Matrix, begin: str) -> None:
    with matrix.trials(f"migration under load, from {begin}", "I1-I3", short=2, long=10) as trials:
        for number in range(trials.wanted // 2):
            if number:
                _drop_all(empty_ledger)

            # given a ledger of an older version, and its workers on a job
            upgrade(empty_ledger, "0001" if begin == "the first version" else _version_before(empty_ledger))
            old_work = _new_work if _is_enough_for_us(empty_ledger) else _old_work
            job, chunk_ids = _old_job(empty_ledger)
            over = threading.Event()
            with _workers(empty_ledger, partial(old_work, owner="old"), job, chunk_ids, over):
                _until_done(empty_ledger, job, CHUNKS // 5)

                # when the ledger is migrated, and workers of this version come to them
                _upgrade_in_a_quiet_moment(empty_ledger)
                assert _done(empty_ledger, job) < CHUNKS, "the migration came too late to be under load"
                with _workers(empty_ledger, partial(_new_work, owner="new"), job, chunk_ids, over):
                    _until_done(empty_ledger, job, CHUNKS)
                    over.set()

            # then every image has one outcome, and both have had their share
            expected = [Expected(f"{index}.png", str(index % 10)) for index in range(CHUNKS * IMAGES)]
            trials.ran(1, check_job(_url(empty_ledger), job, expected))
            with empty_ledger.reading() as connection:
                owners = set(connection.scalars(sa.text("SELECT owner FROM chunks")))
            assert owners == {"old", "new"}


@pytest.mark.parametrize("empty_ledger", ["postgresql"], indirect=True)
def test_a_migration_that_cannot_have_its_lock_gives_up_and_nobody_waits_behind_it(
    empty_ledger: Ledger,
) -> None:
    # given somebody who reads jobs and does not come to an end, before a migration that alters them
    upgrade(empty_ledger, "0004")
    with psycopg.connect(conninfo(_url(empty_ledger))) as reader:
        # without the time limit the upgrade would wait for ever, and this test with it
        reader.execute("SET LOCAL idle_in_transaction_session_timeout = '30s'")
        reader.execute("LOCK TABLE jobs IN ACCESS SHARE MODE")

        # when the ledger is migrated, then that is told before long, and nothing is changed
        with pytest.raises(Unavailable, match="lock timeout"):
            upgrade(empty_ledger, "0005")
        with empty_ledger.reading() as connection:
            assert revision(connection) == "0004"

        # and who writes jobs does not wait for the reader, as behind a migration they would
        _old_job(empty_ledger)
        reader.rollback()

    # and when nobody is in its way, it goes through
    upgrade(empty_ledger, "0005")


def _url(ledger: Ledger) -> str:
    return ledger.engine.url.render_as_string(hide_password=False)


def _version_before(ledger: Ledger) -> str:
    with ledger.reading() as connection:
        scripts = ScriptDirectory.from_config(alembic_config(connection))
    head = scripts.get_revision("head")
    assert head is not None
    assert isinstance(head.down_revision, str)
    return head.down_revision


def _is_enough_for_us(ledger: Ledger) -> bool:
    """Whether the ledger has all tables and columns that the workers of now ask for: these are then as good
    as those of its version, whose code is not here.
    """
    with ledger.reading() as connection:
        found = sa.MetaData()
        found.reflect(connection)
    return all(
        table.name in found.tables and {*table.c.keys()} <= {*found.tables[table.name].c.keys()}
        for table in metadata.sorted_tables
    )


def _old_job(ledger: Ledger) -> tuple[str, list[str]]:
    job, model = new_id(), new_id()
    chunk_ids = [new_id() for _ in range(CHUNKS)]
    with ledger.transaction() as connection:
        run = _runner(connection)
        run(
            "INSERT INTO models "
            "(id, architecture, sha256, size_bytes, classes, input_spec, metrics, created_at) VALUES ("
            ":id, 'dense', :id, 1, '[]', '{{}}', '{{}}', {now})",
            id=model,
        )
        run(
            "INSERT INTO jobs (id, state, model_id, total, chunks, created_at, touched_at, submitted_at) "
            "VALUES (:id, 'running', :model, :total, :chunks, {now}, {now}, {now})",
            id=job,
            model=model,
            total=CHUNKS * IMAGES,
            chunks=CHUNKS,
        )
        for place, chunk_id in enumerate(chunk_ids):
            run(
                "INSERT INTO chunks "
                "(id, job_id, first_index, images, payload, payload_sha256, state, created_at) VALUES ("
                ":id, :job, :first, :images, '', '', 'pending', {now})",
                id=chunk_id,
                job=job,
                first=place * IMAGES,
                images=IMAGES,
            )
    return job, chunk_ids


def _old_work(ledger: Ledger, job: str, chunk_id: str, *, owner: str) -> None:
    token = new_id()
    with ledger.transaction() as connection:
        claimed = _runner(connection)(OLD_CLAIM, id=chunk_id, token=token, owner=owner).one_or_none()
    if claimed is None:
        return
    with ledger.transaction() as connection:
        run = _runner(connection)
        if run(OLD_FINISH, id=chunk_id, token=token).rowcount != 1:
            raise LeaseLost
        for index in range(claimed.first_index, claimed.first_index + IMAGES):
            run(OLD_INSERT, job=job, index=index, name=f"{index}.png", label=str(index % 10))
        run(OLD_COUNT, job=job, images=IMAGES)


def _new_work(ledger: Ledger, _job: str, chunk_id: str, *, owner: str) -> None:
    with ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=2.0, owner=owner)
    if claim is None:
        return
    indices = range(claim.first_index, claim.first_index + claim.images)
    with ledger.transaction() as connection:
        record_outcomes(
            connection, [Classified(claim, [Outcome(f"{i}.png", str(i % 10), 0.5) for i in indices])]
        )


@contextmanager
def _workers(
    ledger: Ledger,
    work: Callable[[Ledger, str, str], None],
    job: str,
    chunk_ids: list[str],
    over: threading.Event,
) -> Iterator[None]:
    """Two workers, each with a connection of its own, that try chunks until it is over."""
    failures: list[BaseException] = []

    def labour() -> None:
        chance = random.Random()
        try:
            with closing(Ledger(ledger.engine.url)) as own:
                while not over.is_set():
                    chunk_id = chance.choice(chunk_ids)
                    # What could not be written is tried again; where a claim gets lost by that, after its
                    # lease.
                    _again(lambda chunk_id=chunk_id: work(own, job, chunk_id), over)
                    over.wait(0.005)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=labour) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


def _again(step: Callable[[], None], over: threading.Event) -> None:
    while not over.is_set():
        try:
            step()
        except Unavailable:
            over.wait(0.05)
        else:
            break


def _upgrade_in_a_quiet_moment(ledger: Ledger) -> None:
    for _ in range(UPGRADES):
        with suppress(Unavailable):  # a lock was in its way: it has changed nothing, and is run again
            upgrade(ledger)
            return
    pytest.fail(f"{UPGRADES} times the upgrade did not get through")


def _until_done(ledger: Ledger, job: str, chunks: int) -> None:
    waiting = threading.Event()
    for _ in range(6_000):
        if _done(ledger, job) >= chunks:
            return
        waiting.wait(0.01)
    pytest.fail(f"{_done(ledger, job)} chunks are done, not {chunks}")


def _done(ledger: Ledger, job: str) -> int:
    with ledger.reading() as connection:
        found = connection.scalar(sa.text("SELECT chunks_done FROM jobs WHERE id = :id"), {"id": job})
    return int(found or 0)


def _drop_all(ledger: Ledger) -> None:
    found = sa.MetaData()
    with ledger.transaction() as connection:
        found.reflect(connection)
        found.drop_all(connection)


def _runner(connection: sa.Connection) -> Callable[..., sa.CursorResult[tuple[object, ...]]]:
    name = connection.dialect.name

    def run(statement: str, **values: object) -> sa.CursorResult[tuple[object, ...]]:
        return connection.execute(sa.text(statement.format(now=NOW[name], later=LATER[name])), values)

    return run
