"""Add a version of a dataset: read, decode, merge, store. Nothing is stored unless all of it is.

The images and their list go into a folder of the store that belongs to this version alone. The row comes
last, and only the row makes the version exist. A folder without a row was left by a killed process.
"""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Final, NamedTuple

from sqlalchemy.engine import Connection

from jobs.errors import ImageError, SourceError, Unavailable, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import add_version, find_version, latest_version
from jobs.models.dataset import DatasetVersion, check_name, dataset_folder
from jobs.network.references import Roots
from jobs.settings import Settings
from jobs.storage.dataset_list import Manifest, PayloadFile, read_manifest
from jobs.storage.payloads import Content, pack_payload, payload_digest
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from labelmill.datasets.checking import check_usable
from labelmill.datasets.decoding import Decoded, Decoder
from labelmill.datasets.look_alikes import LookAlikes
from labelmill.datasets.merging import Merging, Place
from labelmill.datasets.removing import remove_strays
from labelmill.datasets.sources import LabelledImages, LabelledSources, Skipped
from labelmill.datasets.summary import summarize
from producer.chunking import content_of
from producer.sources import SourceImage

#: Maximum images and bytes of one payload. All of it is in memory.
_PAYLOAD_IMAGES: Final = 4_096
_PAYLOAD_BYTES: Final = 32 * 1024 * 1024

#: The name of the list of images, in the folder of its version.
_MANIFEST: Final = "manifest.msgpack"


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
    group_by: str | None = None,
    on_progress: Callable[[int], None] = lambda _images: None,
    on_add: Callable[[Connection], None] = lambda _connection: None,
) -> Added:
    """Add the images of the sources to the dataset as a new version, which keeps those of the latest one.

    `group_by` is a regular expression: images are in one split if it finds the same in their names.
    `on_progress` is called with the number of images read so far, and `on_add` in the transaction that adds
    the version. After any exception, Ctrl-C included, nothing is stored.

    Raises UserError if the name or the images cannot be used; SourceError; Conflict if another process added
    to this dataset meanwhile, or if the store is not the one that the workers use; DataUnavailable if the
    latest version cannot be read; Unavailable.
    """
    check_name(name)
    groups = None if group_by is None else _compile(group_by)
    found = LabelledSources(sources, settings)
    roots = _roots(settings) if by_reference else None
    check_store(ledger, store)
    remove_strays(ledger, store, name)
    with ledger.reading() as connection:
        before = latest_version(connection, name)
    known = read_manifest(store, before) if before else Manifest((), ())
    merging = Merging(known, before.classes if before else ())
    folder = f"{dataset_folder(name)}/{new_id()}"
    try:
        with closing(Decoder(settings.image_limits)) as decoder:
            looks = LookAlikes(decoder)
            _store_images(store, folder, found, decoder, looks, merging, roots, groups, on_progress)
            classes = merging.classes()
            manifest = merging.manifest(classes)
            merging.look_alikes = looks.across_splits(manifest)
        check_usable(manifest, classes, merging, found.skipped)
        fingerprint = manifest.fingerprint(classes)
        if before is not None and fingerprint == before.fingerprint:
            store.remove_folder(folder)
            return Added(before, new=False)
        version = save_version(
            ledger,
            store,
            name,
            folder,
            manifest,
            merging,
            found.skipped,
            fingerprint=fingerprint,
            before=before,
            by_reference=by_reference or (before is not None and before.by_reference),
            on_add=on_add,
        )
        return Added(version, new=True)
    except BaseException as error:
        return Added(recover_version(error, ledger, store, folder), new=True)


def save_version(
    ledger: Ledger,
    store: Store,
    name: str,
    folder: str,
    manifest: Manifest,
    merging: Merging,
    skipped: Skipped,
    *,
    fingerprint: str,
    before: DatasetVersion | None,
    by_reference: bool,
    removed: int = 0,
    on_add: Callable[[Connection], None] = lambda _connection: None,
) -> DatasetVersion:
    """Store the list of images in the version's folder, and add the version. Raises Conflict, Unavailable.

    `removed` is how many images of the version before it does not have.
    """
    key = f"{folder}/{_MANIFEST}"
    store.put(key, manifest.to_bytes())
    classes = merging.classes()
    with ledger.transaction() as connection:
        version = add_version(
            connection,
            name,
            after=before,
            fingerprint=fingerprint,
            classes=classes,
            summary=summarize(manifest, classes, merging, skipped) | {"removed": removed},
            manifest=key,
            by_reference=by_reference,
        )
        on_add(connection)
    return version


