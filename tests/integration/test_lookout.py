"""In the middle of a large chunk: who waits is served, and who takes long leaves. Nothing is lost by that."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from jobs.ledger.intake import NewChunk
from jobs.ledger.outcomes import Classified, record_outcomes
from jobs.ledger.parts import give_away
from jobs.ledger.pausing import hold_leftover_chunks, pause_job, resume_job
from jobs.ledger.upkeep import drop_leftover_chunks
from jobs.ledger.waiting import NOBODY, Waiting
from worker.predicting.stages import Stages

from jobs.errors import ErrorCode, LeaseLost, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import Claim, bury_claim, claim_chunk, end_job
from jobs.ledger.workers import Presence, report_worker
from jobs.messages import CLASSIFY_QUEUE
from jobs.outcomes import Outcome
from jobs.payloads import Content
from jobs.schema import SMALL_JOB_IMAGES, ChunkState, JobState, chunks, jobs
from jobs.store import Store
from tests.bench_alone import Mill, decoded_for_ever, picture
from worker.predicting import lookout, pipeline, plain_batch
from worker.predicting.pipeline import classify_chunk

PICTURES = [picture(number) for number in range(300)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at a large chunk looks up after each image, and finds any small job long neglected."""
    monkeypatch.setattr(lookout, "SMALL_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(lookout, "NEGLECTED_SECONDS", -1.0)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any chunk takes long for its time limit."""
    monkeypatch.setattr(lookout, "LONG_SHARE", 0.0)


def rows(ledger: Ledger, job_id: str) -> list[sa.Row[tuple[object, ...]]]:
    """A job's chunks, in the order of their images."""
    with ledger.reading() as connection:
        of_job = sa.select(chunks).where(chunks.c.job_id == job_id)
        return list(connection.execute(of_job.order_by(chunks.c.first_index)))


def job_row(ledger: Ledger, job_id: str) -> sa.Row[tuple[object, ...]]:
    with ledger.reading() as connection:
        return connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()


def sizes(ledger: Ledger, job_id: str) -> list[tuple[str, int]]:
    return [(row.state, row.images) for row in rows(ledger, job_id)]


# ---- who waits is served ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("eager")
def test_a_small_job_does_not_wait_for_the_end_of_a_large_chunk(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given what the model says of many images, some of them broken, when nobody waits
    contents = [*PICTURES[:200], b"no picture", *PICTURES[200:]]
    alone, chunk_id = mill.job(contents)
    assert classify_chunk(chunk_id, mill.bench) == len(contents)

    # When a worker is at the same images, and small jobs come that nobody takes
    recorded: list[tuple[str, ...]] = []
    real = pipeline.record_outcomes

    def record(connection: sa.Connection, classified: list[Classified], *spent: object) -> object:
        recorded.append(tuple(one.claim.job_id for one in classified))
        return real(connection, classified, *spent)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "record_outcomes", record)
    job_id, chunk_id = mill.job(contents)
    small = [mill.job([PICTURES[number], b"none"])[0] for number in range(3)]
    assert classify_chunk(chunk_id, mill.bench) == len(contents)

    # Then those are recorded first, together, and each has its own answers
    first, last = recorded
    assert (set(first), last) == (set(small), (job_id,))
    for number, small_id in enumerate(small):
        assert mill.status(small_id).state == JobState.DONE
        assert [row[1:] for row in mill.answers(small_id)] == [
            mill.answers(alone)[number][1:],
            (None, "unidentified"),
        ]

    # And the large one has the answers that it has when nobody waits
    assert mill.answers(job_id) == mill.answers(alone)
    assert len({label for _, label, _ in mill.answers(job_id)}) > 2
    assert sizes(mill.ledger, job_id) == [("done", len(contents))]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("why", ["paused", "just came", "the chunk crashed before", "the chunk is small"])
def test_who_is_not_to_be_served_in_between_is_not(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    images = SMALL_JOB_IMAGES if why == "the chunk is small" else SMALL_JOB_IMAGES + 1
    _, chunk_id = mill.job(PICTURES[:images])
    served: list[str] = []
    monkeypatch.setattr(pipeline, "_serve", lambda small_id, **_: served.append(small_id))
    small_id, small_chunk = mill.job([PICTURES[0]])
    with mill.ledger.transaction() as connection:
        if why == "paused":
            assert pause_job(connection, small_id)
        elif why == "the chunk crashed before":
            # Whoever comes in between might kill the process, and that would be put down to it as well.
            connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(crashes=1))
        elif why == "the chunk is small":  # and was tried before, or it would have gathered the other
            connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(releases=1, attempts=1))
    if why == "just came":
        monkeypatch.setattr(lookout, "NEGLECTED_SECONDS", 1_000.0)

    assert classify_chunk(chunk_id, mill.bench) == images
    assert served == []

    # Otherwise it is
    monkeypatch.setattr(lookout, "NEGLECTED_SECONDS", -1.0)
    with mill.ledger.transaction() as connection:
        resume_job(connection, small_id, limit=10)
    _, chunk_id = mill.job(PICTURES)
    classify_chunk(chunk_id, mill.bench)
    assert set(served) == {small_chunk}


