"""Where an image's time goes: each stage by itself, in one process, in microseconds per image.

The stages are the pipeline's own functions on real chunks, without a broker and without a second process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.model import TrainedModel
from benchmarks.producer import ignore_ctrl_c
from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.claims import claim_next
from jobs.ledger.jobs.results import Classified, record_results
from jobs.ledger.jobs.submission import NewChunk, add_chunk, open_job, seal_job
from jobs.ledger.learning.models import find_champion
from jobs.network.references import Roots
from jobs.settings import Settings
from jobs.storage.payloads import pack_payload, payload_digest, payload_key, read_payload
from jobs.storage.store import Store
from producer.sources import SourceImage, Sources
from worker.predicting.timings import Timings

if TYPE_CHECKING:
    from worker.predicting.classifier import Classifier

#: How many images are taken through the stages, and how often. The fastest pass of each stage counts, because
#: other programs on the machine only add to it.
PROFILE_IMAGES: Final = 10_000
PASSES: Final = 5

Seconds = dict[str, float]  # by stage


def profile_timings(settings: Settings, model: TrainedModel, folder: Path) -> Seconds:
    """Return the seconds per image of each stage. The ledger must have a champion."""
    # In a process of its own, like a worker: TensorFlow stays out of this one.
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=ignore_ctrl_c
    ) as pool:
        return pool.submit(_profile, settings, model, folder).result()


def _profile(settings: Settings, model: TrainedModel, folder: Path) -> Seconds:
    from worker.predicting.classifier import Classifier, configure_threads

    configure_threads(settings.processes)
    row = model.row
    classifier = Classifier.load_registered(model.path, row)
    classifier.warm_up()
    with contextlib.closing(Ledger(settings.ledger)) as ledger:
        passes = [_one_pass(settings, classifier, ledger, folder) for _ in range(PASSES)]
    return {name: min(one[name] for one in passes) for name in passes[0]}


def _one_pass(settings: Settings, classifier: Classifier, ledger: Ledger, folder: Path) -> Seconds:
    from worker.predicting.windows import classify_images, fetch_references

    timings, store, job_id, total = Timings(), Store(settings.store), new_id(), 0
    roots, max_bytes = Roots(settings.reference_roots), settings.max_image_bytes
    with ledger.transaction() as connection:
        champion = find_champion(connection)
        assert champion is not None
        open_job(connection, job_id, model_id=champion.id, key=None)
    images = iter(islice(Sources([str(folder)]), PROFILE_IMAGES))
    while True:
        with timings.timed("read the files"):
            batch: list[SourceImage] = list(islice(images, settings.chunk_images))
        if not batch:
            break
        chunk_id = new_id()
        key = payload_key(job_id, chunk_id)
        with timings.timed("pack the payload"):
            pieces = pack_payload(
                [image.name for image in batch], [image.data for image in batch if image.data is not None]
            )
            digest = payload_digest(*pieces)
        with timings.timed("write the payload"):
            store.put(key, *pieces)
        with timings.timed("record the chunk"), ledger.transaction() as connection:
            add_chunk(connection, job_id, NewChunk(chunk_id, total, len(batch), key, digest))
        with timings.timed("claim the chunk"), ledger.transaction() as connection:
            [claim] = claim_next(
                connection,
                owner="benchmark",
                token=new_id(),
                lease_seconds=settings.lease_seconds,
                images_for=lambda _model_id: settings.chunk_images,
            )
        assert (claim.chunk_id, claim.images) == (chunk_id, len(batch))
        with timings.timed("read the payload"):
            payload = read_payload(store, claim.payload, claim.payload_digest).part(0, claim.images)
        with timings.timed("fetch"), ThreadPoolExecutor() as threads:
            fetched = fetch_references(
                payload.contents, roots, threads, max_bytes=max_bytes, seconds=settings.soft_time_limit
            )
            contents = [content for content in fetched if not isinstance(content, Unavailable)]
        outcomes = classify_images(payload.names, contents, classifier, settings, timings)
        with timings.timed("record the results"), ledger.transaction() as connection:
            record_results(connection, [Classified(claim, outcomes)])
        total += len(batch)
    with ledger.transaction() as connection:
        seal_job(connection, job_id, fingerprint=None)
    return {name: stage.seconds / total for name, stage in timings.stages.items()}
