"""Find test images that look like images that models learn from: they would make a model look too good."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

from jobs.errors import ImageError
from jobs.models.dataset import Split
from jobs.storage.dataset_list import DatasetImage, Manifest
from labelmill.datasets.decoding import Decoder
from labelmill.datasets.examples import Examples
from labelmill.datasets.near_duplicates import Look, alike, look_the_same, pack_hashes
from worker.predicting.decode import Picture

#: How many of the new images are compared: a test image with all others takes up to a millisecond.
_COMPARED: Final = 20_000

#: Smaller drawings, such as digits, look alike without being variants of one thing.
_MIN_SIDE: Final = 48

#: How many images with a similar hash are compared by colour, too: plain ones have many.
_CANDIDATES: Final = 100


class LookAlikes:
    """How the first new images of a version look."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._looks: dict[str, Future[Look]] = {}  # by the hash of the pixels

    def add(self, picture: Picture, data: bytes) -> None:
        """Begin to find out how an image looks, unless it is too small or enough were added."""
        if len(self._looks) < _COMPARED and min(picture.width, picture.height) >= _MIN_SIDE:
            self._looks[picture.pixels] = self._decoder.look(data)

    def across_splits(self, manifest: Manifest) -> Examples:
        """Return the test images that look like one that is not in test."""
        tested: list[tuple[DatasetImage, Look]] = []
        others: list[tuple[DatasetImage, Look]] = []
        for image in manifest.images:
            if (found := self._looks.get(image.pixels)) is not None:
                try:
                    (tested if image.split is Split.TEST else others).append((image, found.result()))
                except ImageError:  # it could be decoded in its own size, but not in a smaller one
                    continue
        same = Examples()
        hashes = pack_hashes([look for _image, look in others])
        for image, look in tested:
            for number in alike(look, hashes)[:_CANDIDATES]:
                other, other_look = others[number]
                if look_the_same(look, other_look):
                    same.add(name=image.name, same_as=other.name, split=other.split)
                    break
        return same
