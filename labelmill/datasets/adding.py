"""Add a version of a dataset: read, decode, merge, store. Nothing is stored unless all of it is.

The images and their list go into a folder of the store that only this version has. The row comes last, and
only the row makes the version exist. A folder without a row was left by a killed process.
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from typing import Final, NamedTuple

from jobs.dataset import MNIST, DatasetVersion, Split, check_name, dataset_folder
from jobs.errors import Conflict, ImageError, SourceError, Unavailable, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.datasets import add_version, latest_version
from jobs.manifest import Manifest, PayloadFile, read_manifest
from jobs.payloads import Content, pack_payload, payload_digest
from jobs.references import Roots
from jobs.settings import Settings
from jobs.store import Store
from jobs.store_identity import check_store
from labelmill.datasets.examining import Examiner
from labelmill.datasets.labels import check_number
from labelmill.datasets.merging import Merging, Place
from labelmill.datasets.removing import remove_strays
from labelmill.datasets.sources import LabelledImage, Skipped, labelled_images
from labelmill.datasets.summary import summarize
from producer.chunking import content_of

#: Maximum images and bytes of one payload. All of it is in memory.
_PAYLOAD_IMAGES: Final = 4_096
_PAYLOAD_BYTES: Final = 32 * 1024 * 1024

#: The name of the list of images, in the folder of its version.
_MANIFEST: Final = "manifest.jsonl.gz"


class Added(NamedTuple):
    """The result of adding to a dataset."""

    version: DatasetVersion
    new: bool  # False if the sources held nothing that the latest version does not have


def add_dataset(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    name: str,
    sources: Sequence[str],
    *,
    by_reference: bool = False,
    on_progress: Callable[[int], None] = lambda _images: None,
) -> Added:
    """Add the images of the sources to the dataset as a new version, which also has those of the latest one.

    `on_progress` is called with the number of images read so far. After any exception, Ctrl-C included,
    nothing is stored.

    Raises UserError if the name or the images cannot be used; SourceError; Conflict if another process added to this dataset meanwhile, or if the store is not the one that the
    workers use; DataUnavailable if the latest version cannot be read; Unavailable.
    """
    if check_name(name) == MNIST:
        raise Conflict(f"{MNIST} is built in, and nothing can be added to it: choose another name.")
    check_store(ledger, store)
    remove_strays(ledger, store, name)
    with ledger.reading() as connection:
        before = latest_version(connection, name)
    known = read_manifest(store, before) if before else Manifest((), ())
    merging = Merging(known, before.classes if before else ())
    skipped = Skipped()
    found = labelled_images(sources, settings, skipped)
    roots = _roots(settings) if by_reference else None
    folder = f"{dataset_folder(name)}/{new_id()}"
    try:
        with closing(Examiner(settings.image_limits)) as examiner:
            _store_images(store, folder, found, examiner, merging, roots, on_progress)
        classes = merging.classes()
        manifest = merging.manifest(classes)
        _check_usable(manifest, classes, merging, skipped)
        fingerprint = manifest.fingerprint(classes)
        if before is not None and fingerprint == before.fingerprint:
            store.remove_folder(folder)
            return Added(before, new=False)
        key = f"{folder}/{_MANIFEST}"
        store.put(key, manifest.to_bytes())
        with ledger.transaction() as connection:
            version = add_version(
                connection,
                name,
                after=before,
                fingerprint=fingerprint,
                classes=classes,
                summary=summarize(manifest, classes, merging, skipped),
                manifest=key,
                by_reference=by_reference or (before is not None and before.by_reference),
            )
        return Added(version, new=True)
    except BaseException as error:
        # Ctrl-C may have interrupted the end of a transaction. The traceback's frames then keep it open, and
        # SQLite has only one writer: clear them.
        traceback.clear_frames(error.__traceback__)
        try:
            stored = _remove_unless_added(ledger, store, name, folder)
        except Unavailable as unavailable:
            raise error from unavailable  # the first error is the one to report
        if stored is None:
            raise
        return Added(stored, new=True)  # the COMMIT went through although its answer was lost


def _store_images(
    store: Store,
    folder: str,
    found: Iterable[LabelledImage],
    examiner: Examiner,
    merging: Merging,
    roots: Roots | None,
    on_progress: Callable[[int], None],
) -> None:
    """Decode all images, merge them, and store those that are new as payloads in the folder."""
    done = 0
    for batch in _batches(found):
        readable = []
        for each in batch:
            if each.image.data is None:
                assert each.image.error is not None  # noqa: S101 -- a source gives one or the other
                merging.add_unreadable(each.image.name, each.image.error)
            else:
                readable.append((each, each.image.data))
        names: list[str] = []
        contents: list[Content] = []
        for (each, data), examined in zip(
            readable, examiner.examine([data for _, data in readable]), strict=True
        ):
            name = each.image.name
            if isinstance(examined, ImageError):
                merging.add_unreadable(name, examined)
                continue
            place = Place(len(merging.payloads), len(names))
            if merging.add(name, each.label, hashlib.sha256(data).hexdigest(), examined, place):
                names.append(name)
                contents.append(content_of(each.image, roots))
        if names:
            merging.payloads.append(_store_payload(store, folder, names, contents))
        done += len(batch)
        on_progress(done)


def _batches(found: Iterable[LabelledImage]) -> Iterator[list[LabelledImage]]:
    """Yield the images in groups that fit into one payload."""
    batch: list[LabelledImage] = []
    size = 0
    for each in found:
        more = len(each.image.data or b"")
        if batch and (len(batch) == _PAYLOAD_IMAGES or size + more > _PAYLOAD_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(each)
        size += more
    if batch:
        yield batch


def _store_payload(store: Store, folder: str, names: list[str], contents: list[Content]) -> PayloadFile:
    pieces = pack_payload(names, contents)
    digest = payload_digest(*pieces)
    key = f"{folder}/{digest}.msgpack"
    store.put(key, *pieces)
    return PayloadFile(key, digest, len(names))


def _roots(settings: Settings) -> Roots:
    """Return the roots of references. Raises SourceError if there are none."""
    roots = Roots(settings.reference_roots)
    if not roots:
        raise SourceError(
            "Adding by reference is not enabled: set LABELMILL_REFERENCE_ROOTS to folders and URLs that every "
            "trainer can reach, for this command and trainers, or leave out --by-reference."
        )
    return roots


def _check_usable(manifest: Manifest, classes: tuple[str, ...], merging: Merging, skipped: Skipped) -> None:
    """Raise UserError if no model could be trained and evaluated on these images."""
    first = merging.unreadable.first[0] if merging.unreadable.count else None
    example = f" (the first unreadable image: {first['name']}, {first['error']})" if first else ""
    if not manifest.images:
        raise UserError(f"The sources contain no images of a class{example}: nothing was stored.")
    if lost := sorted(skipped.expected.difference(classes)):
        raise UserError(f"The class {lost[0]!r} has no image that can be used{example}: nothing was stored.")
    check_number(classes, "The dataset")
    if len(classes) == 1:
        raise UserError(
            f"All images are of one class, {classes[0]!r}, and a dataset needs at least two: name the folder "
            "that contains the folders of the classes. Nothing was stored."
        )
    totals = [0] * len(classes)
    train = [0] * len(classes)
    splits = dict.fromkeys(Split, 0)
    for image in manifest.images:
        totals[image.label] += 1
        train[image.label] += image.split is Split.TRAIN
        splits[image.split] += 1
    for name, total, to_train in zip(classes, totals, train, strict=True):
        if total == 1:
            raise UserError(
                f"The class {name!r} has only one image: add more images of it, or leave it out. Nothing was "
                "stored."
            )
        if not to_train:
            raise UserError(
                f"The class {name!r} has no training images, all {total} are in other splits: add more images "
                "of it. Nothing was stored."
            )
    for split, number in splits.items():
        if not number:
            raise UserError(
                f"No image is in the {split} split: add more images, or give all three splits. Nothing was stored."
            )


def _remove_unless_added(ledger: Ledger, store: Store, name: str, folder: str) -> DatasetVersion | None:
    """Remove the folder, unless the version turns out to be in the ledger. Then return that version."""
    with ledger.reading() as connection:
        latest = latest_version(connection, name)
    if latest is not None and latest.manifest.startswith(f"{folder}/"):
        return latest
    store.remove_folder(folder)
    return None
