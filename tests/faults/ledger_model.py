"""What the ledger ought to hold, told a second time: plain Python, no SQL, nothing of the product's in it.

`test_ledger_machine` does each thing to the real ledger and to this, and compares the two after every step.
The numbers are written out, not imported: a constant that is changed by mistake must be noticed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

#: What docs/states.md promises of a chunk that keeps crashing.
CRASHES_TO_SPLIT: Final = 2
CRASHES_TO_GIVE_UP: Final = 3

UNDER_WAY: Final = ("receiving", "running")
STOPPED: Final = ("failed", "cancelled")
ENDED: Final = ("done", *STOPPED)


@dataclass(eq=False)
class ChunkModel:
    """A chunk."""

    id: str
    job: JobModel
    first: int
    images: int
    payload: str
    offset: int = 0
    state: str = "pending"
    attempts: int = 0
    releases: int = 0
    crashes: int = 0
    #: Crashes that it was made with: of the chunk it is a half of.
    inherited: int = 0
    crash_code: str | None = None
    token: str | None = None
    #: Its lease ran out.
    expired: bool = False
    #: It was put off: it may not be rung for yet.
    quiet: bool = False
    #: Its place among all chunks by age.
    age: int = 0

    @property
    def indexes(self) -> range:
        return range(self.first, self.first + self.images)

    @property
    def due(self) -> bool:
        return self.state == "pending" or (self.state == "claimed" and self.expired)

    @property
    def can_be_claimed(self) -> bool:
        return self.due and self.job.state not in STOPPED and not self.job.paused

    @property
    def must_split(self) -> bool:
        return self.images > 1 and self.crashes >= CRASHES_TO_SPLIT

    @property
    def must_give_up(self) -> bool:
        return self.images == 1 and self.crashes >= CRASHES_TO_GIVE_UP

    def vanished(self) -> None:
        """Its lease ran out without a word, which is noticed now."""
        self.crashes += 1
        self.crash_code = "quarantined"
        self.expired = False

    @property
    def can_be_gathered(self) -> bool:
        fresh = self.state == "pending" and not self.attempts and self.crash_code is None
        job = self.job
        return fresh and job.state == "running" and not job.paused and len(job.whole_chunks) == 1

    def claimed(self, token: str, *, gathered: bool = False) -> None:
        if self.state == "claimed":
            self.vanished()
        self.state, self.token = "claimed", token
        self.attempts += 1
        if not gathered:
            self.job.started = True

    def given_back(self, *, quiet: bool = False) -> None:
        self.state = "dropped" if self.job.state in STOPPED else "pending"
        self.expired, self.quiet = False, quiet

    def released(self, *, quiet: bool = True) -> None:
        self.releases += 1
        self.given_back(quiet=quiet)

    def crashed(self, code: str) -> None:
        self.crashes += 1
        self.crash_code = code
        self.given_back()

    def finished(self, outcomes: dict[int, tuple[str | None, str | None]]) -> None:
        """`outcomes`: label and error of each image, by its index."""
        self.state, self.expired = "done", False
        job = self.job
        job.started = True
        job.outcomes |= outcomes
        if job.state in UNDER_WAY and job.too_many_errors:
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
    state: str = "receiving"
    paused: bool = False
    started: bool = False
    sealed: bool = False
    abandoned: bool = False
    chunks: dict[str, ChunkModel] = field(default_factory=dict)
    outcomes: dict[int, tuple[str | None, str | None]] = field(default_factory=dict)

    @property
    def whole_chunks(self) -> list[ChunkModel]:
        return [chunk for chunk in self.chunks.values() if chunk.state != "split"]

    @property
    def total(self) -> int:
        return sum(chunk.images for chunk in self.whole_chunks)

    @property
    def failed(self) -> int:
        return sum(error is not None for _, error in self.outcomes.values())

    @property
    def succeeded(self) -> int:
        return len(self.outcomes) - self.failed

    @property
    def chunks_done(self) -> int:
        return Counter(chunk.state for chunk in self.chunks.values())["done"]

    @property
    def complete(self) -> bool:
        return all(chunk.state == "done" for chunk in self.whole_chunks)

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

    def was_settled(self) -> bool:
        """Whether nobody is at it any more."""
        self.leftovers_were_dropped()
        return all(chunk.state in ("done", "split", "dropped") for chunk in self.chunks.values())

    def leftovers_were_dropped(self) -> None:
        for chunk in self.chunks.values():
            if chunk.due:
                if chunk.state == "claimed":
                    chunk.vanished()
                chunk.state = "dropped"

    def was_sealed(self) -> None:
        self.sealed, self.abandoned = True, False
        self.state = "done" if self.complete else "running"

    def was_paused(self) -> None:
        self.paused = True
        for chunk in self.chunks.values():
            if chunk.state == "pending":
                chunk.state = "held"

    def was_resumed(self) -> list[str]:
        """The chunks that wait again, in order."""
        self.paused = False
        held = [chunk for chunk in self.chunks.values() if chunk.state == "held"]
        for chunk in held:
            chunk.state, chunk.quiet = "pending", False
        return [chunk.id for chunk in sorted(held, key=lambda chunk: chunk.first)]


@dataclass(eq=False)
class LedgerModel:
    """All of it."""

    champion: str
    jobs: dict[str, JobModel] = field(default_factory=dict)

    @property
    def chunks(self) -> dict[str, ChunkModel]:
        return {id_: chunk for job in self.jobs.values() for id_, chunk in job.chunks.items()}

    @property
    def due(self) -> list[ChunkModel]:
        return [chunk for chunk in self.chunks.values() if chunk.due]

    def abandoned_were_failed(self) -> list[str]:
        ended = [job for job in self.jobs.values() if job.state == "receiving" and job.abandoned]
        for job in ended:
            job.stopped("failed")
        return [job.id for job in ended]

    def leftovers_were_dropped(self) -> None:
        for job in self.jobs.values():
            if job.state in STOPPED:
                job.leftovers_were_dropped()

    def leftovers_were_held(self) -> None:
        for chunk in self.due:
            if chunk.job.paused and chunk.job.state in UNDER_WAY:
                if chunk.state == "claimed":
                    chunk.vanished()
                chunk.state = "held"
