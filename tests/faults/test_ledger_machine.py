"""Anything that can happen to chunks happens, in any order, to the real ledger; nothing is lost or doubled.

Hypothesis makes up the order: submissions, claims that cut, workers that die with and without a word, zombies
that come back, commits whose answer is lost, pauses, cancellations, poisonous images, reconcilers. After
every step the ledger is compared row by row with a model of it (`ledger_model`). At the end of every run all
faults are healed, and all images must get their outcome within a bounded number of claims.

One thing happens at a time here. What happens at the same moment is in `test_ledger_races`.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Self

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from psycopg.errors import UniqueViolation
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from jobs.errors import ErrorCode, LeaseLost, Stopped
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import (
    Claim,
    Reason,
    claim_next,
    claimed_as,
    claimed_by,
    claimed_under,
    release_claims,
)
from jobs.ledger.jobs.control import (
    drop_leftover_chunks,
    end_job,
    hold_leftover_chunks,
    pause_job,
    resume_job,
    settle_job,
)
from jobs.ledger.jobs.results import Classified, record_results, were_finished
from jobs.ledger.jobs.submission import NewChunk, add_chunk, discard_job, open_job, seal_job
from jobs.ledger.learning.models import CHAMPION, find_champion, point_alias
from jobs.ledger.locks import take_lock
from jobs.ledger.maintenance import fail_abandoned_jobs, release_expired_claims
from jobs.limits import ErrorLimits
from jobs.options import JobOptions
from jobs.schema import JobState, aliases, chunks, db_now, jobs, locks, predictions
from tests.faults.checker import Verdict
from tests.faults.ledger_model import FINISHED, STOPPED, UNFINISHED, ChunkModel, JobModel, LedgerModel
from tests.faults.trials import Matrix
from tests.ledger_probes import claim_of
from tests.outcomes import Outcome, to_columns
from worker.reconciler import Reconciler

#: Far longer than a run takes: no lease runs out by itself, the machine says when.
LEASE_SECONDS: Final = 3_600.0

#: Images in the largest chunk: enough for a poisonous one to be two cuts away from being alone.
MOST_IMAGES: Final = 6

#: How a worker can crash: noticed by its main process, not noticed, or said by itself.
CRASHES: Final = ("killed", "vanished", "timeout", "memory")
MANNERS = st.sampled_from(CRASHES)

HOSTS: Final = ("anna", "ben")

#: Which of the things that are there: Hypothesis shrinks it to the first.
PICK = st.integers(min_value=0, max_value=1_000)

#: Which of a job's images are poisonous, or broken.
PLACES = st.frozensets(st.integers(0, 2 * MOST_IMAGES), max_size=2)

SIZES = st.lists(st.integers(1, MOST_IMAGES), min_size=1, max_size=3)

#: How many images a claim may have.
LIMITS = st.sampled_from([1, 2, 3, 5, 12, 600])


class NoAnswer(Exception):
    """The COMMIT broke off."""


class Broker:
    """A broker that loses and repeats messages; to the reconciler it is the publisher."""

    def __init__(self) -> None:
        self.messages = 0

    def reset(self) -> Self:
        return self

    def waiting(self, queue: str = "") -> int:  # noqa: ARG002
        return self.messages

    def wake_up(self, number: int) -> int:
        self.messages += number
        return number


@dataclass(eq=False)
class Worker:
    """A process that believes it has these chunks, under one token."""

    name: str
    token: str
    claims: list[Claim]


@dataclass(frozen=True)
class Happening:
    """One thing that can happen: when it can, how often compared to others, and what it draws."""

    happen: Callable[..., None]
    when: Callable[[LedgerMachine], object]
    weight: int
    strategies: dict[str, st.SearchStrategy[Any]]


HAPPENINGS: Final[dict[str, Happening]] = {}


def happening(
    *,
    weight: int = 1,
    when: Callable[[LedgerMachine], object] = lambda _: True,
    **strategies: st.SearchStrategy[Any],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Instead of Hypothesis's `rule` and `precondition`, which turn most rules off in most runs. Here rules
    build on each other: with one of submitting, claiming, expiring and working turned off there is no zombie.
    """

    def mark(method: Callable[..., None]) -> Callable[..., None]:
        HAPPENINGS[method.__name__] = Happening(method, when, weight, strategies)
        return method

    return mark


