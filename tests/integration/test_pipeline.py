"""One chunk from its claim to its rows, with a real model: what becomes of every way it can go."""

from __future__ import annotations

import contextlib
import errno
import io
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from jobs.ledger.isolation import CRASHES_TO_GIVE_UP
from PIL import Image
from worker.bench import Bench
from worker.predicting.plain_batch import LEAST

from jobs.errors import ErrorCode, ImageError, Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import claim_chunk, end_job
from jobs.model import MNIST_INPUT
from jobs.payloads import Content
from jobs.references import Reference
from jobs.schema import ChunkState, JobState, chunks, jobs, predictions
from jobs.settings import Settings
from jobs.store import Store
from tests.bench_alone import Mill, decoded_for_ever, make_mill, time_out
from tests.console import until
from worker.predicting import plain_batch
from worker.predicting.pipeline import classify_chunk


@pytest.fixture(scope="module")
def broken_model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model whose weights are not numbers."""
    from worker.learning.training import build, save

    model = build("mlp", MNIST_INPUT, 10)
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save(model, path)
    return path.read_bytes()


def png(value: int = 0) -> bytes:
    file = io.BytesIO()
    pixels = np.zeros((28, 28), np.uint8)
    pixels[8:20, 8:20] = value
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_every_image_gets_its_own_outcome_in_its_own_place(mill: Mill) -> None:
    # given more images than a batch holds, a broken one here and there
    contents: list[bytes | ImageError] = [png(number % 256) for number in range(1_100)]
    contents[0] = b""
    contents[511] = b"no picture"
    contents[512] = ImageError(ErrorCode.SOURCE_MISSING, "it went away")
    contents[1_099] = png()[:40]
    job_id, chunk = mill.chunk(contents)

    # when the chunk is classified
    assert classify_chunk(chunk.id, mill.bench) == 1_100

    # then each has its outcome where it belongs
    found = mill.predictions(job_id)
    assert [prediction.name for prediction in found] == [f"{number}.png" for number in range(1_100)]
    assert {prediction.index: prediction.error for prediction in found if prediction.error} == {
        0: ErrorCode.UNIDENTIFIED,
        511: ErrorCode.UNIDENTIFIED,
        512: ErrorCode.SOURCE_MISSING,
        1_099: ErrorCode.CORRUPT,
    }
    assert found[512].detail == "it went away"

    # and the others have what Keras itself says of the same pixels
    from worker.predicting.runtime import keras

    from worker.predicting.decode import decode

    path = next((mill.bench.settings.cache_dir / "models").iterdir())
    good = [prediction.index for prediction in found if prediction.label is not None]
    pixels = np.stack([decode(contents[index], MNIST_INPUT) for index in good])
    expected = keras.saving.load_model(path).predict(pixels, verbose=0)
    assert [found[index].label for index in good] == [str(label) for label in expected.argmax(axis=1)]
    confidences = [found[index].confidence for index in good]
    assert np.allclose(confidences, expected.max(axis=1), atol=1e-5)

    status = mill.status(job_id)
    assert (status.state, status.total, status.succeeded, status.failed) == ("done", 1_100, 1_096, 4)


def test_images_that_are_decoded_together_have_the_outcomes_that_they_have_alone(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a large chunk: plain pictures, and between them others that are decoded alone, or not at all
    others: list[Content] = [b"no picture", png(200)[:50], ImageError(ErrorCode.SOURCE_MISSING, "gone")]
    with io.BytesIO() as file:
        Image.fromarray(np.full((40, 40), 90, np.uint8)).save(file, "PNG")
        others.append(file.getvalue())
    contents = [others[place % 4] if place % 7 == 3 else png(place % 256) for place in range(2 * LEAST)]
    together: list[int] = []
    real = plain_batch.decode_together

    def noted(window: Sequence[Content], *args: Any) -> Any:
        places, pixels = real(window, *args)
        together.extend(places)
        return places, pixels

    # When it is classified with pictures decoded together, and once more with each decoded alone
    answers = []
    for least in (LEAST, 10**9):
        monkeypatch.setattr(plain_batch, "LEAST", least)
        monkeypatch.setattr(plain_batch, "decode_together", noted)
        job_id, chunk = mill.chunk(contents)
        assert classify_chunk(chunk.id, mill.bench) == len(contents)
        answers.append([(row.name, row.label, row.confidence, row.error) for row in mill.predictions(job_id)])

    # Then there is no difference, and most were decoded together
    assert answers[0] == answers[1]
    assert len({label for _, label, _, _ in answers[0]}) > 1
    assert together == [place for place in range(len(contents)) if place % 7 != 3]


def test_a_chunk_without_one_good_image_is_done_too(mill: Mill) -> None:
    job_id, chunk = mill.chunk([b"", b"x"])

    assert classify_chunk(chunk.id, mill.bench) == 2

    assert (mill.status(job_id).state, mill.status(job_id).failed) == ("done", 2)


def test_a_second_message_finds_nothing_to_do(mill: Mill) -> None:
    job_id, chunk = mill.chunk([png()])

    assert classify_chunk(chunk.id, mill.bench) == 1
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert classify_chunk(new_id(), mill.bench) == 0

    assert len(mill.predictions(job_id)) == mill.status(job_id).succeeded == 1


def test_a_model_that_answers_no_probability_gives_no_label(
    ledger: Ledger, store: Store, bench: Bench, broken_model_file: bytes
) -> None:
    mill = make_mill(ledger, store, bench, broken_model_file)
    job_id, chunk = mill.chunk([png(), png(200)])

    classify_chunk(chunk.id, mill.bench)

    assert [(row.label, row.confidence, row.error) for row in mill.predictions(job_id)] == [
        (None, None, ErrorCode.MODEL_ERROR)
    ] * 2


def test_a_lone_image_that_kept_killing_its_workers_is_quarantined_without_a_look(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an image alone in its chunk that was claimed as often as may be, by processes that vanished
    job_id, chunk = mill.chunk([png()])
    for _ in range(CRASHES_TO_GIVE_UP):
        with mill.ledger.transaction() as connection:
            assert claim_chunk(connection, chunk.id, lease_seconds=-1, owner="the dead")

    # when it comes once more, then nobody decodes it again, and the job ends
    monkeypatch.setattr("worker.predicting.decode.decode", lambda *_: pytest.fail("it was looked at"))
    classify_chunk(chunk.id, mill.bench)
    assert [(row.error, row.detail) for row in mill.predictions(job_id)] == [
        (ErrorCode.QUARANTINED, "its worker vanished without a word")
    ]
    assert mill.status(job_id).state == "done"


def test_a_chunk_whose_decoder_runs_out_of_memory_is_split_until_the_image_is_alone(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given twenty images of which one takes more memory than there is
    poison = png(77)
    contents = [png()] * 20
    contents[13] = poison
    job_id, _ = mill.chunk(contents)
    from worker.predicting import decode as module

    real = module.decode

    def greedy(data: bytes, *arguments: object) -> object:
        if data == poison:
            raise MemoryError
        return real(data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", greedy)

    # when what is pending is tried until nothing is
    for _ in range(40):
        for chunk_id in mill.pending():
            classify_chunk(chunk_id, mill.bench)

    # then that one is quarantined and all others have their labels
    found = mill.predictions(job_id)
    assert [row.index for row in found] == list(range(20))
    assert [(row.index, row.error, row.detail) for row in found if row.error] == [
        (13, ErrorCode.QUARANTINED, "it ran out of memory")
    ]
    assert mill.status(job_id).state == "done"


def test_an_image_that_the_model_cannot_take_is_quarantined_and_its_neighbours_are_not(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given twenty images, with one among them at whose pixels TensorFlow fails
    from worker.predicting.runtime import tf

    from worker.predicting.classifier import Classifier

    contents = [png()] * 20
    contents[13] = png(200)
    job_id, _ = mill.chunk(contents)
    real = Classifier._batches

    def choosy(classifier: Classifier, pixels: Any) -> Any:
        if pixels.max() == 200:
            raise tf.errors.InvalidArgumentError(None, None, "200 is not in [0, 200)")
        return real(classifier, pixels)

    monkeypatch.setattr(Classifier, "_batches", choosy)

    # when what is pending is tried until nothing is
    for _ in range(40):
        for chunk_id in mill.pending():
            with contextlib.suppress(tf.errors.InvalidArgumentError):
                classify_chunk(chunk_id, mill.bench)

    # then that one is given up, the job does not fail for it, and the others have their labels
    found = mill.predictions(job_id)
    assert [row.index for row in found] == list(range(20))
    assert [(row.index, row.error) for row in found if row.error] == [(13, ErrorCode.QUARANTINED)]
    assert "InvalidArgumentError" in (found[13].detail or "")
    assert mill.status(job_id).state == "done"


def test_an_image_that_takes_too_long_is_a_timeout_and_its_neighbours_get_their_labels(
    ledger: Ledger, store: Store, settings: Settings, model_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an image that Python code would go on decoding for ever
    slow = png(77)
    decoded_for_ever(monkeypatch, slow)
    with Bench(settings.model_copy(update={"image_seconds": 0.2}), processes=1) as bench:
        mill = make_mill(ledger, store, bench, model_file)
        job_id, chunk = mill.chunk([png(), slow, png(9)])

        # when its chunk is classified, then it alone is given up, in one attempt
        assert classify_chunk(chunk.id, bench) == 3
    assert [(row.error, row.detail) for row in mill.predictions(job_id)] == [
        (None, None),
        (ErrorCode.TIMEOUT, "took longer than 0.2 s to decode"),
        (None, None),
    ]
    assert mill.chunk_row(chunk).attempts == 1


def test_a_chunk_that_takes_too_long_as_a_whole_is_given_back_as_a_crash(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given images that take all the time there is
    _, chunk = mill.chunk([png(), png()])
    mill.bench.classifier(mill.model.id)
    monkeypatch.setattr("worker.predicting.decode.decode", time_out())

    # when the time limit strikes, then the chunk is pending, with a crash and what kind it was
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.crashes, row.crash_code) == (ChunkState.PENDING, 1, ErrorCode.TIMEOUT)


@pytest.mark.parametrize(
    ("hangs", "loaded", "reason"),
    [
        ("worker.predicting.pipeline.read_payload", True, "the store did not answer"),
        ("worker.bench.fetch_model", False, "its model was not loaded"),
        ("worker.predicting.runtime.keras.saving.load_model", False, "its model was not loaded"),
        ("worker.predicting.pipeline.record_outcomes", True, "the ledger did not answer"),
    ],
)
@pytest.mark.parametrize("images", [1, 2])
def test_a_service_that_hangs_is_no_images_fault(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, hangs: str, loaded: bool, reason: str, images: int
) -> None:
    # given a service that hangs until the time limit strikes
    if loaded:  # and warm in every part: what an image takes at first is not what it takes
        assert classify_chunk(mill.job([png()] * images)[1], mill.bench)
    job_id, chunk = mill.chunk([png()] * images)
    with monkeypatch.context() as patch:
        patch.setattr(hangs, time_out())

        # when the chunk comes, more often than a lone image may crash
        for _ in range(CRASHES_TO_GIVE_UP + 1):
            assert classify_chunk(chunk.id, mill.bench) == 0

    # then each time it was given back, for later, with what it waited for
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, CRASHES_TO_GIVE_UP + 1, 0)
    assert row.ring_after is not None
    assert reason in row.error

    # and it is done when the service is back
    assert classify_chunk(chunk.id, mill.bench) == images
    assert [row.error for row in mill.predictions(job_id)] == [None] * images


def test_a_store_that_took_the_time_is_not_the_first_images_fault(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that answers just before the time limit strikes, which then meets the first image
    from worker.predicting import pipeline

    _, chunk = mill.chunk([png()])
    mill.bench.classifier(mill.model.id)
    real = pipeline.read_payload

    def late(*arguments: object, **named: object) -> object:
        time.sleep(0.3 + 2 * (time.monotonic() - started))  # longer than the claim, however long that took
        return real(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(pipeline, "read_payload", late)
    monkeypatch.setattr("worker.predicting.decode.decode", time_out(0.0))

    # when the chunk comes, then it is given back without a crash
    started = time.monotonic()
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.releases, row.crashes) == (1, 0)
    assert "the store did not answer" in row.error


def test_images_that_took_the_time_are_to_blame_wherever_the_limit_strikes(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given images that leave no time for writing what came of them
    from worker.predicting import decode as module

    _, chunk = mill.chunk([png(), png()])
    mill.bench.classifier(mill.model.id)
    real = module.decode

    def slow(*arguments: object) -> object:
        time.sleep(0.2)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", slow)
    monkeypatch.setattr("worker.predicting.pipeline.record_outcomes", time_out(0.0))

    # when the chunk comes, then that is a crash: in halves they get through, as they are never
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.releases, row.crashes, row.crash_code) == (0, 1, ErrorCode.TIMEOUT)


@pytest.mark.parametrize(("images", "releases", "crashes"), [(2, 0, 1), (1, 1, 0)])
def test_references_that_take_the_time_are_split_and_a_lone_one_waits_for_its_store(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, images: int, releases: int, crashes: int
) -> None:
    # given images by reference, in a store that hangs
    _, chunk = mill.chunk([Reference("/far/away.png", "0" * 64, 100)] * images)
    mill.bench.classifier(mill.model.id)
    monkeypatch.setattr("jobs.references.Roots.read", time_out())

    # when the chunk comes, then several are tried apart, so that the others finish, and one is not given up
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, releases, crashes)


def test_a_reference_that_is_out_of_reach_costs_those_before_it_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given images by reference on a server that refuses its third request
    asked: list[str] = []

    def read(_roots: object, reference: Reference, **_: object) -> bytes:
        asked.append(reference.url)
        if len(asked) in (3, 4):
            raise Unavailable("the server answered 503")
        return png()

    monkeypatch.setattr("jobs.references.Roots.read", read)
    job_id, chunk = mill.chunk([Reference(f"/far/{index}.png", "0" * 64, 100) for index in range(5)])

    # when the chunk comes, then what is read by then is recorded, and the others wait as a chunk of their own
    assert classify_chunk(chunk.id, mill.bench) == 2
    row = mill.chunk_row(chunk)
    assert (row.state, row.images, row.crashes, row.releases) == (ChunkState.DONE, 2, 0, 0)
    [rest_id] = mill.pending()
    rest = replace(chunk, id=rest_id)
    row = mill.chunk_row(rest)
    assert (row.first_index, row.images) == (2, 3)

    # and where not even its first is to be had, that is given back, and put off
    assert classify_chunk(rest.id, mill.bench) == 0
    row = mill.chunk_row(rest)
    assert (row.state, row.images, row.crashes, row.releases) == (ChunkState.PENDING, 3, 0, 1)
    assert row.ring_after is not None
    assert "503" in row.error

    # and in the end each image has its outcome, and none that was read was read again
    assert classify_chunk(rest.id, mill.bench) == 3
    assert [(row.name, row.error) for row in mill.predictions(job_id)] == [
        (f"{index}.png", None) for index in range(5)
    ]
    assert asked == [f"/far/{index}.png" for index in (0, 1, 2, 2, 2, 3, 4)]


@pytest.fixture
def out_of_reach(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names of images by reference whose server answers an error; of the others it gives one."""
    names: set[str] = set()

    def read(_roots: object, reference: Reference, **_: object) -> bytes:
        if reference.url in names:
            raise Unavailable("the server answered 503")
        return png()

    monkeypatch.setattr("jobs.references.Roots.read", read)
    return names


