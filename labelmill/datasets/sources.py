"""Read the labelled images of the sources that a user names, in groups, one source after the other.

`producer.sources` reads the images. `labels` and `manifests` say what their classes are.
"""
# Paths are strings, as in `producer.sources`.
# ruff: noqa: PTH112, PTH113, PTH118, PTH119, PTH120, PTH208

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from jobs.errors import ErrorCode, ImageError, SourceError, UserError
from jobs.models.class_names import read_class_names
from jobs.models.dataset import Split
from jobs.network.objects import is_url, local_path, shown_url
from jobs.reading import why
from jobs.settings import Settings
from jobs.text import storable
from labelmill.datasets.archives import Contents, scan_archive
from labelmill.datasets.examples import Examples
from labelmill.datasets.labels import FolderLabels, Label, are_splits, check_class_count, to_label
from labelmill.datasets.manifests import Row, read_manifest_file, rows_of
from producer.sources import SourceImage, SourceImages, Sources, local_source
from producer.sources.archives import HEAD_BYTES, ArchiveFormat, archive_format
from producer.sources.files import head, is_below, read_link, shown
from producer.sources.idx import is_idx, labels_beside, read_labels
from producer.sources.image import Reading, failed, is_hidden, is_image_name
from producer.sources.remote import read_remote
from producer.sources.rows import is_manifest

#: What the names of IDX files begin with, by MNIST's example.
_IDX_SPLITS: Final = {"train": Split.TRAIN, "val": Split.VALIDATION, "t10k": Split.TEST, "test": Split.TEST}


#: The file of class names beside IDX files: one name per line, in label order.
CLASS_NAMES: Final = "classes.txt"


class LabelledImages(NamedTuple):
    """Consecutive images with their labels."""

    names: list[str]
    contents: list[bytes | ImageError]
    urls: list[str | None]  # the paths or URLs of their bytes; None for a part of a file
    labels: list[Label]

    def extend(self, others: LabelledImages) -> None:
        """Append the others to these."""
        self.names.extend(others.names)
        self.contents.extend(others.contents)
        self.urls.extend(others.urls)
        self.labels.extend(others.labels)


@dataclass(slots=True)
class Skipped:
    """What the sources hold besides labelled images."""

    files: int = 0  # not images by their names
    unlabelled: Examples = field(default_factory=Examples)  # images without a label
    classes: set[str] = field(default_factory=set)  # classes that have a folder


_Found: TypeAlias = SourceImage | SourceImages