class LedgerMachine(RuleBasedStateMachine):
    """The real ledger, and the model beside it."""

    def __init__(self, ledger: Ledger, model_ids: list[str], tally: Counter[str]) -> None:
        super().__init__()
        self.ledger = ledger
        self.model_ids = model_ids
        self.tally = tally
        self.model = LedgerModel(champion=model_ids[0])
        self.broker = Broker()
        self.workers: list[Worker] = []
        self.lock_holder: str | None = None
        self.names = (f"worker {number}" for number in count(1))
        self.ages = count()

    @initialize(sizes=SIZES, poison=PLACES, sealed=st.booleans())
    def one_job(self, sizes: list[int], poison: frozenset[int], sealed: bool) -> None:
        """And nothing else: so that there is something to do from the beginning."""
        with self.ledger.transaction() as connection:
            if self.ledger.is_sqlite:
                for table in (predictions, chunks, jobs, locks):
                    connection.execute(table.delete())
            else:  # deleted rows would lie in the way until they are vacuumed
                connection.execute(sa.text("TRUNCATE predictions, chunks, batches, jobs, locks CASCADE"))
            point_alias(connection, CHAMPION, self.model_ids[0])
        self._submit(sizes, poison, frozenset(), ErrorLimits(), 0, sealed)

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        # The most frequent first: what comes first is drawn more often still.
        by_weight = sorted(HAPPENINGS.items(), key=lambda item: -item[1].weight)
        possible = [name for name, it in by_weight if it.when(self) for _ in range(it.weight)]
        name = data.draw(st.sampled_from(possible), label="what")
        drawn = {key: data.draw(what, label=key) for key, what in HAPPENINGS[name].strategies.items()}
        HAPPENINGS[name].happen(self, **drawn)

    # ---- which of the things that are there -----------------------------------------------------------

    def job(self, pick: int, *states: str) -> JobModel:
        there = [job for job in self.model.jobs.values() if not states or job.state in states]
        return there[pick % len(there)]

    def has_job(self, *states: str) -> bool:
        return any(not states or job.state in states for job in self.model.jobs.values())

    def worker(self, pick: int) -> Worker:
        return self.workers[pick % len(self.workers)]

    def chunk_of(self, claim: Claim) -> ChunkModel | None:
        """The claim's chunk, if it is still this claim's."""
        chunk = self.model.chunks.get(claim.chunk_id)
        return chunk if chunk and chunk.state == "claimed" and chunk.token == claim.token else None

    def still_ours(self, worker: Worker) -> list[ChunkModel]:
        return [chunk for claim in worker.claims if (chunk := self.chunk_of(claim))]

    @contextmanager
    def a_commit_that_fails(self) -> Iterator[Connection]:
        """The transaction is rolled back, as if its connection had broken before the COMMIT."""
        with suppress(NoAnswer), self.ledger.transaction() as connection:
            yield connection
            raise NoAnswer

    # ---- a producer -----------------------------------------------------------------------------------

    @happening(
        weight=2,
        sizes=SIZES,
        poison=PLACES,
        broken=PLACES,
        limits=st.one_of(
            st.just(ErrorLimits()),
            st.builds(ErrorLimits, count=st.integers(0, 2)),
            st.builds(ErrorLimits, rate=st.sampled_from([0.0, 0.25, 0.5]), sample=st.integers(1, 8)),
        ),
        priority=st.sampled_from([0, 0, 10, -5]),
        sealed=st.booleans(),
    )
    def submit(
        self,
        sizes: list[int],
        poison: frozenset[int],
        broken: frozenset[int],
        limits: ErrorLimits,
        priority: int,
        sealed: bool,
    ) -> None:
        self._submit(sizes, poison, broken, limits, priority, sealed)

    def _submit(
        self,
        sizes: list[int],
        poison: frozenset[int],
        broken: frozenset[int],
        limits: ErrorLimits,
        priority: int,
        sealed: bool,
    ) -> None:
        job = JobModel(
            new_id(), self.model.champion, poison, broken, limits.count, limits.rate, limits.sample, priority
        )
        with self.ledger.reading() as connection:
            champion = find_champion(connection)
        assert champion is not None
        assert champion.id == job.model_id
        with self.ledger.transaction() as connection:
            open_job(connection, job.id, JobOptions(error_limits=limits), model_id=champion.id)
        self.model.jobs[job.id] = job
        for size in sizes:
            self._add_chunk(job, size)
        if sealed:
            self._seal(job)

    @happening(
        weight=2,
        when=lambda self: self.has_job("receiving"),
        pick=PICK,
        size=st.integers(1, MOST_IMAGES),
        seal=st.booleans(),
    )
    def go_on_submitting(self, pick: int, size: int, seal: bool) -> None:
        job = self.job(pick, "receiving")
        self._add_chunk(job, size)
        if seal:
            self._seal(job)

    def _add_chunk(self, job: JobModel, size: int) -> None:
        id_, first, age = new_id(), job.total, next(self.ages)
        new = NewChunk(id_, first, size, f"payloads/{first}", "0" * 64, job.priority)
        with self.ledger.transaction() as connection:
            add_chunk(connection, job.id, new)
            # Two chunks of one millisecond have no order, and the machine must depend on nothing but what
            # was drawn.
            row = chunks.update().where(chunks.c.id == id_)
            connection.execute(row.values(created_at=db_now(age - 1_000_000)))
        state = "held" if job.paused else "pending"
        job.chunks[id_] = ChunkModel(
            id_, job, first, size, new.payload, age, priority=job.priority, state=state
        )
        job.abandoned = False
        self.broker.wake_up(1)

    def _seal(self, job: JobModel) -> None:
        with self.ledger.transaction() as connection:
            seal_job(connection, job.id, fingerprint=None)
        job.was_sealed()

    @happening(
        when=lambda self: self.has_job(),
        pick=PICK,
        how=st.sampled_from(["cancelled", "abandoned", "taken back"]),
    )
    def a_job_ends_early(self, pick: int, how: str) -> None:
        job = self.job(pick)
        unfinished = job.state in UNFINISHED
        with self.ledger.transaction() as connection:
            if how == "cancelled":
                assert end_job(connection, job.id, JobState.CANCELLED) == unfinished
            elif how == "taken back":
                assert discard_job(connection, job.id) is not job.sealed
            elif job.state == "receiving":  # the reconciler will see that its producer is dead
                connection.execute(jobs.update().where(jobs.c.id == job.id).values(touched_at=db_now(-121)))
                job.abandoned = True
        if how == "cancelled" and unfinished:
            job.stopped("cancelled")
            self._check_stopped(job)
        elif how == "taken back" and not job.sealed:
            del self.model.jobs[job.id]
            self.tally["a submission was taken back"] += 1

    def _check_stopped(self, job: JobModel) -> None:
        """Its producer, if it is still submitting, learns that."""
        with pytest.raises(Stopped), self.ledger.transaction() as connection:
            add_chunk(connection, job.id, NewChunk(new_id(), job.total, 1, "payloads/x", "0" * 64))
        with pytest.raises(Stopped), self.ledger.transaction() as connection:
            seal_job(connection, job.id, fingerprint=None)

    # ---- a worker claims what is next -----------------------------------------------------------------

    @happening(weight=6, limit=LIMITS, copies=st.integers(1, 2))
    def wake_up(self, limit: int, copies: int) -> None:
        """A message comes, maybe twice, maybe without there being any work."""
        for _ in range(copies):
            self.broker.messages = max(0, self.broker.messages - 1)
            self._claim(limit)

    def _claim(self, limit: int) -> Worker | None:
        owner, token = next(self.names), new_id()
        with self.ledger.transaction() as connection:
            claims = self._ask(connection, owner, token, limit)
        self._was_claimed(token, claims, limit)
        if not claims:
            self.tally["a wake-up met no work"] += 1
            return None
        self.workers.append(worker := Worker(owner, token, claims))
        return worker

    @staticmethod
    def _ask(connection: Connection, owner: str, token: str, limit: int) -> list[Claim]:
        return claim_next(
            connection,
            owner=owner,
            token=token,
            lease_seconds=LEASE_SECONDS,
            images_for=lambda _model: limit,
        )

    def _was_claimed(self, token: str, claims: list[Claim], limit: int) -> None:
        """Moves the model, and compares each claim with it."""
        expected = self.model.next_chunks(limit)
        assert [claim.chunk_id for claim in claims] == [chunk.id for chunk in expected]
        if not expected:
            return
        first = expected[0]
        keep, crashes = limit, first.crashes
        if crashes >= 2:
            keep, crashes = min(limit, max(1, first.images // 2)), 1
            self.tally["a chunk that crashed was split"] += first.images > keep
        if first.images > keep:
            self.tally["a chunk was cut"] += 1
            first.cut(keep, crashes, self._new_chunk_id(first.job))
            self.broker.wake_up(1)
            assert claims[0].was_cut
        self.tally["chunks were claimed together"] += len(claims) > 1
        for claim, chunk in zip(claims, expected, strict=True):
            chunk.state, chunk.token = "claimed", token
            chunk.attempts += 1
            self.tally["a chunk was claimed"] += 1
            assert (claim.job_id, claim.model_id) == (chunk.job.id, chunk.job.model_id)
            assert (claim.first_index, claim.images) == (chunk.first, chunk.images)
            assert (claim.payload_offset, claim.attempts) == (chunk.offset, chunk.attempts)
            assert (claim.crashes, claim.crash_code) == (chunk.crashes, chunk.crash_code)
            assert claim.gives_up == chunk.gives_up

    def _new_chunk_id(self, job: JobModel) -> str:
        """Of the chunk that a cut has made: its id is the ledger's to choose."""
        with self.ledger.reading() as connection:
            new = sa.select(chunks.c.id).where(chunks.c.job_id == job.id, chunks.c.id.not_in(job.chunks))
            return str(connection.execute(new).scalar_one())

    @happening(limit=LIMITS, committed=st.booleans())
    def the_answer_to_a_claim_is_lost(self, limit: int, committed: bool) -> None:
        owner, token = next(self.names), new_id()
        with self.ledger.transaction() if committed else self.a_commit_that_fails() as connection:
            claims = self._ask(connection, owner, token, limit)
        if committed:
            self._was_claimed(token, claims, limit)
        lost = [chunk for chunk in self.model.chunks.values() if chunk.token == token]
        self._release(claimed_under(token), Reason.UNAVAILABLE, lost)

    # ---- and works on it, or does not -----------------------------------------------------------------

    @happening(
        weight=8, when=lambda self: self.workers, picks=st.lists(PICK, min_size=1, max_size=3), manner=MANNERS
    )
    def work(self, picks: list[int], manner: str) -> None:
        """As `worker.predicting.pipeline.classify_next` does; a zombie does it like everybody else."""
        for pick in picks:
            if self.workers:
                self._work(self.worker(pick), manner)

    def _work(self, worker: Worker, manner: str) -> None:
        if any(map(self._is_poisoned, worker.claims)):
            self._crash(worker, manner)
        else:
            self._end(worker)

    def _is_poisoned(self, claim: Claim) -> bool:
        """Whether one of its images kills the process that decodes it."""
        if claim.gives_up or claim.job_id not in self.model.jobs:
            return False
        indexes = range(claim.first_index, claim.first_index + claim.images)
        return not self.model.jobs[claim.job_id].poisonous.isdisjoint(indexes)

    def _end(self, worker: Worker) -> None:
        """Records the results of what is still the worker's, and nothing of the rest."""
        self.workers.remove(worker)
        ours = self.still_ours(worker)
        if not ours:
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                self._record(connection, worker)
            with self.ledger.reading() as connection:
                assert not were_finished(connection, worker.claims), "another worker finished it"
            self.tally["a zombie was refused"] += 1
            return
        with self.ledger.transaction() as connection:
            recorded = self._record(connection, worker)
        assert {each.claim.chunk_id for each in recorded} == {chunk.id for chunk in ours}
        self.tally["a part was lost, and the rest recorded"] += len(ours) < len(worker.claims)
        self._ended(ours)

    def _record(self, connection: Connection, worker: Worker) -> list[Classified]:
        return record_results(
            connection, [Classified(claim, to_columns(self._outcomes(claim))) for claim in worker.claims]
        )

    def _outcomes(self, claim: Claim) -> list[Outcome]:
        """An image's name says which it is, by its place in the payload."""
        start = int(claim.payload.removeprefix("payloads/")) + claim.payload_offset
        names = [f"{start + place}.png" for place in range(claim.images)]
        if claim.gives_up:
            return [Outcome(names[0], None, None, claim.crash_code, claim.error)]
        job = self.model.jobs.get(claim.job_id)
        broken: frozenset[int] = job.broken if job else frozenset()
        return [
            Outcome(name, None, None, ErrorCode.CORRUPT, "no picture")
            if claim.first_index + place in broken
            else Outcome(name, claim.model_id, 0.75)
            for place, name in enumerate(names)
        ]

    def _ended(self, ours: list[ChunkModel]) -> None:
        # In one transaction: a job that one chunk has stopped still gets the results of the next.
        for chunk in sorted(ours, key=lambda chunk: (chunk.job.id, chunk.first)):
            self.tally["a chunk ended"] += 1
            if chunk.gives_up:
                self.tally["an image was given up"] += 1
                chunk.finished({chunk.first: (None, chunk.crash_code)})
            else:
                job = chunk.job
                chunk.finished(
                    {
                        index: (None, "corrupt") if index in job.broken else (job.model_id, None)
                        for index in chunk.indexes
                    }
                )

    @happening(weight=2, when=lambda self: self.workers, pick=PICK, manner=MANNERS)
    def a_worker_crashes(self, pick: int, manner: str) -> None:
        self._crash(self.worker(pick), manner)

    def _crash(self, worker: Worker, manner: str) -> None:
        self.workers.remove(worker)
        ours = self.still_ours(worker)
        if manner == "vanished":
            self._run_out(worker)
        elif manner == "killed":  # its main process knows its name alone
            self._release(claimed_by(worker.name), Reason.CRASHED, ours)
        else:
            reason = Reason.TIMED_OUT if manner == "timeout" else Reason.OUT_OF_MEMORY
            self._release(claimed_under(worker.token), reason, ours)

    def _release(self, which: sa.ColumnElement[bool], reason: Reason, lost: list[ChunkModel]) -> None:
        with self.ledger.transaction() as connection:
            assert release_claims(connection, which, reason, "released by a test") == len(lost)
            if reason is Reason.UNAVAILABLE:  # however slow the machine is, until `time_passes`
                ids = [chunk.id for chunk in lost]
                put_off = chunks.update().where(chunks.c.id.in_(ids))
                connection.execute(put_off.values(not_before=db_now(3_600)))
        codes = {Reason.TIMED_OUT: "timeout", Reason.CRASHED: "quarantined"}
        codes[Reason.OUT_OF_MEMORY] = "quarantined"
        for chunk in lost:
            chunk.released(code=codes.get(reason), unavailable=reason is Reason.UNAVAILABLE)

    @happening(when=lambda self: self.workers, pick=PICK, unavailable=st.booleans())
    def a_worker_lets_go(self, pick: int, unavailable: bool) -> None:
        worker = self.worker(pick)
        self.workers.remove(worker)
        reason = Reason.UNAVAILABLE if unavailable else Reason.INTERRUPTED
        self._release(claimed_under(worker.token), reason, self.still_ours(worker))

    @happening(when=lambda self: self.workers, pick=PICK)
    def a_payload_is_damaged(self, pick: int) -> None:
        """Its own job fails; other small chunks of the claim go on."""
        worker = self.worker(pick)
        claim = worker.claims.pop()
        if not worker.claims:
            self.workers.remove(worker)
        chunk, job = self.chunk_of(claim), self.model.jobs.get(claim.job_id)
        self._release(claimed_as([claim]), Reason.INTERRUPTED, [chunk] if chunk else [])
        with self.ledger.transaction() as connection:
            ended = end_job(connection, claim.job_id, JobState.FAILED, error="damaged")
        assert ended == (job is not None and job.state in UNFINISHED)
        if job and ended:
            job.stopped("failed")
            self._check_stopped(job)

    # ---- leases that run out, and zombies -------------------------------------------------------------

    @happening(weight=2, when=lambda self: self.workers, pick=PICK)
    def a_lease_runs_out(self, pick: int) -> None:
        """The worker hangs and does not know; it may come back at any time."""
        self._run_out(self.worker(pick))

    @happening(weight=4, when=lambda self: self.workers, pick=PICK, limit=LIMITS)
    def another_takes_over(self, pick: int, limit: int) -> None:
        """The worker that hung is a zombie from now on, and goes on when it likes."""
        self._run_out(self.worker(pick))
        self._reconcile(HOSTS[0], the_other_is_dead=True)
        if self._claim(limit):
            self.tally["another worker claimed after a lease ran out"] += 1

    def _run_out(self, worker: Worker) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(
                chunks.update()
                .where(chunks.c.token == worker.token, chunks.c.lease_until.is_not(None))
                .values(lease_until=db_now(-1))
            )
        for chunk in self.still_ours(worker):
            chunk.expired = True

    # ---- commits that nobody knows of, and the last guard ---------------------------------------------

    @happening(weight=2, when=lambda self: self._sound_workers(), pick=PICK, committed=st.booleans())
    def the_answer_to_a_commit_is_lost(self, pick: int, committed: bool) -> None:
        sound = self._sound_workers()
        worker = sound[pick % len(sound)]
        ours = self.still_ours(worker)
        if not ours:
            with pytest.raises(LeaseLost), self.a_commit_that_fails() as connection:
                self._record(connection, worker)
        elif committed:
            # The COMMIT went through and nobody knows, and the worker tries again
            with self.ledger.transaction() as connection:
                self._record(connection, worker)
            self._ended(ours)
            self.workers.remove(worker)
            with self.ledger.transaction() as connection:
                assert [each.claim for each in self._record(connection, worker)] == worker.claims
        else:
            with self.a_commit_that_fails() as connection:
                self._record(connection, worker)
        self.tally["a commit was read back"] += 1
        with self.ledger.reading() as connection:
            assert were_finished(connection, worker.claims) == bool(ours and committed)

    def _sound_workers(self) -> list[Worker]:
        return [worker for worker in self.workers if not any(map(self._is_poisoned, worker.claims))]

    @happening(
        when=lambda self: any(chunk.state == "done" for chunk in self.model.chunks.values()), pick=PICK
    )
    def a_done_chunk_is_opened_by_mistake(self, pick: int) -> None:
        """By hand, or by a mistake in a later version: the primary key refuses a second outcome."""
        done = [chunk for chunk in self.model.chunks.values() if chunk.state == "done"]
        chunk = done[pick % len(done)]
        with self.ledger.transaction() as connection:
            connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(state="claimed"))
        claim = claim_of(self.ledger, chunk.id)
        with pytest.raises((IntegrityError, UniqueViolation)), self.ledger.transaction() as connection:
            record_results(connection, [Classified(claim, to_columns(self._outcomes(claim)))])
        with self.ledger.transaction() as connection:
            connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(state="done"))

    # ---- a person -------------------------------------------------------------------------------------

    @happening(weight=2, when=lambda self: self.has_job(*UNFINISHED), pick=PICK)
    def pause(self, pick: int) -> None:
        job = self.job(pick)
        with self.ledger.transaction() as connection:
            assert pause_job(connection, job.id) == (job.state in UNFINISHED)
        if job.state in UNFINISHED:
            job.paused = True
            for chunk in job.chunks.values():
                if chunk.state == "pending":
                    chunk.state = "held"

    @happening(weight=2, when=lambda self: any(job.paused for job in self.model.jobs.values()), pick=PICK)
    def resume(self, pick: int) -> None:
        self._resume(self.job(pick))

    def _resume(self, job: JobModel) -> None:
        with self.ledger.transaction() as connection:
            due = resume_job(connection, job.id, limit=1_000)
        if not job.paused or job.state not in UNFINISHED:
            assert due is None
            return
        self.tally["a job was resumed"] += 1
        job.paused = False
        for chunk in job.chunks.values():
            if chunk.state == "held":
                chunk.state, chunk.waiting = "pending", False
        assert due == sum(chunk.state == "pending" for chunk in job.chunks.values())
        self.broker.wake_up(due)

    @happening(when=lambda self: self.has_job(*FINISHED), pick=PICK)
    def purge(self, pick: int) -> None:
        """Nothing may bring results to a job that is settled."""
        job = self.job(pick, *FINISHED)
        with self.ledger.transaction() as connection:
            assert settle_job(connection, job.id) == job.settled()

    @happening(pick=PICK, committed=st.booleans())
    def promote(self, pick: int, committed: bool) -> None:
        model_id = self.model_ids[pick % len(self.model_ids)]
        with self.ledger.transaction() if committed else self.a_commit_that_fails() as connection:
            point_alias(connection, CHAMPION, model_id)
        if committed:
            self.model.champion = model_id

    # ---- the broker, the reconcilers and the clock ----------------------------------------------------

    @happening(when=lambda self: self.broker.messages, all_of_them=st.booleans())
    def messages_are_lost(self, all_of_them: bool) -> None:
        self.broker.messages = 0 if all_of_them else self.broker.messages - 1

    @happening(weight=2, host=st.sampled_from(HOSTS), the_other_is_dead=st.booleans())
    def reconcile(self, host: str, the_other_is_dead: bool) -> None:
        self._reconcile(host, the_other_is_dead)

    def _reconcile(self, host: str, the_other_is_dead: bool) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(locks.update().values(until=db_now(-1 if the_other_is_dead else 3_600)))
        before = self.broker.messages
        sent = Reconciler(self.ledger, self.broker, holder=host).tick()  # type: ignore[arg-type]
        assert self.broker.messages == before + sent
        if self.lock_holder not in (None, host) and not the_other_is_dead:
            assert not sent, "two reconcilers at a time"
            return
        self.lock_holder = host
        self.model.expired_were_released()
        self.model.abandoned_were_failed()
        self.model.leftovers_were_held()
        assert sent == max(0, len(self.model.in_order) - before)
        with self.ledger.transaction() as connection:
            assert not take_lock(connection, "reconcile", "somebody else", seconds=1)

    @happening(part=st.sampled_from(["expire", "fail", "drop", "hold"]))
    def reconcile_in_part(self, part: str) -> None:
        """In any order, and as if the reconciler were killed in between."""
        with self.ledger.transaction() as connection:
            if part == "expire":
                expired = sum(
                    chunk.state == "claimed" and chunk.expired for chunk in self.model.chunks.values()
                )
                assert release_expired_claims(connection) == expired
                self.model.expired_were_released()
            elif part == "fail":
                assert sorted(fail_abandoned_jobs(connection)) == sorted(self.model.abandoned_were_failed())
            elif part == "drop":
                drop_leftover_chunks(connection)  # one thing at a time: nothing was passed over
            else:
                hold_leftover_chunks(connection)
                self.model.leftovers_were_held()

    @happening(when=lambda self: any(chunk.waiting for chunk in self.model.chunks.values()))
    def time_passes(self) -> None:
        """Enough of it for every back-off."""
        with self.ledger.transaction() as connection:
            waiting = chunks.update().where(chunks.c.not_before.is_not(None))
            connection.execute(waiting.values(not_before=db_now(-1)))
        for chunk in self.model.chunks.values():
            chunk.waiting = False

    # ---- after every step -----------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_as_it_should_be(self) -> None:
        with self.ledger.reading() as connection:
            assert found_jobs(connection) == {id_: job_row(job) for id_, job in self.model.jobs.items()}
            assert found_chunks(connection) == {id_: chunk_row(c) for id_, c in self.model.chunks.items()}
            assert found_predictions(connection) == sorted(
                (job.id, index, f"{index}.png", label, error)
                for job in self.model.jobs.values()
                for index, (label, error) in job.outcomes.items()
            )
            champions = connection.scalars(sa.select(aliases.c.model_id).where(aliases.c.name == CHAMPION))
            assert champions.all() == [self.model.champion]

    # ---- at the end -----------------------------------------------------------------------------------

    def teardown(self) -> None:
        if sys.exc_info()[0] is None:  # else there is a failure already, and this would hide it
            self._heal()
            self.tally["a run healed"] += 1
            self.tally["an image was accepted"] += sum(job.total for job in self.model.jobs.values())

    def _heal(self) -> None:
        """All faults end but the poisonous images: everything must end, and soon."""
        for worker in list(self.workers):
            self._crash(worker, "vanished")
        for job in list(self.model.jobs.values()):
            self._resume(job)
            if job.state == "receiving":
                self._seal(job)
        bound, claims = claims_to_heal(self.model), 0
        while True:
            self.time_passes()
            self._reconcile(HOSTS[0], the_other_is_dead=True)
            worker = self._claim(600)
            if worker is None:
                break
            claims += 1
            assert claims <= bound
            self._work(worker, CRASHES[claims % len(CRASHES)])
        self.the_ledger_is_as_it_should_be()
        for job in self.model.jobs.values():
            assert job.state in ("done", *STOPPED)
            if job.state == "done":
                assert sorted(job.outcomes) == list(range(job.total))
            for chunk in job.chunks.values():
                if chunk.state == "done":
                    self._check_quarantined(chunk)

    @staticmethod
    def _check_quarantined(chunk: ChunkModel) -> None:
        """An image is quarantined only alone, and a poisonous one always."""
        errors = {index: chunk.job.outcomes[index][1] for index in chunk.indexes}
        if {"quarantined", "timeout"} & set(errors.values()):
            assert chunk.images == 1
            assert chunk.crashes >= 3
        assert all(errors[index] is not None for index in chunk.indexes if index in chunk.job.poisonous)


