"""Merge new images with those of the previous version: each picture once, with one label, in one split."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Final, NamedTuple

from jobs.errors import ImageError
from jobs.models.dataset import Split
from jobs.storage.dataset_list import DatasetImage, Manifest, PayloadFile
from jobs.text import storable
from labelmill.datasets.examples import Examples
from labelmill.datasets.labels import Label
from worker.predicting.decode import Picture

#: Identical pictures are kept in the first of these splits that one of them is in: a model must never learn
#: from an image that it is tested on.
_PRECEDENCE: Final = (Split.TEST, Split.VALIDATION, Split.TRAIN)

#: If the sources name no split, the first 64 bits of the hash decide: a tenth are test images, a tenth
#: validation images.
_TEST_BELOW: Final = 2**64 // 10
_VALIDATION_BELOW: Final = 2 * 2**64 // 10

#: If the sources name splits but no validation images, a ninth of the training images are used as these.
_VALIDATION_OF_TRAIN: Final = 2**64 // 9


class Place(NamedTuple):
    """Where the bytes of an image are stored."""

    payload: int  # an index into the payloads
    place: int  # in that payload


class Merging:
    """The images of the version that is being made.

    They are held as columns, because the garbage collector would repeatedly visit an object per image.
    """

    def __init__(self, before: Manifest, classes: tuple[str, ...]) -> None:
        """Begin with the images of the previous version, if there is one."""
        self.payloads: list[PayloadFile] = list(before.payloads)
        self.unreadable = Examples()
        self.error_codes: Counter[str] = Counter()
        self.duplicates = Examples()
        self.conflicts = Examples()
        self.relabelled = Examples()
        self.in_two_splits = Examples()
        self.groups_in_two_splits = Examples()
        self.look_alikes = Examples()
        self._numbers = {image.pixels: number for number, image in enumerate(before.images)}
        self._names = [image.name for image in before.images]
        self._labels = [classes[image.label] for image in before.images]
        self._payloads = [image.payload for image in before.images]
        self._places = [image.place for image in before.images]
        self._sha256s = [image.sha256 for image in before.images]
        self._widths = [image.width for image in before.images]
        self._heights = [image.height for image in before.images]
        self._modes = [image.mode for image in before.images]
        self._known_splits = [image.split for image in before.images]  # of these images only
        self._known_labels = set(range(len(before.images)))  # images that are not in the new sources so far
        self._given: dict[int, tuple[Split, ...]] = {}  # the splits that the new sources name, each once
        self._groups: dict[int, str] = {}  # of the images of the new sources
        self._is_validation_given = False

    @property
    def added(self) -> int:
        """The number of images that the previous version does not have."""
        return len(self._names) - len(self._known_splits)

    def add_unreadable(self, name: str, error: ImageError) -> None:
        """Count an image that cannot be read or decoded."""
        self.error_codes[str(error.code)] += 1
        self.unreadable.add(name=name, error=str(error.code), detail=storable(error.detail))

    def add(self, name: str, label: Label, sha256: str, picture: Picture, place: Place) -> bool:
        """Add an image. Return False if its picture is known already, so that it need not be stored."""
        number = self._numbers.setdefault(picture.pixels, len(self._names))
        is_new = number == len(self._names)
        if is_new:
            self._names.append(name)
            self._labels.append(label.name)
            self._payloads.append(place.payload)
            self._places.append(place.place)
            self._sha256s.append(sha256)
            self._widths.append(picture.width)
            self._heights.append(picture.height)
            self._modes.append(picture.mode)
        else:
            self._add_again(number, name, label.name)
        if label.group is not None:
            self._groups.setdefault(number, label.group)
        if label.split is not None:
            given = self._given.get(number, ())
            if label.split not in given:
                self._given[number] = (*given, label.split)
            self._is_validation_given |= label.split is Split.VALIDATION
        return is_new

    def _add_again(self, number: int, name: str, label: str) -> None:
        """Note an image whose picture is known. The first label of the new sources is kept."""
        facts = {"name": name, "same_as": self._names[number]}
        labels = facts | {"label": label, "other_label": self._labels[number]}
        if number in self._known_labels:
            self._known_labels.remove(number)
            if label != self._labels[number]:
                self.relabelled.add(**labels)
                self._labels[number] = label
        elif label != self._labels[number]:
            self.conflicts.add(**labels)
        else:
            self.duplicates.add(**facts)

    def classes(self) -> tuple[str, ...]:
        """Return the names of all classes, in order: numbers by value, then other names."""
        return tuple(sorted(set(self._labels), key=_by_number_or_name))

    def manifest(self, classes: tuple[str, ...]) -> Manifest:
        """Return the list of images, and report those that are in two splits."""
        numbers = {name: number for number, name in enumerate(classes)}
        columns: tuple[Iterable[Any], ...] = (
            self._names,
            self._splits(),
            [numbers[label] for label in self._labels],
            *(self._payloads, self._places, self._sha256s, self._numbers),
            *(self._widths, self._heights, self._modes),
        )
        images = map(DatasetImage._make, zip(*columns, strict=True))
        return Manifest(tuple(self.payloads), tuple(sorted(images, key=attrgetter("pixels"))))

    def _splits(self) -> list[Split]:
        """Return the split of each image, and report images and groups that are in two."""
        known = self._known_splits
        drawn = [int(pixels[:16], 16) for pixels in self._numbers]
        for number, group in self._groups.items():
            drawn[number] = int(hashlib.sha256(group.encode()).hexdigest()[:16], 16)
        splits = [*known, *map(split_by_hash, drawn[len(known) :])]
        for number, given in self._given.items():
            if not self._is_validation_given and drawn[number] < _VALIDATION_OF_TRAIN:
                given = tuple(Split.VALIDATION if split is Split.TRAIN else split for split in given)
            found = {*given, *known[number : number + 1]}
            splits[number] = kept = next(split for split in _PRECEDENCE if split in found)
            if len(found) > 1:
                self.in_two_splits.add(name=self._names[number], splits=sorted(found), kept=kept)
        of_groups: defaultdict[str, set[Split]] = defaultdict(set)
        for number, group in self._groups.items():
            of_groups[group].add(splits[number])
        for group, found in of_groups.items():
            if len(found) > 1:
                self.groups_in_two_splits.add(name=group, splits=", ".join(sorted(found)))
        return splits


def split_by_hash(drawn: int) -> Split:
    """Return the split of an image by the first 64 bits of its hash, or of its group's.

    An image and a group therefore keep their split, whatever is added later.
    """
    if drawn < _TEST_BELOW:
        return Split.TEST
    return Split.VALIDATION if drawn < _VALIDATION_BELOW else Split.TRAIN


def _by_number_or_name(name: str) -> tuple[bool, int, str]:
    is_number = name.isascii() and name.isdecimal()
    return not is_number, int(name) if is_number else 0, name
