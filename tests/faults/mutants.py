"""Labelmill without one of its guards, and whether the tests notice.

    pytest tests/faults/test_mutations.py

copies the sources, takes one guard out of the copy by replacing a piece of text, and runs there the test that
is about this guard, and the state machine. A guard whose loss no test notices is tidied away one day.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from xml.etree import ElementTree

ROOT: Final = Path(__file__).parents[2]

_COPIED: Final = ("jobs", "producer", "worker", "labelmill", "migrations", "tests", "pyproject.toml")

#: A mutant's run takes seconds, the one without any two minutes. One that waits for ever has been noticed,
#: but not by a test.
_SECONDS: Final = 480

#: What a failed test raised where it noticed by itself: an assertion, or `pytest.raises` and its like.
NOTICED: Final = "an assertion"

#: Hypothesis's search alone, without looking for the shortest failure and what explains it. And what a failed
#: test raised, which pytest's report tells in words only.
_CONFTEST: Final = f"""\
import hypothesis
import pytest

hypothesis.settings.register_profile("mutants", deadline=None, phases=[hypothesis.Phase.generate])


def raised(error):
    if isinstance(error, BaseExceptionGroup):  # Hypothesis found several
        return set().union(*map(raised, error.exceptions))
    noticed = isinstance(error, (AssertionError, pytest.fail.Exception))
    return {{{NOTICED!r} if noticed else type(error).__name__}}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "call" and report.failed:
        item.user_properties += [("raised", name) for name in sorted(raised(call.excinfo.value))]
    return report
"""

COPY_TEST: Final = "tests/test_the_copy.py"

#: That the copy is what is tested, not the installed package: it is in sys.path, too, only later.
_TEST_OF_THE_COPY: Final = """\
from pathlib import Path

import jobs
import labelmill
import migrations
import producer
import worker


def test_the_copy_is_what_is_tested():
    here = Path(__file__).parents[1]
    for package in (jobs, labelmill, migrations, producer, worker):
        assert Path(package.__file__).parents[1] == here