def claims_to_heal(model: LedgerModel) -> int:
    """I4: no chunk is tried without end. A chunk of n images becomes at most 2n - 1 chunks; each is claimed
    for its crashes, for a lease that ran out before, and for its end.
    """
    return sum(
        5 * (2 * chunk.images - 1)
        for chunk in model.chunks.values()
        if chunk.state in ("pending", "held", "claimed")
    )


# ---- rows, as the model has them ------------------------------------------------------------------------


def job_row(job: JobModel) -> dict[str, Any]:
    return {
        "state": job.state,
        "model_id": job.model_id,
        "total": job.total,
        "succeeded": len(job.outcomes) - job.failed,
        "failed": job.failed,
        "paused": job.paused,
        "started": bool(job.outcomes),
        "sealed": job.sealed,
        "ended": job.state in FINISHED,
    }


def found_jobs(connection: Connection) -> dict[str, dict[str, Any]]:
    query = sa.select(
        jobs.c["id", "state", "model_id", "total", "succeeded", "failed"],
        jobs.c.paused_at.is_not(None).label("paused"),
        jobs.c.started_at.is_not(None).label("started"),
        jobs.c.submitted_at.is_not(None).label("sealed"),
        jobs.c.finished_at.is_not(None).label("ended"),
    )
    return {row.pop("id"): row for row in map(dict, connection.execute(query).mappings())}


