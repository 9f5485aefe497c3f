"""Read the labelled images of the sources that a user names, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jobs.errors import SourceError, UserError
from jobs.settings import Settings
from jobs.text import storable
from labelmill.datasets.labels import FolderLabels, Label, are_splits, check_number
from producer.sources import SourceImage, Sources
from producer.sources.files import shown
from producer.sources.image import is_hidden, is_image_name


class LabelledImage(NamedTuple):
    """One image of a source, and what the source says about it."""

    image: SourceImage
    label: Label


@dataclass(slots=True)
class Skipped:
    """What the sources hold beside labelled images."""

    files: int = 0  # not images by their names
    unlabelled: int = 0  # images in no class's folder
    first_unlabelled: str | None = None
    expected: set[str] = field(default_factory=set)  # classes that have a folder


def labelled_images(sources: Sequence[str], settings: Settings, skipped: Skipped) -> Iterator[LabelledImage]:
    """Yield the labelled images of all sources, and count the rest in `skipped`.

    Raises SourceError or UserError for a source that cannot be used.
    """
    for source in sources:
        yield from _read(source, settings, skipped)


def _read(source: str, settings: Settings, skipped: Skipped) -> Iterator[LabelledImage]:
    images = Sources([source], max_bytes=settings.max_image_bytes, archives=settings.archive_limits)
    path = Path(source)
    if path.is_dir():
        labels = _folder_labels(source, skipped)
    else:
        raise SourceError(
            f"{shown(source)} says nothing about classes: name a folder with one subfolder per class, a ZIP or TAR "
            "archive of one, a manifest (.csv, .jsonl, .parquet), or IDX files."
        )
    for image in images:
        label = labels.of(image.name)
        if label is None:
            skipped.unlabelled += 1
            skipped.first_unlabelled = skipped.first_unlabelled or image.name
        else:
            yield LabelledImage(image, label)
    skipped.files += images.skipped


def _folder_labels(source: str, skipped: Skipped) -> FolderLabels:
    """Find the classes of a folder. Raises UserError if one is empty or there are too many."""
    name = shown(source)
    folders = _subfolders(source)
    with_splits = are_splits(folders)
    parents = [os.path.join(source, folder) for folder in folders] if with_splits else [source]  # noqa: PTH118
    for parent in parents:
        for each in _subfolders(parent) if with_splits else folders:
            folder = os.path.join(parent, each)  # noqa: PTH118
            if not _has_image(folder):
                raise UserError(
                    f"The class {each!r} is empty: {shown(folder)} holds no images. Add some, or remove the folder."
                )
            skipped.expected.add(each)
            check_number(skipped.expected, name)
    return FolderLabels("" if name == "." else f"{name.rstrip('/')}/", with_splits)


def _subfolders(folder: str) -> list[str]:
    """Return the names of the folders in a folder, in order. Raises UserError if they are too many."""
    found: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
                found.add(storable(entry.name))
                check_number(found, shown(folder))
    return sorted(found)


def _has_image(folder: str) -> bool:
    return any(
        is_image_name(name) and not is_hidden(name) for _, _, names in os.walk(folder) for name in names
    )
