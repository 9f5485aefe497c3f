"""Choose some images of each class of a dataset, and draw those of one class as one picture."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final, Literal, NamedTuple

from PIL import Image

from jobs.errors import ImageError
from jobs.network.references import Reference, Roots
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage, Manifest, PayloadFile
from jobs.storage.payloads import Content, read_payload
from jobs.storage.store import Store
from worker.predicting.pictures import cautious_limits, thumbnail

#: Images of one class, and of all classes together.
_IMAGES_PER_CLASS: Final = 8
_IMAGES: Final = 1_000

#: Images next to each other.
_COLUMNS: Final = 4

#: The longer side of an image in the picture, in pixels: sharp on screens of high resolution.
_SIDE: Final = 144

#: The width of an image's place on the page.
_SHOWN: Final = 100

#: If no image is larger, they are shown enlarged, with their pixels visible, and stored without loss.
_TINY: Final = 48


class ClassSheet(NamedTuple):
    """Some images of one class. All are in one payload, so that only one file has to be read for them."""

    label: int  # the class, an index into the version's classes
    name: str
    payload: PayloadFile
    images: tuple[DatasetImage, ...]

    @property
    def side(self) -> int:
        """Return the longer side of the largest image in the picture, in pixels."""
        return min(_SIDE, max(max(image.width, image.height) for image in self.images))

    @property
    def place(self) -> int:
        """Return the width and height of the place for each image in the picture, with a gap."""
        return self.side + self.side // 24

    @property
    def tiny(self) -> bool:
        """Return whether all images are so small that their pixels should be visible."""
        return self.side <= _TINY

    @property
    def grid(self) -> tuple[int, int]:
        """Return how many images are next to each other, and how many rows of them there are."""
        return min(_COLUMNS, len(self.images)), math.ceil(len(self.images) / _COLUMNS)

    @property
    def shown(self) -> tuple[int, int]:
        """Return the width and height of the picture on a page."""
        place = self.place * (_SHOWN // self.place) if self.tiny else _SHOWN
        columns, rows = self.grid
        return columns * place, rows * place


def choose_images(manifest: Manifest, classes: Sequence[str]) -> list[ClassSheet]:
    """Choose images of each class, for as many classes as fit on a page.

    Those of a class come from the payload that has the most of them.
    """
    shown = classes[:_IMAGES]
    each = max(1, min(_IMAGES_PER_CLASS, _IMAGES // len(shown)))
    found: list[dict[int, list[DatasetImage]]] = [defaultdict(list) for _ in shown]
    for image in manifest.images:
        if image.label < len(shown) and len(images := found[image.label][image.payload]) < each:
            images.append(image)
    chosen = []
    for label, payloads in enumerate(found):
        if payloads:
            number = max(payloads, key=lambda number: len(payloads[number]))
            file = manifest.payloads[number]
            chosen.append(ClassSheet(label, shown[label], file, tuple(payloads[number])))
    return chosen


def draw_classes(
    store: Store, settings: Settings, sheets: Sequence[ClassSheet]
) -> Iterator[tuple[ClassSheet, bytes | None]]:
    """Yield each class, payload by payload, with its images next to each other as one WebP file.

    An image that cannot be read any more is an empty place. If none can be read, there is no file.

    Raises PayloadDamaged, Unavailable; SettingsError if a root for references is malformed.
    """
    roots = Roots(settings.reference_roots, settings.private_hosts)
    for payload, of_payload in groupby(sorted(sheets, key=_payload), key=_payload):
        contents = read_payload(store, payload.key, payload.digest).contents
        for sheet in of_payload:
            yield sheet, _draw(sheet, contents, settings, roots)


def _payload(sheet: ClassSheet) -> PayloadFile:
    return sheet.payload


def _draw(sheet: ClassSheet, contents: Sequence[Content], settings: Settings, roots: Roots) -> bytes | None:
    columns, rows = sheet.grid
    place = sheet.place
    picture = Image.new("RGBA", (columns * place, rows * place))
    is_empty = True
    for number, image in enumerate(sheet.images):
        copy = small_copy(contents[image.place], sheet.side, settings, roots, "PNG")
        if copy is not None:
            small = Image.open(io.BytesIO(copy))
            row, column = divmod(number, _COLUMNS)
            left, top = ((place - size) // 2 for size in small.size)
            picture.paste(small, (column * place + left, row * place + top))
            is_empty = False
    if is_empty:
        return None
    file = io.BytesIO()
    picture.save(file, "WEBP", lossless=sheet.tiny)
    return file.getvalue()


def small_copy(
    content: Content, side: int, settings: Settings, roots: Roots, kind: Literal["PNG", "WEBP"]
) -> bytes | None:
    """Return a small copy of an image as a file, or None if it cannot be read any more."""
    try:
        if isinstance(content, Reference):
            content = roots.read(content, max_bytes=settings.max_image_bytes)
        if isinstance(content, ImageError):
            return None
        return thumbnail(content, side, cautious_limits(content, settings.image_limits), kind)
    except ImageError:
        return None
