"""Test one claim from the ledger and back: what becomes of its images, and what happens if something fails.

Most tests read labels out of pictures with `tests.faults.light`; those that need TensorFlow use
`keras_harness`.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from billiard.pool import SIG_SOFT_TIMEOUT

from jobs.errors import ErrorCode, ImageError, Unavailable
from jobs.ledger import Ledger
from jobs.network.references import Reference
from jobs.schema import ChunkState, JobState, jobs, predictions
from jobs.storage.payloads import Content
from tests.conftest import Broker
from tests.faults import light
from tests.harness import Harness, digits, fail_at, strike_after, time_limit
from tests.small_disk import SmallDisk
from worker.predicting import free_space as room
from worker.predicting import pipeline
from worker.predicting.context import FIRST_CLAIM_IMAGES
from worker.predicting.pipeline import ATTEMPTS_TO_REACH

on_one_database = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

#: The labels of `digits(n)`, in order.
LABELS = [str(number % 10) for number in range(3_000)]


def calls_of(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> list[tuple[Any, ...]]:
    """Return a list that gets the arguments of each later call of a function."""
    calls: list[tuple[Any, ...]] = []
    real = getattr(owner, name)

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return real(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)
    return calls


def before_decoding(monkeypatch: pytest.MonkeyPatch, do: Callable[[], object]) -> None:
    """Call `do` before each image is decoded."""
    from worker.predicting import decode as module

    real = module.decode

    def decode(*arguments: Any) -> Any:
        do()
        return real(*arguments)

    monkeypatch.setattr(module, "decode", decode)


# ---- images in, rows out ------------------------------------------------------------------------------


def test_outcomes_stay_in_their_places_in_a_large_chunk(harness: Harness) -> None:
    # given plain pictures that are decoded together, mixed with images that fail or are decoded alone
    others: list[Content] = [
        b"no picture",
        digits(1)[0][:50],
        ImageError(ErrorCode.SOURCE_FORBIDDEN, "a link"),
    ]
    contents: list[Content] = list(digits(2_500))
    expected = LABELS[:2_500]
    for place in range(3, 2_500, 7):
        contents[place] = others[place % 3]
        expected[place] = ("unidentified", "corrupt", "source_forbidden")[place % 3]

    # when the chunk is classified in windows of 1,200 images
    job_id = harness.submit(contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("worker.predicting.windows._WINDOW_IMAGES", 1_200)
        assert harness.classify() == 2_500

    # then each outcome is at its index
    assert harness.labels(job_id) == expected


@on_one_database
def test_a_chunk_without_one_good_image_is_done_and_needs_no_model(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        harness.context, "classifier", lambda _model: pytest.fail("the model was loaded for nothing")
    )
    job_id = harness.submit([ImageError(ErrorCode.SOURCE_MISSING), ImageError(ErrorCode.SOURCE_MISSING)])

    assert harness.classify() == 2

    assert harness.labels(job_id) == ["source_missing"] * 2
    assert harness.status(job_id).state == "done"


@on_one_database
def test_an_answer_that_is_no_probability_is_an_error_of_that_image(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a model without an answer for the second of three images
    real = light.Classifier.predict

    def predict(classifier: light.Classifier, pixels: Any, *top_k: Any) -> Any:
        found = real(classifier, pixels, *top_k)
        found.class_index[1], found.confidence[1] = -1, 0.0
        return found

    monkeypatch.setattr(light.Classifier, "predict", predict)
    job_id = harness.submit(digits(3))

    harness.classify()

    assert harness.labels(job_id) == ["0", "model_error", "2"]
    assert [row.confidence is None for row in harness.predictions(job_id)] == [False, True, False]


@on_one_database
def test_an_image_that_takes_too_long_to_decode_gets_a_timeout_and_its_neighbours_their_labels(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an image whose decoding never ends
    contents = digits(3)

    def for_ever() -> BaseException:
        while True:
            pass

    fail_at(monkeypatch, contents[1], for_ever)
    quick = harness.context.settings.model_copy(update={"image_seconds": 0.2})
    monkeypatch.setattr(harness.context, "settings", quick)
    job_id = harness.submit(contents)

    # when its chunk is classified, then that image alone gets an error, in one attempt
    assert harness.classify() == 3
    assert harness.labels(job_id) == ["0", "timeout", "2"]
    assert harness.predictions(job_id)[1].detail == "took longer than 0.2 s to decode"
    assert harness.chunk(job_id).attempts == 1


# ---- how much is claimed ------------------------------------------------------------------------------


def test_a_claim_is_cut_by_the_measured_speed_and_its_rest_is_next(
    harness: Harness, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a chunk of 200 images, and a model of unknown speed that takes 10 ms per image
    del harness.context.images_per_claim
    monkeypatch.setattr(light, "PACE_SECONDS", FIRST_CLAIM_IMAGES / 100)
    read = calls_of(monkeypatch, sys.modules["worker.predicting.context"], "read_payload")
    job_id = harness.submit(digits(200))

    # when it is claimed, then only the first images are classified, and another worker is woken up
    assert harness.classify() == FIRST_CLAIM_IMAGES
    assert [(row.state, row.images) for row in harness.chunks(job_id)] == [
        (ChunkState.DONE, FIRST_CLAIM_IMAGES),
        (ChunkState.PENDING, 200 - FIRST_CLAIM_IMAGES),
    ]
    assert broker.waiting() == 1

    # and once the speed is known, the next claim takes half a second of work, in whole batches
    monkeypatch.setattr(light, "PACE_SECONDS", 0.0)
    assert harness.classify() == 32
    assert broker.waiting() == 2

    # and once the model is fast, the rest is one claim, which wakes nobody
    assert harness.classify() == 200 - FIRST_CLAIM_IMAGES - 32
    assert broker.waiting() == 2

    # and all images have their own labels, and the payload was read once
    assert harness.labels(job_id) == LABELS[:200]
    assert harness.status(job_id).state == "done"
    assert len(read) == 1

    # and the payload is kept for no other chunk
    other = harness.submit(digits(10)[::-1])
    assert harness.classify() == 10
    assert harness.labels(other) == LABELS[9::-1]


def test_small_jobs_are_claimed_and_recorded_together_before_a_large_one(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a large job, and three small jobs submitted after it
    recorded = calls_of(monkeypatch, pipeline, "record_results")
    large = harness.submit(digits(200))
    small = [harness.submit(digits(count)) for count in (3, 1, 2)]

    # when one wake-up is handled, then the small jobs are done under one token, in one transaction
    assert harness.classify() == 6
    assert [harness.labels(job_id) for job_id in small] == [LABELS[:3], LABELS[:1], LABELS[:2]]
    assert len({harness.chunk(job_id).token for job_id in small}) == 1
    assert len(recorded) == 1

    # and the large job is next
    assert harness.status(large).done == 0
    assert harness.classify() == 200


def test_each_job_gets_as_many_alternatives_as_it_asked_for(harness: Harness) -> None:
    # given small jobs that ask for two classes, for none, and for more than the model has
    contents = [digits(1)[0], b"no picture"]
    jobs_of = {top_k: harness.submit(contents, top_k=top_k) for top_k in (2, None, 10)}

    # when they are classified together
    assert harness.classify() == 6

    # then each image with a label has those of its own job, the label first
    for top_k, job_id in jobs_of.items():
        image, broken = harness.predictions(job_id)
        assert (image.label, broken.alternatives) == ("0", None)
        if top_k is None:
            assert image.alternatives is None
        else:
            assert image.alternatives is not None
            assert [each["label"] for each in image.alternatives] == LABELS[:top_k]
            assert image.alternatives[0]["confidence"] == image.confidence


def test_a_damaged_payload_fails_its_own_job_and_its_small_neighbours_finish(harness: Harness) -> None:
    # given three small jobs that are claimed together; the payload of the second is lost
    first, lost, last = (harness.submit(digits(3), lose_payload=number == 1) for number in range(3))

    # when they are classified, then the other two are done
    assert harness.classify() == 6
    assert [harness.labels(job_id) for job_id in (first, lost, last)] == [LABELS[:3], [], LABELS[:3]]

    # and that job has failed with the reason, and is not tried again
    status = harness.status(lost)
    assert status.state == JobState.FAILED
    assert "is gone from the store" in (status.error or "")
    assert (harness.chunk(lost).state, harness.chunk(lost).crashes) == (ChunkState.DROPPED, 0)
    assert harness.classify() == 0


# ---- crashes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "detail"),
    [(MemoryError, "it ran out of memory"), (ZeroDivisionError, "ZeroDivisionError()")],
)
def test_a_chunk_that_keeps_crashing_is_halved_until_the_image_is_alone(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: type[Exception], detail: str
) -> None:
    # given twenty images, one of which makes every attempt crash
    contents = digits(20)
    fail_at(monkeypatch, contents[13], error)
    job_id = harness.submit(contents)

    # when it is tried until nothing is due; a MemoryError that is raised would make Celery end the worker
    attempts = harness.classify_all(ignore=ZeroDivisionError)

    # then that image is quarantined, the others have their labels, and it took few attempts
    found = harness.predictions(job_id)
    assert [row.index for row in found] == list(range(20))
    assert [(row.index, row.error, row.detail) for row in found if row.error] == [
        (13, ErrorCode.QUARANTINED, detail)
    ]
    assert [row.label for row in found if row.label] == LABELS[:13] + LABELS[14:20]
    assert harness.status(job_id).state == "done"
    assert attempts < 20


def test_a_chunk_ends_even_if_loading_the_model_is_what_crashes(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a model whose loading always crashes
    def load(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(light.Classifier, "load", load)
    job_id = harness.submit(digits(2))

    # when it is tried until nothing is due: twice, three times per image, then once each without the model
    assert harness.classify_all(ignore=ZeroDivisionError) == 2 + 3 + 3 + 2

    # then the images are quarantined, and the job is done
    assert harness.labels(job_id) == ["quarantined"] * 2
    assert harness.status(job_id).state == "done"


# ---- the time limit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "hangs", "is_a_crash"),
    [
        ("read", "worker.predicting.context.read_payload", False),
        ("fetch", "jobs.network.references.Roots.read", False),
        ("load", "worker.predicting.context.fetch_model", False),
        ("decode", "worker.predicting.decode.decode", True),
        ("predict", "tests.faults.light.Classifier.predict", True),
        ("record", "worker.predicting.pipeline.record_results", False),
    ],
)
def test_a_time_out_counts_against_images_only_while_they_are_decoded_or_predicted(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, stage: str, hangs: str, is_a_crash: bool
) -> None:
    # given a stage that hangs until the time limit
    contents: list[Content] = list(digits(2))
    if stage == "fetch":
        monkeypatch.setattr("jobs.network.references.Roots.read", lambda *_, **__: contents[0])
        job_id = harness.submit([Reference("/far.png", "0" * 64, 100)] * 2)
    else:
        job_id = harness.submit(contents)
    with monkeypatch.context() as patch, time_limit():
        patch.setattr(hangs, strike_after(0.5))

        # when the chunk is tried
        assert harness.classify() == 0

    # then it is pending again, with a crash or with a back-off
    row = harness.chunk(job_id)
    assert (row.state, row.crashes, row.releases) == (
        ChunkState.PENDING,
        int(is_a_crash),
        int(not is_a_crash),
    )
    assert row.crash_code == (ErrorCode.TIMEOUT if is_a_crash else None)
    assert (row.not_before is None) == is_a_crash
    assert row.error == f"the time limit struck in stage '{stage}'"
    if stage == "fetch":  # a thread may still be waiting, so the pool is not used again
        assert "fetchers" not in harness.context.__dict__

    # and it is done once nothing hangs
    harness.make_due()
    assert harness.classify() == 2
    assert harness.status(job_id).state == "done"


@pytest.mark.parametrize(
    ("slow", "strikes_in", "is_a_crash"),
    [
        ("worker.predicting.context.read_payload", "worker.predicting.decode.decode", False),
        ("worker.predicting.decode.decode", "worker.predicting.pipeline.record_results", True),
    ],
    ids=["a slow store", "slow images"],
)
@on_one_database
def test_a_time_out_is_blamed_on_the_stage_that_took_the_time(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, slow: str, strikes_in: str, is_a_crash: bool
) -> None:
    # given a stage that takes nearly all the time, so that the limit is reached in another one
    import importlib

    module, _, name = slow.rpartition(".")
    real = getattr(importlib.import_module(module), name)

    def slowly(*arguments: Any, **named: Any) -> Any:
        time.sleep(0.5)
        return real(*arguments, **named)

    monkeypatch.setattr(slow, slowly)
    monkeypatch.setattr(strikes_in, strike_after(0.0))
    job_id = harness.submit(digits(1))

    with time_limit():
        assert harness.classify() == 0

    assert (harness.chunk(job_id).crashes, harness.chunk(job_id).releases) == (
        int(is_a_crash),
        int(not is_a_crash),
    )


@on_one_database
def test_a_claim_that_takes_too_long_makes_the_next_one_smaller(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given images that were decoded quickly, and then take until the time limit
    del harness.context.images_per_claim
    harness.context.record_speed(harness.model.id, 1_000, 0.1)
    job_id = harness.submit(digits(400))
    with monkeypatch.context() as patch, time_limit():
        patch.setattr("worker.predicting.decode.decode", strike_after(2.0))
        assert harness.classify() == 0

    # when the chunk is tried again, then only about half a second of work is claimed
    assert 0 < harness.classify() <= 100
    assert [row.crashes for row in harness.chunks(job_id)] == [1, 1]


@on_one_database
def test_only_images_that_were_classified_count_for_the_speed(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a chunk of images, of which a third has no label
    contents: list[Content] = [*digits(40), *[b"no image"] * 19, ImageError(ErrorCode.SOURCE_MISSING, "")]
    recorded = calls_of(monkeypatch, harness.context, "record_speed")
    harness.submit(contents)

    # when it is classified, then 40 images count: with the others, the process would seem faster than it is
    assert harness.classify() == 60
    assert [arguments[1] for arguments in recorded] == [40]


def test_a_time_limit_that_strikes_while_a_chunk_is_released_costs_it_nothing(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that cannot be read, and a time limit that is reached while the chunk is released
    def unavailable(*_: object) -> None:
        raise Unavailable("The store cannot be read")

    strikes = iter([True])
    real = pipeline.release_claims

    def release(*arguments: Any) -> int:
        released = real(*arguments)
        if next(strikes, False):
            raise SoftTimeLimitExceeded
        return released

    monkeypatch.setattr("worker.predicting.context.read_payload", unavailable)
    monkeypatch.setattr(pipeline, "release_claims", release)
    job_id = harness.submit(digits(1))

    # when it is tried, then it is pending at once, without waiting for the lease to expire
    assert harness.classify() == 0
    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert row.error == "The store cannot be read"


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_time_limit_that_strikes_while_a_lock_is_awaited_ends_the_attempt(
    harness: Harness, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given another session that holds the job's row, and a time limit, which arrives as a signal
    job_id = harness.submit(digits(1))
    recorded: list[int] = []
    real = pipeline.record_results
    with contextlib.closing(Ledger(ledger_url)) as other, contextlib.ExitStack() as stack, time_limit():

        def record(*arguments: Any) -> Any:
            if not recorded:
                holder = stack.enter_context(other.transaction())
                holder.execute(sa.select(jobs.c.id).with_for_update())
                threading.Timer(0.5, os.kill, (os.getpid(), SIG_SOFT_TIMEOUT)).start()
            recorded.append(1)
            return real(*arguments)

        monkeypatch.setattr(pipeline, "record_results", record)
        # when the results are recorded, then that is tried once, and the chunk is released
        assert harness.classify() == 0
    assert len(recorded) == 1
    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert row.error == "the time limit struck in stage 'record'"


# ---- a worker that stops, and a lease that is lost ----------------------------------------------------


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_a_worker_that_is_told_to_stop_releases_its_chunk_without_a_crash(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    # given a worker that is told to stop while it decodes
    contents = digits(2)
    fail_at(monkeypatch, contents[1], ending)
    job_id = harness.submit(contents)

    # when the signal arrives, then it stops
    with pytest.raises(ending):
        harness.classify()

    # and another worker can claim the chunk at once
    row = harness.chunk(job_id)
    assert (row.state, row.attempts, row.releases, row.crashes) == (ChunkState.PENDING, 1, 1, 0)
    assert row.not_before is None


@pytest.mark.parametrize("committed", [True, False])
def test_results_whose_commit_lost_its_answer_are_recorded_once(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    # given a connection that breaks during the COMMIT of the results, after or before it takes effect
    job_id = harness.submit(digits(2))
    broken: list[int] = []
    real = Ledger.transaction

    @contextlib.contextmanager
    def breaking(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real(ledger, **named) as connection:
            yield connection
            rows = connection.scalar(sa.select(sa.func.count()).select_from(predictions))
            if rows and not broken and not committed:
                broken.append(rows)
                raise Unavailable("the connection broke")
        if rows and not broken:
            broken.append(rows)
            raise Unavailable("the connection broke")

    monkeypatch.setattr(Ledger, "transaction", breaking)

    # when the chunk is classified, then the results are recorded once, in one attempt
    assert harness.classify() == 2
    assert broken == [2]
    assert harness.labels(job_id) == LABELS[:2]
    assert harness.status(job_id).succeeded == 2
    row = harness.chunk(job_id)
    assert (row.state, row.attempts, row.crashes, row.releases) == (ChunkState.DONE, 1, 0, 0)


@pytest.mark.parametrize("error", [Unavailable, SoftTimeLimitExceeded])
def test_a_claim_whose_commit_lost_its_answer_is_released(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    # given a connection that breaks or hangs after the COMMIT of a claim took effect
    small = [harness.submit(digits(1)) for _ in range(2)]
    broken: list[bool] = []
    real = Ledger.transaction

    @contextlib.contextmanager
    def breaking(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real(ledger, **named) as connection:
            yield connection
        if not broken:
            broken.append(True)
            raise error("the connection broke")

    monkeypatch.setattr(Ledger, "transaction", breaking)

    # when a worker claims two chunks that way, then both are pending again, without a crash
    assert harness.classify() == 0
    for job_id in small:
        row = harness.chunk(job_id)
        assert (row.state, row.attempts, row.releases, row.crashes) == (ChunkState.PENDING, 1, 1, 0)
    assert harness.classify_all() == 2  # one at a time, because they were tried before


@on_one_database
def test_if_the_ledger_stays_unavailable_the_lease_expires(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a ledger that becomes unavailable while the chunk is decoded
    @contextlib.contextmanager
    def unavailable(_ledger: Ledger, **_: object) -> Iterator[None]:
        raise Unavailable("The ledger cannot be reached")
        yield

    job_id = harness.submit(digits(1))
    monkeypatch.setattr(pipeline, "_RECORD_PAUSES", (0.01, 0.01))
    with monkeypatch.context() as patch:
        before_decoding(patch, lambda: patch.setattr(Ledger, "transaction", unavailable))

        # when the chunk is tried, then nothing is raised
        assert harness.classify() == 0
    assert "not released; the lease will expire: The ledger cannot be reached" in caplog.text
    assert harness.chunk(job_id).state == ChunkState.CLAIMED


@pytest.mark.parametrize("ledger_url", ["sqlite_on_disk"], indirect=True)
def test_a_process_claims_nothing_while_the_ledgers_disk_is_full(
    harness: Harness, disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given two chunks, and a disk that is full when the first one is decoded
    monkeypatch.setattr(room, "PAUSE_SECONDS", 0.01)
    first, second = harness.submit(digits(100)), harness.submit(digits(100))
    with monkeypatch.context() as patch:
        before_decoding(patch, disk.fill)
        assert harness.classify() == 0

    # when the process is asked for more, and a little room, enough for a claim, does not change that
    assert harness.classify() == 0
    disk.make_room()
    disk.fill(but=2**20)
    assert harness.classify() == 0

    # then it has claimed nothing, and holds the chunk that it could not release
    assert (harness.chunk(first).state, harness.chunk(first).attempts) == (ChunkState.CLAIMED, 1)
    assert harness.chunk(second).attempts == 0

    # and when there is room, then it releases that chunk without a crash, and claims
    disk.make_room()
    assert harness.classify() == 100
    row = harness.chunk(first)
    assert (row.state, row.attempts, row.releases, row.crashes) == (ChunkState.PENDING, 1, 1, 0)
    assert harness.chunk(second).state == ChunkState.DONE
    harness.make_due()
    assert harness.classify() == 100


# ---- services and machines that are unavailable -------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "error", "reason"),
    [
        (
            "jobs.storage.keras_files.write_whole",
            OSError(errno.ENOSPC, "No space left on device"),
            "No space left",
        ),
        (
            "jobs.storage.keras_files.make_private_folder",
            PermissionError(errno.EACCES, "Permission denied"),
            "denied",
        ),
        (
            "jobs.storage.keras_files._read_cached",
            PermissionError(errno.EACCES, "Permission denied"),
            "denied",
        ),
        (
            "worker.predicting.tensorflow_runtime.keras.saving.load_model",
            MemoryError(),
            "no memory left for the model",
        ),
    ],
    ids=["full disk", "no folder", "another user's copy", "no memory"],
)
@on_one_database
def test_a_machine_that_cannot_load_the_model_is_no_images_fault(
    keras_harness: Harness,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    broken: str,
    error: BaseException,
    reason: str,
) -> None:
    # given a machine that cannot cache or load the champion
    def fail(*_: object, **__: object) -> None:
        raise error

    harness = keras_harness
    job_id = harness.submit(digits(1))
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)

        # when the chunk is tried more often than a single image may crash
        for _ in range(4):
            harness.make_due()
            assert harness.classify() == 0

        # and a warm-up logs the reason
        harness.context.warm_up()
    assert re.search(f"the champion of dataset mnist was not loaded: .*{reason}", caplog.text)

    # then it was released each time, with the reason
    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 4, 0)
    assert reason in row.error

    # and it is done once the model can be loaded
    harness.make_due()
    assert harness.classify() == 1


@pytest.mark.parametrize("error", ["python's", "tensorflow's"])
@pytest.mark.parametrize("batch", [1, 2], ids=["warm-up", "second batch"])
@on_one_database
def test_no_memory_for_a_batch_is_no_images_fault(
    keras_harness: Harness, monkeypatch: pytest.MonkeyPatch, error: str, batch: int
) -> None:
    # given a machine without enough memory to run the model, at its first batch or its second
    from worker.predicting.networks.keras_network import KerasNetwork
    from worker.predicting.tensorflow_runtime import tf

    harness = keras_harness
    if batch > 1:
        monkeypatch.setattr(harness.context.classifier(harness.model.id), "batch", 2)
        monkeypatch.setattr("worker.predicting.windows._WINDOW_IMAGES", 2)
    job_id = harness.submit(digits(5))
    batches = 0
    real = KerasNetwork._traced_for

    def without_memory(network: KerasNetwork, size: int) -> Any:
        nonlocal batches
        batches += 1
        if batches < batch:
            return real(network, size)
        if error == "python's":
            raise MemoryError
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # when the chunk is tried, then it is released with the reason
    with monkeypatch.context() as patch:
        patch.setattr(KerasNetwork, "_traced_for", without_memory)
        assert harness.classify() == 0
    assert batches == batch
    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "no memory left for the model" in row.error

    # and it is done once there is memory
    harness.make_due()
    assert harness.classify() == 5


@on_one_database
def test_a_worker_without_tensorflow_is_no_images_fault(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_processes: int) -> None:
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(light, "start_keras", fail)
    job_id = harness.submit(digits(1))

    assert harness.classify() == 0

    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "cannot import TensorFlow" in row.error


# ---- a model that is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "is_the_models"),
    [("InvalidArgumentError", True), ("UnimplementedError", True), ("InternalError", False)],
)
@on_one_database
def test_a_model_that_does_not_run_fails_its_job_and_a_machine_that_does_not_run_it_waits(
    keras_harness: Harness, monkeypatch: pytest.MonkeyPatch, error: str, is_the_models: bool
) -> None:
    # given a model that fails before it has seen an image
    from worker.predicting.classifier import Classifier
    from worker.predicting.tensorflow_runtime import tf

    def fail(*_: object) -> None:
        raise getattr(tf.errors, error)(None, None, "no such kernel")

    harness = keras_harness
    monkeypatch.setattr(Classifier, "_batches", fail)
    job_id = harness.submit(digits(1))

    # when a chunk needs it, then the job fails or waits for another machine, without a crash
    assert harness.classify() == 0
    row = harness.chunk(job_id)
    assert row.crashes == 0
    assert "no such kernel" in row.error
    assert (row.state, harness.status(job_id).state) == (
        (ChunkState.DROPPED, JobState.FAILED) if is_the_models else (ChunkState.PENDING, JobState.RUNNING)
    )


@pytest.mark.parametrize(
    "trouble",
    [Unavailable("The ledger cannot be reached"), SoftTimeLimitExceeded(), SystemExit()],
    ids=["unavailable", "time limit", "told to stop"],
)
@on_one_database
def test_a_job_that_cannot_be_failed_for_now_fails_at_the_next_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, trouble: BaseException
) -> None:
    # given a job whose model was changed in the store, and an error while the job is set to failed
    [path] = (Path(harness.context.settings.home) / "store" / "models").iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    job_id = harness.submit(digits(1))

    def troubled(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "end_job", troubled)
        with pytest.raises(SystemExit) if isinstance(trouble, SystemExit) else contextlib.nullcontext():
            assert harness.classify() == 0

    # then the chunk is pending again, without a crash
    row = harness.chunk(job_id)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert harness.status(job_id).state == JobState.RUNNING

    # and at the next attempt the job fails because of its model
    harness.make_due()
    assert harness.classify() == 0
    assert harness.status(job_id).state == JobState.FAILED
    assert "SHA-256" in (harness.status(job_id).error or "")


# ---- images by reference ------------------------------------------------------------------------------


def references(count: int) -> list[Content]:
    return [Reference(str(number), "0" * 64, 100) for number in range(count)]


def test_references_are_fetched_many_at_a_time_and_each_error_is_one_images(
    harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a server that answers only once eight requests are waiting, and that lacks one image of eighty
    pictures, asked, together = digits(80), itertools.count(), threading.Barrier(8, timeout=30)

    def read(_roots: object, reference: Reference, **_: object) -> bytes:
        if next(asked) < 8:
            together.wait()
        if reference.url == "41":
            raise ImageError(ErrorCode.SOURCE_CHANGED, "other bytes")
        return pictures[int(reference.url)]

    monkeypatch.setattr("jobs.network.references.Roots.read", read)
    job_id = harness.submit(references(80))

    # when they are classified, then each image has its own outcome, in order
    assert harness.classify() == 80
    assert harness.labels(job_id) == [*LABELS[:41], "source_changed", *LABELS[42:80]]


@pytest.mark.parametrize("how", ["an error", "no answer"])
def test_a_reference_that_cannot_be_reached_is_source_missing_at_the_tenth_attempt(
    harness: Harness, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    # given forty images by reference, and a server that returns an error for the second, or never answers
    pictures, over = digits(40), threading.Event()
    late = "An image was not read within 0.56 s: check its server or disk."
    error = "the server answered 503" if how == "an error" else late

    def read(_roots: object, reference: Reference, **_: object) -> bytes:
        if reference.url == "1":
            if how == "no answer":
                over.wait(60)
            raise Unavailable("the server answered 503")
        return pictures[int(reference.url)]

    monkeypatch.setattr("jobs.network.references.Roots.read", read)
    quick = harness.context.settings.model_copy(update={"lease_seconds": 2.0})
    monkeypatch.setattr(harness.context, "settings", quick)
    job_id = harness.submit(references(40))

    # when the chunk is tried, then it waits with back-off: the server may come back
    for attempt in range(1, ATTEMPTS_TO_REACH):
        assert harness.classify() == 0
        row = harness.chunk(job_id)
        assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, attempt, 0)
        assert row.not_before is not None
        assert row.error == error
        assert harness.classify() == 0  # not due
        harness.make_due()

    # and at the tenth attempt that image gets an error, and the others their labels
    assert harness.classify() == 40
    over.set()
    assert harness.labels(job_id) == ["0", "source_missing", *LABELS[2:40]]
    assert harness.predictions(job_id)[1].detail == error