def check_large_is_done_and_small_in_the_end(
    mill: Mill, large: tuple[str, str], small: tuple[str, str], *, crashes: int
) -> None:
    """The large one at its first attempt. The small one waits, or was taken at the next look."""
    [row] = rows(mill.ledger, large[0])
    assert (row.state, row.attempts, row.crashes, row.releases) == ("done", 1, 0, 0)
    [row] = rows(mill.ledger, small[0])
    assert row.crashes == crashes
    if row.state != "done":
        assert row.state == "pending"
        assert classify_chunk(small[1], mill.bench) == 1
    assert mill.status(small[0]).state == JobState.DONE


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("where", "trouble", "crashes"),
    [
        ("read_payload", Unavailable("The store cannot be read"), 0),
        ("read_payload", RuntimeError("a mistake"), 1),
        ("claim_chunk", Unavailable("The ledger cannot be reached"), 0),
    ],
)
def test_what_befalls_a_small_job_is_no_matter_of_the_chunk_that_it_came_into(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, where: str, trouble: Exception, crashes: int
) -> None:
    # Given a large chunk and a small job, and trouble with the small one, once
    large, small = mill.job(PICTURES), mill.job([PICTURES[0]])
    troubles = [trouble]
    real = getattr(pipeline, where)

    def troubled(first: object, key: str, *args: object, **named: object) -> object:
        if small[1] in key and troubles:
            raise troubles.pop()
        return real(first, key, *args, **named)

    monkeypatch.setattr(pipeline, where, troubled)

    # When the large one is classified, Then it is done
    assert classify_chunk(large[1], mill.bench) == len(PICTURES)
    assert troubles == []
    check_large_is_done_and_small_in_the_end(mill, large, small, crashes=crashes)


