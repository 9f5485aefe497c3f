"""The images of a training run, for any dataset: to learn, to choose the best epoch, and to evaluate on.

`worker.learning.stored` loads them, and `worker.learning.corrections` adds the corrected images. The images
may be a memory-mapped file that is larger than the memory: read them in batches.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from jobs.models.evaluation import Part
from jobs.models.model import InputSpec

Uint8: TypeAlias = npt.NDArray[np.uint8]
Uint16: TypeAlias = npt.NDArray[np.uint16]


class OnDemand:
    """Images that are decoded each time that they are taken, because all of them would fill the disk."""

    def __init__(
        self, shape: tuple[int, ...], payloads: Sequence[int], decode: Callable[[Sequence[int]], Uint8]
    ) -> None:
        """`payloads` are the numbers of the files that hold the images. `decode` returns rows in order."""
        self.shape = shape
        self.payloads = payloads
        self._decode = decode

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Uint8:
        """Return the rows that NumPy would return for this index, slice, mask or array."""
        places = np.arange(len(self))[key]
        if places.ndim == 0:
            only: Uint8 = self._decode([int(places)])[0]
            return only
        return self._decode(places.tolist())


class Joined:
    """Some rows of an array followed by all rows of another one, without a copy of either."""

    def __init__(self, base: Uint8 | OnDemand, rows: npt.NDArray[np.intp], added: Uint8) -> None:
        self._base = base
        self._rows = rows
        self._added = added
        self.shape = (len(rows) + len(added), *base.shape[1:])

    def __len__(self) -> int:
        return len(self._rows) + len(self._added)

    def __getitem__(self, key: Any) -> Uint8:
        """Return a copy of the rows that NumPy would return for this index, slice, mask or array."""
        places = np.arange(len(self))[key]
        if places.ndim == 0:
            only: Uint8 = self[places[np.newaxis]][0]
            return only
        found = np.empty((len(places), *self.shape[1:]), np.uint8)
        is_base = places < len(self._rows)
        found[is_base] = self._base[self._rows[places[is_base]]]
        found[~is_base] = self._added[places[~is_base] - len(self._rows)]
        release(self._base)
        return found

    @property
    def payloads(self) -> list[int]:
        """Return the numbers of the files that hold the images, if they are decoded on demand."""
        of_base = getattr(self._base, "payloads", None)
        return [of_base[row] if of_base else 0 for row in self._rows.tolist()] + [0] * len(self._added)


Images: TypeAlias = Uint8 | OnDemand | Joined


def release(images: Images) -> None:
    """Unmap the pages that were read from a memory-mapped file. They stay in the system's cache."""
    mapped = getattr(images, "_mmap", None)
    if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images as a model sees them, with their labels."""

    images: Images  # uint8 (n, height, width) or (n, height, width, 3)
    labels: Uint16  # (n,), indexes into the classes
    #: By image, the hash of its picture (`worker.predicting.decode.content_hash`).
    pictures: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Any) -> Uint8:
        """Return a copy of the images at these places."""
        found = np.array(self.images[rows])
        release(self.images)
        return found

    def in_stored_order(self, rows: Iterable[int]) -> list[int]:
        """Return the rows so that images in the same file follow each other: it is then read once."""
        payloads = getattr(self.images, "payloads", None)
        return list(rows) if payloads is None else sorted(rows, key=payloads.__getitem__)

    def windows(self, size: int) -> Iterator[Uint8]:
        """Yield all images in order, `size` at a time."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


def no_images(spec: InputSpec) -> Labelled:
    """Return an empty set of images for this input."""
    return Labelled(np.empty((0, *spec.shape), np.uint8), np.empty(0, np.uint16), ())


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """All images of one training run."""

    dataset: str
    version: int
    source: str  # where they come from, for people
    classes: tuple[str, ...]
    spec: InputSpec  # what the images are prepared for
    train: Labelled  # the corrections among them come last
    validation: Labelled
    test: Labelled
    live: Labelled  # held-out corrections
    fingerprint: str  # of everything that is learnt or evaluated, before it is prepared for the input
    evaluation_fingerprints: dict[Part, str]  # of the test set, and of the live set if there is one
    #: Return the test set or the live set as models with another input see it. Raises UserError if the data
    #: cannot be prepared for it.
    part_for: Callable[[Part, InputSpec], Labelled]
    corrections: int = 0  # how many training images are corrected predictions
    left_out: int = 0  # how many corrections could not be used

    @property
    def before_corrections(self) -> int:
        """Return the number of training images that are not corrections."""
        return len(self.train) - self.corrections

    @property
    def evaluation_fingerprint(self) -> str:
        """Return the fingerprint of the test set."""
        return self.evaluation_fingerprints[Part.TEST]

    def part(self, part: Part, spec: InputSpec) -> Labelled:
        """Return the test set or the live set as a model with this input sees it. Raises UserError."""
        if spec == self.spec:
            return self.test if part == Part.TEST else self.live
        return self.part_for(part, spec)
