"""Merge new images with those of the previous version: each picture once, with one label, in one split."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from jobs.dataset import Split
from jobs.errors import ImageError
from jobs.manifest import DatasetImage, Manifest, PayloadFile
from jobs.text import storable
from labelmill.datasets.labels import Label
from worker.predicting.decode import Picture

#: How many names of unreadable images, duplicates and conflicts are kept.
SHOWN_NAMES: Final = 100

#: Identical pictures are kept in the first of these splits that one of them is in: a model must never learn
#: from an image that it is tested on.
_PRECEDENCE: Final = (Split.TEST, Split.VALIDATION, Split.TRAIN)

#: Made splits: 10 % of the hashes are test images, the next 10 % validation images.
_TEST_SHARE: Final = 0.1
_VALIDATION_SHARE: Final = 0.1

#: The share of given training images that become validation images if no source names any.
_VALIDATION_OF_TRAIN: Final = 1 / 9


@dataclass(slots=True)
class Findings:
    """Images with something to report: how many, and the first of them."""

    count: int = 0
    first: list[dict[str, Any]] = field(default_factory=list)

    def add(self, **facts: Any) -> None:
        """Count one."""
        self.count += 1
        if len(self.first) < SHOWN_NAMES:
            self.first.append(facts)

    def to_json(self) -> dict[str, Any]:
        """Return them for a summary."""
        return {"count": self.count, "first": self.first}


@dataclass(slots=True)
class _Entry:
    """One picture of the new version."""

    name: str
    label: str
    sha256: str
    picture: Picture
    payload: int
    place: int
    known_split: Split | None = None  # of the previous version
    is_new: bool = True  # not labelled by the previous version only
    given: tuple[Split, ...] = ()  # the splits that sources name, each once


class Place(NamedTuple):
    """Where the bytes of an image are stored."""

    payload: int
    place: int


class Merging:
    """The images of the version that is being made."""

    def __init__(self, before: Manifest, classes: tuple[str, ...]) -> None:
        """Begin with the images of the previous version, if there is one."""
        self.payloads: list[PayloadFile] = list(before.payloads)
        self.added = 0
        self.unreadable = Findings()
        self.error_codes: Counter[str] = Counter()
        self.duplicates = Findings()
        self.conflicts = Findings()
        self.relabelled = Findings()
        self.in_two_splits = Findings()
        self._entries = {
            image.pixels: _Entry(
                image.name,
                classes[image.label],
                image.sha256,
                Picture(image.pixels, image.width, image.height, image.mode),
                image.payload,
                image.place,
                known_split=image.split,
                is_new=False,
            )
            for image in before.images
        }

    def add_unreadable(self, name: str, error: ImageError) -> None:
        """Count an image that cannot be read or decoded."""
        self.error_codes[str(error.code)] += 1
        self.unreadable.add(name=name, error=str(error.code), detail=storable(error.detail))

    def add(self, name: str, label: Label, sha256: str, picture: Picture, place: Place) -> bool:
        """Add an image. Return False if its picture is known already, so that it need not be stored."""
        given = () if label.split is None else (label.split,)
        entry = self._entries.get(picture.pixels)
        if entry is None:
            self._entries[picture.pixels] = _Entry(
                name, label.name, sha256, picture, place.payload, place.place, given=given
            )
            self.added += 1
            return True
        if label.name != entry.label:
            facts = {"name": name, "label": label.name, "same_as": entry.name, "its_label": entry.label}
            if entry.is_new:
                self.conflicts.add(**facts)
            else:
                self.relabelled.add(**facts)
                entry.label = label.name
        elif entry.is_new:
            self.duplicates.add(name=name, same_as=entry.name)
        entry.is_new = True
        if given and given[0] not in entry.given:
            entry.given += given
        return False

    def classes(self) -> tuple[str, ...]:
        """Return the names of all classes, in order: numbers by value, then other names."""
        names = {entry.label for entry in self._entries.values()}
        return tuple(sorted(names, key=_by_number_or_name))

    def manifest(self, classes: tuple[str, ...]) -> Manifest:
        """Return the list of images, and report those that are in two splits."""
        numbers = {name: number for number, name in enumerate(classes)}
        entries = self._entries
        makes_validation = not any(Split.VALIDATION in entry.given for entry in entries.values())
        images = []
        for pixels in sorted(entries):
            entry = entries[pixels]
            split = self._split(entry, makes_validation=makes_validation)
            _, width, height, mode = entry.picture
            images.append(
                DatasetImage(
                    *(entry.name, split, numbers[entry.label], entry.payload, entry.place),
                    *(entry.sha256, pixels, width, height, mode),
                )
            )
        return Manifest(tuple(self.payloads), tuple(images))

    def _split(self, entry: _Entry, *, makes_validation: bool) -> Split:
        drawn = int(entry.picture.pixels[:16], 16) / 2**64
        splits = {
            Split.VALIDATION
            if split is Split.TRAIN and makes_validation and drawn < _VALIDATION_OF_TRAIN
            else split
            for split in entry.given
        }
        if entry.known_split is not None:
            splits.add(entry.known_split)
        if not splits:
            return made_split(drawn)
        kept = next(split for split in _PRECEDENCE if split in splits)
        if len(splits) > 1:
            self.in_two_splits.add(name=entry.name, splits=sorted(splits), kept=kept)
        return kept


def made_split(drawn: float) -> Split:
    """Return the split of an image by a number from 0 to 1 that its hash gives.

    So an image keeps its split, whatever is added later.
    """
    if drawn < _TEST_SHARE:
        return Split.TEST
    return Split.VALIDATION if drawn < _TEST_SHARE + _VALIDATION_SHARE else Split.TRAIN


def _by_number_or_name(name: str) -> tuple[bool, int, str]:
    is_number = name.isascii() and name.isdecimal()
    return not is_number, int(name) if is_number else 0, name
