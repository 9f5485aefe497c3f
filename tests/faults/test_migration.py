"""An upgrade in the middle of a job loses nothing. And a migration that cannot have its lock gives up, and
nobody waits behind it.

The migration is one that the test writes. The ledger before it is written in SQL: the code of today may write
other rows than the code of that version.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from jobs.errors import LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.database import REVISION, revision
from jobs.ledger.jobs.claims import Claim, claim_next
from jobs.ledger.jobs.control import resume_job
from jobs.ledger.jobs.results import Classified, record_results
from jobs.ledger.maintenance import release_expired_claims
from labelmill.client.migrating import upgrade
from tests.faults.checker import Expected, check_job
from tests.faults.trials import Matrix
from tests.ledger_probes import claim_of
from tests.next_migration import NEXT, become_next_version
from tests.outcomes import Outcome, to_columns
from tests.secured import conninfo

IMAGES = 10
NOW = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')", "postgresql": "clock_timestamp()"}

#: The job's chunks: state, place of its first image, images, attempts, crashes.
CHUNKS = [
    ("done", 0, 10, 1, 0),
    ("pending", 10, 10, 0, 0),
    ("claimed", 20, 10, 1, 0),  # its worker was killed for the upgrade
    ("pending", 30, 5, 0, 1),  # the halves of one that crashed
    ("pending", 35, 5, 0, 1),
    ("pending", 40, 10, 2, 1),
    *(("pending", 10 * number, 10, 0, 0) for number in range(5, 40)),
]
TOTAL = 400

#: What the migration does. Chunks first, because workers lock them first: otherwise the two could deadlock.
STATEMENTS = (
    "ALTER TABLE chunks ADD COLUMN weight INTEGER NOT NULL DEFAULT 0",
    "CREATE INDEX ix_chunks_weight ON chunks (weight) WHERE state = 'pending'",
    "ALTER TABLE jobs ADD COLUMN tag TEXT",
)


def test_an_upgrade_in_the_middle_of_a_job_loses_nothing(
    empty_ledger: Ledger, matrix: Matrix, tmp_path: Path
) -> None:
    with matrix.trials("upgrade in the middle of a job", "I1-I3", short=2, long=10) as trials:
        for _ in range(trials.wanted // 2):
            _drop_all(empty_ledger)

            # given a ledger of this version, with chunks in every state, and a paused job
            upgrade(empty_ledger)
            job, late, paused = _make_jobs(empty_ledger)

            # when it is upgraded while workers of this version work
            with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as executor:
                become_next_version(patch, tmp_path, *STATEMENTS)
                working = [executor.submit(_work_until_done, empty_ledger) for _ in range(2)]
                upgrade(empty_ledger)
                for each in working:
                    each.result()
            with empty_ledger.transaction() as connection:
                assert revision(connection) == NEXT
                assert resume_job(connection, paused, limit=10) == 1
            _work_until_done(empty_ledger)

            # then a worker that comes back late records nothing
            with pytest.raises(LeaseLost), empty_ledger.transaction() as connection:
                record_results(connection, [_classified(late)])

            # and every image of both jobs has one outcome
            for id_, images in ((job, TOTAL), (paused, IMAGES)):
                expected = [Expected(f"{index}.png", str(index % 10)) for index in range(images)]
                trials.ran(1 if id_ == job else 0, check_job(_url(empty_ledger), id_, expected))


@pytest.mark.parametrize("empty_ledger", ["postgresql"], indirect=True)
def test_a_migration_that_cannot_have_its_lock_gives_up_and_nobody_waits_behind_it(
    empty_ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # given somebody who reads jobs and does not come to an end, before a migration that alters them
    upgrade(empty_ledger)
    become_next_version(monkeypatch, tmp_path, *STATEMENTS)
    with psycopg.connect(conninfo(_url(empty_ledger))) as reader:
        # without the time limit the upgrade would wait for ever, and this test with it
        reader.execute("SET LOCAL idle_in_transaction_session_timeout = '30s'")
        reader.execute("LOCK TABLE jobs IN ACCESS SHARE MODE")

        # when the ledger is migrated, then that is told before long, and nothing is changed
        with pytest.raises(Unavailable, match="lock timeout"):
            upgrade(empty_ledger)
        with empty_ledger.reading() as connection:
            assert revision(connection) == REVISION

        # and who writes jobs does not wait for the reader, as behind a migration they would
        with empty_ledger.transaction() as connection:
            connection.execute(sa.text("UPDATE jobs SET error = NULL"))
        reader.rollback()

    # and when nobody is in its way, it goes through
    upgrade(empty_ledger)
    with empty_ledger.reading() as connection:
        assert revision(connection) == NEXT


def _url(ledger: Ledger) -> str:
    return ledger.engine.url.render_as_string(hide_password=False)


def _make_jobs(ledger: Ledger) -> tuple[str, Claim, str]:
    """A job in the middle of its work, a claim that its worker still believes in, and a paused job."""
    job, paused, model, token = new_id(), new_id(), new_id(), new_id()
    now = NOW[ledger.engine.dialect.name]
    with ledger.transaction() as connection:

        def run(statement: str, **values: object) -> None:
            connection.execute(sa.text(statement.replace("NOW", now)), values)

        run(
            "INSERT INTO models (id, dataset, architecture, sha256, size_bytes, classes, input_spec, logits,"
            " metrics, created_at) VALUES (:id, 'digits', 'dense', :id, 1, '[]', '{}', false, '{}', NOW)",
            id=model,
        )
        for id_, total, done, since in ((job, TOTAL, IMAGES, "NULL"), (paused, IMAGES, 0, "NOW")):
            run(
                "INSERT INTO jobs (id, state, model_id, total, succeeded, paused_at, created_at, touched_at,"
                f" submitted_at) VALUES (:id, 'running', :model, :total, :done, {since}, NOW, NOW, NOW)",
                id=id_,
                model=model,
                total=total,
                done=done,
            )
        claimed = ""
        for job_id, state, first, images, attempts, crashes in [
            *((job, *chunk) for chunk in CHUNKS),
            (paused, "held", 0, IMAGES, 0, 0),
        ]:
            chunk_id, is_claimed = new_id(), state == "claimed"
            claimed = chunk_id if is_claimed else claimed
            run(
                "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_digest, state,"
                " attempts, crashes, crash_code, token, owner, lease_until, created_at) VALUES (:id, :job,"
                " :first, :images, '', '', :state, :attempts, :crashes, :code, :token, 'old',"
                f" {'NOW' if is_claimed else 'NULL'}, NOW)",
                id=chunk_id,
                job=job_id,
                first=first,
                images=images,
                state=state,
                attempts=attempts,
                crashes=crashes,
                code="quarantined" if crashes else None,
                token=token if is_claimed else None,
            )
        for index in range(IMAGES):
            run(
                'INSERT INTO predictions (job_id, "index", name, label, confidence)'
                " VALUES (:job, :index, :name, :label, 0.5)",
                job=job,
                index=index,
                name=f"{index}.png",
                label=str(index % 10),
            )
    return job, claim_of(ledger, claimed), paused


def _work_until_done(ledger: Ledger) -> None:
    with closing(Ledger(ledger.engine.url)) as own:
        while claims := _claim(own):
            with own.transaction() as connection:
                record_results(connection, list(map(_classified, claims)))


def _claim(ledger: Ledger) -> list[Claim]:
    with ledger.transaction() as connection:
        release_expired_claims(connection)
        return claim_next(
            connection, owner="new", token=new_id(), lease_seconds=60.0, images_for=lambda _model: IMAGES
        )


def _classified(claim: Claim) -> Classified:
    indices = range(claim.first_index, claim.first_index + claim.images)
    return Classified(claim, to_columns(_outcomes(indices)))


def _outcomes(indices: range) -> Iterator[Outcome]:
    for index in indices:
        yield Outcome(f"{index}.png", str(index % 10), 0.5)


def _drop_all(ledger: Ledger) -> None:
    found = sa.MetaData()
    with ledger.transaction() as connection:
        connection.execute(sa.text("DROP VIEW IF EXISTS results"))
        found.reflect(connection)
        found.drop_all(connection)
