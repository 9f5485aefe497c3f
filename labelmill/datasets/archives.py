"""Find the classes or the manifest of an archive before its images are read."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from jobs.errors import ImageError, UserError
from jobs.limits import ArchiveLimits
from labelmill.datasets.labels import are_splits, check_class_count
from labelmill.datasets.manifests import ManifestFile
from producer.sources.archives import ArchiveFormat
from producer.sources.files import shown
from producer.sources.image import is_hidden, is_image_name

#: A manifest in an archive has one of these names.
_MANIFESTS: Final = ("manifest.csv", "manifest.jsonl", "manifest.ndjson", "manifest.parquet")

#: Maximum bytes of such a manifest, which is held in memory.
_MANIFEST_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Contents:
    """What an archive holds."""

    prefix: str  # the path of the folder with the classes, the splits or the manifest, with a slash, or ""
    with_splits: bool = False
    classes: tuple[str, ...] = ()
    manifest_name: str = ""  # its path in the archive
    manifest: ManifestFile | None = None


def scan_archive(path: str, found: ArchiveFormat, limits: ArchiveLimits) -> Contents:
    """Return where an archive has its classes or its manifest.

    Raises SourceError if it cannot be read, UserError if it has several manifests or too many classes.
    """
    folders: set[str] = set()
    manifests: dict[str, bytes] = {}
    try:
        for name, data in found.scan(path, limits, _is_manifest, _MANIFEST_BYTES):
            folder, _, base = name.rpartition("/")
            if data is not None:
                manifests[name] = data
            elif is_image_name(base) and not any(part != "." and is_hidden(part) for part in name.split("/")):
                folders.add(folder)
    except ImageError as error:
        raise UserError(f"The manifest in {shown(path)} cannot be read ({error}): pack it again.") from None
    if manifests:
        return _only_manifest(path, manifests)
    return _find_classes(path, folders)


def _is_manifest(name: str) -> bool:
    return posixpath.basename(name).lower() in _MANIFESTS


def _only_manifest(path: str, manifests: dict[str, bytes]) -> Contents:
    if len(manifests) > 1:
        raise UserError(
            f"{shown(path)} has several manifests: {', '.join(sorted(manifests)[:3])}. Keep one, or pack "
            "each with its images as an archive of its own."
        )
    ((name, data),) = manifests.items()
    prefix = name[: name.rfind("/") + 1]
    return Contents(prefix, manifest_name=name, manifest=ManifestFile(name, data))


def _find_classes(path: str, folders: Iterable[str]) -> Contents:
    """Find the classes among the folders that have images directly in them.

    A folder that contains all other folders with images is skipped: archives are often packed with one.
    """
    parts = [tuple(folder.split("/")) if folder else () for folder in folders]
    level = 0
    while True:
        tops = {each[level] for each in parts if len(each) > level}
        has_files = any(len(each) == level for each in parts)
        is_whole = all(len(each) > level + 1 for each in parts)  # no image is directly in it
        is_only_folder = len(tops) == 1 and not has_files and (is_whole or tops == {"."})
        with_splits = are_splits(tops)
        if with_splits or not is_only_folder:
            break
        level += 1
    deepest = level + with_splits
    classes = {each[deepest] for each in parts if len(each) > deepest}
    check_class_count(classes, shown(path))
    prefix = "".join(f"{part}/" for part in next(iter(parts), ())[:level])
    return Contents(prefix, with_splits=with_splits, classes=tuple(sorted(classes)))
