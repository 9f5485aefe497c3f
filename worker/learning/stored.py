"""Load a version of a dataset from the store: decode its images once, and keep them in the cache.

The cache has a folder per version and input, with a file of pixels for each split. A file is written under a
temporary name first, so it is complete or does not exist. If two processes decode the same images, the later
file replaces the other.
"""

from __future__ import annotations

import math
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from jobs.cores import usable_cores
from jobs.errors import DataUnavailable, ImageError, PayloadDamaged
from jobs.files import make_private_folder, sync, temporary_folder
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import get_version
from jobs.models.dataset import DatasetVersion, Split, decoded_folder
from jobs.models.evaluation import Part
from jobs.models.model import MNIST_INPUT, InputSpec, Mode
from jobs.network.references import Reference, Roots
from jobs.reading import why
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, Manifest, read_manifest
from jobs.storage.payloads import Payload, read_payload
from jobs.storage.store import Store
from worker.backoff import retry
from worker.learning.data import Data, Labelled, Uint8, no_images
from worker.predicting.decode import decode

#: How many versions and inputs of each dataset the cache keeps.
_KEPT: Final = 3

#: An image of one of these modes, as Pillow names them, is grey.
_GREY: Final = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))

# The sides of a network's input, in pixels, if the images have different sizes.
_LEAST_SIDE: Final = 32
_MOST_SIDE: Final = 64
_SIDE_STEP: Final = 8

#: Images that all have the same size keep it if their smaller side has at least so many pixels.
_LEAST_OWN_SIDE: Final = 8


def open_dataset(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    name: str,
    *,
    pauses: Sequence[float] = (),
    check: Callable[[], None] = lambda: None,
) -> StoredDataset:
    """Return the latest version of a dataset.

    If a service is unavailable, it is retried after each of `pauses`, in seconds. `check` is called often,
    and may raise. Raises NotFound, DataUnavailable, Unavailable.
    """

    def read() -> StoredDataset:
        with ledger.reading() as connection:
            version = get_version(connection, name)
        return StoredDataset(settings, store, version, pauses=pauses, check=check)

    return retry(read, pauses)


def choose_input(images: Iterable[DatasetImage], size: int | None = None) -> InputSpec:
    """Return the input of a model for these images, with `size` pixels in both directions if it is given.

    It is grey if all images are. Images of one size up to 64x64 keep it; otherwise it is a square whose side
    is the median of the shorter sides, from 32 to 64 pixels. For images of MNIST's format it is MNIST's.
    """
    listed = list(images)
    mode: Mode = "L" if all(image.mode in _GREY for image in listed) else "RGB"
    if size is not None:
        return InputSpec(size, size, mode)
    sizes = {(image.width, image.height) for image in listed}
    if len(sizes) == 1:
        [(width, height)] = sizes
        if (height, width) == MNIST_INPUT.shape and mode == MNIST_INPUT.mode:
            return MNIST_INPUT
        if min(width, height) >= _LEAST_OWN_SIDE and max(width, height) <= _MOST_SIDE:
            return InputSpec(width, height, mode)
    median = float(np.median([min(image.width, image.height) for image in listed]))
    side = round(min(max(median, _LEAST_SIDE), _MOST_SIDE) / _SIDE_STEP) * _SIDE_STEP
    return InputSpec(side, side, mode)


