"""Write a version of a dataset into a folder, as other programs read it: SPLIT/CLASS/IMAGE."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

from jobs.errors import Conflict, ImageError, UserError
from jobs.models.dataset import DatasetVersion
from jobs.network.references import Reference, Roots
from jobs.reading import why
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, read_manifest
from jobs.storage.payloads import Content, read_payload
from jobs.storage.store import Store
from worker.predicting.validation import HEAD_BYTES, decoded_format

#: Characters of an image's name that are kept, and of its hash, which makes the name unique.
_NAME: Final = 100
_HASH: Final = 12


def export_version(
    store: Store,
    settings: Settings,
    version: DatasetVersion,
    folder: Path,
    on_progress: Callable[[int], None],
) -> int:
    """Write the images of a version into a folder, which must be new or empty.

    Return how many images could not be read any more. `on_progress` is called with the number of images done.

    Raises Conflict if the folder is not empty; UserError if it cannot be written, or if a class's name cannot
    be that of a folder; DataUnavailable, PayloadDamaged, Unavailable.
    """
    for name in version.classes:
        if "/" in name or name.startswith("."):
            raise UserError(
                f"The class {name!r} cannot be the name of a folder: add its images under another name."
            )
    manifest = read_manifest(store, version)
    roots = Roots(settings.reference_roots, settings.private_hosts)
    done = unreadable = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise Conflict(f"{folder} is not empty: name a new folder.")
        by_payload = attrgetter("payload")
        for number, images in groupby(sorted(manifest.images, key=by_payload), key=by_payload):
            file = manifest.payloads[number]
            contents = read_payload(store, file.key, file.digest).contents
            for image in images:
                data = _read(contents[image.place], roots, settings)
                if data is None:
                    unreadable += 1
                    continue
                parent = folder / image.split / version.classes[image.label]
                parent.mkdir(parents=True, exist_ok=True)
                (parent / _file_name(image, data)).write_bytes(data)
                done += 1
            on_progress(done)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({why(error)}): name another folder.") from None
    return unreadable


def _read(content: Content, roots: Roots, settings: Settings) -> bytes | None:
    """Return the bytes of an image, or None if it cannot be read any more."""
    try:
        if isinstance(content, Reference):
            content = roots.read(content, max_bytes=settings.max_image_bytes)
    except ImageError:
        return None
    return content if isinstance(content, bytes) else None


def _file_name(image: DatasetImage, data: bytes) -> str:
    """Return a name with the ending of the image's format: that of an IDX file's image has none."""
    stem = re.sub(r"[^\w.-]", "_", Path(image.name).stem, flags=re.ASCII)[:_NAME].lstrip(".")
    ending = (decoded_format(data[:HEAD_BYTES]) or "").lower()
    return f"{stem}-{image.sha256[:_HASH]}.{ending}"
