"""Anything that can happen to chunks happens, in any order, to the real ledger; nothing is lost or doubled.

Hypothesis makes up the order: submissions, messages that come twice or never, workers that die with and
without a word, zombies that come back, commits that nobody knows of, pauses, cancellations, poisonous images,
reconcilers. After every step the ledger is compared with a model of it (`ledger_model`), and is asked whether
it breaks a law (`ledger_laws`). At the end of every run all faults are healed, and all images must get their
outcome within a bounded number of rounds.

One thing happens at a time here. What happens at the same moment is `test_ledger_races`'s.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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

from jobs.errors import ErrorCode, JobStopped, LeaseLost, Stopped
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import (
    Claim,
    bury_claim,
    claim_chunk,
    crash_chunk,
    end_job,
    release_chunk,
    renew_leases,
    were_finished,
    withdraw_claim,
)
from jobs.ledger.gathering import gather_chunks, may_gather, oldest_small
from jobs.ledger.intake import NewChunk, add_chunk, discard_job, open_job, seal_job
from jobs.ledger.isolation import must_give_up, must_split, outcome_of_the_lone, split_chunk
from jobs.ledger.models import CHAMPION, find_champion, point_alias
from jobs.ledger.outcomes import Classified, record_outcomes
from jobs.ledger.parts import give_away
from jobs.ledger.pausing import hold_leftover_chunks, pause_job, resume_job
from jobs.ledger.settling import settle_job
from jobs.ledger.upkeep import chunks_to_ring, drop_leftover_chunks, fail_abandoned_jobs, take_lock
from jobs.limits import ErrorLimits
from jobs.outcomes import Outcome
from jobs.schema import JobState, aliases, chunks, db_now, jobs, locks, predictions
from tests.faults.checker import Verdict
from tests.faults.ledger_laws import broken_laws
from tests.faults.ledger_model import ENDED, STOPPED, UNDER_WAY, ChunkModel, JobModel, LedgerModel
from tests.faults.trials import Matrix
from worker.reconcile import Reconciler

#: Far longer than a run takes: no lease runs out by itself, the machine says when.
LEASE_SECONDS: Final = 3_600.0

#: Images in the largest chunk: enough for a poisonous one to be two splits away from being alone.
MOST_IMAGES: Final = 6

#: A healed ledger is empty after so many looks of the reconciler. A chunk of six: two crashes and a split,
#: twice a crash and a split for its halves, three crashes and the end for the lone image; and one more for
#: what was under way when it healed.
ROUNDS_TO_HEAL: Final = 3 + 2 + 2 + 4 + 1

#: How a worker can crash: with a word of its main process or without, or by its own word.
CRASHES: Final = ("killed", "vanished", "timeout", "memory")
MANNERS = st.sampled_from(CRASHES)

HOSTS: Final = ("anna", "ben")

#: Which of the things that are there: hypothesis shrinks it to the first.
PICK = st.integers(min_value=0, max_value=1_000)

#: Which of a job's images are poisonous, or broken.
PLACES = st.frozensets(st.integers(0, 2 * MOST_IMAGES), max_size=2)

SIZES = st.lists(st.integers(1, MOST_IMAGES), min_size=1, max_size=3)


class NoAnswer(Exception):
    """The COMMIT broke off."""


class Messages:
    """A broker that loses, repeats and shuffles; to the reconciler it is the bell."""

    def __init__(self) -> None:
        self.chunk_ids: list[str] = []

    def anew(self) -> Self:
        return self

    def waiting(self) -> int:
        return len(self.chunk_ids)

    def ring(self, chunk_ids: Iterable[str]) -> int:
        ringing = list(chunk_ids)
        self.chunk_ids += ringing
        return len(ringing)

    def ring_for_small(self, chunk_id: str) -> int:
        return 0 if chunk_id in self.chunk_ids else self.ring([chunk_id])

    def ring_for(self, waiting: Iterable[tuple[str, bool]]) -> int:
        return self.ring(chunk_id for chunk_id, _ in waiting)


@dataclass(frozen=True)
class Worker:
    """A process that believes it holds a chunk."""

    name: str
    claim: Claim


@dataclass(frozen=True)
class Happening:
    """One thing that can happen: where it can, how often compared to others, and what it draws."""

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
    """Instead of Hypothesis's `rule` and `precondition`, which turn most rules off in most runs. That is good
    where rules add to each other. Here they build on each other: with one of submitting, delivering, hanging,
    taking over and working turned off there is no zombie, and in 60 runs there was none.
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
        self.messages = Messages()
        self.workers: list[Worker] = []
        self.lock_holder: str | None = None
        self.names = (f"worker {number}" for number in count(1))
        self.ages = count()

    # ---- the two sides --------------------------------------------------------------------------------

    @initialize(sizes=SIZES, poison=PLACES, sealed=st.booleans())
    def one_job(self, sizes: list[int], poison: frozenset[int], sealed: bool) -> None:
        """And nothing else: so that there is something to be done from the beginning."""
        with self.ledger.transaction() as connection:
            if self.ledger.is_sqlite:
                for table in (predictions, chunks, jobs, locks):
                    connection.execute(table.delete())
            else:  # deleted rows would lie in the way until they are vacuumed
                connection.execute(
                    sa.text("TRUNCATE predictions, chunks, jobs, locks, shadowed_chunks, disagreements")
                )
            point_alias(connection, CHAMPION, self.model_ids[0])
        self._submit(sizes, poison, frozenset(), ErrorLimits(), sealed)

    def job(self, pick: int, *states: str) -> JobModel:
        there = [job for job in self.model.jobs.values() if not states or job.state in states]
        return there[pick % len(there)]

    def has_job(self, *states: str) -> bool:
        return any(not states or job.state in states for job in self.model.jobs.values())

    def chunk_of(self, claim: Claim) -> ChunkModel | None:
        """The claim's chunk, where it is still this claim's."""
        chunk = self.model.chunks.get(claim.chunk_id)
        return chunk if chunk and chunk.state == "claimed" and chunk.token == claim.token else None

    def worker(self, pick: int) -> Worker:
        return self.workers[pick % len(self.workers)]

    @contextmanager
    def a_commit_that_fails(self) -> Iterator[Connection]:
        """The transaction is rolled back, as if its connection had broken before the COMMIT."""
        with suppress(NoAnswer), self.ledger.transaction() as connection:
            yield connection
            raise NoAnswer

    @rule(data=st.data())
    def something_happens(self, data: st.DataObject) -> None:
        # The most frequent first: what comes first is drawn more often still.
        by_weight = sorted(HAPPENINGS.items(), key=lambda item: -item[1].weight)
        possible = [name for name, it in by_weight if it.when(self) for _ in range(it.weight)]
        name = data.draw(st.sampled_from(possible), label="what")
        drawn = {key: data.draw(what, label=key) for key, what in HAPPENINGS[name].strategies.items()}
        HAPPENINGS[name].happen(self, **drawn)

    # ---- a producer -----------------------------------------------------------------------------------

    @happening(
        sizes=SIZES,
        poison=PLACES,
        broken=PLACES,
        limits=st.one_of(
            st.just(ErrorLimits()),
            st.builds(ErrorLimits, count=st.integers(0, 2)),
            st.builds(ErrorLimits, rate=st.sampled_from([0.0, 0.25, 0.5]), sample=st.integers(1, 8)),
        ),
        sealed=st.booleans(),
    )
    def submit(
        self,
        sizes: list[int],
        poison: frozenset[int],
        broken: frozenset[int],
        limits: ErrorLimits,
        sealed: bool,
    ) -> None:
        self._submit(sizes, poison, broken, limits, sealed)

    def _submit(
        self,
        sizes: list[int],
        poison: frozenset[int],
        broken: frozenset[int],
        limits: ErrorLimits,
        sealed: bool,
    ) -> None:
        job = JobModel(
            new_id(), self.model.champion, poison, broken, limits.count, limits.rate, limits.sample
        )
        with self.ledger.reading() as connection:
            champion = find_champion(connection)
        assert champion is not None
        assert champion.id == job.model_id
        with self.ledger.transaction() as connection:
            open_job(connection, job.id, model_id=champion.id, key=None, error_limits=limits)
        self.model.jobs[job.id] = job
        for size in sizes:
            self._add_chunk(job, size)
        if sealed:
            self._seal(job)

    def _is_new(self, chunk: ChunkModel) -> None:
        """Two chunks of one millisecond have no order. For the machine there must be one: what it does must
        depend on nothing but what was drawn.
        """
        chunk.age = next(self.ages)
        chunk.job.chunks[chunk.id] = chunk
        with self.ledger.transaction() as connection:
            created_at = db_now(chunk.age - 1_000_000)
            connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(created_at=created_at))

    @happening(weight=3, sizes=st.lists(st.integers(1, 2), min_size=2, max_size=4), poison=PLACES, pick=PICK)
    def small_jobs_come(self, sizes: list[int], poison: frozenset[int], pick: int) -> None:
        """And the message of one of them, of which most are gathered."""
        for size in sizes:
            self._submit([size], poison, frozenset(), ErrorLimits(), sealed=True)
        self._deliver(self.messages.chunk_ids.pop(-1 - pick % len(sizes)), room=sum(sizes))

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
        id_, first = new_id(), job.total
        with self.ledger.transaction() as connection:
            add_chunk(connection, job.id, NewChunk(id_, first, size, f"payloads/{first}", "0" * 64))
        state = "held" if job.paused else "pending"
        chunk = ChunkModel(id_, job, first, size, f"payloads/{first}", state=state, quiet=True)
        self._is_new(chunk)
        job.abandoned = False
        self.messages.ring([id_])

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
        under_way = job.state in UNDER_WAY
        with self.ledger.transaction() as connection:
            if how == "cancelled":
                assert end_job(connection, job.id, JobState.CANCELLED) == under_way
            elif how == "taken back":
                assert discard_job(connection, job.id) is not job.sealed
            elif job.state == "receiving":  # the reconciler will see that its producer is dead
                connection.execute(jobs.update().where(jobs.c.id == job.id).values(touched_at=db_now(-121)))
                job.abandoned = True
        if how == "cancelled" and under_way:
            job.stopped("cancelled")
            self._check_stopped(job)
        elif how == "taken back" and not job.sealed:
            del self.model.jobs[job.id]
            self.tally["a submission was taken back"] += 1

    def _check_stopped(self, job: JobModel) -> None:
        """Its producer, if it is still at it, is told so, and nobody takes over where a worker vanishes."""
        with pytest.raises(Stopped), self.ledger.transaction() as connection:
            add_chunk(connection, job.id, NewChunk(new_id(), job.total, 1, "payloads/x", "0" * 64))
        with pytest.raises(Stopped), self.ledger.transaction() as connection:
            seal_job(connection, job.id, fingerprint=None)
        if at_work := [
            worker for worker in self.workers if self.chunk_of(worker.claim) in job.chunks.values()
        ]:
            self._run_out(at_work[0])
            assert self._deliver(at_work[0].claim.chunk_id) is None

    # ---- the broker -----------------------------------------------------------------------------------

    @happening(when=lambda self: self.messages.chunk_ids, pick=PICK, all_of_them=st.booleans())
    def messages_are_lost(self, pick: int, all_of_them: bool) -> None:
        if all_of_them:
            self.messages.chunk_ids.clear()
        else:
            del self.messages.chunk_ids[pick % self.messages.waiting()]

    # ---- a worker takes a chunk -----------------------------------------------------------------------

    @happening(
        weight=4,
        when=lambda self: self.messages.chunk_ids,
        picks=st.lists(PICK, min_size=1, max_size=3),
        copies=st.integers(0, 2),
        room=st.integers(0, 3 * MOST_IMAGES),
    )
    def deliver(self, picks: list[int], copies: int, room: int) -> None:
        """Out of order, and some more than once."""
        for pick in picks:
            if self.messages.chunk_ids:
                chunk_id = self.messages.chunk_ids.pop(pick % self.messages.waiting())
                self.messages.ring([chunk_id] * copies)
                self._deliver(chunk_id, room=room)

    def _deliver(self, chunk_id: str, *, room: int = 0, within: Worker | None = None) -> Worker | None:
        """`room`: for so many images of other small jobs. `within`: by a worker that is at another chunk."""
        owner, token = (within.name, within.claim.token) if within else (next(self.names), new_id())
        others: list[Claim] = []
        with self.ledger.transaction() as connection:
            claim = claim_chunk(connection, chunk_id, lease_seconds=LEASE_SECONDS, owner=owner, token=token)
            if claim is not None and may_gather(claim):
                others = gather_chunks(
                    connection, claim, images=room, lease_seconds=LEASE_SECONDS, owner=owner
                )
            left = oldest_small(connection)
        worker = self._check_claimed(chunk_id, owner, token, claim, others, room=room)
        self._check_left(left)
        return worker

    @happening(
        weight=2,
        when=lambda self: self.workers,
        pick=PICK,
        size=st.integers(1, 2),
        poison=PLACES,
        room=st.integers(0, 3 * MOST_IMAGES),
    )
    def a_small_job_is_served_in_between(
        self, pick: int, size: int, poison: frozenset[int], room: int
    ) -> None:
        """One comes, and a worker that is at another chunk takes the oldest, under the token that it has."""
        self._submit([size], poison, frozenset(), ErrorLimits(), sealed=True)
        small = self._oldest_small()
        assert small is not None
        assert self._deliver(small, room=room, within=self.worker(pick))
        self.tally["a small job was served in between"] += 1

    def _check_left(self, left: str | None) -> None:
        """Whoever handles a message rings for the small job that has waited longest."""
        assert left == self._oldest_small()
        if left is not None:
            self.messages.ring_for_small(left)

    def _oldest_small(self, *, overdue: bool = False) -> str | None:
        waiting = [
            chunk
            for chunk in self.model.chunks.values()
            if chunk.can_be_gathered and not (overdue and chunk.quiet)
        ]
        return min(waiting, key=lambda chunk: chunk.age).id if waiting else None

    def _check_claimed(
        self,
        chunk_id: str,
        owner: str,
        token: str,
        claim: Claim | None,
        others: list[Claim],
        *,
        room: int,
    ) -> Worker | None:
        chunk = self.model.chunks.get(chunk_id)
        if chunk is None or not chunk.can_be_claimed:
            self.tally["a message met no work"] += 1
            assert claim is None, "a chunk was claimed that was not to be had"
            return None
        assert claim is not None, "a chunk that is due was not to be had"
        self.tally["a chunk was taken over" if chunk.state == "claimed" else "a chunk was claimed"] += 1
        chunk.claimed(token)
        self._check_claim(claim, chunk)
        self.workers.append(worker := Worker(owner, claim))
        self._check_gathered(worker, others, room)
        return worker

    def _check_gathered(self, worker: Worker, others: list[Claim], room: int) -> None:
        """With the chunk came the oldest that may, up to the first that is too many."""
        expected: list[ChunkModel] = []
        if may_gather(worker.claim):
            waiting = [chunk for chunk in self.model.chunks.values() if chunk.can_be_gathered]
            of_its_model = [chunk for chunk in waiting if chunk.job.model_id == worker.claim.model_id]
            for chunk in sorted(of_its_model, key=lambda chunk: chunk.age):
                room -= chunk.images
                if room < 0:
                    break
                expected.append(chunk)
        assert {claim.chunk_id for claim in others} == {chunk.id for chunk in expected}
        for claim in others:
            chunk = self.model.chunks[claim.chunk_id]
            chunk.claimed(worker.claim.token, gathered=True)
            assert claim.token == worker.claim.token
            self._check_claim(claim, chunk)
            self.workers.append(Worker(worker.name, claim))
            self.tally["a chunk was gathered"] += 1

    @staticmethod
    def _check_claim(claim: Claim, chunk: ChunkModel) -> None:
        assert (claim.chunk_id, claim.job_id, claim.model_id) == (chunk.id, chunk.job.id, chunk.job.model_id)
        assert (claim.first_index, claim.images, claim.payload_offset) == (
            chunk.first,
            chunk.images,
            chunk.offset,
        )
        assert (claim.attempts, claim.crashes, claim.crash_code) == (
            chunk.attempts,
            chunk.crashes,
            chunk.crash_code,
        )
        assert must_split(claim) == chunk.must_split
        assert must_give_up(claim) == chunk.must_give_up

    @happening(when=lambda self: self.messages.chunk_ids, pick=PICK, committed=st.booleans())
    def the_answer_to_a_claim_is_lost(self, pick: int, committed: bool) -> None:
        chunk_id = self.messages.chunk_ids.pop(pick % self.messages.waiting())
        owner, token = next(self.names), new_id()
        with self.ledger.transaction() if committed else self.a_commit_that_fails() as connection:
            claim = claim_chunk(connection, chunk_id, lease_seconds=LEASE_SECONDS, owner=owner, token=token)
        with self.ledger.transaction() as connection:
            withdraw_claim(connection, token)
        chunk = self.model.chunks.get(chunk_id)
        assert (claim is not None) == (chunk is not None and chunk.can_be_claimed)
        if committed and chunk and claim:
            chunk.claimed(token)
            chunk.released(quiet=False)

    # ---- and works on it, or does not -----------------------------------------------------------------

    @happening(
        weight=6, when=lambda self: self.workers, picks=st.lists(PICK, min_size=1, max_size=3), manner=MANNERS
    )
    def work(self, picks: list[int], manner: str) -> None:
        """As `worker.predicting.pipeline.classify_chunk` does; a zombie does it like everybody else."""
        for pick in picks:
            if self.workers:
                self._work(self.worker(pick), manner)

    def _work(self, worker: Worker, manner: str) -> None:
        if self._is_poisoned(worker.claim):
            self._crash(worker, manner)
        else:
            self._end(worker)

    @happening(weight=5, when=lambda self: self.workers, pick=PICK)
    def work_together(self, pick: int) -> None:
        """What was gathered is recorded in one transaction; what of it was lost is left out."""
        together = [
            worker
            for worker in self._claimed_with(self.worker(pick))
            if not self._is_poisoned(worker.claim)
            and not must_split(worker.claim)
            and not must_give_up(worker.claim)
        ]
        if not together:
            return
        ours = [chunk for worker in together if (chunk := self.chunk_of(worker.claim))]
        classified = [Classified(worker.claim, self._outcomes(worker.claim)) for worker in together]
        for worker in together:
            self.workers.remove(worker)
        if not ours:
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                record_outcomes(connection, classified)
            self.tally["a zombie was refused"] += 1
            return
        with self.ledger.transaction() as connection:
            assert record_outcomes(connection, classified) == {chunk.id for chunk in ours}
        if len(ours) > 1:
            self.tally["chunks were recorded together"] += 1
        for chunk in ours:
            self._ended(chunk)

    def _who_may_leave(self) -> list[Worker]:
        """Where an image is through, and has not killed it."""
        return [
            worker
            for worker in self.workers
            if worker.claim.images > 1
            and not worker.claim.crashes
            and not self._is_poisoned(replace(worker.claim, images=1))
        ]

    @happening(weight=6, when=lambda self: self._who_may_leave(), pick=PICK, done=PICK)
    def a_chunk_is_left(self, pick: int, done: int) -> None:
        """It takes long: what came out so far is recorded, the rest is a chunk of its own."""
        may = self._who_may_leave()
        worker = may[pick % len(may)]
        claim = worker.claim
        done = 1 + done % (claim.images - 1)
        if self._is_poisoned(replace(claim, images=done)):
            done = 1
        self.workers.remove(worker)
        rest_id = new_id()
        left = [Classified(claim, self._outcomes(claim)[:done], None, rest_id)]
        if (chunk := self.chunk_of(claim)) is None:
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                record_outcomes(connection, left)
            self.tally["a zombie was refused"] += 1
            return
        with self.ledger.transaction() as connection:
            assert record_outcomes(connection, left) == {chunk.id}
        self.tally["a chunk was left"] += 1
        if done < chunk.images:  # as it always is, but where some were given away and nobody heard of it
            self._cut(chunk, done, rest_id)
        self._ended(chunk)

    @happening(
        weight=4, when=lambda self: self._who_may_leave(), pick=PICK, keep=PICK, answered=st.booleans()
    )
    def a_part_is_given_away(self, pick: int, keep: int, answered: bool) -> None:
        """Somebody is idle: the last images become a chunk of their own. Without an answer, who gave them
        away does not know, and brings outcomes for them, too.
        """
        may = self._who_may_leave()
        worker = may[pick % len(may)]
        claim, rest_id = worker.claim, new_id()
        keep = 1 + keep % (claim.images - 1)
        chunk = self.chunk_of(claim)
        goes_on = chunk is not None and chunk.job.state == "running" and not chunk.job.paused
        with self.ledger.transaction() as connection:
            given = give_away(connection, claim, keep=keep, rest_id=rest_id)
        assert given == (goes_on and chunk is not None and chunk.images == claim.images)
        if chunk is None or not given:
            self.tally["nothing could be given away"] += 1
            return
        self.tally["a part was given away"] += 1
        self._cut(chunk, keep, rest_id)
        if answered:
            self.workers[self.workers.index(worker)] = replace(worker, claim=replace(claim, images=keep))

    def _cut(self, chunk: ChunkModel, keep: int, rest_id: str) -> None:
        """The images after the first become a chunk of their own, which is rung for."""
        rest = ChunkModel(
            rest_id,
            chunk.job,
            chunk.first + keep,
            chunk.images - keep,
            chunk.payload,
            offset=chunk.offset + keep,
            quiet=True,
        )
        chunk.images = keep
        self._is_new(rest)
        self.messages.ring([rest.id])

    def _claimed_with(self, worker: Worker) -> list[Worker]:
        """The chunks that a process has claimed at once, this one among them."""
        return [other for other in self.workers if other.claim.token == worker.claim.token]

    def _is_poisoned(self, claim: Claim) -> bool:
        """Whether one of the images that are looked at kills whoever looks at it."""
        if must_split(claim) or must_give_up(claim) or claim.job_id not in self.model.jobs:
            return False
        indexes = range(claim.first_index, claim.first_index + claim.images)
        return not self.model.jobs[claim.job_id].poisonous.isdisjoint(indexes)

    def _end(self, worker: Worker) -> None:
        """Writes what came out. Where the claim was lost, nothing may come of it."""
        self.workers.remove(worker)
        if (chunk := self.chunk_of(worker.claim)) is None:
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                self._write(connection, worker.claim)
            with self.ledger.reading() as connection:
                assert not were_finished(connection, [worker.claim]), "it was somebody else who finished it"
            self.tally["a zombie was refused"] += 1
            return
        with self.ledger.transaction() as connection:
            self._write(connection, worker.claim)
        self._ended(chunk)

    def _write(self, connection: Connection, claim: Claim) -> None:
        if must_split(claim):
            split_chunk(connection, claim)
        else:
            record_outcomes(connection, [Classified(claim, self._outcomes(claim))])

    def _outcomes(self, claim: Claim) -> list[Outcome]:
        """An image's name says which it is, by its place in the payload."""
        start = int(claim.payload.removeprefix("payloads/")) + claim.payload_offset
        names = [f"{start + place}.png" for place in range(claim.images)]
        if must_give_up(claim):
            return [outcome_of_the_lone(claim, names[0])]
        job = self.model.jobs.get(claim.job_id)
        broken: frozenset[int] = job.broken if job else frozenset()
        return [
            Outcome(name, None, None, ErrorCode.CORRUPT, "no picture")
            if claim.first_index + place in broken
            else Outcome(name, claim.model_id, 0.75)
            for place, name in enumerate(names)
        ]

    def _ended(self, chunk: ChunkModel) -> None:
        job = chunk.job
        under_way = job.state in UNDER_WAY
        self.tally["a chunk ended"] += 1
        if chunk.must_split:
            self.tally["a chunk was split"] += 1
            chunk.state = "split"
            self._find_halves(chunk)
        elif chunk.must_give_up:
            self.tally["an image was given up"] += 1
            chunk.finished({chunk.first: (None, chunk.crash_code)})
        else:
            chunk.finished(
                {
                    index: (None, "corrupt") if index in job.broken else (job.model_id, None)
                    for index in chunk.indexes
                }
            )
        if under_way and job.state == "failed":
            self.tally["a job was stopped by its errors"] += 1

    def _find_halves(self, chunk: ChunkModel) -> None:
        """The two chunks that are new: their ids are the ledger's to choose, all else is known."""
        with self.ledger.reading() as connection:
            new = sa.select(chunks.c.first_index, chunks.c.id).where(
                chunks.c.job_id == chunk.job.id, chunks.c.id.not_in(chunk.job.chunks)
            )
            ids = {row.first_index: row.id for row in connection.execute(new)}
        small = chunk.images // 2
        halves = [(chunk.first, small), (chunk.first + small, chunk.images - small)]
        assert sorted(ids) == [first for first, _ in halves]
        for first, images in halves:
            inherited = 1 if images > 1 else 0
            half = ChunkModel(
                ids[first],
                chunk.job,
                first,
                images,
                chunk.payload,
                offset=chunk.offset + first - chunk.first,
                crashes=inherited,
                inherited=inherited,
                crash_code=chunk.crash_code,
            )
            self._is_new(half)

    @happening(weight=2, when=lambda self: self.workers, pick=PICK, manner=MANNERS)
    def a_worker_crashes(self, pick: int, manner: str) -> None:
        self._crash(self.worker(pick), manner)

    def _crash(self, worker: Worker, manner: str) -> None:
        if manner == "vanished":
            self.workers.remove(worker)
            self._run_out(worker)
            return
        code = ErrorCode.TIMEOUT if manner == "timeout" else ErrorCode.QUARANTINED
        if manner == "killed":
            self._bury(worker, code)
            return
        self.workers.remove(worker)
        chunk = self.chunk_of(worker.claim)
        with self.ledger.transaction() as connection:
            crash_chunk(connection, worker.claim, code=code, error="it gave up")
        if chunk:
            chunk.crashed(code)

    @happening(weight=2, when=lambda self: self.workers, pick=PICK)
    def a_job_is_cancelled_and_who_is_at_it_vanishes(self, pick: int) -> None:
        """What it leaves is the reconciler's to drop."""
        worker = self.worker(pick)
        job = self.model.jobs.get(worker.claim.job_id)
        if job is not None and job.state in UNDER_WAY:
            with self.ledger.transaction() as connection:
                assert end_job(connection, job.id, JobState.CANCELLED)
            job.stopped("cancelled")
            self._check_stopped(job)
        self._crash(worker, "vanished")

    @happening(weight=4, when=lambda self: self.zombies(), pick=PICK)
    def a_zombie_is_buried(self, pick: int) -> None:
        """Late: somebody else has its chunk by now, whose claim it must not end."""
        zombies = self.zombies()
        self._bury(zombies[pick % len(zombies)], ErrorCode.QUARANTINED)
        self.tally["a zombie was buried"] += 1

    def zombies(self) -> list[Worker]:
        """Those whose chunk is somebody else's at this moment."""
        return [
            worker
            for worker in self.workers
            if self.chunk_of(worker.claim) is None
            and (chunk := self.model.chunks.get(worker.claim.chunk_id))
            and chunk.state == "claimed"
        ]

    def _bury(self, worker: Worker, code: ErrorCode) -> None:
        """Its main process knows the chunk of the message. Where somebody else has that by now, leases run
        out.
        """
        dead = self._claimed_with(worker)
        named = self.model.chunks.get(worker.claim.chunk_id)
        token = worker.claim.token
        lost = [each for each in self.model.chunks.values() if (each.state, each.token) == ("claimed", token)]
        with self.ledger.transaction() as connection:
            bury_claim(connection, worker.claim.chunk_id, owner=worker.name, code=code, error="it died")
        for other in dead:
            self.workers.remove(other)
        if named and named.token == token:
            for chunk in lost:
                chunk.crashed(code)
        elif lost:
            self._run_out(worker)

    @happening(when=lambda self: self.workers, pick=PICK)
    def a_lease_runs_out(self, pick: int) -> None:
        """The worker hangs and does not know; it may come back at any time."""
        self._run_out(self.worker(pick))

    @happening(weight=5, when=lambda self: self.workers, pick=PICK)
    def another_takes_over(self, pick: int) -> None:
        """The worker that hung is a zombie from now on, and goes on when it likes."""
        worker = self.worker(pick)
        self._run_out(worker)
        self._deliver(worker.claim.chunk_id)

    def _run_out(self, worker: Worker) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(
                chunks.update()
                .where(chunks.c.token == worker.claim.token, chunks.c.lease_until.is_not(None))
                .values(lease_until=db_now(-1))
            )
        for chunk in self.model.chunks.values():
            if chunk.state == "claimed" and chunk.token == worker.claim.token:
                chunk.expired = True

    @happening(weight=3, when=lambda self: self.workers, pick=PICK)
    def renew(self, pick: int) -> None:
        worker = self.worker(pick)
        chunk = self.chunk_of(worker.claim)
        if chunk is None:
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                renew_leases(connection, [worker.claim], lease_seconds=LEASE_SECONDS)
        elif chunk.job.state in STOPPED:
            with pytest.raises(JobStopped), self.ledger.transaction() as connection:
                renew_leases(connection, [worker.claim], lease_seconds=LEASE_SECONDS)
            self._release(worker)
        else:
            with self.ledger.transaction() as connection:
                renew_leases(connection, [worker.claim], lease_seconds=LEASE_SECONDS)
            chunk.expired = False

    @happening(when=lambda self: self.workers, pick=PICK)
    def release(self, pick: int) -> None:
        self._release(self.worker(pick))

    def _release(self, worker: Worker) -> None:
        self.workers.remove(worker)
        chunk = self.chunk_of(worker.claim)
        with self.ledger.transaction() as connection:
            release_chunk(connection, worker.claim, error="told to stop")
        if chunk:
            chunk.released()

    @happening(when=lambda self: self.workers, pick=PICK)
    def a_payload_is_damaged(self, pick: int) -> None:
        worker = self.worker(pick)
        self.workers.remove(worker)
        chunk, job = self.chunk_of(worker.claim), self.model.jobs.get(worker.claim.job_id)
        with self.ledger.transaction() as connection:
            ended = end_job(connection, worker.claim.job_id, JobState.FAILED, error="damaged")
            release_chunk(connection, worker.claim, error="damaged")
        assert ended == (job is not None and job.state in UNDER_WAY)
        if job and ended:
            job.stopped("failed")
            self._check_stopped(job)
        if chunk:
            chunk.released()

    # ---- commits that nobody knows of, and the last guard ---------------------------------------------

    @happening(
        weight=2,
        when=lambda self: not all(self._is_poisoned(worker.claim) for worker in self.workers),
        pick=PICK,
        committed=st.booleans(),
    )
    def the_answer_to_a_commit_is_lost(self, pick: int, committed: bool) -> None:
        ready = [worker for worker in self.workers if not self._is_poisoned(worker.claim)]
        worker = ready[pick % len(ready)]
        claim = worker.claim
        chunk = self.chunk_of(claim)
        if chunk and committed:
            # When the COMMIT went through and nobody knows, and the worker tries again
            with self.ledger.transaction() as connection:
                self._write(connection, claim)
            self._ended(chunk)
            self.workers.remove(worker)
            with pytest.raises(LeaseLost), self.ledger.transaction() as connection:
                self._write(connection, claim)
        elif chunk:
            with self.a_commit_that_fails() as connection:
                self._write(connection, claim)
        else:
            with pytest.raises(LeaseLost), self.a_commit_that_fails() as connection:
                self._write(connection, claim)
        self.tally["a commit was read back"] += 1
        # Then the ledger says whose the end was
        with self.ledger.reading() as connection:
            assert were_finished(connection, [claim]) == (chunk is not None and committed)

    @happening(
        when=lambda self: any(chunk.state == "done" for chunk in self.model.chunks.values()), pick=PICK
    )
    def a_done_chunk_is_opened_by_mistake(self, pick: int) -> None:
        """By hand, or by a mistake in a later version: the primary key refuses a second outcome."""
        done = [chunk for chunk in self.model.chunks.values() if chunk.state == "done"]
        chunk = done[pick % len(done)]
        with self.ledger.transaction() as connection:
            connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(state="claimed"))
            row = connection.execute(sa.select(chunks).where(chunks.c.id == chunk.id)).one()
        claim = Claim(
            chunk.id,
            row.token,
            chunk.job.id,
            chunk.job.model_id,
            chunk.first,
            chunk.images,
            row.payload,
            row.payload_sha256,
            row.payload_offset,
            row.attempts,
            0,
            None,
            None,
        )
        with pytest.raises((IntegrityError, UniqueViolation)), self.ledger.transaction() as connection:
            record_outcomes(connection, [Classified(claim, self._outcomes(claim))])
        with self.ledger.transaction() as connection:
            connection.execute(chunks.update().where(chunks.c.id == chunk.id).values(state="done"))

    # ---- a person -------------------------------------------------------------------------------------

    @happening(weight=2, when=lambda self: self.has_job(*UNDER_WAY), pick=PICK)
    def pause(self, pick: int) -> None:
        job = self.job(pick)
        with self.ledger.transaction() as connection:
            assert pause_job(connection, job.id) == (job.state in UNDER_WAY)
        if job.state in UNDER_WAY:
            job.was_paused()

    @happening(when=lambda self: any(job.paused for job in self.model.jobs.values()), pick=PICK)
    def resume(self, pick: int) -> None:
        self._resume(self.job(pick))

    def _resume(self, job: JobModel) -> None:
        with self.ledger.transaction() as connection:
            resumed = resume_job(connection, job.id, limit=1_000)
        waiting = None if resumed is None else [chunk_id for chunk_id, _ in resumed]
        if job.paused and job.state in UNDER_WAY:
            self.tally["a job was resumed"] += 1
            held = job.was_resumed()
            # With them what came to wait while nothing was held any more: the halves of one that crashed.
            pending = sorted(
                (chunk for chunk in job.chunks.values() if chunk.state == "pending"),
                key=lambda chunk: chunk.first,
            )
            assert set(held) <= set(waiting)
            assert waiting == [chunk.id for chunk in pending if chunk.id in waiting]
            self.messages.ring(waiting)
        else:
            assert waiting is None

    @happening(when=lambda self: self.has_job(*ENDED), pick=PICK)
    def purge(self, pick: int) -> None:
        """Of a job that ended nobody may bring in anything after this."""
        job = self.job(pick, *ENDED)
        with self.ledger.transaction() as connection:
            settled = settle_job(connection, job.id)
        assert settled == job.was_settled()

    @happening(pick=PICK, committed=st.booleans())
    def promote(self, pick: int, committed: bool) -> None:
        model_id = self.model_ids[pick % len(self.model_ids)]
        with self.ledger.transaction() if committed else self.a_commit_that_fails() as connection:
            point_alias(connection, CHAMPION, model_id)
        if committed:
            self.model.champion = model_id

    # ---- the reconcilers ------------------------------------------------------------------------------

    @happening(weight=2, host=st.sampled_from(HOSTS), the_other_is_dead=st.booleans())
    def reconcile(self, host: str, the_other_is_dead: bool) -> None:
        self._reconcile(host, the_other_is_dead)

    def _reconcile(self, host: str, the_other_is_dead: bool) -> None:
        with self.ledger.transaction() as connection:
            self._stop_the_clock(connection)
            connection.execute(locks.update().values(until=db_now(-1 if the_other_is_dead else 3_600)))
        before = self.messages.waiting()
        sent = Reconciler(self.ledger, self.messages, holder=host).tick()  # type: ignore[arg-type]
        rung = self.messages.chunk_ids[before:]
        assert sent == len(rung)
        if self.lock_holder not in (None, host) and not the_other_is_dead:
            assert not rung, "two reconcilers at a time"
            return
        self.lock_holder = host
        self.model.abandoned_were_failed()
        self.model.leftovers_were_dropped()
        self.model.leftovers_were_held()
        small = self._oldest_small(overdue=True)
        rung_first = [] if small is None or small in self.messages.chunk_ids[:before] else [small]
        before += len(rung_first)
        assert rung[: len(rung_first)] == rung_first
        self._check_rung(rung[len(rung_first) :], limit=max(0, len(self.model.due) - before))
        with self.ledger.transaction() as connection:
            assert not take_lock(connection, "reconcile", "somebody else", seconds=1)

    def _stop_the_clock(self, connection: Connection) -> None:
        """What was put off stays so until `time_passes`, however slow the machine is."""
        quiet = [chunk.id for chunk in self.model.chunks.values() if chunk.quiet]
        put_off = chunks.update().where(chunks.c.id.in_(quiet), chunks.c.ring_after.is_not(None))
        connection.execute(put_off.values(ring_after=db_now(3_600)))

    def _check_rung(self, rung: list[str], *, limit: int) -> None:
        """For chunks that are due and were not put off, and no others; the oldest first."""
        wanted = sorted((chunk for chunk in self.model.due if not chunk.quiet), key=lambda chunk: chunk.age)
        expected = [chunk for chunk in wanted[:limit] if not chunk.can_be_gathered]
        assert rung == [chunk.id for chunk in expected]
        for chunk in expected:
            chunk.quiet = True

    @happening(part=st.sampled_from(["fail", "drop", "hold", "ring"]), limit=st.integers(1, 4))
    def reconcile_in_part(self, part: str, limit: int) -> None:
        """In any order, and as if the reconciler were killed in between."""
        with self.ledger.transaction() as connection:
            if part == "fail":
                assert sorted(fail_abandoned_jobs(connection)) == sorted(self.model.abandoned_were_failed())
            elif part == "drop":
                drop_leftover_chunks(connection)
                self.model.leftovers_were_dropped()
            elif part == "hold":
                hold_leftover_chunks(connection)
                self.model.leftovers_were_held()
            else:
                self._stop_the_clock(connection)
                rung = [chunk_id for chunk_id, _ in chunks_to_ring(connection, limit=limit)]
                self._check_rung(rung, limit=limit)
                self.messages.ring(rung)

    @happening(when=lambda self: any(chunk.quiet for chunk in self.model.due))
    def time_passes(self) -> None:
        """Enough of it for what was put off."""
        with self.ledger.transaction() as connection:
            connection.execute(
                chunks.update().where(chunks.c.ring_after.is_not(None)).values(ring_after=db_now(-1))
            )
        for chunk in self.model.chunks.values():
            chunk.quiet = False

    # ---- after every step -----------------------------------------------------------------------------

    @invariant()
    def the_ledger_is_as_it_ought_to_be(self) -> None:
        with self.ledger.reading() as connection:
            assert broken_laws(connection) == []
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
        bound = claims_to_heal(self.model)
        claims = rounds = 0
        while True:
            self.time_passes()
            self._reconcile(HOSTS[0], the_other_is_dead=True)
            if not self.messages.chunk_ids:
                break
            rounds += 1
            assert rounds <= ROUNDS_TO_HEAL
            while self.messages.chunk_ids:
                if worker := self._deliver(self.messages.chunk_ids.pop(0)):
                    claims += 1
                    self._work(worker, CRASHES[claims % len(CRASHES)])
        self.the_ledger_is_as_it_ought_to_be()
        assert claims <= bound
        for job in self.model.jobs.values():
            assert job.state in ("done", *STOPPED)
            if job.state == "done":
                assert sorted(job.outcomes) == list(range(job.total))
            self._check_quarantined(job)

    @staticmethod
    def _check_quarantined(job: JobModel) -> None:
        """Only what crashed, and crashed alone: an innocent image had as many deaths beside it by chance."""
        for chunk in job.chunks.values():
            [(_, error), *more] = [job.outcomes.get(index, (None, None)) for index in chunk.indexes]
            if chunk.state == "done" and error in ("quarantined", "timeout"):
                assert not more
                assert chunk.attempts - chunk.releases - 1 >= 3
            if chunk.state == "done":
                assert all(job.outcomes[i][1] is not None for i in chunk.indexes if i in job.poisonous)