@pytest.mark.usefixtures("eager")
def test_a_claim_of_a_small_job_that_breaks_off_is_withdrawn_alone(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a COMMIT of the claim of a small job that went through, and nobody heard that
    large, small = mill.job(PICTURES), mill.job([PICTURES[0]])
    claimed: list[str] = []
    real_claim, real_transaction = pipeline.claim_chunk, Ledger.transaction

    def claim(connection: sa.Connection, chunk_id: str, **named: object) -> object:
        claimed.append(chunk_id)
        return real_claim(connection, chunk_id, **named)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def transaction(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real_transaction(ledger, **named) as connection:
            yield connection
        if claimed == [large[1], small[1]]:
            claimed.append("told")
            raise Unavailable("The connection broke")

    monkeypatch.setattr(pipeline, "claim_chunk", claim)
    monkeypatch.setattr(Ledger, "transaction", transaction)

    # When the large one is classified, Then that one is still its own
    assert classify_chunk(large[1], mill.bench) == len(PICTURES)
    assert claimed[:3] == [large[1], small[1], "told"]
    check_large_is_done_and_small_in_the_end(mill, large, small, crashes=0)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("ending", [SystemExit, SoftTimeLimitExceeded])
def test_what_ends_a_process_in_the_middle_of_a_small_job_gives_both_back(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    job_id, chunk_id = mill.job(PICTURES)
    small_id, small_chunk = mill.job([PICTURES[0]])
    real = pipeline.read_payload

    def read(store: Store, key: str, *args: object, **named: object) -> object:
        if small_chunk in key:
            raise ending
        return real(store, key, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "read_payload", read)
    with pytest.raises(SystemExit) if ending is SystemExit else contextlib.nullcontext():
        assert classify_chunk(chunk_id, mill.bench) == 0

    for each in (job_id, small_id):
        [row] = rows(mill.ledger, each)
        assert (row.state, row.attempts, row.crashes, row.releases) == ("pending", 1, 0, 1)


@pytest.mark.usefixtures("eager")
def test_a_time_limit_that_strikes_while_a_small_job_is_claimed_gives_both_back(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ledger that hangs as a small job is claimed, until the time limit strikes there
    job_id, chunk_id = mill.job(PICTURES)
    small_id, small_chunk = mill.job([PICTURES[0]])
    real = pipeline.claim_chunk

    def hangs(connection: sa.Connection, claimed: str, **named: Any) -> object:
        claim = real(connection, claimed, **named)
        if claimed == small_chunk:
            raise Unavailable("The connection broke") from SoftTimeLimitExceeded()
        return claim

    monkeypatch.setattr(pipeline, "claim_chunk", hangs)

    # When the large one is classified, Then it is left at once, and nobody is to blame
    assert classify_chunk(chunk_id, mill.bench) == 0
    for each, releases in ((job_id, 1), (small_id, 0)):
        [row] = rows(mill.ledger, each)
        assert (row.state, row.crashes, row.releases) == ("pending", 0, releases)


@pytest.mark.usefixtures("eager")
def test_a_process_that_dies_in_the_middle_of_a_small_job_is_buried_with_both(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a process that dies at a small job that came into a large chunk
    job_id, chunk_id = mill.job(PICTURES)
    small_id, small_chunk = mill.job([PICTURES[0]])
    real = pipeline.read_payload

    class Death(BaseException):
        """The process is gone: nothing is given back."""

    def read(store: Store, key: str, *args: object, **named: object) -> object:
        if small_chunk in key:
            monkeypatch.setattr(pipeline, "_let_go", lambda *_: None)
            raise Death
        return real(store, key, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "read_payload", read)
    with pytest.raises(Death):
        classify_chunk(chunk_id, mill.bench)

    # When its parent buries it, knowing only the message that it had
    with mill.ledger.transaction() as connection:
        bury_claim(connection, chunk_id, owner=mill.bench.owner, code=ErrorCode.QUARANTINED, error="it died")

    # Then nobody waits for a lease to run out
    for each in (job_id, small_id):
        [row] = rows(mill.ledger, each)
        assert (row.state, row.crashes) == ("pending", 1)


@pytest.mark.usefixtures("eager")
def test_an_image_has_its_deadline_again_after_a_small_job(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given an image that would be decoded for ever, behind a small job that is served in between
    endless = picture(1_000)
    decoded_for_ever(monkeypatch, endless)
    fast = mill.bench.settings.model_copy(update={"image_seconds": 0.2})
    monkeypatch.setattr(mill.bench, "settings", fast)
    job_id, chunk_id = mill.job([*PICTURES[:100], endless])
    small_id, _ = mill.job([PICTURES[0]])

    # When the chunk is classified, Then that image gets its error
    assert classify_chunk(chunk_id, mill.bench) == 101
    assert mill.status(small_id).succeeded == 1
    assert [error for _, _, error in mill.answers(job_id)] == [None] * 100 + ["timeout"]


@pytest.mark.usefixtures("eager")
def test_a_ledger_that_does_not_say_who_waits_costs_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object, **__: object) -> None:
        raise Unavailable("The ledger cannot be reached")

    monkeypatch.setattr(lookout, "who_waits", away)
    job_id, chunk_id = mill.job(PICTURES)
    mill.job([PICTURES[0]])
    assert classify_chunk(chunk_id, mill.bench) == len(PICTURES)
    assert sizes(mill.ledger, job_id) == [("done", len(PICTURES))]


@pytest.mark.parametrize(("step", "pause"), [(1 / 128, 5 / 128), (3 / 128, 3 / 128), (1 / 8, 1 / 8)])
def test_looks_are_no_longer_apart_than_they_may_be_where_images_allow_that(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, step: float, pause: float
) -> None:
    # Given a clock that goes on with each step, and a ledger that takes its time to answer
    now, looks = [0.0], []
    monkeypatch.setattr(lookout, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def who_waits(*_: object, **__: object) -> Waiting:
        looks.append(now[0])
        now[0] += 1.0
        return NOBODY

    monkeypatch.setattr(lookout, "who_waits", who_waits)
    _, chunk_id = mill.job(PICTURES)
    with mill.ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=60, owner="anna", token=new_id())
    assert claim is not None
    watch = lookout.Lookout(mill.bench, [claim], Stages(), lambda _: None, may_share=True)

    # When it looks up after each step, Then it asks the last time before more than 40 ms have gone by
    for done in range(1, len(PICTURES)):
        now[0] += step
        watch.until(done)
    assert {later - earlier - 1.0 for earlier, later in pairwise(looks)} == {pause}


@pytest.mark.usefixtures("eager")
def test_a_time_limit_that_strikes_while_it_looks_is_heard(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise Unavailable("The connection broke") from SoftTimeLimitExceeded()

    monkeypatch.setattr(lookout, "who_waits", hangs)
    job_id, chunk_id = mill.job(PICTURES)
    assert classify_chunk(chunk_id, mill.bench) == 0
    assert sizes(mill.ledger, job_id) == [("pending", len(PICTURES))]


# ---- who has nothing to do gets a half --------------------------------------------------------------------


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is at a large chunk finds that what is left of it is worth two, however little it is."""
    monkeypatch.setattr(lookout, "WORTH_TWO_SECONDS", 0.0)


def there_are(mill: Mill, processes: int) -> None:
    """A worker of so many processes, of which one is at the bench."""
    children = [mill.bench.owner, *(f"another/{number}" for number in range(processes - 1))]
    with mill.ledger.transaction() as connection:
        report_worker(
            connection, Presence("a worker", "here", CLASSIFY_QUEUE, children, "1.0"), up_seconds=1.0
        )


@pytest.mark.usefixtures("eager", "generous")
@pytest.mark.parametrize("images", [300, 9_000])
def test_who_has_nothing_to_do_gets_a_half_of_what_is_left(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, rung: Callable[[], list[str]], images: int
) -> None:
    # Given what the model says of some images, one of them broken, when nobody else is there
    contents = (PICTURES * 30)[:images]
    contents[images // 3] = b"no picture"
    alone, chunk_id = mill.job(contents)
    assert classify_chunk(chunk_id, mill.bench) == images

    # When a worker begins with the same ones, and another process has nothing to do
    there_are(mill, processes=2)
    looked_at: list[int] = []
    real = plain_batch.decode_together

    def decode_together(window: Sequence[Content], *args: Any) -> object:
        looked_at.append(len(window))
        return real(window, *args)

    monkeypatch.setattr(plain_batch, "decode_together", decode_together)
    job_id, chunk_id = mill.job(contents)
    rung()
    done = classify_chunk(chunk_id, mill.bench)

    # Then the other one has its half at the first look, and is rung for; no image is looked at in vain
    first_look = 2_048 if images > 1_000 else 1
    assert done == first_look + (images - first_look + 1) // 2
    assert sizes(mill.ledger, job_id) == [("done", done), ("pending", images - done)]
    assert mill.status(job_id).state == JobState.RUNNING
    [rest_id] = rung()
    assert looked_at == ([4_096, done - 4_096] if images > 1_000 else [])

    # And when all such parts are done, the job has the answers that it has when nobody is there
    parts = 1
    while rest_id:
        done += classify_chunk(rest_id, mill.bench)
        parts += 1
        rest_id = next(iter(rung()), "")
    assert done == images
    assert mill.status(job_id).state == JobState.DONE
    assert mill.answers(job_id) == mill.answers(alone)
    assert [row.state for row in rows(mill.ledger, job_id)] == ["done"] * parts
    assert parts > 2  # what had been given away was given away in part, too


@pytest.mark.usefixtures("eager", "generous")
@pytest.mark.parametrize(
    "why", ["all are busy", "others wait", "little is left", "small", "crashed before", "paused", "shadowed"]
)
def test_who_has_nothing_to_do_is_the_only_one_to_get_a_part(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    images = SMALL_JOB_IMAGES + (why != "small")
    there_are(mill, processes=1 if why == "all are busy" else 2)
    job_id, chunk_id = mill.job(PICTURES[:images])
    if why == "others wait":
        _, other = mill.job(PICTURES)
    elif why == "little is left":
        monkeypatch.setattr(lookout, "WORTH_TWO_SECONDS", 60.0)
    elif why == "shadowed":
        monkeypatch.setattr(pipeline, "find_challenger", lambda *_, **__: mill.model.id)
    with mill.ledger.transaction() as connection:
        if why == "small":  # and was tried before, or it would gather others
            connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(releases=1, attempts=1))
        elif why == "crashed before":
            connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(crashes=1))
    if why == "paused":
        real = lookout.who_waits

        def paused_by_then(connection: sa.Connection, **named: Any) -> Waiting:
            with mill.ledger.transaction() as another:
                pause_job(another, job_id)
            return real(connection, **named)

        monkeypatch.setattr(lookout, "who_waits", paused_by_then)

    assert classify_chunk(chunk_id, mill.bench) == images
    assert sizes(mill.ledger, job_id) == [("done", images)]

    # Otherwise one does
    if why == "others wait":
        assert classify_chunk(other, mill.bench) < len(PICTURES)


@pytest.mark.usefixtures("eager", "generous")
def test_who_did_not_hear_that_a_part_was_given_away_gives_and_records_no_image_twice(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, rung: Callable[[], list[str]]
) -> None:
    # Given a COMMIT that went through, by which a part was given away, and nobody heard that
    real_give, real_transaction = lookout.give_away, Ledger.transaction
    given: list[bool] = []

    def give(connection: sa.Connection, claim: Claim, **named: Any) -> bool:
        given.append(real_give(connection, claim, **named))
        return given[-1]

    @contextlib.contextmanager
    def transaction(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        before = len(given)
        with real_transaction(ledger, **named) as connection:
            yield connection
        if len(given) > before == 0:
            raise Unavailable("The connection broke")

    monkeypatch.setattr(lookout, "give_away", give)
    monkeypatch.setattr(
        lookout, "who_waits", lambda *_, after, **__: Waiting(None, somebody_idle=after is not None)
    )
    monkeypatch.setattr(Ledger, "transaction", transaction)

    # When the chunk is classified to its end, Then what is somebody else's is left to them, and only that
    job_id, chunk_id = mill.job(PICTURES)
    rung()
    classify_chunk(chunk_id, mill.bench)
    assert given[:2] == [True, False]
    assert True not in given[1:]
    assert sizes(mill.ledger, job_id) == [("done", 151), ("pending", 149)]
    assert mill.status(job_id).done == 151
    [rest_id] = mill.pending()
    monkeypatch.setattr(lookout, "who_waits", lambda *_, **__: NOBODY)
    assert classify_chunk(rest_id, mill.bench) == 149
    assert mill.status(job_id).state == JobState.DONE


@pytest.mark.usefixtures("eager", "generous")
@pytest.mark.parametrize("struck", [False, True])
def test_a_ledger_that_is_away_as_a_part_is_given_away_costs_nothing_but_where_the_time_limit_struck(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, struck: bool
) -> None:
    def away(*_: object, **__: object) -> bool:
        raise Unavailable("The connection broke") from (SoftTimeLimitExceeded() if struck else None)

    monkeypatch.setattr(lookout, "give_away", away)
    there_are(mill, processes=2)
    job_id, chunk_id = mill.job(PICTURES)
    assert classify_chunk(chunk_id, mill.bench) == (0 if struck else len(PICTURES))
    assert sizes(mill.ledger, job_id) == [("pending" if struck else "done", len(PICTURES))]


# ---- who takes long leaves --------------------------------------------------------------------------------


@pytest.mark.usefixtures("slow")
def test_a_chunk_that_takes_long_keeps_what_it_has_and_that_is_no_crash(
    mill: Mill, rung: Callable[[], list[str]]
) -> None:
    # Given a chunk that takes longer than a half of its time limit after each image
    contents = [*PICTURES[:2], b"no picture", PICTURES[3]]
    job_id, chunk_id = mill.job(contents)

    # When its messages come one after the other, Then each brings it further, and nothing is a crash
    for left in (3, 2, 1, 0):
        assert classify_chunk(chunk_id, mill.bench) == 1
        assert mill.status(job_id).done == 4 - left
        for rest_id in rung():
            chunk_id = rest_id
    assert [(row.state, row.images, row.attempts, row.crashes) for row in rows(mill.ledger, job_id)] == [
        ("done", 1, 1, 0)
    ] * 4
    assert mill.status(job_id).state == JobState.DONE
    alone, chunk_id = mill.job(contents)
    while chunk_id:
        classify_chunk(chunk_id, mill.bench)
        chunk_id = next(iter(mill.pending()), "")
    assert mill.answers(job_id) == mill.answers(alone)


@pytest.mark.usefixtures("slow")
def test_images_that_are_decoded_together_are_left_between_two_heaps(mill: Mill) -> None:
    contents = (PICTURES * 9)[:2_500]
    job_id, chunk_id = mill.job(contents)
    assert classify_chunk(chunk_id, mill.bench) == 2_048
    assert sizes(mill.ledger, job_id) == [("done", 2_048), ("pending", 452)]


@pytest.mark.usefixtures("slow")
def test_a_chunk_that_crashed_is_tried_as_it_is(mill: Mill) -> None:
    """Otherwise its crashes would be forgotten, or put down to what did not crash."""
    job_id, chunk_id = mill.job(PICTURES)
    with mill.ledger.transaction() as connection:
        connection.execute(chunks.update().where(chunks.c.id == chunk_id).values(crashes=1))
    assert classify_chunk(chunk_id, mill.bench) == len(PICTURES)
    assert sizes(mill.ledger, job_id) == [("done", len(PICTURES))]


@pytest.mark.usefixtures("slow")
def test_small_jobs_that_take_long_together_keep_what_is_done_and_the_others_are_put_back(
    mill: Mill, rung: Callable[[], list[str]]
) -> None:
    # Given small jobs that would be gathered, the first of which takes longer than a half of the time limit
    small = [mill.job(PICTURES[:1]) for _ in range(10)]
    rung()
    # When somebody takes the first, Then that is done, and the others are given back, unharmed, and rung for
    assert classify_chunk(small[0][1], mill.bench) == 1
    assert set(rung()) == {chunk_id for _, chunk_id in small[1:]}
    for job_id, _ in small[1:]:
        assert [(row.state, row.crashes, row.releases) for row in rows(mill.ledger, job_id)] == [
            ("pending", 0, 1)
        ]
    # And when they are taken, they are done, each by itself.
    assert [classify_chunk(chunk_id, mill.bench) for _, chunk_id in small[1:]] == [1] * 9
    assert {mill.status(job_id).state for job_id, _ in small} == {JobState.DONE}


@pytest.mark.usefixtures("eager")
def test_small_jobs_in_the_middle_of_a_chunk_have_the_time_that_is_left_of_its_limit(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a large chunk that takes long already when it finds small jobs that wait
    _, chunk_id = mill.job(PICTURES)
    small = [mill.job(PICTURES[:1]) for _ in range(10)]
    made: list[Stages] = []
    real = Stages.elapsed
    gone_by = 0.6 * mill.bench.settings.soft_time_limit

    def make(**named: Any) -> Stages:
        made.append(Stages(**named))
        return made[-1]

    def elapsed(stages: Stages) -> float:
        return real(stages) + (gone_by if stages is made[0] else 0.0)

    monkeypatch.setattr(pipeline, "Stages", make)
    monkeypatch.setattr(Stages, "elapsed", elapsed)
    # When it serves the first of them, Then no other is begun
    served: list[int] = []
    attempt = pipeline._attempt

    def noted(*arguments: Any, **named: Any) -> int:
        done = attempt(*arguments, **named)
        if named:
            served.append(done)
        return done

    monkeypatch.setattr(pipeline, "_attempt", noted)
    classify_chunk(chunk_id, mill.bench)
    assert served == [1]
    assert sum(mill.status(small_id).done for small_id, _ in small) == 1


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_ledger_that_is_away_while_they_are_put_back_costs_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "LONG_SHARE", 0.0)

    def away(*_: object) -> None:
        raise Unavailable("The ledger cannot be reached")

    monkeypatch.setattr(pipeline, "put_back", away)
    small = [mill.job(PICTURES[:2]) for _ in range(10)]
    assert classify_chunk(small[0][1], mill.bench) == 20


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_time_limit_that_strikes_while_they_are_put_back_is_heard(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given small jobs that take long together, and a ledger that hangs as those that are left are put back
    monkeypatch.setattr(lookout, "LONG_SHARE", 0.0)

    def hangs(*_: object) -> None:
        time.sleep(0.6)  # for several times as long as the images take: they are not to blame
        raise Unavailable("The connection broke") from SoftTimeLimitExceeded()

    monkeypatch.setattr(pipeline, "put_back", hangs)
    small = [mill.job(PICTURES[:2]) for _ in range(10)]

    # When the time limit strikes there, Then no other is begun: the hard one is near
    assert classify_chunk(small[0][1], mill.bench) == 0
    for job_id, _ in small:
        [row] = rows(mill.ledger, job_id)
        assert (row.state, row.crashes, row.releases) == ("pending", 0, 1)


def test_a_lease_that_cannot_be_renewed_for_a_moment_costs_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a ledger that is away when a chunk that takes long renews its lease, twice
    monkeypatch.setattr(lookout, "RENEW_SECONDS", 0.0)
    tries = []
    real = lookout.renew_leases

    def away_twice(*arguments: Any, **named: Any) -> None:
        tries.append(arguments)
        if len(tries) <= 2:
            raise Unavailable("The ledger cannot be reached")
        real(*arguments, **named)

    monkeypatch.setattr(lookout, "renew_leases", away_twice)
    # When it is classified, Then it is done, in one attempt, and its lease was renewed later
    job_id, chunk_id = mill.job([*PICTURES[:3], b"no picture", PICTURES[4]])
    assert classify_chunk(chunk_id, mill.bench) == 5
    assert len(tries) > 2
    assert [(row.state, row.attempts, row.releases) for row in rows(mill.ledger, job_id)] == [("done", 1, 0)]


def test_a_time_limit_that_strikes_while_it_renews_is_heard(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookout, "RENEW_SECONDS", 0.0)

    def hangs(*_: object, **__: object) -> None:
        raise Unavailable("The connection broke") from SoftTimeLimitExceeded()

    monkeypatch.setattr(lookout, "renew_leases", hangs)
    job_id, chunk_id = mill.job(PICTURES[:5])
    assert classify_chunk(chunk_id, mill.bench) == 0
    assert sizes(mill.ledger, job_id) == [("pending", 5)]


# ---- in the ledger ----------------------------------------------------------------------------------------


def leave(ledger: Ledger, claim: Claim, done: int, *, error: ErrorCode | None = None) -> str:
    """Records the first images; gives back the id of the chunk that the others become."""
    outcome = Outcome("a", None, None, error) if error else Outcome("a", "7", 0.5)
    rest_id = new_id()
    with ledger.transaction() as connection:
        record_outcomes(connection, [Classified(claim, [outcome] * done, None, rest_id)])
    return rest_id


def test_the_rest_is_as_old_as_its_chunk_and_shares_its_payload(ledger, make_job, worker):
    job = make_job([3, 8])
    before = rows(ledger, job.id)[1]
    rest_id = leave(ledger, worker.must_claim(job.chunks[1]), 5)

    _, front, rest = rows(ledger, job.id)
    assert (front.id, front.first_index, front.images, front.state) == (job.chunks[1].id, 3, 5, "done")
    assert (rest.id, rest.first_index, rest.images, rest.payload_offset) == (rest_id, 8, 3, 5)
    assert (rest.state, rest.attempts, rest.crashes, rest.token) == ("pending", 0, 0, None)
    assert (rest.payload, rest.payload_sha256) == (before.payload, before.payload_sha256)
    assert rest.created_at == before.created_at
    assert rest.ring_after > before.created_at


def give(ledger: Ledger, claim: Claim, keep: int) -> str | None:
    """Gives all but the first images away; the id of the chunk that these become."""
    rest_id = new_id()
    with ledger.transaction() as connection:
        return rest_id if give_away(connection, claim, keep=keep, rest_id=rest_id) else None


def test_what_was_given_away_is_as_old_as_its_chunk_and_shares_its_payload(ledger, make_job, worker):
    job = make_job([3, 8])
    before = rows(ledger, job.id)[1]
    claim = worker.must_claim(job.chunks[1])
    rest_id = give(ledger, claim, 5)

    _, front, rest = rows(ledger, job.id)
    assert (front.id, front.first_index, front.images, front.state) == (job.chunks[1].id, 3, 5, "claimed")
    assert (front.token, front.lease_until) == (claim.token, rows(ledger, job.id)[1].lease_until)
    assert (rest.id, rest.first_index, rest.images, rest.payload_offset) == (rest_id, 8, 3, 5)
    assert (rest.state, rest.attempts, rest.crashes, rest.token) == ("pending", 0, 0, None)
    assert (rest.payload, rest.payload_sha256) == (before.payload, before.payload_sha256)
    assert rest.created_at == before.created_at
    assert rest.ring_after > before.created_at

    # And the job ends with the last of its chunks, whoever is first
    worker.finish(worker.must_claim(NewChunk(rest_id, 8, 3, "", "")))
    worker.finish(worker.must_claim(job.chunks[0]))
    state = job_row(ledger, job.id)
    assert (state.state, state.succeeded, state.chunks, state.chunks_done) == ("running", 6, 3, 2)
    worker.finish(replace(claim, images=5))
    state = job_row(ledger, job.id)
    assert (state.state, state.succeeded, state.chunks, state.chunks_done) == ("done", 11, 3, 3)


def test_who_lost_the_chunk_can_give_nothing_of_it_away(ledger, make_job, new_worker):
    job = make_job([4])
    late = new_worker("late").must_claim(job.chunks[0], lease_seconds=-1)
    new_worker("second").must_claim(job.chunks[0])
    assert give(ledger, late, 2) is None
    assert sizes(ledger, job.id) == [("claimed", 4)]


@pytest.mark.parametrize("how", ["cancelled", "paused", "still received"])
def test_nothing_is_given_away_of_a_job_that_goes_on_no_more_or_has_chunks_to_come(
    ledger, make_job, worker, how
):
    job = make_job([4], sealed=how != "still received")
    claim = worker.must_claim(job.chunks[0])
    with ledger.transaction() as connection:
        if how == "cancelled":
            end_job(connection, job.id, JobState.CANCELLED)
        elif how == "paused":
            pause_job(connection, job.id)
    assert give(ledger, claim, 2) is None
    assert sizes(ledger, job.id) == [("claimed", 4)]


def test_who_leaves_a_chunk_and_did_not_hear_that_a_part_was_given_away_leaves_the_rest_of_his(
    ledger, make_job, worker
):
    job = make_job([8])
    claim = worker.must_claim(job.chunks[0])
    given = give(ledger, claim, 5)
    rest_id = leave(ledger, claim, 2)
    found = [(row.id, row.first_index, row.images, row.state) for row in rows(ledger, job.id)]
    assert found == [
        (job.chunks[0].id, 0, 2, "done"),
        (rest_id, 2, 3, "pending"),
        (given, 5, 3, "pending"),
    ]

    # And of one who was further than what is his, nothing is left
    claim = worker.must_claim(NewChunk(rest_id, 2, 3, "", ""))
    assert give(ledger, claim, 1)
    leave(ledger, claim, 2)
    assert sizes(ledger, job.id) == [("done", 2), ("done", 1), ("pending", 2), ("pending", 3)]


def test_a_job_ends_with_the_last_rest_of_its_chunks(ledger, make_job, worker):
    job = make_job([8])
    claim = worker.must_claim(job.chunks[0])
    for left in (6, 1):
        rest_id = leave(ledger, claim, claim.images - left)
        state = job_row(ledger, job.id)
        assert (state.state, state.succeeded) == ("running", 8 - left)
        [*_, rest] = rows(ledger, job.id)
        claim = worker.must_claim(NewChunk(rest_id, rest.first_index, left, "", ""))
        assert (claim.images, claim.payload_offset) == (left, 8 - left)
    worker.finish(claim)
    state = job_row(ledger, job.id)
    assert (state.state, state.succeeded, state.chunks, state.chunks_done) == ("done", 8, 3, 3)


def test_who_lost_the_chunk_cannot_leave_it(ledger, make_job, new_worker):
    job = make_job([4])
    late = new_worker("late").must_claim(job.chunks[0], lease_seconds=-1)
    new_worker("second").must_claim(job.chunks[0])
    with pytest.raises(LeaseLost):
        leave(ledger, late, 2)
    assert sizes(ledger, job.id) == [("claimed", 4)]


@pytest.mark.parametrize("how", ["cancelled", "too many errors", "paused"])
def test_nobody_works_on_what_is_left_of_a_job_that_goes_on_no_more(ledger, make_job, worker, how):
    job = make_job([4])
    claim = worker.must_claim(job.chunks[0])
    with ledger.transaction() as connection:
        if how == "cancelled":
            end_job(connection, job.id, JobState.CANCELLED)
        elif how == "paused":
            pause_job(connection, job.id)
        else:
            connection.execute(jobs.update().where(jobs.c.id == job.id).values(error_limit=1))

    rest_id = leave(ledger, claim, 2, error=ErrorCode.CORRUPT if how == "too many errors" else None)

    rest = NewChunk(rest_id, 2, 2, "", "")
    assert worker.claim(rest) is None
    with ledger.transaction() as connection:  # as the reconciler does
        drop_leftover_chunks(connection)
        hold_leftover_chunks(connection)
    expected = ChunkState.HELD if how == "paused" else ChunkState.DROPPED
    assert sizes(ledger, job.id) == [("done", 2), (expected, 2)]


@pytest.mark.parametrize(("done", "rest_id"), [(0, "rest"), (4, "rest"), (5, "rest"), (3, None), (5, None)])
def test_outcomes_that_are_missing_or_too_many_are_refused(ledger, make_job, worker, done, rest_id):
    claim = worker.must_claim(make_job([4]).chunks[0])
    classified = Classified(claim, [Outcome("a", "7", 0.5)] * done, None, rest_id)
    with pytest.raises(ValueError, match=f"{done} outcomes"), ledger.transaction() as connection:
        record_outcomes(connection, [classified])
