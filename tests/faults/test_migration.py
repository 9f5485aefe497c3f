"""An upgrade in the middle of a job loses nothing. And a migration that cannot have its lock gives up, and
nobody waits behind it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import psycopg
import pytest
import sqlalchemy as sa

from jobs.errors import LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.database import revision
from jobs.ledger.jobs.claims import Claim, claim_next
from jobs.ledger.jobs.control import resume_job
from jobs.ledger.jobs.results import Classified, record_results
from jobs.ledger.maintenance import release_expired_claims
from labelmill.client.migrating import upgrade
from tests.faults.checker import Expected, check_job
from tests.faults.trials import Matrix
from tests.outcomes import Outcome, to_columns
from tests.secured import conninfo

#: The version before messages stopped to name chunks: its schema, and a job in the middle of its work there.
BEFORE = "0008"
IMAGES = 10
NOW = {"sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now')", "postgresql": "clock_timestamp()"}

#: The job's chunks as that version left them: state, place of its first ten images, attempts, crashes.
CHUNKS = [
    ("done", 0, 1, 0),
    ("pending", 1, 0, 0),
    ("claimed", 2, 1, 0),  # its worker was killed for the upgrade
    ("split", 3, 3, 2),
    ("pending", 4, 2, 1),
]


def test_an_upgrade_in_the_middle_of_a_job_loses_nothing(empty_ledger: Ledger, matrix: Matrix) -> None:
    with matrix.trials("upgrade in the middle of a job", "I1-I3", short=2, long=10) as trials:
        for _ in range(trials.wanted // 2):
            _drop_all(empty_ledger)

            # given a ledger of the version before, with chunks in every state, and a paused job beside it
            upgrade(empty_ledger, BEFORE)
            job, late, paused = _old_jobs(empty_ledger)

            # when it is upgraded, and workers of this version go on
            upgrade(empty_ledger)
            _work_until_done(empty_ledger)
            with empty_ledger.transaction() as connection:
                assert resume_job(connection, paused, limit=10) == 1
            _work_until_done(empty_ledger)

            # then a worker of the version before that comes back late records nothing
            with pytest.raises(LeaseLost), empty_ledger.transaction() as connection:
                record_results(connection, [_classified(late)])

            # and every image of both jobs has one outcome
            for id_, chunks in ((job, 5), (paused, 1)):
                expected = [Expected(f"{index}.png", str(index % 10)) for index in range(chunks * IMAGES)]
                trials.ran(1 if id_ == job else 0, check_job(_url(empty_ledger), id_, expected))


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
        with empty_ledger.transaction() as connection:
            connection.execute(sa.text("UPDATE jobs SET error = NULL"))
        reader.rollback()

    # and when nobody is in its way, it goes through
    upgrade(empty_ledger, "0005")


def _url(ledger: Ledger) -> str:
    return ledger.engine.url.render_as_string(hide_password=False)


def _old_jobs(ledger: Ledger) -> tuple[str, Claim, str]:
    """A job in the middle of its work, a claim that its worker still believes in, and a paused job."""
    job, paused, model, token = new_id(), new_id(), new_id(), new_id()
    now = NOW[ledger.engine.dialect.name]
    with ledger.transaction() as connection:

        def run(statement: str, **values: object) -> None:
            connection.execute(sa.text(statement.replace("NOW", now)), values)

        run(
            "INSERT INTO models (id, architecture, sha256, size_bytes, classes, input_spec, metrics,"
            " created_at) VALUES (:id, 'dense', :id, 1, '[]', '{}', '{}', NOW)",
            id=model,
        )
        for id_, chunks, done, since in ((job, 5, 1, None), (paused, 1, 0, "NOW")):
            run(
                "INSERT INTO jobs (id, state, model_id, total, succeeded, chunks, chunks_done, paused_at,"
                " created_at, touched_at, submitted_at) VALUES (:id, 'running', :model, :total, :succeeded,"
                f" :chunks, :done, {since or 'NULL'}, NOW, NOW, NOW)",
                id=id_,
                model=model,
                total=chunks * IMAGES,
                succeeded=done * IMAGES,
                chunks=chunks,
                done=done,
            )
        rows = [(job, *chunk) for chunk in CHUNKS] + [(paused, "held", 0, 0, 0)]
        ids = {}
        for job_id, state, place, attempts, crashes in rows:
            ids[job_id, state] = id_ = new_id()
            run(
                "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_sha256, state,"
                " attempts, crashes, token, owner, lease_until, rung_at, ring_after, created_at) VALUES"
                " (:id, :job, :first, :images, '', '', :state, :attempts, :crashes, :token, 'old', "
                f"{'NOW' if state == 'claimed' else 'NULL'}, NOW, NOW, NOW)",
                id=id_,
                job=job_id,
                first=place * IMAGES,
                images=IMAGES,
                state=state,
                attempts=attempts,
                crashes=crashes,
                token=token if state == "claimed" else None,
            )
        # The halves of the one that was split.
        for half in range(2):
            run(
                "INSERT INTO chunks (id, job_id, first_index, images, payload, payload_sha256,"
                " payload_offset, state, crashes, crash_code, created_at) VALUES (:id, :job, :first,"
                " :images, '', '', :offset, 'pending', 1, 'quarantined', NOW)",
                id=new_id(),
                job=job,
                first=3 * IMAGES + half * IMAGES // 2,
                images=IMAGES // 2,
                offset=half * IMAGES // 2,
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
    late = Claim(
        chunk_id=ids[job, "claimed"],
        token=token,
        job_id=job,
        model_id=model,
        first_index=2 * IMAGES,
        images=IMAGES,
        payload="",
        payload_digest="",
        payload_offset=0,
        attempts=1,
        releases=0,
        crashes=0,
        crash_code=None,
        error=None,
        traceparent=None,
    )
    return job, late, paused


def _work_until_done(ledger: Ledger) -> None:
    with closing(Ledger(ledger.engine.url)) as own:
        while claims := _claim(own):
            with own.transaction() as connection:
                record_results(connection, list(map(_classified, claims)))


def _claim(ledger: Ledger) -> list[Claim]:
    with ledger.transaction() as connection:
        release_expired_claims(connection)
        return claim_next(
            connection, owner="new", token=new_id(), lease_seconds=60.0, images_for=lambda _model: 512
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