def test_a_reference_whose_server_never_has_it_is_set_aside(mill: Mill, out_of_reach: set[str]) -> None:
    # given five images by reference, of which the first is never to be had
    out_of_reach.add("0.png")
    job_id, chunk = mill.chunk([Reference(f"{index}.png", "0" * 64, 100) for index in range(5)])

    # when the chunk comes for the first time, then it is given back: it may have been a moment's trouble
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.chunk_row(chunk).state == ChunkState.PENDING

    # and for the second time, then there are two chunks in its place, of which nothing has crashed
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.chunk_row(chunk).state == ChunkState.SPLIT
    lone, others = sorted(
        (mill.chunk_row(replace(chunk, id=id_)) for id_ in mill.pending()), key=lambda row: row.first_index
    )
    assert [(row.first_index, row.images, row.crashes) for row in (lone, others)] == [(0, 1, 0), (1, 4, 0)]
    assert "503" in lone.error

    # and the others have their outcomes, whatever becomes of that one
    assert classify_chunk(others.id, mill.bench) == 4
    assert [row.name for row in mill.predictions(job_id)] == [f"{index}.png" for index in range(1, 5)]

    # which is waited for, and never given up
    for _ in range(4):
        assert classify_chunk(lone.id, mill.bench) == 0
    row = mill.chunk_row(replace(chunk, id=lone.id))
    assert (row.state, row.crashes, row.releases) == (ChunkState.PENDING, 0, 4)
    out_of_reach.clear()
    assert classify_chunk(lone.id, mill.bench) == 1
    assert mill.status(job_id).state == JobState.DONE