def recover_version(error: BaseException, ledger: Ledger, store: Store, folder: str) -> DatasetVersion:
    """Return the folder's version if it was added although this error came; otherwise raise it again.

    The COMMIT may go through although its answer is lost. If not, the folder is removed.
    """
    # Ctrl-C may have interrupted the end of a transaction. The traceback's frames then keep it open, and
    # SQLite has only one writer: clear them.
    traceback.clear_frames(error.__traceback__)
    try:
        stored = _remove_unless_added(ledger, store, folder)
    except Unavailable as unavailable:
        raise error from unavailable  # the first error is the one to report
    if stored is None:
        raise error
    return stored


def _store_images(
    store: Store,
    folder: str,
    found: Iterable[LabelledImages],
    decoder: Decoder,
    looks: LookAlikes,
    merging: Merging,
    roots: Roots | None,
    groups: re.Pattern[str] | None,
    on_progress: Callable[[int], None],
) -> None:
    """Decode all images, merge them, and store those that are new as payloads in the folder.

    A thread writes each payload while the next images are decoded, because writing waits for the disk.
    """
    done = 0
    writes: list[Future[PayloadFile]] = []
    with ThreadPoolExecutor(1, thread_name_prefix="storing") as pool:
        for batch, decoded in _decode_all(_batches(found), decoder):
            names: list[str] = []
            contents: list[Content] = []
            payload = len(merging.payloads) + len(writes)
            for name, content, url, label, picture in zip(*batch, decoded, strict=True):
                if isinstance(picture, ImageError):
                    merging.add_unreadable(name, picture)
                    continue
                assert isinstance(content, bytes)  # noqa: S101 -- an error has no picture
                place = Place(payload, len(names))
                if groups is not None and label.group is None and (match := groups.search(name)):
                    label = label._replace(group=match[min(1, groups.groups)])
                if merging.add(name, label, hashlib.sha256(content).hexdigest(), picture, place):
                    names.append(name)
                    looks.add(picture, content)
                    contents.append(
                        content_of(SourceImage(name, content, None, url), roots) if roots else content
                    )
            if names:
                if writes:
                    writes[-1].result()  # at most one payload waits in memory
                writes.append(pool.submit(_store_payload, store, folder, names, contents))
            done += len(batch.names)
            on_progress(done)
    merging.payloads += [write.result() for write in writes]


def _compile(group_by: str) -> re.Pattern[str]:
    """Return the compiled regular expression. Raises UserError if it is none."""
    try:
        return re.compile(group_by)
    except re.error as error:
        raise UserError(f"{group_by!r} is not a regular expression ({error}): correct it.") from None


def _batches(found: Iterable[LabelledImages]) -> Iterator[LabelledImages]:
    """Yield the images in batches that fit into one payload."""
    batch = LabelledImages([], [], [], [])
    size = 0
    for each in found:
        more = sum(len(content) for content in each.contents if isinstance(content, bytes))
        if len(batch.names) + len(each.names) > _PAYLOAD_IMAGES or size + more > _PAYLOAD_BYTES:
            yield batch
            batch, size = LabelledImages([], [], [], []), 0
        batch.extend(each)
        size += more
    yield batch


def _decode_all(
    batches: Iterable[LabelledImages], decoder: Decoder
) -> Iterator[tuple[LabelledImages, list[Decoded]]]:
    """Yield each batch with the results of its images. The next batch is read while they are decoded."""
    waiting = None
    for batch in batches:
        begun = batch, decoder.begin(batch.contents)
        if waiting is not None:
            yield waiting[0], waiting[1]()
        waiting = begun
    if waiting is not None:
        yield waiting[0], waiting[1]()


def _store_payload(store: Store, folder: str, names: list[str], contents: list[Content]) -> PayloadFile:
    pieces = pack_payload(names, contents)
    digest = payload_digest(*pieces)
    key = f"{folder}/{digest}.msgpack"
    store.put(key, *pieces)
    return PayloadFile(key, digest, len(names))


def _roots(settings: Settings) -> Roots:
    """Return the roots of references. Raises SourceError if there are none."""
    roots = Roots(settings.reference_roots, settings.private_hosts)
    if not roots:
        raise SourceError(
            "Adding by reference is not enabled: set LABELMILL_REFERENCE_ROOTS to folders and URLs that "
            "every trainer can reach, for this command and trainers, or leave out --by-reference."
        )
    return roots


def _remove_unless_added(ledger: Ledger, store: Store, folder: str) -> DatasetVersion | None:
    """Return the folder's version if it is in the ledger; otherwise remove the folder and return None."""
    with ledger.reading() as connection:
        version = find_version(connection, manifest=f"{folder}/{_MANIFEST}")
    if version is None:
        store.remove_folder(folder)
    return version