def claims_to_heal(model: LedgerModel) -> int:
    """I4: no chunk is tried without end. A chunk of n images becomes at most 2n - 1 chunks; each is claimed
    for its crashes, for a lease that ran out before, and for its end.
    """
    return sum(
        5 * (2 * chunk.images - 1)
        for chunk in model.chunks.values()
        if chunk.state in ("pending", "held", "claimed")
    )


# ---- rows, as the model tells them ------------------------------------------------------------------------


def job_row(job: JobModel) -> dict[str, Any]:
    return {
        "state": job.state,
        "model_id": job.model_id,
        "total": job.total,
        "succeeded": job.succeeded,
        "failed": job.failed,
        "chunks": len(job.whole_chunks),
        "chunks_done": job.chunks_done,
        "paused": job.paused,
        "started": job.started,
        "sealed": job.sealed,
    }


def found_jobs(connection: Connection) -> dict[str, dict[str, Any]]:
    query = sa.select(
        jobs.c["id", "state", "model_id", "total", "succeeded", "failed", "chunks", "chunks_done"],
        jobs.c.paused_at.is_not(None).label("paused"),
        jobs.c.started_at.is_not(None).label("started"),
        jobs.c.submitted_at.is_not(None).label("sealed"),
    )
    return {row.pop("id"): row for row in map(dict, connection.execute(query).mappings())}