def test_of_a_store_that_is_away_no_image_is_set_aside(mill: Mill, out_of_reach: set[str]) -> None:
    # given images by reference of which none is to be had
    out_of_reach |= {f"{index}.png" for index in range(5)}
    _, chunk = mill.chunk([Reference(f"{index}.png", "0" * 64, 100) for index in range(5)])
    # when it comes again and again, then it is the same chunk, and waits
    for _ in range(3):
        assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.images, row.crashes, row.releases) == (ChunkState.PENDING, 5, 0, 3)


def test_a_time_limit_that_strikes_at_a_reference_is_not_its_store(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given images by reference, and a time limit that strikes as the third is read: the client of its store
    # makes an error of its own of that
    asked: list[str] = []

    def read(_roots: object, reference: Reference, **_: object) -> bytes:
        asked.append(reference.url)
        if len(asked) == 3:
            raise Unavailable("the connection broke") from SoftTimeLimitExceeded()
        return png()

    monkeypatch.setattr("jobs.references.Roots.read", read)
    _, chunk = mill.chunk([Reference(f"/far/{index}.png", "0" * 64, 100) for index in range(5)])

    # when the chunk comes, then it is given back whole: there is no time to record a part of it
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.images, row.releases, row.crashes) == (ChunkState.PENDING, 5, 1, 0)