class LabelledSources:
    """The labelled images of several sources."""

    def __init__(self, sources: Sequence[str], settings: Settings) -> None:
        """Determine the kind of each source. Raises SourceError for one that cannot be used."""
        self._settings = settings
        self.skipped = Skipped()
        paths = list(map(local_source, sources))
        # A file of labels is read together with its images.
        labels = {labels_beside(path) for path in paths}
        self._readers = [(path, self._reader(path)) for path in paths if path not in labels]

    def __iter__(self) -> Iterator[LabelledImages]:
        """Yield the images, and count the rest in `skipped`.

        Raises SourceError or UserError for a source that turns out to be unusable.
        """
        for path, reader in self._readers:
            yield from reader(path)

    def _reader(self, path: str) -> Callable[[str], Iterator[LabelledImages]]:
        """Return the method that reads this source. Raises SourceError if it has no labels."""
        if os.path.isdir(path):
            return self._read_idx_folder if _idx_files(path) and not _subfolders(path) else self._read_folder
        if is_url(path):
            raise SourceError(
                f"{storable(shown_url(path))} is a URL, which says nothing about classes: name a manifest "
                "with the columns url and label"
            )
        if os.path.isfile(path):
            if is_manifest(path):
                return self._read_manifest
            first = head(path, HEAD_BYTES)
            if archive := archive_format(path, path, first):
                return partial(self._read_archive, archive)
            if is_idx(path, path, first[:4]):
                return self._read_idx
        self._images(path)  # if there is no such file, this says so
        raise SourceError(
            f"{shown(path)} says nothing about classes: name a folder with one subfolder per class, a ZIP or "
            "TAR archive of one, a manifest (.csv, .jsonl or .parquet), or IDX files"
        )

    def _images(self, path: str) -> Sources:
        return Sources(
            [path], max_bytes=self._settings.max_image_bytes, archives=self._settings.archive_limits
        )

    def _label(self, images: Sources, labels: FolderLabels) -> Iterator[LabelledImages]:
        """Yield images with the labels that their folders give them."""
        for found in images.batches():
            names, contents, urls = _columns(found)
            chosen = labels.of_all(names)
            if None not in chosen:
                yield LabelledImages(names, contents, urls, chosen)  # type: ignore[arg-type]
                continue
            for name, content, url, label in zip(names, contents, urls, chosen, strict=True):
                if label is None:
                    self.skipped.unlabelled.add(name=name)
                else:
                    yield LabelledImages([name], [content], [url], [label])
        self.skipped.files += images.skipped

    # ---- folders ----------------------------------------------------------------------------------

    def _read_folder(self, path: str) -> Iterator[LabelledImages]:
        """Yield the images of a folder. Raises UserError if a class is empty or there are too many."""
        folders = _subfolders(path)
        with_splits = are_splits(folders)
        for parent in [os.path.join(path, each) for each in folders] if with_splits else [path]:
            for each in _subfolders(parent) if with_splits else folders:
                folder = os.path.join(parent, each)
                if not _has_image(folder):
                    raise UserError(
                        f"The class {storable(each)!r} is empty: {shown(folder)} holds no images. Add some, "
                        "or remove the folder."
                    )
                self._expect_class(each, path)
        name = shown(path)
        prefix = "" if name == "." else f"{name.rstrip('/')}/"
        yield from self._label(self._images(path), FolderLabels(prefix, with_splits))

    def _expect_class(self, name: str, source: str) -> None:
        """Record a class that has a folder. Raises UserError if there are too many."""
        self.skipped.classes.add(to_label(storable(name)).name)
        check_class_count(self.skipped.classes, shown(source))

    # ---- archives ---------------------------------------------------------------------------------

    def _read_archive(self, archive: ArchiveFormat, path: str) -> Iterator[LabelledImages]:
        contents = scan_archive(path, archive, self._settings.archive_limits)
        if contents.manifest is not None:
            yield from self._read_archived_manifest(path, contents)
            return
        for each in contents.classes:
            self._expect_class(each, path)
        labels = FolderLabels(f"{shown(path)}/{contents.prefix}", contents.with_splits)
        yield from self._label(self._images(path), labels)

    def _read_archived_manifest(self, path: str, contents: Contents) -> Iterator[LabelledImages]:
        """Yield the images that an archive's manifest names. Those that are missing are unreadable."""
        assert contents.manifest is not None  # noqa: S101 -- the caller has checked
        labels: dict[str, list[Label]] = defaultdict(list)  # several are a conflict, which is reported
        for row in rows_of(contents.manifest, f"{shown(path)}/{contents.manifest_name}"):
            if row.path is None:
                raise row.wrong(
                    "a manifest in an archive cannot name a URL: pack the image, and name its path"
                )
            inside = os.path.normpath(row.path)
            if inside.startswith(("/", "..")):
                raise _outside(row)
            labels[storable(f"{shown(path)}/{contents.prefix}{inside}")].append(row.label)
        images = self._images(path)
        for found in images:
            if found.name not in labels:
                self.skipped.unlabelled.add(name=found.name)
            for label in labels.pop(found.name, ()):
                yield _one(found, label)
        self.skipped.files += images.skipped
        for name, missing in labels.items():
            yield _one(failed(name, ErrorCode.SOURCE_MISSING, "not in the archive"), missing[0])

    # ---- manifests --------------------------------------------------------------------------------

    def _read_manifest(self, path: str) -> Iterator[LabelledImages]:
        folder = os.path.dirname(path)
        root = os.path.realpath(folder)
        reading = Reading(self._settings.max_image_bytes, self._settings.archive_limits)
        for row in read_manifest_file(path):
            images = (
                _read_row_path(row, row.path, folder, root, reading)
                if row.path is not None
                else _read_row_url(row, reading)
            )
            for image in images:
                yield _one(reading.count(image), row.label)

    # ---- IDX files --------------------------------------------------------------------------------

    def _read_idx_folder(self, path: str) -> Iterator[LabelledImages]:
        for each in _idx_files(path):
            yield from self._read_idx(each)

    def _read_idx(self, path: str) -> Iterator[LabelledImages]:
        images = self._images(path)
        beside = labels_beside(path)
        if beside is None:
            raise SourceError(
                f"{shown(path)} has no labels: the file with its labels must be in the same folder, named as "
                "in MNIST (train-images-idx3-ubyte.gz and train-labels-idx1-ubyte.gz)"
            )
        numbers = read_labels(beside, self._settings.archive_limits)
        base = os.path.basename(path).lower()
        split = next((split for word, split in _IDX_SPLITS.items() if base.startswith(word)), None)
        classes = _class_names(path, highest=max(numbers, default=0))
        names = [to_label(name, split) for name in classes]
        count = 0
        for count, image in enumerate(images, 1):
            if count > len(numbers):
                break
            yield _one(image, names[numbers[count - 1]])
        if count != len(numbers):
            raise SourceError(
                f"{shown(path)} and {shown(beside)} do not belong together: one has {len(numbers):,} labels, "
                f"the other {'more' if count > len(numbers) else format(count, ',')} images. Fetch them again"
            )


