"""Make a version of a dataset without some of its images. Earlier versions keep them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatchcase

from jobs.errors import UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import get_version
from jobs.models.dataset import DatasetVersion, dataset_folder
from jobs.models.model import name_classes
from jobs.storage.dataset_list import Manifest, read_manifest
from jobs.storage.store import Store
from jobs.storage.store_identity import check_store
from labelmill.datasets.adding import recover_version, save_version
from labelmill.datasets.checking import check_usable
from labelmill.datasets.merging import Merging
from labelmill.datasets.sources import Skipped


def drop_images(
    ledger: Ledger,
    store: Store,
    name: str,
    *,
    classes: Collection[str] = (),
    names: Sequence[str] = (),
    added_by: int | None = None,
) -> DatasetVersion:
    """Add a version without the images of these classes, with names that match these globs, or both.

    With `added_by`, also without the images that this version added.

    Raises NotFound; UserError if there is no such class or image, or too few images would be left; Conflict,
    DataUnavailable, Unavailable.
    """
    check_store(ledger, store)
    with ledger.reading() as connection:
        before = get_version(connection, name)
        adding = get_version(connection, name, added_by) if added_by else None
        earlier = get_version(connection, name, added_by - 1) if added_by and added_by > 1 else None
    if unknown := sorted(set(classes).difference(before.classes)):
        raise UserError(
            f"Dataset {name} has no class {unknown[0]!r}: its classes are {name_classes(before.classes)}."
        )
    known = read_manifest(store, before)
    added = _pixels(store, adding) - _pixels(store, earlier)
    kept = [
        image
        for image in known.images
        if before.classes[image.label] not in classes
        and image.pixels not in added
        and not any(fnmatchcase(image.name, glob) for glob in names)
    ]
    removed = len(known.images) - len(kept)
    if not removed:
        raise UserError(f"Dataset {name}, version {before.version}, has no such image: nothing is removed.")
    merging = Merging(Manifest(known.payloads, tuple(kept)), before.classes)
    left = merging.classes()
    manifest = merging.manifest(left)
    check_usable(manifest, left, merging, Skipped())
    folder = f"{dataset_folder(name)}/{new_id()}"
    try:
        return save_version(
            ledger,
            store,
            name,
            folder,
            manifest,
            merging,
            Skipped(),
            fingerprint=manifest.fingerprint(left),
            before=before,
            by_reference=before.by_reference,
            removed=removed,
        )
    except BaseException as error:
        return recover_version(error, ledger, store, folder)


def _pixels(store: Store, version: DatasetVersion | None) -> set[str]:
    """Return the hashes of the images of a version; none without one."""
    return set() if version is None else {image.pixels for image in read_manifest(store, version).images}
