"""Pack images into a TAR file while it is sent. `producer.sources.tars` reads it again.

Names are kept as they are, and an image that could not be read keeps its error: a member of an ordinary
archive is skipped or refused if its name is hidden, absolute or not an image's.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from producer.sources import SourceImage, SourceImages, Sources, no_images
from producer.sources.tars import DETAIL, ERROR, LABEL, MARK

#: Bytes that are yielded at a time.
_BLOCK_BYTES: Final = 256 * 1024

_END: Final = bytes(2 * tarfile.BLOCKSIZE)


def pack(
    images: Iterable[SourceImage], on_progress: Callable[[int], None] = lambda _images: None
) -> Iterator[bytes]:
    """Yield a TAR file with the images. The same images in the same order give the same bytes.

    Memory holds one block and a few images. `on_progress` is called with the number of images so far. Raises
    SourceError, at the end, if there are none.
    """
    block = bytearray(_header(MARK))
    count = 0
    for found in images.batches() if isinstance(images, Sources) else images:
        for image in found.one_by_one() if isinstance(found, SourceImages) else (found,):
            block += _member(image)
            count += 1
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
                on_progress(count)
    if not count:
        raise no_images(images)
    yield bytes(block) + _END
    on_progress(count)


def _member(image: SourceImage) -> bytes:
    label = {} if image.label is None else {LABEL: image.label}
    if image.error is not None:
        error = {ERROR: str(image.error.code), DETAIL: image.error.detail}
        return _header(image.name, attributes=error | label)
    data = image.data or b""
    return _header(image.name, len(data), label) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def _header(name: str, size: int = 0, attributes: dict[str, str] | None = None) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.pax_headers = attributes or {}
    return member.tobuf(tarfile.PAX_FORMAT)