def _class_names(path: str, *, highest: int) -> Sequence[str]:
    """Return the names of the labels 0 to `highest` of an IDX file: those in `classes.txt`, or numbers.

    Raises UserError if the file of names has too few, or cannot be read.
    """
    file = Path(path).with_name(CLASS_NAMES)
    if not os.path.lexists(file):  # a dangling symlink must be an error, not a folder without names
        return list(map(str, range(highest + 1)))
    names = read_class_names(file)
    if highest >= len(names):
        raise UserError(
            f"{shown(str(file))} lists {len(names)} classes, and {shown(path)} has the label {highest}: list "
            f"at least {highest + 1}, one per line."
        )
    return names


def _columns(found: _Found) -> tuple[list[str], list[bytes | ImageError], list[str | None]]:
    if isinstance(found, SourceImages):
        return found.names, found.data, found.paths  # type: ignore[return-value]  # lists of a narrower type
    return [found.name], [_content(found)], [found.url]


def _content(image: SourceImage) -> bytes | ImageError:
    if image.data is not None:
        return image.data
    assert image.error is not None  # noqa: S101 -- a source gives one or the other
    return image.error


def _one(image: SourceImage, label: Label) -> LabelledImages:
    return LabelledImages([image.name], [_content(image)], [image.url], [label])


def _subfolders(folder: str) -> list[str]:
    """Return the names of a folder's subfolders, in order. Raises UserError if there are too many."""
    found: set[str] = set()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False) and not is_hidden(entry.name):
                    found.add(entry.name)
                    check_class_count(found, shown(folder))
    except OSError as error:
        raise _unlisted(folder, error) from error
    return sorted(found)


def _has_image(folder: str) -> bool:
    """Return whether there is an image below a folder. Raises SourceError if it cannot be listed."""

    def fail(error: OSError) -> None:
        raise _unlisted(error.filename, error)

    files = (name for _, _, names in os.walk(folder, onerror=fail) for name in names)
    return any(is_image_name(name) and not is_hidden(name) for name in files)


def _unlisted(folder: str, error: OSError) -> SourceError:
    return SourceError(f"{shown(folder)} cannot be listed ({why(error)}): check its permissions")


def _idx_files(folder: str) -> list[str]:
    """Return the paths of the IDX files with images in a folder, in order. Raises SourceError."""
    try:
        names = sorted(name for name in os.listdir(folder) if "idx3-ubyte" in name.lower())
    except OSError as error:
        raise _unlisted(folder, error) from error
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if os.path.isfile(path)]


def _read_row_path(row: Row, path: str, folder: str, root: str, reading: Reading) -> Iterable[SourceImage]:
    whole = os.path.join(folder, path)
    try:
        resolved = os.path.realpath(whole)
    except ValueError:  # a NUL, which no file's name can have
        return [failed(storable(whole), ErrorCode.SOURCE_MISSING, "not a valid path")]
    if not is_below(resolved, root):
        raise _outside(row)
    return read_link(whole, resolved, reading)


def _read_row_url(row: Row, reading: Reading) -> Iterator[SourceImage]:
    url = row.url or ""
    try:
        if not is_url(local_path(url)):
            raise row.wrong(f"{url} is not a URL: name files in the column path")
        yield from read_remote(url, reading)
    except (SourceError, ValueError) as error:
        yield failed(storable(shown_url(url)), ErrorCode.SOURCE_MISSING, str(error))


def _outside(row: Row) -> UserError:
    return row.wrong(f"the path {row.path} leads out of the manifest's folder: copy the image into it")
