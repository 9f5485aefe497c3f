"""What the ledger should hold, said a second time: plain Python, no SQL, nothing of the product's in it.

`test_ledger_machine` does each thing to the real ledger and to this, and compares the two after every step.
The numbers are written out, not imported: a constant that is changed by mistake must be noticed.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

CRASHES_TO_GIVE_UP: Final = 3
COMBINED_CLAIM_IMAGES: Final = 512

UNFINISHED: Final = ("receiving", "running")
STOPPED: Final = ("failed", "cancelled")
FINISHED: Final = ("done", *STOPPED)


@dataclass(eq=False)
class ChunkModel:
    """A chunk."""

    id: str
    job: JobModel
    first: int
    images: int
    payload: str
    age: int  # its place among all chunks by age; a rest is as old as the whole
    offset: int = 0
    priority: int = 0
    state: str = "pending"
    attempts: int = 0
    releases: int = 0
    crashes: int = 0
    crash_code: str | None = None
    token: str | None = None
    expired: bool = False
    #: It is in back-off.
    waiting: bool = False

    @property
    def indexes(self) -> range:
        return range(self.first, self.first + self.images)

    @property
    def due(self) -> bool:
        return self.state == "pending" and not self.waiting

    @property
    def claimable(self) -> bool:
        return self.due and self.job.state in UNFINISHED and not self.job.paused

    @property
    def gives_up(self) -> bool:
        return self.images == 1 and self.crashes >= CRASHES_TO_GIVE_UP

    def cut(self, keep: int, crashes: int, rest_id: str) -> ChunkModel:
        rest = ChunkModel(
            rest_id,
            self.job,
            self.first + keep,
            self.images - keep,
            self.payload,
            self.age,
            offset=self.offset + keep,
            priority=self.priority,
            attempts=self.attempts,
            releases=self.releases,
            crashes=crashes if self.images - keep > 1 else 0,
            crash_code=self.crash_code,
        )
        self.images, self.crashes = keep, crashes if keep > 1 else 0
        self.job.chunks[rest_id] = rest
        return rest

    def released(self, *, code: str | None = None, unavailable: bool = False) -> None:
        """`code`: of a crash."""
        if code is None:
            self.releases += 1
        else:
            self.crashes, self.crash_code = self.crashes + 1, code
        self.state = "dropped" if self.job.state in STOPPED else "pending"
        self.expired, self.waiting = False, unavailable

    def finished(self, outcomes: dict[int, tuple[str | None, str | None]]) -> None:
        """`outcomes`: label and error of each image, by its index."""
        self.state, self.expired = "done", False
        job = self.job
        job.outcomes |= outcomes
        if job.state in UNFINISHED and job.too_many_errors:
            job.stopped("failed")
        elif job.state == "running" and job.complete:
            job.state = "done"


@dataclass(eq=False)
class JobModel:
    """A job."""

    id: str
    model_id: str
    poisonous: frozenset[int] = frozenset()
    broken: frozenset[int] = frozenset()
    error_limit: int | None = None
    error_rate: float | None = None
    error_sample: int = 1_000
    priority: int = 0
    state: str = "receiving"
    paused: bool = False
    sealed: bool = False
    abandoned: bool = False
    chunks: dict[str, ChunkModel] = field(default_factory=dict)
    outcomes: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(chunk.images for chunk in self.chunks.values())

    @property
    def failed(self) -> int:
        return sum(error is not None for _, error in self.outcomes.values())

    @property
    def complete(self) -> bool:
        return len(self.outcomes) == self.total

    @property
    def too_many_errors(self) -> bool:
        done = len(self.outcomes)
        return (self.error_limit is not None and self.failed > self.error_limit) or (
            self.error_rate is not None and done >= self.error_sample and self.failed > self.error_rate * done
        )

    def stopped(self, state: str) -> None:
        self.state = state
        for chunk in self.chunks.values():
            if chunk.state in ("pending", "held"):
                chunk.state = "dropped"

    def settled(self) -> bool:
        """Whether no worker has a chunk of it, after those that none has were dropped."""
        for chunk in self.chunks.values():
            if chunk.state in ("pending", "held") or (chunk.state == "claimed" and chunk.expired):
                chunk.state = "dropped"
        return all(chunk.state in ("done", "dropped") for chunk in self.chunks.values())

    def was_sealed(self) -> None:
        self.sealed, self.abandoned = True, False
        self.state = "done" if self.complete else "running"


@dataclass(eq=False)
class LedgerModel:
    """All of it."""

    champion: str
    jobs: dict[str, JobModel] = field(default_factory=dict)

    @property
    def chunks(self) -> dict[str, ChunkModel]:
        return {id_: chunk for job in self.jobs.values() for id_, chunk in job.chunks.items()}

    @property
    def in_order(self) -> list[ChunkModel]:
        """The chunks that are due, in the order in which they are claimed."""
        due = [chunk for chunk in self.chunks.values() if chunk.due]
        return sorted(due, key=lambda chunk: (-chunk.priority, chunk.age, chunk.first))

    def next_chunks(self, limit: int) -> list[ChunkModel]:
        """The chunks that the next claim has, before it cuts the first."""
        claimable = [chunk for chunk in self.in_order if chunk.claimable]
        if not claimable:
            return []
        first = claimable[0]
        if first.images > limit or first.attempts:
            return [first]
        found, room = [first], min(limit, COMBINED_CLAIM_IMAGES) - first.images
        for chunk in claimable[1:]:
            if chunk.attempts or chunk.job.model_id != first.job.model_id:
                continue
            room -= chunk.images
            if room < 0:
                break
            found.append(chunk)
        return found

    def expired_were_released(self) -> None:
        for chunk in self.chunks.values():
            if chunk.state == "claimed" and chunk.expired:
                chunk.released(code="quarantined")

    def abandoned_were_failed(self) -> list[str]:
        ended = [job for job in self.jobs.values() if job.state == "receiving" and job.abandoned]
        for job in ended:
            job.stopped("failed")
        return [job.id for job in ended]

    def leftovers_were_held(self) -> None:
        for chunk in self.chunks.values():
            if chunk.state == "pending" and chunk.job.paused and chunk.job.state in UNFINISHED:
                chunk.state = "held"