def test_a_lease_that_cannot_be_renewed_is_no_images_fault(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a ledger that hangs when a long chunk looks up between two images
    _, chunk = mill.chunk([png(), png()])
    mill.bench.classifier(mill.model.id)
    monkeypatch.setattr("worker.predicting.lookout.RENEW_SECONDS", 0.0)
    monkeypatch.setattr("worker.predicting.lookout.renew_leases", time_out())

    # when the time limit strikes there, then the chunk is given back without a crash
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.releases, row.crashes) == (1, 0)
    assert "the ledger did not answer" in row.error


def test_a_lone_image_that_is_given_up_gets_its_outcome_when_the_store_is_back(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a lone image that crashed as often as may be, and a store that hangs and has its name
    job_id, chunk = mill.chunk([png()])
    for _ in range(CRASHES_TO_GIVE_UP):
        with mill.ledger.transaction() as connection:
            assert claim_chunk(connection, chunk.id, lease_seconds=-1, owner="the dead")
    monkeypatch.setattr("worker.predicting.decode.decode", lambda *_: pytest.fail("it was looked at"))
    with monkeypatch.context() as patch:
        patch.setattr("worker.predicting.pipeline.read_payload", time_out(0.0))
        for _ in range(2):
            assert classify_chunk(chunk.id, mill.bench) == 0

    # then it has no crash more
    row = mill.chunk_row(chunk)
    assert (row.crashes, row.releases) == (CRASHES_TO_GIVE_UP, 2)

    # and when the store is back, it ends
    assert classify_chunk(chunk.id, mill.bench) == 1
    assert [(row.name, row.error) for row in mill.predictions(job_id)] == [("0.png", ErrorCode.QUARANTINED)]


def test_a_time_limit_that_strikes_while_a_chunk_is_given_back_costs_it_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a store that is away, and a time limit that strikes when that has just been found out
    from worker.predicting import pipeline

    def away(*_: object, **__: object) -> None:
        raise Unavailable("The store cannot be read")

    strikes = iter([True])
    real = pipeline.release_chunk

    def release(*arguments: object, **named: object) -> None:
        real(*arguments, **named)  # type: ignore[arg-type]
        if next(strikes, False):
            raise SoftTimeLimitExceeded

    _, chunk = mill.chunk([png()])
    monkeypatch.setattr(pipeline, "read_payload", away)
    monkeypatch.setattr(pipeline, "release_chunk", release)

    # when the chunk comes, then it is free at once, not when its lease has run out
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_who_waits_for_a_lock_when_the_time_limit_strikes_does_not_write_again(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given somebody who locks the job's row, and the time limit, which comes as a signal
    from worker.predicting import pipeline

    _, chunk = mill.chunk([png()])
    mill.bench.classifier(mill.model.id)
    written: list[int] = []
    real = pipeline.record_outcomes

    def strike(*_: object) -> None:
        raise SoftTimeLimitExceeded

    before = signal.signal(signal.SIGALRM, strike)
    with contextlib.closing(Ledger(mill.bench.settings.ledger)) as other, contextlib.ExitStack() as stack:

        def record(*arguments: object) -> None:
            if not written:
                holder = stack.enter_context(other.transaction())
                holder.execute(sa.select(jobs.c.id).with_for_update())
                signal.setitimer(signal.ITIMER_REAL, 0.5)
            written.append(1)
            real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(pipeline, "record_outcomes", record)
        try:
            # when the outcomes are written
            assert classify_chunk(chunk.id, mill.bench) == 0
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    # then that was tried once, and the chunk was given back while the other still had the lock
    assert len(written) == 1
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "the ledger did not answer" in row.error


@pytest.mark.parametrize("ending", [SystemExit, KeyboardInterrupt])
def test_a_worker_that_is_told_to_stop_gives_its_chunk_back_without_a_crash(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, ending: type[BaseException]
) -> None:
    def told(*_: object) -> None:
        raise ending

    _, chunk = mill.chunk([png()])
    monkeypatch.setattr("worker.predicting.decode.decode", told)
    with pytest.raises(ending):
        classify_chunk(chunk.id, mill.bench)
    row = mill.chunk_row(chunk)
    assert (row.state, row.attempts, row.releases, row.crashes) == (ChunkState.PENDING, 1, 1, 0)


@pytest.mark.parametrize("committed", [True, False])
def test_a_commit_that_breaks_off_is_read_back_and_nothing_is_recorded_twice(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    # given a connection that breaks in the COMMIT of the outcomes, before or after it went through
    job_id, chunk = mill.chunk([png(), png()])
    broken: list[int] = []
    real = Ledger.transaction

    @contextlib.contextmanager
    def breaking(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real(ledger, **named) as connection:
            yield connection
            outcomes = connection.scalar(sa.select(sa.func.count()).select_from(predictions))
            if outcomes and not broken and not committed:
                broken.append(outcomes)
                raise Unavailable("the connection broke")
        if outcomes and not broken:
            broken.append(outcomes)
            raise Unavailable("the connection broke")

    monkeypatch.setattr(Ledger, "transaction", breaking)

    # when the chunk is classified, then what was computed is recorded, once, in one attempt
    assert classify_chunk(chunk.id, mill.bench) == 2
    assert broken == [2]
    assert len(mill.predictions(job_id)) == mill.status(job_id).succeeded == 2
    row = mill.chunk_row(chunk)
    assert (row.state, row.attempts, row.crashes) == (ChunkState.DONE, 1, 0)


@pytest.mark.parametrize("breaks", [Unavailable, SoftTimeLimitExceeded])
def test_a_claim_whose_commit_breaks_off_is_withdrawn(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, breaks: type[Exception]
) -> None:
    # given a connection that breaks in the COMMIT of the claim after it went through, or hangs there
    _, chunk = mill.chunk([png()])
    broken: list[bool] = []
    real = Ledger.transaction

    @contextlib.contextmanager
    def breaking(ledger: Ledger, **named: bool) -> Iterator[sa.Connection]:
        with real(ledger, **named) as connection:
            yield connection
        if not broken:
            broken.append(True)
            raise breaks("the connection broke")

    monkeypatch.setattr(Ledger, "transaction", breaking)

    # when a worker tries to claim it, then the chunk is free again at once, and it was no crash
    with pytest.raises(Unavailable):
        classify_chunk(chunk.id, mill.bench)
    row = mill.chunk_row(chunk)
    assert (row.state, row.attempts, row.releases, row.crashes) == (ChunkState.PENDING, 1, 1, 0)
    assert classify_chunk(chunk.id, mill.bench) == 1


def test_a_job_that_is_cancelled_in_mid_chunk_has_nothing_of_that_chunk(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a long chunk whose job is cancelled while it is decoded
    job_id, chunk = mill.chunk([png()] * 600)
    from worker.predicting import decode as module

    real = module.decode

    def slow(*arguments: object) -> object:
        with mill.ledger.transaction() as connection:
            end_job(connection, job_id, JobState.CANCELLED)
        monkeypatch.setattr(module, "decode", real)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", slow)
    monkeypatch.setattr("worker.predicting.lookout.RENEW_SECONDS", 0.0)

    # when its worker looks up between two images, then it stops, and nothing is recorded
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.predictions(job_id) == []
    assert mill.chunk_row(chunk).state == ChunkState.DROPPED
    assert mill.status(job_id).state == "cancelled"


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_lost_payload_fails_the_job_and_says_so(mill: Mill, damage: str) -> None:
    job_id, chunk = mill.chunk([png()])
    path = Path(mill.bench.settings.home) / "store" / chunk.payload
    path.unlink() if damage == "gone" else path.write_bytes(path.read_bytes()[:-1])

    assert classify_chunk(chunk.id, mill.bench) == 0

    status = mill.status(job_id)
    assert status.state == "failed"
    assert chunk.payload in (status.error or "")
    assert mill.chunk_row(chunk).state == ChunkState.DROPPED


def test_a_store_that_is_not_mounted_here_fails_no_job(mill: Mill) -> None:
    # given a worker on a machine where the store's disk is not mounted: an empty folder
    job_id, chunk = mill.chunk([png()])
    store = Path(mill.bench.settings.home) / "store"
    store.rename(store.with_name("elsewhere"))
    store.mkdir()

    # when it takes a chunk, then it gives it back, with the reason
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "Is its disk mounted?" in row.error
    assert mill.status(job_id).state == "running"

    # and who has the disk classifies it
    store.rmdir()
    store.with_name("elsewhere").rename(store)
    assert classify_chunk(chunk.id, mill.bench) == 1
    assert mill.status(job_id).state == "done"


@pytest.mark.parametrize(
    ("broken", "error", "reason"),
    [
        ("jobs.registry.write_whole", OSError(errno.ENOSPC, "No space left on device"), "No space left"),
        ("jobs.registry.make_private_folder", PermissionError(errno.EACCES, "Permission denied"), "denied"),
        ("jobs.registry._read_cached", PermissionError(errno.EACCES, "Permission denied"), "denied"),
        ("worker.predicting.runtime.keras.saving.load_model", MemoryError(), "no memory left for the model"),
    ],
    ids=["full disk", "no folder", "somebody else's copy", "no memory"],
)
def test_a_machine_that_cannot_have_the_model_is_no_images_fault(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, broken: str, error: BaseException, reason: str
) -> None:
    # given a worker on whose machine the champion can be neither kept nor loaded
    def fail(*_: object, **__: object) -> None:
        raise error

    job_id, chunk = mill.chunk([png()])
    with monkeypatch.context() as patch:
        patch.setattr(broken, fail)

        # when the chunk comes, more often than a lone image may crash
        for _ in range(CRASHES_TO_GIVE_UP + 1):
            assert classify_chunk(chunk.id, mill.bench) == 0

        # and when the process warms up, then that is said in words
        with pytest.raises(Unavailable, match=reason):
            mill.bench.warm_up()

    # then each time it was given back, with the reason
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, CRASHES_TO_GIVE_UP + 1, 0)
    assert reason in row.error

    # and it is done when there is room again
    assert classify_chunk(chunk.id, mill.bench) == 1
    assert mill.status(job_id).state == "done"


@pytest.mark.parametrize("error", ["python's", "tensorflow's"])
@pytest.mark.parametrize("batch", [1, 2], ids=["warm-up", "in mid-chunk"])
def test_no_memory_for_a_batch_is_no_images_fault(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, error: str, batch: int
) -> None:
    # given a machine that has no memory for what the model computes: at its first batch, or at the second
    from worker.predicting.runtime import tf

    from worker.predicting.classifier import Classifier

    if batch > 1:
        monkeypatch.setattr(mill.bench.classifier(mill.model.id), "batch", 2)
    job_id, chunk = mill.chunk([png()] * 5)
    batches = 0
    real = Classifier._batches

    def short(classifier: Classifier, pixels: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches % batch:
            return real(classifier, pixels)
        if error == "python's":
            raise MemoryError
        raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")

    # when a chunk comes, more often than a lone image may crash
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "_batches", short)
        for _ in range(CRASHES_TO_GIVE_UP + 1):
            assert classify_chunk(chunk.id, mill.bench) == 0

    # then each time it was given back, with the reason, and tried no more than once
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, CRASHES_TO_GIVE_UP + 1, 0)
    assert "no memory left for the model" in row.error
    assert batches == batch * (CRASHES_TO_GIVE_UP + 1)

    # and it is done where there is room
    assert classify_chunk(chunk.id, mill.bench) == 5
    assert [each.error for each in mill.predictions(job_id)] == [None] * 5


@pytest.mark.parametrize(
    ("error", "is_models"),
    [("InvalidArgumentError", True), ("UnimplementedError", True), ("InternalError", False)],
)
def test_a_model_that_does_not_run_is_told_from_a_machine_that_does_not_run_it(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, error: str, is_models: bool
) -> None:
    # given a model that fails before it has seen an image
    from worker.predicting.runtime import tf

    from worker.predicting.classifier import Classifier

    def fail(*_: object) -> None:
        raise getattr(tf.errors, error)(None, None, "no such kernel")

    job_id, chunk = mill.chunk([png()])
    monkeypatch.setattr(Classifier, "_batches", fail)

    # when a chunk needs it, then its job fails, or waits for another machine; its image is not to blame
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.releases, row.crashes) == (1, 0)
    assert "no such kernel" in row.error
    assert (row.state, mill.status(job_id).state) == (
        (ChunkState.DROPPED, JobState.FAILED) if is_models else (ChunkState.PENDING, JobState.RUNNING)
    )


def test_a_worker_without_tensorflow_is_no_images_fault(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a worker that was installed without what it needs
    _, chunk = mill.chunk([png()])
    monkeypatch.setitem(sys.modules, "worker.predicting.classifier", None)

    # when a chunk comes, then it is given back, with the reason
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "TensorFlow cannot be imported" in row.error


def test_a_model_file_that_was_tampered_with_is_never_parsed(mill: Mill) -> None:
    # given the model's file was changed in the store
    [path] = (Path(mill.bench.settings.home) / "store" / "models").iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    job_id, chunk = mill.chunk([png()])

    # when a chunk needs it, then the job fails on the hash
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.status(job_id).state == "failed"
    assert "SHA-256" in (mill.status(job_id).error or "")


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (Unavailable("The ledger cannot be reached"), "cannot be reached"),
        (SoftTimeLimitExceeded(), "within the time limit"),
        (SystemExit(), "told to stop"),
    ],
    ids=["away", "time limit", "stopped"],
)
def test_a_job_that_cannot_be_failed_for_now_costs_its_images_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, trouble: BaseException, reason: str
) -> None:
    # given a job whose model was changed in the store, and trouble as it is to be failed for that
    from worker.predicting import pipeline

    [path] = (Path(mill.bench.settings.home) / "store" / "models").iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    job_id, chunk = mill.chunk([png()])

    def troubled(*_: object, **__: object) -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "end_job", troubled)
        with pytest.raises(SystemExit) if isinstance(trouble, SystemExit) else contextlib.nullcontext():
            # when a chunk needs it
            assert classify_chunk(chunk.id, mill.bench) == 0

    # then that is given back at once, and is no crash
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert reason in row.error
    assert mill.status(job_id).state == "running"

    # and the job fails at the next attempt, for its own reason
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.status(job_id).state == "failed"
    assert "SHA-256" in (mill.status(job_id).error or "")