def chunk_row(chunk: ChunkModel) -> dict[str, Any]:
    return {
        "job_id": chunk.job.id,
        "first_index": chunk.first,
        "images": chunk.images,
        "payload": chunk.payload,
        "payload_offset": chunk.offset,
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
        chunks.c["id", "job_id", "first_index", "images", "payload", "payload_offset", "state"],
        chunks.c["attempts", "releases", "crashes", "crash_code", "token"],
        sa.and_(
            chunks.c.lease_until.is_not(None),
            chunks.c.lease_until.between(db_now(), db_now(LEASE_SECONDS)),
        ).label("leased"),
    )
    return {row.pop("id"): row for row in map(dict, connection.execute(query).mappings())}


def found_predictions(connection: Connection) -> list[tuple[Any, ...]]:
    columns = predictions.c["job_id", "index", "name", "label", "error"]
    return sorted(tuple(row) for row in connection.execute(sa.select(columns)))


# ---- the test ---------------------------------------------------------------------------------------------

#: How often something has to happen in a short run, which saw it three times as often at least: chance must
#: not decide. That a submission is taken back, or a job stopped by its errors, happens too seldom to ask for.
LEAST: Final = {
    "a chunk was claimed": 300,
    "a chunk ended": 300,
    "a message met no work": 150,
    "a chunk was gathered": 100,
    "a chunk was taken over": 80,
    "a chunk was split": 30,
    "an image was given up": 30,
    "a chunk was left": 20,
    "a job was resumed": 10,
    "a small job was served in between": 10,
    "a zombie was refused": 10,
    "chunks were recorded together": 10,
    "a commit was read back": 1,
    "a zombie was buried": 1,
}


@pytest.mark.parametrize(
    ("ledger_url", "short", "long", "least"),
    [
        # Ten examples for every change: too few to ask that everything has happened.
        pytest.param("sqlite", 10, 10, {}, marks=pytest.mark.fast, id="sqlite-ten"),
        pytest.param("sqlite", 80, 400, LEAST, id="sqlite"),
        pytest.param("postgresql", 50, 400, LEAST, id="postgresql"),
    ],
    indirect=["ledger_url"],
)
def test_whatever_happens_each_image_has_one_outcome_at_the_end(
    ledger: Ledger, make_model: Any, matrix: Matrix, short: int, long: int, least: dict[str, int]
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

    # Then no step led elsewhere than it ought to, and all runs came to their end; and there was much to see
    assert tally["a run healed"] >= trials.wanted
    for what, times in least.items():
        assert tally[what] >= times, (what, dict(tally))