def chunk_row(chunk: ChunkModel) -> dict[str, Any]:
    return {
        "job_id": chunk.job.id,
        "first_index": chunk.first,
        "images": chunk.images,
        "payload": chunk.payload,
        "payload_offset": chunk.offset,
        "priority": chunk.priority,
        "state": chunk.state,
        "attempts": chunk.attempts,
        "releases": chunk.releases,
        "crashes": chunk.crashes,
        "crash_code": chunk.crash_code,
        "token": chunk.token,
        "leased": chunk.state == "claimed" and not chunk.expired,
    }


def found_chunks(connection: Connection) -> dict[str, dict[str, Any]]:
    query = sa.select(
        chunks.c["id", "job_id", "first_index", "images", "payload", "payload_offset", "priority", "state"],
        chunks.c["attempts", "releases", "crashes", "crash_code", "token"],
        sa.and_(
            chunks.c.owner.is_not(None),
            chunks.c.lease_until.is_not(None),
            chunks.c.lease_until.between(db_now(), db_now(LEASE_SECONDS)),
        ).label("leased"),
    )
    return {row.pop("id"): row for row in map(dict, connection.execute(query).mappings())}


def found_predictions(connection: Connection) -> list[tuple[Any, ...]]:
    columns = predictions.c["job_id", "index", "name", "label", "error"]
    return sorted(tuple(row) for row in connection.execute(sa.select(columns)))


