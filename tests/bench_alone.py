"""A mill of one bench in the test's own process: chunks with real payloads, a real model, a real ledger."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from jobs.ledger.intake import NewChunk, add_chunk, open_job, seal_job
from PIL import Image
from worker.bench import Bench

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.progress import Filter, JobStatus, Prediction, job_status, stream_predictions
from jobs.model import Model
from jobs.payloads import Content, pack_payload, payload_digest, payload_key
from jobs.schema import ChunkState, chunks
from jobs.store import Store
from tests.registering import register_digits


def picture(number: int) -> bytes:
    """Each number another one."""
    file = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (28, 28), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def decoded_for_ever(monkeypatch: pytest.MonkeyPatch, endless: bytes) -> None:
    """From now on Python code would go on decoding this image for ever."""
    from worker.predicting import decode as module

    real = module.decode

    def decode(data: bytes, *arguments: object) -> object:
        while data == endless:
            pass
        return real(data, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "decode", decode)


def time_out(seconds: float = 0.6) -> Callable[..., None]:
    """Something that hangs until Celery's time limit strikes: for several times as long as an image takes,
    also on a machine that does other things beside.
    """

    def hang(*_: object, **__: object) -> None:
        time.sleep(seconds)
        raise SoftTimeLimitExceeded

    return hang


def make_mill(ledger: Ledger, store: Store, bench: Bench, model_file: bytes) -> Mill:
    """With a model that knows digits for its champion."""
    return Mill(ledger, store, bench, register_digits(ledger, store, model_file, champion=True))


@dataclass
class Mill:
    """A ledger, a store, and a bench to work at; nobody else is there, and no message comes."""

    ledger: Ledger
    store: Store
    bench: Bench
    model: Model

    def job(self, contents: Sequence[Content], *, gone: bool = False) -> tuple[str, str]:
        """A sealed job of one chunk: its id, and that of the chunk."""
        job_id, chunk = self.chunk(contents, gone=gone)
        return job_id, chunk.id

    def chunk(self, contents: Sequence[Content], *, gone: bool = False) -> tuple[str, NewChunk]:
        """A sealed job's id, and its only chunk; its payload may be gone."""
        job_id, chunk_id = new_id(), new_id()
        pieces = pack_payload([f"{number}.png" for number in range(len(contents))], contents)
        key = payload_key(job_id, chunk_id)
        if not gone:
            self.store.put(key, *pieces)
        chunk = NewChunk(chunk_id, 0, len(contents), key, payload_digest(*pieces))
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

    def answers(self, job_id: str) -> list[tuple[str, str | None, str | None]]:
        """Names, labels and errors."""
        return [(row.name, row.label, row.error) for row in self.predictions(job_id)]

    def pending(self) -> list[str]:
        with self.ledger.reading() as connection:
            return list(
                connection.scalars(sa.select(chunks.c.id).where(chunks.c.state == ChunkState.PENDING))
            )

    def chunk_row(self, chunk: NewChunk) -> sa.Row[tuple[object, ...]]:
        with self.ledger.reading() as connection:
            return connection.execute(sa.select(chunks).where(chunks.c.id == chunk.id)).one()
