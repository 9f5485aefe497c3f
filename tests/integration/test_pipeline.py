"""One chunk from its claim to its rows, with a real model: what becomes of every way it can go."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
from PIL import Image

from jobs.errors import ErrorCode, ImageError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.claims import MAX_ATTEMPTS, claim_chunk
from jobs.ledger.intake import NewChunk, add_chunk, open_job, seal_job
from jobs.ledger.models import CHAMPION, point_alias
from jobs.ledger.progress import Filter, JobStatus, Prediction, job_status, stream_predictions
from jobs.model import MNIST_INPUT, Model
from jobs.payloads import pack_payload, payload_digest, payload_key
from jobs.registry import register_model
from jobs.schema import ChunkState, chunks
from jobs.settings import Settings
from jobs.store import Store
from worker.bench import Bench
from worker.predicting.pipeline import classify_chunk


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of the right shape, untrained: not what it answers matters here, but where that lands."""
    from worker.learning.training import build, save

    path = tmp_path_factory.mktemp("model") / "model.keras"
    save(build("mlp", MNIST_INPUT), path)
    return path.read_bytes()


@pytest.fixture(scope="module")
def broken_model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model whose weights are not numbers."""
    from worker.learning.training import build, save

    model = build("mlp", MNIST_INPUT)
    model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save(model, path)
    return path.read_bytes()


@dataclass
class Mill:
    """A ledger, a store, and a bench to work at."""

    ledger: Ledger
    store: Store
    bench: Bench
    model: Model

    def chunk(self, contents: Sequence[bytes | ImageError]) -> tuple[str, NewChunk]:
        """A sealed job of one chunk."""
        job_id, chunk_id = new_id(), new_id()
        data = pack_payload([f"{number}.png" for number in range(len(contents))], contents)
        key = payload_key(job_id, chunk_id)
        self.store.put(key, data)
        chunk = NewChunk(chunk_id, 0, len(contents), key, payload_digest(data))
        with self.ledger.transaction() as connection:
            open_job(connection, job_id, model_id=self.model.id, key=None)
            add_chunk(connection, job_id, chunk)
            seal_job(connection, job_id, fingerprint=None)
        return job_id, chunk

    def status(self, job_id: str) -> JobStatus:
        with self.ledger.reading() as connection:
            return job_status(connection, job_id)

    def predictions(self, job_id: str) -> list[Prediction]:
        return list(stream_predictions(self.ledger, job_id, Filter()))

    def chunk_row(self, chunk: NewChunk) -> sa.Row[tuple[object, ...]]:
        with self.ledger.reading() as connection:
            return connection.execute(sa.select(chunks).where(chunks.c.id == chunk.id)).one()


def _mill(ledger: Ledger, store: Store, bench: Bench, data: bytes) -> Mill:
    model = register_model(
        ledger,
        store,
        data,
        architecture="mlp",
        classes=tuple("0123456789"),
        input_spec=MNIST_INPUT,
        accuracy=None,
        metrics={},
    )
    with ledger.transaction() as connection:
        point_alias(connection, CHAMPION, model.id)
    return Mill(ledger, store, bench, model)


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    with Bench(settings, processes=1) as bench:
        yield bench


@pytest.fixture
def mill(ledger: Ledger, store: Store, bench: Bench, model_file: bytes) -> Mill:
    return _mill(ledger, store, bench, model_file)


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
    from worker.predicting.decode import decode
    from worker.predicting.runtime import keras

    path = next((mill.bench.settings.cache_dir / "models").iterdir())
    good = [prediction.index for prediction in found if prediction.label is not None]
    pixels = np.stack([decode(contents[index], MNIST_INPUT) for index in good])
    expected = keras.saving.load_model(path).predict(pixels, verbose=0)
    assert [found[index].label for index in good] == [str(label) for label in expected.argmax(axis=1)]
    confidences = [found[index].confidence for index in good]
    assert np.allclose(confidences, expected.max(axis=1), atol=1e-5)

    status = mill.status(job_id)
    assert (status.state, status.total, status.succeeded, status.failed) == ("done", 1_100, 1_096, 4)


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
    mill = _mill(ledger, store, bench, broken_model_file)
    job_id, chunk = mill.chunk([png(), png(200)])

    classify_chunk(chunk.id, mill.bench)

    assert [(row.label, row.confidence, row.error) for row in mill.predictions(job_id)] == [
        (None, None, ErrorCode.MODEL_ERROR)
    ] * 2


def test_a_chunk_that_kept_killing_its_workers_is_quarantined_without_a_look(mill: Mill) -> None:
    # given a chunk that was claimed as often as may be, by processes that died
    job_id, chunk = mill.chunk([png(), png()])
    for _ in range(MAX_ATTEMPTS):
        with mill.ledger.transaction() as connection:
            assert claim_chunk(connection, chunk.id, lease_seconds=-1, owner="the dead")

    # when it comes once more
    classify_chunk(chunk.id, mill.bench)

    # then nobody decodes it again, and the job ends
    assert [row.error for row in mill.predictions(job_id)] == [ErrorCode.QUARANTINED] * 2
    assert mill.status(job_id).state == "done"


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


def test_a_model_file_that_was_tampered_with_is_never_parsed(mill: Mill) -> None:
    # given the model's file was changed in the store
    [path] = (Path(mill.bench.settings.home) / "store" / "models").iterdir()
    path.write_bytes(path.read_bytes() + b"\0")
    job_id, chunk = mill.chunk([png()])

    # when a chunk needs it, then the job fails on the hash
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
    assert (row.state, row.attempts) == (ChunkState.PENDING, 0)
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
    assert (row.state, row.attempts) == (ChunkState.PENDING, 1)
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
    # given a clock that makes every batch take longer than the share of a lease that may go by
    ticks = iter(range(0, 1_000_000, 50))
    monkeypatch.setattr("worker.predicting.pipeline.time.monotonic", lambda: next(ticks))
    renewals: list[object] = []
    with contextlib.ExitStack() as stack:
        from worker.predicting import pipeline

        real = pipeline.renew_lease
        stack.callback(monkeypatch.undo)
        monkeypatch.setattr(
            pipeline,
            "renew_lease",
            lambda *a, **k: (renewals.append(a), real(*a, **k)),  # type: ignore[func-returns-value]
        )
        _, chunk = mill.chunk([png()] * 1_030)

        # when it is classified, then the lease is renewed after each full batch
        assert classify_chunk(chunk.id, mill.bench) == 1_030
    assert len(renewals) == 2


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