class StoredDataset:
    """A version of a dataset whose images are in the store, or are referred to."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        version: DatasetVersion,
        *,
        pauses: Sequence[float] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Read the list of images. `check` is called often while images are decoded, and may raise.

        While images are decoded, a store that is unavailable is retried after each of `pauses`, in seconds.
        Raises DataUnavailable if the list is missing or damaged, Unavailable.
        """
        self._settings = settings
        self._store = store
        self._version = version
        self._pauses = pauses
        self._check = check
        self._manifest: Manifest = read_manifest(store, version)
        self._of_split: dict[Split, list[DatasetImage]] = {split: [] for split in Split}
        for image in self._manifest.images:
            self._of_split[image.split].append(image)

    def __str__(self) -> str:
        return f"Dataset {self._version.dataset}, version {self._version.version},"

    def choose_input(self, size: int | None = None) -> InputSpec:
        """Return the input of a model for these images: see the function of this name."""
        return choose_input(self._manifest.images, size)

    def prepared(self, spec: InputSpec, *, for_training: bool = True) -> Data:
        """Return all images, or only the test set, prepared for a model with this input.

        Raises DataUnavailable if an image cannot be read or the cache cannot be written, Unavailable.
        """
        version = self._version
        return Data(
            dataset=version.dataset,
            version=version.version,
            source=f"{version.dataset}, version {version.version}",
            classes=version.classes,
            spec=spec,
            train=self._split(Split.TRAIN, spec) if for_training else no_images(spec),
            validation=self._split(Split.VALIDATION, spec) if for_training else no_images(spec),
            test=self._split(Split.TEST, spec),
            live=no_images(spec),
            fingerprint=version.fingerprint,
            evaluation_fingerprints={
                Part.TEST: self._manifest.fingerprint(version.classes, [Split.TEST]),
            },
            part_for=self._part_for,
        )

    def _part_for(self, part: Part, spec: InputSpec) -> Labelled:
        return self._split(Split.TEST, spec) if part == Part.TEST else no_images(spec)

    def _split(self, split: Split, spec: InputSpec) -> Labelled:
        images = self._of_split[split]
        labels = np.array([image.label for image in images], np.uint16)
        pictures = tuple(image.pixels for image in images)
        shape = (len(images), *spec.shape)
        if not images:
            return Labelled(np.empty(shape, np.uint8), labels, pictures)
        try:
            return Labelled(
                np.memmap(self._cached(split, spec), np.uint8, "r", shape=shape), labels, pictures
            )
        except OSError as error:
            raise DataUnavailable(
                f"The decoded images cannot be kept in {self._settings.cache_dir} ({why(error)}): it must be "
                f"writable and have {math.ceil(math.prod(shape) / 1e6):,} MB of free space."
            ) from error

    def _cached(self, split: Split, spec: InputSpec) -> Path:
        """Return the file of a split's pixels. Make it if it does not exist. Raises OSError."""
        of_dataset = decoded_folder(self._settings.cache_dir, self._version.dataset)
        folder = of_dataset / _cache_name(self._version, spec)
        path = folder / f"{split}.pixels"
        make_private_folder(folder)
        os.utime(folder)
        if path.exists() and path.stat().st_size == len(self._of_split[split]) * math.prod(spec.shape):
            return path
        _remove_oldest(of_dataset, keep=folder)
        with temporary_folder(of_dataset, ".decoding-") as temporary:
            unfinished = temporary / path.name
            self._decode_all(split, spec, unfinished)
            sync(unfinished)
            make_private_folder(folder)  # another process may have removed it as the oldest
            unfinished.rename(path)
        sync(folder)
        return path

    def _decode_all(self, split: Split, spec: InputSpec, path: Path) -> None:
        """Decode a split's images into a file, one payload per core at a time."""
        rows_of_payload: dict[int, list[int]] = defaultdict(list)
        for row, image in enumerate(self._of_split[split]):
            rows_of_payload[image.payload].append(row)
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        cores = usable_cores()
        running: set[Future[None]] = set()
        try:
            with ThreadPoolExecutor(cores, thread_name_prefix="decode") as pool:
                try:
                    for payload, rows in rows_of_payload.items():
                        if len(running) > cores:
                            running = self._wait_for_one(running)
                        running.add(pool.submit(self._decode_payload, split, spec, payload, rows, descriptor))
                    while running:
                        running = self._wait_for_one(running)
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            os.close(descriptor)

    def _wait_for_one(self, running: set[Future[None]]) -> set[Future[None]]:
        """Wait until a payload is decoded; return the others. Raises what its thread or `check` raised."""
        self._check()
        done, others = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()
        return others

    def _decode_payload(
        self, split: Split, spec: InputSpec, number: int, rows: list[int], descriptor: int
    ) -> None:
        """Decode a payload's images of a split, and write each at its place in the file."""
        file = self._manifest.payloads[number]
        try:
            payload = retry(partial(read_payload, self._store, file.key, file.digest), self._pauses)
        except PayloadDamaged as error:
            raise DataUnavailable(
                f"{self} cannot be loaded: {error} Or add the images as a dataset with another name."
            ) from None
        roots = Roots(self._settings.reference_roots, self._settings.private_hosts)
        size = math.prod(spec.shape)
        for row in rows:
            pixels = self._decoded(self._of_split[split][row], payload, spec, roots)
            _write_at(descriptor, pixels.tobytes(), row * size)

    def _decoded(self, image: DatasetImage, payload: Payload, spec: InputSpec, roots: Roots) -> Uint8:
        limits = self._settings.image_limits
        try:
            content = payload.contents[image.place]
            if isinstance(content, ImageError):
                raise content
            if isinstance(content, Reference):
                content = retry(partial(roots.read, content, max_bytes=limits.max_bytes), self._pauses)
            return decode(content, spec, limits)
        except ImageError as error:
            raise DataUnavailable(
                f"{self} cannot be loaded: its image {image.name} cannot be read ({error}). Put it back as "
                "it was, or add the images as a dataset with another name."
            ) from None


def _cache_name(version: DatasetVersion, spec: InputSpec) -> str:
    """Return the name of the cache's folder for a version and an input."""
    size = f"{spec.width}x{spec.height}"
    return f"{version.fingerprint[:24]}-{size}-{spec.mode}-{spec.resampling}-{spec.invert}"


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Write all bytes at this place of the file. Raises OSError."""
    rest = memoryview(data)
    while rest:  # on a full disk, a call writes a part and only the next one fails
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _remove_oldest(folder: Path, *, keep: Path) -> None:
    """Remove the least recently used folders. Keep `keep` and the latest others.

    If another process has a removed file open, it can still read it.
    """
    others = [each for each in folder.iterdir() if each != keep and not each.name.startswith(".")]
    for old in sorted(others, key=lambda each: each.stat().st_mtime, reverse=True)[_KEPT - 1 :]:
        with suppress(OSError):  # another process removes it
            shutil.rmtree(old)
