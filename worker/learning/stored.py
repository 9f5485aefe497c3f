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
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from jobs.models.model import MNIST_INPUT, PHOTO_REDUCTION, InputSpec, Mode
from jobs.network.references import Reference, Roots
from jobs.reading import why
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, Manifest, read_manifest
from jobs.storage.payloads import Payload, read_payload
from jobs.storage.store import Store
from worker.backoff import retry
from worker.learning.data import Data, Labelled, OnDemand, Uint8, Uint16, no_images
from worker.predicting.decode import decode

#: How many versions and inputs of each dataset the cache keeps.
_KEPT: Final = 3

#: An image of one of these modes, as Pillow names them, is grey.
_GREY: Final = frozenset(("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L", "I;16N"))

# The sides of a network's input, in pixels, if the images have different sizes.
_LEAST_SIDE: Final = 32
MAX_CHOSEN_SIDE: Final = 64
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
    reduction = 0 if mode == "L" else PHOTO_REDUCTION
    if size is not None:
        return InputSpec(size, size, mode, reduction=reduction)
    sizes = {(image.width, image.height) for image in listed}
    if len(sizes) == 1:
        [(width, height)] = sizes
        if (height, width) == MNIST_INPUT.shape and mode == MNIST_INPUT.mode:
            return MNIST_INPUT
        if min(width, height) >= _LEAST_OWN_SIDE and max(width, height) <= MAX_CHOSEN_SIDE:
            return InputSpec(width, height, mode, reduction=reduction)
    median = _median_side(listed)
    side = round(min(max(median, _LEAST_SIDE), MAX_CHOSEN_SIDE) / _SIDE_STEP) * _SIDE_STEP
    return InputSpec(side, side, mode, reduction=reduction)


def _median_side(images: Iterable[DatasetImage]) -> float:
    """Return the median of the images' shorter sides, in pixels."""
    return float(np.median([min(image.width, image.height) for image in images]))


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

    @property
    def median_side(self) -> float:
        """Return the median of the images' shorter sides, in pixels."""
        return _median_side(self._manifest.images)

    def prepared(self, spec: InputSpec, *, for_training: bool = True, on_demand: bool = False) -> Data:
        """Return all images, or only the test set, prepared for a model with this input.

        They are decoded now and kept in the cache, or with `on_demand` each time that one is taken. Raises
        DataUnavailable if an image cannot be read or the cache cannot be written, Unavailable.
        """
        version = self._version
        of_split = partial(self._on_demand if on_demand else self._split, spec=spec)
        return Data(
            dataset=version.dataset,
            version=version.version,
            source=f"{version.dataset}, version {version.version}",
            classes=version.classes,
            spec=spec,
            train=of_split(Split.TRAIN) if for_training else no_images(spec),
            validation=of_split(Split.VALIDATION) if for_training else no_images(spec),
            test=of_split(Split.TEST),
            live=no_images(spec),
            fingerprint=version.fingerprint,
            evaluation_fingerprints={
                Part.TEST: self._manifest.fingerprint(version.classes, [Split.TEST]),
            },
            part_for=self._part_for,
        )

    def _part_for(self, part: Part, spec: InputSpec) -> Labelled:
        return self._split(Split.TEST, spec) if part == Part.TEST else no_images(spec)

    def _on_demand(self, split: Split, spec: InputSpec) -> Labelled:
        images = self._of_split[split]
        decoded = OnDemand(
            (len(images), *spec.shape), [image.payload for image in images], partial(self._taken, split, spec)
        )
        return Labelled(decoded, *_labels_and_pictures(images))

    def _taken(self, split: Split, spec: InputSpec, rows: Sequence[int]) -> Uint8:
        """Return these rows of a split, decoded by as many threads as there are cores."""
        found = np.empty((len(rows), *spec.shape), np.uint8)
        places = {row: place for place, row in enumerate(rows)}

        def decode_payload(number: int, of_payload: list[int]) -> None:
            for row, pixels in self._decode_payload(split, spec, number, of_payload):
                found[places[row]] = pixels

        self._decode_all(split, places, decode_payload)
        return found

    def _split(self, split: Split, spec: InputSpec) -> Labelled:
        images = self._of_split[split]
        shape = (len(images), *spec.shape)
        if not images:
            return no_images(spec)
        try:
            pixels = np.memmap(self._cached(split, spec), np.uint8, "r", shape=shape)
            return Labelled(pixels, *_labels_and_pictures(images))
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
            self._decode_into(unfinished, split, spec)
            sync(unfinished)
            make_private_folder(folder)  # another process may have removed it as the oldest
            unfinished.rename(path)
        sync(folder)
        return path

    def _decode_into(self, path: Path, split: Split, spec: InputSpec) -> None:
        """Decode a split's images into a file."""
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        size = math.prod(spec.shape)

        def decode_payload(number: int, rows: list[int]) -> None:
            for row, pixels in self._decode_payload(split, spec, number, rows):
                _write_at(descriptor, pixels.tobytes(), row * size)

        try:
            self._decode_all(split, range(len(self._of_split[split])), decode_payload)
        finally:
            os.close(descriptor)

    def _decode_all(
        self, split: Split, rows: Iterable[int], decode_payload: Callable[[int, list[int]], None]
    ) -> None:
        """Call `decode_payload` with each payload's number and rows, one payload per core at a time."""
        rows_of_payload: dict[int, list[int]] = defaultdict(list)
        for row in rows:
            rows_of_payload[self._of_split[split][row].payload].append(row)
        cores = usable_cores()
        running: set[Future[None]] = set()
        with ThreadPoolExecutor(cores, thread_name_prefix="decode") as pool:
            try:
                for payload, of_payload in rows_of_payload.items():
                    if len(running) > cores:
                        running = self._wait_for_one(running)
                    running.add(pool.submit(decode_payload, payload, of_payload))
                while running:
                    running = self._wait_for_one(running)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _wait_for_one(self, running: set[Future[None]]) -> set[Future[None]]:
        """Wait until a payload is decoded; return the others. Raises what its thread or `check` raised."""
        self._check()
        done, others = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()
        return others

    def _decode_payload(
        self, split: Split, spec: InputSpec, number: int, rows: list[int]
    ) -> Iterator[tuple[int, Uint8]]:
        """Yield these rows of a split, which are in one payload, with their pixels."""
        file = self._manifest.payloads[number]
        try:
            payload = retry(partial(read_payload, self._store, file.key, file.digest), self._pauses)
        except PayloadDamaged as error:
            raise DataUnavailable(
                f"{self} cannot be loaded: {error} Or add the images as a dataset with another name."
            ) from None
        roots = Roots(self._settings.reference_roots, self._settings.private_hosts)
        for row in rows:
            yield row, self._decoded(self._of_split[split][row], payload, spec, roots)

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


def _labels_and_pictures(images: Sequence[DatasetImage]) -> tuple[Uint16, tuple[str, ...]]:
    labels = np.array([image.label for image in images], np.uint16)
    return labels, tuple(image.pixels for image in images)


def _cache_name(version: DatasetVersion, spec: InputSpec) -> str:
    """Return the name of the cache's folder for a version and an input."""
    return f"{version.fingerprint[:24]}-{spec.slug}"


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
