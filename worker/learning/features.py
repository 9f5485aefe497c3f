"""The features of a dataset's images: computed once by a frozen body, and kept with the dataset.

They are in the store below `datasets/NAME/features/KEY/`, where the key stands for the body and its input. A
file holds up to _FILE_IMAGES images: the hashes of their pictures, and their features as float16, which
costs a classifier nothing. Its name is its digest, so a damaged file is noticed, and its images are computed
again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import msgpack
import numpy as np
import numpy.typing as npt
from blake3 import blake3

from jobs.models.dataset import features_folder
from jobs.models.model import InputSpec
from jobs.storage.store import Store
from worker.learning.data import Labelled, Uint8
from worker.learning.trainer import Trainer
from worker.predicting.networks.keras_network import as_input
from worker.predicting.tensorflow_runtime import keras, tf

logger = logging.getLogger(__name__)

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]

#: The images in one file: 10 MB with 1,280 features. A training that is killed has lost fewer than these.
_FILE_IMAGES: Final = 4096

#: More files than this are rewritten as full ones: each nightly run may have added a small one.
_MOST_FILES: Final = 32

#: The images that the body gets at a time.
_BATCH: Final = 32

#: The images that are decoded at a time.
_WINDOW: Final = 256


class Features:
    """The features of images by their pictures. `of` computes those that are not known."""

    def __init__(self, trainer: Trainer, body: keras.Model, spec: InputSpec, *, key: str | None) -> None:
        """Read what is kept under `key`. With None, nothing is kept, because no other run will need it.

        Raises Unavailable.
        """
        self._trainer = trainer
        self._run = _compiled(body, spec)
        self._width = int(body.outputs[0].shape[1])
        self._folder = None if key is None else features_folder(trainer.claim.dataset, key)
        self._known: dict[str, Float16] = {}
        if (folder := self._folder) is not None:
            self._known |= trainer.retry(lambda: _read_all(trainer.store, folder, self._width))

    def of(self, labelled: Labelled) -> Float32:
        """Return the features of these images, float32 (n, features).

        Raises DataUnavailable if an image cannot be read, Unavailable, RunLost.
        """
        missing = labelled.in_stored_order(
            [row for row, picture in enumerate(labelled.pictures) if picture not in self._known]
        )
        new: dict[str, Float16] = {}
        for rows, pixels in _windows(labelled, missing):
            for start in range(0, len(rows), _BATCH):
                of_batch = self._of_batch(pixels[start : start + _BATCH])
                new.update(zip((labelled.pictures[row] for row in rows[start:]), of_batch, strict=False))
            if len(new) >= _FILE_IMAGES:
                self._keep(new)
                new = {}
        self._keep(new)
        if missing:
            logger.info("computed the features of %s images", f"{len(missing):,}")
        result = np.empty((len(labelled), self._width), np.float32)
        for row, picture in enumerate(labelled.pictures):
            result[row] = self._known[picture]
        return result

    def _of_batch(self, pixels: Uint8) -> Float16:
        self._trainer.check()
        padded = np.zeros((_BATCH, *pixels.shape[1:]), np.uint8)
        padded[: len(pixels)] = pixels
        found: Float16 = self._run(padded).numpy()[: len(pixels)].astype(np.float16)
        return found

    def _keep(self, new: dict[str, Float16]) -> None:
        """Remember new features, and store them. Raises Unavailable."""
        if not new:
            return
        self._known.update(new)
        store = self._trainer.store
        if (folder := self._folder) is not None:
            self._trainer.retry(lambda: _write(store, folder, new))
            self._trainer.retry(lambda: _merge(store, folder, self._known))


def key_of(sha256: str, spec: InputSpec) -> str:
    """Return the key for the body with this SHA-256 and input: another input gives other features."""
    return f"{sha256[:24]}-{spec.slug}"


def _compiled(body: keras.Model, spec: InputSpec) -> Callable[[Uint8], tf.Tensor]:
    """Return the body as a graph for full batches."""

    def run(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(body(as_input(body, pixels), training=False), tf.float32)

    signature = [tf.TensorSpec((_BATCH, *spec.shape), tf.uint8)]
    graph: Callable[[Uint8], tf.Tensor] = tf.function(run, input_signature=signature, autograph=False)
    return graph


def _windows(labelled: Labelled, rows: list[int]) -> Iterator[tuple[list[int], Uint8]]:
    """Yield the rows in windows with their pixels. The next window is decoded meanwhile."""
    windows = [rows[start : start + _WINDOW] for start in range(0, len(rows), _WINDOW)]
    with ThreadPoolExecutor(1, thread_name_prefix="features") as pool:
        waiting = [pool.submit(labelled.take, window) for window in windows[:1]]
        for number, window in enumerate(windows):
            pixels = waiting.pop().result()
            if number + 1 < len(windows):
                waiting.append(pool.submit(labelled.take, windows[number + 1]))
            yield window, pixels


# ---- files ----------------------------------------------------------------------------------------------


def _read_all(store: Store, folder: str, width: int) -> dict[str, Float16]:
    """Return all features in this folder. Damaged files are skipped. Raises Unavailable."""
    found: dict[str, Float16] = {}
    for name in store.files(folder):
        try:
            content = store.get(f"{folder}/{name}")
        except FileNotFoundError:  # another process has just merged it
            continue
        if _name(content) != name:
            logger.warning("%s/%s is damaged: the features of its images are computed again", folder, name)
            store.remove(f"{folder}/{name}")
            continue
        pictures, numbers = msgpack.unpackb(content)
        rows = np.frombuffer(numbers, "<f2").reshape(len(pictures), -1)
        if rows.shape[1] == width:
            found.update(zip(pictures, rows, strict=True))
    return found


def _write(store: Store, folder: str, features: dict[str, Float16]) -> str:
    """Store features as one file, and return its name. Raises Unavailable."""
    numbers = np.stack(list(features.values())).astype("<f2").tobytes()
    content: bytes = msgpack.packb([list(features), numbers])
    store.put(f"{folder}/{_name(content)}", content)
    return _name(content)


def _merge(store: Store, folder: str, known: dict[str, Float16]) -> None:
    """Rewrite many files as few. If this is interrupted, some images are in two. Raises Unavailable."""
    before = store.files(folder)
    if len(before) <= max(_MOST_FILES, 2 * len(known) // _FILE_IMAGES):
        return
    written = {_write(store, folder, part) for part in _parts(known)}
    for name in before:
        if name not in written:
            store.remove(f"{folder}/{name}")


def _parts(known: dict[str, Float16]) -> Iterator[dict[str, Float16]]:
    ordered = sorted(known)
    for start in range(0, len(ordered), _FILE_IMAGES):
        yield {picture: known[picture] for picture in ordered[start : start + _FILE_IMAGES]}


def _name(content: bytes) -> str:
    return blake3(content).hexdigest()