def test_a_store_that_is_away_burns_no_attempt(mill: Mill) -> None:
    # given a store that cannot be read for now: a folder stands where the file should be
    job_id, chunk = mill.chunk([png()])
    path = Path(mill.bench.settings.home) / "store" / chunk.payload
    aside = path.rename(path.with_suffix(".aside"))
    path.mkdir()

    # when the chunk comes, then it is given back as it was, with the reason
    assert classify_chunk(chunk.id, mill.bench) == 0
    row = mill.chunk_row(chunk)
    assert (row.state, row.releases, row.crashes) == (ChunkState.PENDING, 1, 0)
    assert "store" in row.error

    # and when the store is back, it is done
    path.rmdir()
    aside.rename(path)
    assert classify_chunk(chunk.id, mill.bench) == 1
    assert mill.status(job_id).state == "done"


def test_a_mistake_of_ours_gives_the_chunk_back_with_its_attempt_counted(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a bug
    def bug(*_: object) -> None:
        raise ZeroDivisionError

    _, chunk = mill.chunk([png()])
    with monkeypatch.context() as patch:
        patch.setattr("worker.predicting.decode.decode", bug)

        # when it strikes, then it is heard of, and the chunk is pending again
        with pytest.raises(ZeroDivisionError):
            classify_chunk(chunk.id, mill.bench)
    row = mill.chunk_row(chunk)
    assert (row.state, row.crashes) == (ChunkState.PENDING, 1)
    assert "ZeroDivisionError" in row.error

    # and once it is mended the chunk is done
    assert classify_chunk(chunk.id, mill.bench) == 1


def test_who_lost_the_lease_in_the_middle_records_nothing(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given somebody else takes the chunk over while it is being decoded
    job_id, chunk = mill.chunk([png()])
    from worker.predicting import decode as module

    real = module.decode

    def slow(*arguments: object) -> object:
        with mill.ledger.transaction() as connection:
            connection.execute(chunks.update().values(lease_until=None, state=ChunkState.PENDING))
            assert claim_chunk(connection, chunk.id, lease_seconds=60, owner="somebody else")
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", slow)

    # when the first one comes to record, then it records nothing
    assert classify_chunk(chunk.id, mill.bench) == 0
    assert mill.predictions(job_id) == []
    assert mill.status(job_id).succeeded == 0
    assert mill.chunk_row(chunk).owner == "somebody else"


def test_a_long_chunk_renews_its_lease(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a clock that makes every image take longer than the share of a lease that may go by
    ticks = iter(range(0, 1_000_000, 50))
    monkeypatch.setattr("worker.predicting.lookout.time.monotonic", lambda: next(ticks))
    renewals: list[object] = []
    with contextlib.ExitStack() as stack:
        from worker.predicting import lookout

        real = lookout.renew_leases
        stack.callback(monkeypatch.undo)
        monkeypatch.setattr(
            lookout,
            "renew_leases",
            lambda *a, **k: (renewals.append(a), real(*a, **k)),  # type: ignore[func-returns-value]
        )
        _, chunk = mill.chunk([png(), b"no picture", png()])

        # when it is classified, then the lease is renewed before each, whatever becomes of it, and at the end
        assert classify_chunk(chunk.id, mill.bench) == 3
    assert len(renewals) == 4


def large_png(side: int = 5_000) -> bytes:
    """A picture that takes some tenths of a second to decode, in a small file."""
    file = io.BytesIO()
    Image.new("L", (side, side), 200).save(file, "PNG", compress_level=1)
    return file.getvalue()


def test_a_chunk_of_a_cancelled_job_is_given_up_in_the_middle(mill: Mill, ledger_url: str) -> None:
    # given a chunk that takes half a minute, and somebody who cancels its job after a second
    job_id, chunk = mill.chunk([large_png()] * 300)
    mill.bench.classifier(mill.model.id)  # loading it is not what is measured here

    def cancel() -> float:
        with contextlib.closing(Ledger(ledger_url)) as own:
            until(lambda: mill.chunk_row(chunk).state == ChunkState.CLAIMED, "it is begun", seconds=60)
            time.sleep(1.0)
            with own.transaction() as connection:
                assert end_job(connection, job_id, JobState.CANCELLED)
        return time.monotonic()

    # when it is worked on
    with ThreadPoolExecutor(1) as pool:
        cancelling = pool.submit(cancel)
        recorded = classify_chunk(chunk.id, mill.bench)
        given_up_after = time.monotonic() - cancelling.result(90)

    # then its worker notices long before its end, nothing is recorded, and nobody takes it again
    assert recorded == 0
    assert given_up_after < 15.0
    assert mill.predictions(job_id) == []
    assert mill.chunk_row(chunk).state == ChunkState.DROPPED
    assert (mill.status(job_id).state, mill.status(job_id).done) == (JobState.CANCELLED, 0)
    assert classify_chunk(chunk.id, mill.bench) == 0


def test_a_chunk_that_is_ready_when_its_job_is_cancelled_is_recorded_whole(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a job that is cancelled when its chunk's last image is being decoded
    from worker.predicting import decode as module

    job_id, chunk = mill.chunk([png(), b"no picture", png(255)])
    real = module.decode

    def decode(data: bytes, *arguments: object) -> object:
        if data == png(255):
            with mill.ledger.transaction() as connection:
                assert end_job(connection, job_id, JobState.CANCELLED)
        return real(data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", decode)

    # when it is worked on, then all of its outcomes are there, and the job stays cancelled
    assert classify_chunk(chunk.id, mill.bench) == 3
    assert len(mill.predictions(job_id)) == 3
    status = mill.status(job_id)
    assert (status.state, status.succeeded, status.failed) == (JobState.CANCELLED, 2, 1)
    assert mill.chunk_row(chunk).state == ChunkState.DONE


def test_a_model_stays_loaded(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    from worker.predicting.classifier import Classifier

    loads: list[Path] = []
    real = Classifier.load.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Classifier], path: Path, *args: object, **kwargs: object) -> Classifier:
        loads.append(path)
        return real(cls, path, *args, **kwargs)  # type: ignore[no-any-return]

    monkeypatch.setattr(Classifier, "load", classmethod(counted))
    first = mill.bench.classifier(mill.model.id)

    assert mill.bench.classifier(mill.model.id) is first
    assert len(loads) == 1