"""

#: Sees nearly all of it. One thing happens at a time there, so it sees no lock.
MACHINE: Final = (
    "tests/faults/test_ledger_machine.py::test_whatever_happens_each_image_has_one_outcome_at_the_end"
)


@dataclass(frozen=True)
class Change:
    """A text that must be in a file exactly once, and what stands there instead."""

    file: str
    old: str
    new: str


@dataclass(frozen=True)
class Mutant:
    """A guard that is gone, and the tests that must notice."""

    name: str
    tests: tuple[str, ...]
    changes: tuple[Change, ...]
    #: PostgreSQL locks rows one by one; SQLite starts sooner.
    database: str = "sqlite"
    #: The exceptions, by their names, by which a test may notice, beside assertions: what the guard's loss
    #: comes to, and no mistake in the mutant.
    raises: tuple[str, ...] = ()


#: Who waits for a lock, and should not, is told so: it was locked for too long, there was a deadlock, or the
#: test's own session, which stood still meanwhile, was ended. Or the test's patience was at its end.
_WAITED: Final = ("Unavailable", "TimeoutError")


def _mutant(name: str, test: str, *changes: Change, raises: tuple[str, ...] = ()) -> Mutant:
    """`test`: the one that is about this guard, below tests/integration. Where a second outcome would be
    recorded the database refuses it before anything is compared; and the machine may meet a claim that is
    lost, or a job that was stopped, where by its own books it is not.
    """
    refused = ("IntegrityError", "LeaseLost", "JobStopped")
    return Mutant(name, (f"tests/integration/{test}", MACHINE), changes, raises=(*refused, *raises))


def _bell_mutant(name: str, test: str, change: Change) -> Mutant:
    """`test`: the one that is about this guard, below tests/integration. The state machine has a publisher of its
    own, and seldom loses the one message that this is about.
    """
    return Mutant(name, (f"tests/integration/{test}",), (change,))


def _retraining_mutant(
    name: str, test: str, *changes: Change, database: str = "sqlite", raises: tuple[str, ...] = ()
) -> Mutant:
    """`test`: the one that is about this guard, below tests. The state machine trains nothing."""
    return Mutant(name, (f"tests/{test}",), changes, database, raises)


def _time_limit_mutant(name: str, test: str, change: Change, database: str = "sqlite") -> Mutant:
    """`test`: the one that is about this guard, in tests/integration/test_pipeline.py. The state machine has
    no time limit.
    """
    raises = _WAITED if database == "postgresql" else ()
    return Mutant(name, (f"tests/integration/test_pipeline.py::{test}",), (change,), database, raises)


def _lookout_mutant(name: str, test: str, change: Change) -> Mutant:
    """`test`: the one that is about this guard, in tests/integration/test_lookout.py. The state machine looks
    at no images, so it never looks up from them.
    """
    return Mutant(name, (f"tests/integration/test_lookout.py::{test}",), (change,))


_CLAIMS: Final = "jobs/ledger/claims.py"
_COUNTERS: Final = "jobs/ledger/counters.py"
_DATABASE: Final = "jobs/ledger/database.py"
_ISOLATION: Final = "jobs/ledger/isolation.py"
_OUTCOMES: Final = "jobs/ledger/outcomes.py"
_GATHERING: Final = "jobs/ledger/gathering.py"
_INTAKE: Final = "jobs/ledger/intake.py"
_PARTS: Final = "jobs/ledger/parts.py"
_PAUSING: Final = "jobs/ledger/pausing.py"
_UPKEEP: Final = "jobs/ledger/upkeep.py"
_RECONCILE: Final = "worker/reconcile.py"
_PIPELINE: Final = "worker/predicting/pipeline.py"
_LOOKOUT: Final = "worker/predicting/lookout.py"
_TIME_LIMIT: Final = "worker/predicting/time_limit.py"
_RUNS: Final = "jobs/ledger/runs.py"
_PROMOTION: Final = "worker/learning/promotion.py"
_SCHEDULE: Final = "worker/schedule.py"
_RETRAINING_MIGRATION: Final = "migrations/versions/0003_retraining.py"

MUTANTS: Final = (
    _mutant(
        "any token will do: the fence",
        "test_outcomes.py::test_who_lost_the_chunk_records_nothing_while_another_is_at_it",
        Change(
            _CLAIMS,
            "return sa.and_(chunks.c.id.in_(ids), chunks.c.token == token,",
            "return sa.and_(chunks.c.id.in_(ids), sa.or_(chunks.c.token == token, chunks.c.token != token),",
        ),
    ),
    _mutant(
        "the predictions have no primary key",
        "test_outcomes.py::test_the_primary_key_is_the_last_guard",
        Change(
            "jobs/schema.py",
            '"predictions",\n    metadata,\n    Column("job_id", _Id, primary_key=True),\n'
            '    Column("index", BigInteger, primary_key=True, autoincrement=False),',
            '"predictions",\n    metadata,\n    Column("job_id", _Id, nullable=False),\n'
            '    Column("index", BigInteger, nullable=False),',
        ),
        Change("jobs/schema.py", "    sqlite_with_rowid=False,\n", ""),
        Change(
            "migrations/versions/0001_the_first_ledger.py",
            '        sa.PrimaryKeyConstraint("job_id", "index", name=op.f("pk_predictions")),\n'
            "        sqlite_with_rowid=False,\n",
            "",
        ),
    ),
    _mutant(
        "the attempts of a lone image have no cap",
        "test_isolation.py::test_of_three_hundred_images_one_is_quarantined",
        Change(
            _ISOLATION,
            "return claim.images == 1 and claim.crashes >= CRASHES_TO_GIVE_UP",
            "return False",
        ),
    ),
    _mutant(
        "a chunk that crashes is never split",
        "test_isolation.py::test_of_three_hundred_images_one_is_quarantined",
        Change(
            _ISOLATION,
            "return claim.images > 1 and claim.crashes >= CRASHES_TO_SPLIT",
            "return False",
        ),
    ),
    _mutant(
        "the reconciler does nothing",
        "test_reconcile.py::test_a_broker_that_lost_everything_loses_nothing",
        Change(
            _RECONCILE,
            "            if not take_lock(connection, RECONCILE_LOCK,",
            "            return 0\n            if not take_lock(connection, RECONCILE_LOCK,",
        ),
    ),
    _mutant(
        "a live lease can be taken over",
        "test_claims.py::test_a_chunk_has_one_owner",
        Change(
            _CLAIMS,
            "sa.or_(chunks.c.state == ChunkState.PENDING, chunks.c.lease_until < db_now()),",
            "",
        ),
    ),
    _mutant(
        "a claim has no lease",
        "test_claims.py::test_a_lease_lasts_as_long_as_it_says_and_no_longer",
        Change(
            _CLAIMS,
            '"for_seconds": lease_seconds',
            '"for_seconds": 0.0',
        ),
    ),
    _mutant(
        "a renewed lease is the old one",
        "test_claims.py::test_renewing_gives_a_whole_lease_again",
        Change(
            _CLAIMS,
            ".values(lease_until=db_now(lease_seconds)).returning(job_state)",
            ".values(lease_until=chunks.c.lease_until).returning(job_state)",
        ),
    ),
    _mutant(
        "who ends a claim does not look whether it was theirs",
        "test_outcomes.py::test_who_lost_the_chunk_records_nothing_after_another_has",
        Change(
            _CLAIMS,
            "    if not finished:\n        raise LeaseLost\n",
            "    if not finished:\n        return {claim.chunk_id: claim.images for claim in claims}\n",
        ),
    ),
    _mutant(
        "a commit is read back without the token",
        "test_claims.py::test_a_commit_that_broke_off_is_read_back_by_its_token",
        Change(
            _CLAIMS,
            "        chunks.c.token == token,\n        chunks.c.state.in_(",
            "        chunks.c.state.in_(",
        ),
    ),
    _mutant(
        "a claim whose commit broke off is not withdrawn",
        "test_claims.py::test_a_claim_whose_commit_broke_off_is_withdrawn",
        Change(
            _CLAIMS,
            "        AttemptEnd.RELEASED,\n        *_claimed_under(token),",
            "        AttemptEnd.RELEASED,\n        sa.false(),",
        ),
    ),
    _mutant(
        "chunks of a stopped job are claimed",
        "test_outcomes.py::test_a_chunk_whose_worker_died_is_not_claimed_after_its_job_was_stopped",
        Change(
            _CLAIMS,
            "chunk_is_due(), ~job_was_stopped(), ~job_is_paused())",
            "chunk_is_due(), ~job_is_paused())",
        ),
    ),
    _mutant(
        "chunks of a paused job are claimed",
        "test_pausing.py::test_a_chunk_given_back_while_its_job_is_paused_is_held",
        Change(
            _CLAIMS,
            "chunk_is_due(), ~job_was_stopped(), ~job_is_paused())",
            "chunk_is_due(), ~job_was_stopped())",
        ),
    ),
    _mutant(
        "a lease that ran out counts as no crash",
        "test_claims.py::test_crashes_are_counted_apart_from_what_was_given_back",
        Change(
            _CLAIMS,
            "chunks.c.crashes + sa.case((vanished, 1), else_=0)",
            "chunks.c.crashes",
        ),
    ),
    _mutant(
        "a graceful release counts as a crash",
        "test_claims.py::test_crashes_are_counted_apart_from_what_was_given_back",
        Change(
            _CLAIMS,
            "        releases=chunks.c.releases + 1,\n        ring_after=db_now(",
            "        crashes=chunks.c.crashes + 1,\n        ring_after=db_now(",
        ),
    ),
    _mutant(
        "the chunk of a process that died is anybody's to bury",
        "test_claims.py::test_the_claim_of_a_dead_process_is_free_at_once",
        Change(
            _CLAIMS,
            "named.c.id == chunk_id, named.c.owner == owner)",
            "named.c.id == chunk_id)",
        ),
    ),
    _mutant(
        "who is buried leaves behind what it had gathered",
        "test_gathering.py::test_a_dead_process_is_buried_with_all_that_it_had_gathered",
        Change(
            _CLAIMS,
            "        AttemptEnd.CRASHED,\n        *_claimed_under(token),",
            "        AttemptEnd.CRASHED,\n        chunks.c.id == chunk_id,\n        *_claimed_under(token),",
        ),
    ),
    _mutant(
        "of what was gathered that is recorded, too, which was lost",
        "test_gathering.py::test_of_a_chunk_that_was_lost_nothing_is_recorded_and_of_the_others_all",
        Change(
            _OUTCOMES,
            "for one in classified if one.claim.chunk_id in ours]",
            "for one in classified if ours.setdefault(one.claim.chunk_id, one.claim.images)]",
        ),
    ),
    _mutant(
        "what was tried before is gathered again",
        "test_gathering.py::test_what_is_not_small_fresh_and_free_is_left_alone",
        Change("jobs/schema.py", '"chunks.attempts = 0 AND ', '"'),
    ),
    _bell_mutant(
        "nobody rings for the small job that waits",
        "test_gathering.py::test_whoever_handles_a_message_rings_for_the_small_job_that_waited_longest",
        Change(_PIPELINE, "if left is not None:", "if False:"),
    ),
    _bell_mutant(
        "each of many small jobs has its message",
        "test_queue.py::test_small_jobs_have_so_many_messages_and_no_more",
        Change("jobs/queue.py", "if not channel.are_ahead(CLASSIFY_QUEUE, MAX_AHEAD):", "if channel:"),
    ),
    _mutant(
        "each of many small jobs is rung for again",
        "test_upkeep.py::test_small_jobs_that_are_gathered_are_not_rung_for_one_by_one",
        Change(_UPKEEP, "for chunk in due[:limit] if not chunk.gathered]", "for chunk in due[:limit]]"),
    ),
    _bell_mutant(
        "a small job whose message was lost waits until the queue is empty",
        "test_reconcile.py::test_for_one_of_the_small_jobs_that_wait_is_rung_whatever_else_waits",
        Change(
            _RECONCILE,
            "rung = 0 if small is None else publisher.ring_for_small(small)",
            "rung = 0",
        ),
    ),
    _mutant(
        "of a chunk that was left its job counts no rest",
        "test_lookout.py::test_a_job_ends_with_the_last_rest_of_its_chunks",
        Change(_OUTCOMES, 'move["chunks_more"] += rest_id is not None', 'move["chunks_more"] += 0'),
    ),
    _mutant(
        "a chunk that was left keeps its size",
        "test_lookout.py::test_the_rest_is_as_old_as_its_chunk_and_shares_its_payload",
        Change(
            _PARTS,
            "connection.execute(chunks.update().where(chunks.c.id == claim.chunk_id).values(images=done))",
            "assert done",
        ),
    ),
    _mutant(
        "of a chunk that was given away in part its job counts no rest",
        "test_lookout.py::test_what_was_given_away_is_as_old_as_its_chunk_and_shares_its_payload",
        Change(
            _PARTS,
            "values(chunks=jobs.c.chunks + 1))\n    return True",
            "values(chunks=jobs.c.chunks))\n    return True",
        ),
    ),
    _lookout_mutant(
        "what is somebody else's is given away",
        "test_who_lost_the_chunk_can_give_nothing_of_it_away",
        Change(
            _PARTS,
            ".where(ours([claim]), chunks.c.images",
            ".where(chunks.c.id == claim.chunk_id, chunks.c.images",
        ),
    ),
    _mutant(
        "what was given away is given away again",
        "test_lookout.py::test_who_did_not_hear_that_a_part_was_given_away_gives_and_records_no_image_twice",
        Change(_PARTS, "chunks.c.images == claim.images, goes_on", "goes_on"),
    ),
    _mutant(
        "who did not hear that a part was given away records that, too",
        "test_lookout.py::test_who_did_not_hear_that_a_part_was_given_away_gives_and_records_no_image_twice",
        Change(_OUTCOMES, "kept = Outcomes.of(outcomes[:images])", "kept = Outcomes.of(outcomes)"),
    ),
    _lookout_mutant(
        "a part is given away while others wait for no work",
        "test_who_has_nothing_to_do_is_the_only_one_to_get_a_part",
        Change(
            _LOOKOUT,
            "elif waiting.somebody_idle:",
            "elif self._is_worth_two(done):",
        ),
    ),
    _lookout_mutant(
        "a chunk that crashed is left",
        "test_a_chunk_that_crashed_is_tried_as_it_is",
        Change(_LOOKOUT, "len(claims) == 1 and not self._lead.crashes", "len(claims) == 1"),
    ),
    _lookout_mutant(
        "who takes a small job in between has a token for it",
        "test_a_process_that_dies_in_the_middle_of_a_small_job_is_buried_with_both",
        Change(
            _PIPELINE,
            "_attempt(small_id, bench, within.token,",
            "_attempt(small_id, bench, new_id(),",
        ),
    ),
    _lookout_mutant(
        "a lease that cannot be renewed at once costs the chunk",
        "test_a_lease_that_cannot_be_renewed_for_a_moment_costs_nothing",
        Change(
            _LOOKOUT,
            "            if time_ran_out(error):\n                raise\n            logger.warning",
            "            raise\n            logger.warning",
        ),
    ),
    _lookout_mutant(
        "small jobs that were gathered go on until the time limit strikes",
        "test_small_jobs_that_take_long_together_keep_what_is_done_and_the_others_are_put_back",
        Change(
            _PIPELINE,
            "if others and _put_back(bench, others, stages):",
            "if False:",
        ),
    ),
    _lookout_mutant(
        "small jobs in the middle of a chunk have a time limit of their own",
        "test_small_jobs_in_the_middle_of_a_chunk_have_the_time_that_is_left_of_its_limit",
        Change(_PIPELINE, "within=within, outer_stages=outer_stages)", "within=within)"),
    ),
    _lookout_mutant(
        "a claim in between that is withdrawn takes the large chunk along",
        "test_a_claim_of_a_small_job_that_breaks_off_is_withdrawn_alone",
        Change(_CLAIMS, "        *(() if keep is None else (chunks.c.id != keep,)),\n", ""),
    ),
    _lookout_mutant(
        "a time limit that strikes in between is kept from the large chunk",
        "test_what_ends_a_process_in_the_middle_of_a_small_job_gives_both_back",
        Change(
            _PIPELINE,
            "    if isinstance(error, SoftTimeLimitExceeded):\n        raise error\n",
            "",
        ),
    ),
    _mutant(
        "a job that has ended can be stopped",
        "test_outcomes.py::test_what_has_finished_cannot_be_stopped",
        Change(
            _CLAIMS,
            ".where(jobs.c.id == job_id, jobs.c.state.in_(UNFINISHED))",
            ".where(jobs.c.id == job_id)",
        ),
    ),
    _mutant(
        "a half begins at the payload's first image",
        "test_isolation.py::test_two_halves_take_the_place_of_a_chunk_that_crashed_twice",
        Change(
            _PARTS,
            "payload_offset=claim.payload_offset + offset,",
            "payload_offset=claim.payload_offset,",
        ),
    ),
    _mutant(
        "a split adds no chunk to the job's count",
        "test_isolation.py::test_a_job_that_is_sealed_after_a_split_knows_how_many_chunks_it_has",
        Change(
            _PARTS,
            "not to be done.\n    connection.execute(jobs.update().where(jobs.c.id == claim.job_id)",
            "not to be done.\n    connection.execute(jobs.update().where(jobs.c.id.is_(None))",
        ),
    ),
    _mutant(
        "one error fewer stops a job",
        "test_error_limits.py::test_at_the_limit_the_job_goes_on_and_one_more_stops_it",
        Change(
            _OUTCOMES,
            "new_failed > jobs.c.error_limit,",
            "new_failed >= jobs.c.error_limit,",
        ),
        raises=("TypeError",),  # it was stopped, and by neither limit: there is no share to tell
    ),
    _mutant(
        "a submission that is sealed can be taken back",
        "test_outcomes.py::test_a_sealed_job_is_not_taken_back",
        Change(
            _INTAKE,
            ".where(jobs.c.id == job_id, jobs.c.submitted_at.is_(None), may_go)",
            ".where(jobs.c.id == job_id, may_go)",
        ),
    ),
    _mutant(
        "a stopped job goes on being received",
        "test_intake.py::test_nothing_is_added_to_a_sealed_job",
        Change(
            _INTAKE,
            '    .where(jobs.c.id == sa.bindparam("of_job"), jobs.c.state == JobState.RECEIVING)\n',
            '    .where(jobs.c.id == sa.bindparam("of_job"))\n',
        ),
    ),
    _mutant(
        "every worker host reconciles at once",
        "test_upkeep.py::test_a_lock_has_one_holder_who_may_keep_it",
        Change(
            _UPKEEP,
            "            where=sa.or_(locks.c.holder == holder, locks.c.until < db_now()),\n",
            "",
        ),
    ),
    _mutant(
        "what a stopped job left stays",
        "test_reconcile.py::test_nobody_is_called_for_what_a_stopped_job_left",
        Change(
            _RECONCILE,
            "            drop_leftover_chunks(connection)\n",
            "",
        ),
    ),
    Mutant(
        "what a paused job left is held without the job's lock",
        ("tests/integration/test_pausing.py::test_a_resume_waits_for_who_holds_leftovers_and_finds_them",),
        (
            Change(
                _PAUSING,
                "jobs.c.paused_at.is_not(None), JOB_GOES_ON)\n        .with_for_update(skip_locked=True)\n",
                "jobs.c.paused_at.is_not(None), JOB_GOES_ON)\n",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "the reconciler waits for a chunk and has its job",
        (
            "tests/faults/test_ledger_races.py"
            "::test_who_drops_what_an_abandoned_job_left_passes_over_a_chunk_that_is_finished_late",
        ),
        (
            Change(
                _UPKEEP,
                "job_was_stopped())\n        .with_for_update(skip_locked=True)",
                "job_was_stopped())",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "the reconciler stands still with a worker that stands still",
        (
            "tests/faults/test_ledger_races.py"
            "::test_who_rings_passes_over_a_chunk_whose_worker_stands_still_with_it",
        ),
        (Change(_UPKEEP, ".limit(limit)\n        .with_for_update(skip_locked=True)", ".limit(limit)"),),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "who stands still in a COPY has its chunk for ever",
        (
            "tests/integration/test_upkeep.py::test_who_stands_still_in_a_copy_is_ended_and_another_has_its_chunk",
        ),
        (
            Change(
                _UPKEEP,
                "count(*) FILTER (WHERE pg_terminate_backend(pid))",
                "count(*)",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "who stops a job waits for its chunks",
        (
            "tests/faults/test_ledger_races.py"
            "::test_who_stops_a_job_passes_over_a_chunk_that_is_being_claimed",
        ),
        (
            Change(
                _CLAIMS,
                "        .with_for_update(skip_locked=True)\n    )\n    drop_chunks(connection, waiting)",
                "    )\n    drop_chunks(connection, waiting)",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "a main loop waits for a lock as long as it takes",
        ("tests/integration/test_database.py::test_a_main_loop_waits_for_no_lock_for_long",),
        (Change(_DATABASE, "pooled=False, lock_seconds=BRIEFLY_SECONDS)", "pooled=False)"),),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "who died while it waited keeps what it has locked",
        ("tests/integration/test_database.py::test_who_vanishes_while_it_waits_keeps_nothing_locked",),
        (Change(_DATABASE, "{VANISHED_SECONDS * 1000}", "0"),),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "a reconciler that stands still keeps its lock's row",
        ("tests/integration/test_reconcile.py::test_a_reconciler_that_stands_still_keeps_no_other_waiting",),
        (
            Change(
                _RECONCILE,
                "                return 0\n        with self._ledger.transaction() as connection:\n",
                "                return 0\n",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "the reconciler waits for the row of an abandoned job",
        ("tests/integration/test_reconcile.py::test_who_holds_one_jobs_row_holds_up_no_other_job",),
        (Change(_UPKEEP, "abandoned.with_for_update(skip_locked=True)", "abandoned.with_for_update()"),),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "counters are locked in any order",
        ("tests/integration/test_counters.py::test_two_that_note_in_other_orders_lock_in_one",),
        (Change(_COUNTERS, "enumerate(sorted(noted.items()))", "enumerate(noted.items())"),),
        "postgresql",
        _WAITED,
    ),
    Mutant(
        "a counter is locked before the job",
        ("tests/integration/test_counters.py::test_who_waits_for_a_counter_holds_all_else_it_needs",),
        (
            Change(
                _COUNTERS,
                "        noted[key] = noted.get(key, 0.0) + amount\n",
                "        noted[key] = noted.get(key, 0.0) + amount\n"
                "    write_counts(connection)\n    noted.clear()\n",
            ),
        ),
        "postgresql",
        _WAITED,
    ),
    _time_limit_mutant(
        "a store that hangs counts as a crash",
        "test_a_service_that_hangs_is_no_images_fault",
        Change(_TIME_LIMIT, "    return took > _BLAMED_SHARE * stages.elapsed()", "    return True"),
    ),
    _time_limit_mutant(
        "images that leave no time for recording are never split",
        "test_images_that_took_the_time_are_to_blame_wherever_the_limit_strikes",
        Change(_TIME_LIMIT, "    return took > _BLAMED_SHARE * stages.elapsed()", "    return False"),
    ),
    _time_limit_mutant(
        "a lone reference is given up for its store",
        "test_references_that_take_the_time_are_split_and_a_lone_one_waits_for_its_store",
        Change(
            _TIME_LIMIT,
            '    if len(claims) == 1 and claims[0].images > 1 and "read" in stages.found:',
            '    if "read" in stages.found:',
        ),
    ),
    _time_limit_mutant(
        "references that hang hold up their neighbours",
        "test_references_that_take_the_time_are_split_and_a_lone_one_waits_for_its_store",
        Change(
            _TIME_LIMIT,
            '    if len(claims) == 1 and claims[0].images > 1 and "read" in stages.found:',
            "    if False:",
        ),
    ),
    Mutant(
        "a disk that is not mounted is a payload that is lost",
        ("tests/integration/test_pipeline.py::test_a_store_that_is_not_mounted_here_fails_no_job",),
        (Change("jobs/store.py", '        if self._fs.exists(f"{self._root}/{kind}"):', "        if True:"),),
    ),
    _time_limit_mutant(
        "a claim that hung at its commit is not withdrawn",
        "test_a_claim_whose_commit_breaks_off_is_withdrawn",
        Change(
            _PIPELINE,
            "    except (Unavailable, SoftTimeLimitExceeded) as error:\n        # Committed",
            "    except Unavailable as error:\n        # Committed",
        ),
    ),
    _time_limit_mutant(
        "a time limit that strikes as a chunk is given back leaves its lease",
        "test_a_time_limit_that_strikes_while_a_chunk_is_given_back_costs_it_nothing",
        Change(_PIPELINE, "    for _ in range(2):", "    for _ in range(1):"),
    ),
    _time_limit_mutant(
        "outcomes are written again after the time limit",
        "test_who_waits_for_a_lock_when_the_time_limit_strikes_does_not_write_again",
        Change("worker/again.py", "            if time_ran_out(error):\n                raise\n", ""),
        "postgresql",
    ),
    Mutant(
        "the time limit leaves half of TensorFlow behind",
        (
            "tests/integration/test_bench.py"
            "::test_a_time_limit_that_strikes_in_an_import_leaves_no_half_of_tensorflow",
        ),
        (Change("worker/bench.py", "        with _time_limit_later():\n", "        with suppress():\n"),),
    ),
    _retraining_mutant(
        "a training run is anybody's: the trainer's fence",
        "integration/test_runs.py::test_a_trainer_with_another_token_may_nothing",
        Change(
            _RUNS,
            "            training_runs.c.token == claim.token,\n"
            "            training_runs.c.state == RunState.RUNNING,",
            "            training_runs.c.state == RunState.RUNNING,",
        ),
    ),
    _retraining_mutant(
        "a training run that was ended goes on",
        "integration/test_runs.py::test_a_cancelled_run_is_its_trainers_no_more",
        Change(
            _RUNS,
            "            training_runs.c.token == claim.token,\n"
            "            training_runs.c.state == RunState.RUNNING,",
            "            training_runs.c.token == claim.token,",
        ),
    ),
    _retraining_mutant(
        "a training run has as many trainers as messages",
        "integration/test_runs.py::test_two_trainers_and_one_run",
        Change(
            _RUNS,
            "training_runs.c.state == RunState.PENDING, ~is_stale())",
            "training_runs.c.active == 1)",
        ),
    ),
    _retraining_mutant(
        "a slot of the schedule may have many runs",
        "integration/test_runs.py::test_a_slot_has_one_run_whoever_asks_first",
        Change(
            "jobs/schema.py",
            'Index("ux_training_runs_slot", "slot", unique=True)',
            'Index("ux_training_runs_slot", "slot")',
        ),
        Change(
            _RETRAINING_MIGRATION,
            'op.create_index("ux_training_runs_slot", "training_runs", ["slot"], unique=True)',
            'op.create_index("ux_training_runs_slot", "training_runs", ["slot"])',
        ),
    ),
    _retraining_mutant(
        "many training runs at a time",
        "integration/test_runs.py::test_of_many_who_ask_at_once_one_gets_a_run",
        Change(
            "jobs/schema.py",
            'Index("ux_training_runs_active", "active", unique=True)',
            'Index("ux_training_runs_active", "active")',
        ),
        Change(
            _RETRAINING_MIGRATION,
            'op.create_index("ux_training_runs_active", "training_runs", ["active"], unique=True)',
            'op.create_index("ux_training_runs_active", "training_runs", ["active"])',
        ),
    ),
    _retraining_mutant(
        "a slot that was missed fires late",
        "integration/test_schedule.py::test_a_slot_that_was_missed_does_not_fire_late",
        Change(_SCHEDULE, "range(GRACE // timedelta(minutes=1))", "range(1_000)"),
        Change(_SCHEDULE, "if slot is None or now - slot >= GRACE:", "if slot is None:"),
    ),
    _retraining_mutant(
        "chance makes a champion",
        "unit/test_promotion.py::test_a_few_more_right_are_not_enough",
        Change(_PROMOTION, "passed = gained > lost and p < limits.significance", "passed = gained > lost"),
    ),
    _retraining_mutant(
        "a model that is clearly worse is a better one",
        "unit/test_promotion.py::test_clearly_worse_is_not_better_however_small_p_is",
        Change(
            _PROMOTION,
            "passed = gained > lost and p < limits.significance",
            "passed = p < limits.significance",
        ),
    ),
    _retraining_mutant(
        "the gate has no floor",
        "unit/test_promotion.py::test_each_limit_alone_fails_what_is_beyond_it",
        Change(_PROMOTION, "    if value < least:", "    if value < 0:"),
    ),
    _retraining_mutant(
        "two promotions at once",
        "integration/test_promotions.py::test_many_promote_at_once_and_the_history_is_a_chain",
        Change(
            "jobs/ledger/promotions.py",
            'if connection.dialect.name == "postgresql":',
            "if False:",
        ),
        database="postgresql",
        raises=("IntegrityError",),
    ),
    _retraining_mutant(
        "a correction teaches an image of the evaluation set",
        "integration/test_corrections.py::test_an_image_of_the_evaluation_set_is_never_learnt_from",
        Change(
            "worker/learning/corrections.py",
            "if pixels.tobytes() in evaluated:",
            "if pixels.tobytes() in ():",
        ),
    ),
)


@dataclass
class Result:
    """What the tests said of a copy."""

    returncode: int
    output: str
    #: How each test's cases ended, by its name without its parameters: passed, skipped, error, and of those
    #: that failed what they raised, which is `NOTICED` or an exception's name.
    tests: dict[str, set[str]] = field(default_factory=dict)

    def ended(self, *how: str) -> set[str]:
        """The tests of which at least one case ended in one of these ways."""
        return {name for name, kinds in self.tests.items() if not kinds.isdisjoint(how)}


def run_tests(folder: Path, tests: Iterable[str], *, database: str, changes: Sequence[Change] = ()) -> Result:
    """Copies the sources into the folder, changes the copy and runs these tests in it. Raises ValueError
    where a text that is to be changed is not there exactly once.
    """
    for name in _COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    (folder / "conftest.py").write_text(_CONFTEST)
    (folder / COPY_TEST).write_text(_TEST_OF_THE_COPY)
    for change in changes:
        _apply(folder, change)
    report = folder / "report.xml"
    other = {"sqlite": "postgresql", "postgresql": "sqlite"}[database]
    options = ["-q", "-p", "no:cacheprovider", "--hypothesis-profile=mutants", f"--junitxml={report}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-k", f"not {other}", COPY_TEST, *tests],
        cwd=folder,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=_SECONDS,
    )
    result = Result(done.returncode, done.stdout + done.stderr)
    if report.exists():
        for case in ElementTree.parse(report).iter("testcase"):
            name = str(case.get("name")).partition("[")[0]
            result.tests.setdefault(name, set()).update(_how_it_ended(case))
    return result


def _how_it_ended(case: ElementTree.Element) -> set[str]:
    kinds = {child.tag for child in case}
    for kind in ("error", "skipped"):
        if kind in kinds:
            return {kind}
    if "failure" not in kinds:
        return {"passed"}
    return {str(each.get("value")) for each in case.iterfind("properties/property[@name='raised']")}


def _apply(folder: Path, change: Change) -> None:
    path = folder / change.file
    text = path.read_text()
    if text.count(change.old) != 1:
        raise ValueError(
            f"{change.file} has {text.count(change.old)} times what is to be replaced once: adapt "
            f"tests/faults/mutants.py to it.\n{change.old}"
        )
    path.write_text(text.replace(change.old, change.new))
