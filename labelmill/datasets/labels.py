"""The class and the split of an image, from the folders that it is in or from a manifest."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jobs.errors import UserError
from jobs.models.dataset import MAX_CLASSES, Split
from jobs.text import is_plain

#: Folders that hold one split each, and the words for splits in manifests.
SPLITS: Final = {
    "train": Split.TRAIN,
    "validation": Split.VALIDATION,
    "val": Split.VALIDATION,
    "test": Split.TEST,
}

#: Maximum characters of a class's name.
MAX_LABEL: Final = 200


class Label(NamedTuple):
    """What a source says about an image."""

    name: str  # of its class
    split: Split | None = None  # None: a hash decides, of the group or else of the image's pixels
    group: str | None = None  # what its images show: they are in one split


def to_label(name: str, split: Split | None = None) -> Label:
    """Return the label for this class. Raises UserError if a class cannot have this name."""
    name = unicodedata.normalize("NFC", name)  # macOS writes file names in another form
    if not name.strip() or not is_plain(name) or len(name) > MAX_LABEL:
        raise UserError(
            f"{name[:MAX_LABEL]!r} cannot be the name of a class: it must be text of 1 to {MAX_LABEL} "
            "characters without control characters."
        )
    return Label(name, split)


def check_class_count(classes: Collection[str], where: str) -> None:
    """Raise UserError if there are more classes than a dataset can have."""
    if len(classes) > MAX_CLASSES:
        raise UserError(
            f"{where} has more than {MAX_CLASSES:,} classes, the most that a dataset can have: "
            "check that its folders or labels are classes, or leave out the rare ones."
        )


@dataclass(slots=True)
class FolderLabels:
    """The labels of images by their folders: `CLASS/...`, or `SPLIT/CLASS/...`."""

    prefix: str  # the path of the folder that holds the folders of classes or splits, with a slash, or ""
    with_splits: bool
    _known: dict[str, Label | None] = field(default_factory=dict)

    def of_all(self, names: Sequence[str]) -> list[Label | None]:
        """Return the label of each image with these paths, or None if it is in no class's folder."""
        folders = [name.rpartition("/")[0] for name in names]
        for folder in set(folders).difference(self._known):
            self._known[folder] = self._label(folder)
        return [self._known[folder] for folder in folders]

    def _label(self, folder: str) -> Label | None:
        if not folder.startswith(self.prefix):
            return None
        first, _, rest = folder[len(self.prefix) :].partition("/")
        if not self.with_splits:
            return to_label(first) if first else None
        name = rest.partition("/")[0]
        return to_label(name, SPLITS[first]) if first in SPLITS and name else None


def are_splits(folders: Iterable[str]) -> bool:
    """Return whether these folders side by side are splits, not classes."""
    names = set(folders)
    return "train" in names and names <= SPLITS.keys()