# ---- the test ---------------------------------------------------------------------------------------------

#: How often something must happen in each run on average, a third of what was seen: else the machine proves
#: less than it says.
LEAST_PER_RUN: Final = {
    "a chunk was claimed": 3.0,
    "a chunk ended": 3.0,
    "a wake-up met no work": 1.0,
    "chunks were claimed together": 0.5,
    "another worker claimed after a lease ran out": 0.3,
    "a chunk was cut": 0.3,
    "a chunk that crashed was split": 0.2,
    "an image was given up": 0.1,
    "a job was resumed": 0.1,
    "a zombie was refused": 0.1,
    "a commit was read back": 0.1,
}


@pytest.mark.parametrize(
    ("ledger_url", "short", "long", "least"),
    [
        # Ten examples for every change: too few to ask that everything has happened.
        pytest.param("sqlite", 10, 10, {}, marks=pytest.mark.fast, id="sqlite-ten"),
        pytest.param("sqlite", 80, 400, LEAST_PER_RUN, id="sqlite"),
        pytest.param("postgresql", 50, 400, LEAST_PER_RUN, id="postgresql"),
    ],
    indirect=["ledger_url"],
)
def test_whatever_happens_each_image_has_one_outcome_at_the_end(
    ledger: Ledger, make_model: Any, matrix: Matrix, short: int, long: int, least: dict[str, float]
) -> None:
    # Given a migrated ledger and three models
    models = [make_model(f"model {number}".encode()).id for number in range(3)]
    if ledger.is_sqlite:  # no power is cut here
        sa.event.listen(ledger.engine, "connect", lambda driver, _: driver.execute("PRAGMA synchronous=OFF"))
        ledger.engine.dispose()
    tally: Counter[str] = Counter()

    # When anything happens in any order
    fault = f"anything in any order, {ledger.engine.dialect.name}"
    with matrix.trials(fault, "I1-I4, I6", short=short, long=long) as trials:
        run_state_machine_as_test(
            lambda: LedgerMachine(ledger, models, tally),
            settings=settings(
                max_examples=trials.wanted,
                stateful_step_count=100 if matrix.soak else 50,
                # The short run does the same to the same code every time, the long one finds what is new.
                derandomize=not matrix.soak,
            ),
        )
        trials.ran(tally["a run healed"], Verdict(images=tally["an image was accepted"]))

    # Then no step led elsewhere than it should, and all runs came to their end; and there was much to see
    runs = tally["a run healed"]
    assert runs >= trials.wanted
    for what, times in least.items():
        assert tally[what] >= times * runs, (what, dict(tally))
