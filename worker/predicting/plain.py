"""A plain PNG, decoded without being opened: opening a small picture takes Pillow longer than its pixels do.

Plain is a PNG that is as the model wants it and has nothing beside its pixels: three parts, 8 bits a channel,
not interlaced. Pillow's own decoder is called as Pillow calls it, so an image has one answer either way. What
is not plain or not sound is left to `worker.predicting.decode`, which also has the words for it.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any, Final

from PIL import Image

from jobs.model import InputSpec

#: Pillow's C code. It is not documented: where it changes, tests/unit/test_plain.py tells, and pictures are
#: opened as before.
_PILLOW: Final[Any] = Image.core  # type: ignore[attr-defined]

_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"
_FIRST: Final = struct.Struct(">8sI4sIIBBBBB")  # signature; length, kind and content of the first part
_FIRST_BYTES: Final = 13
_COLOUR_TYPES: Final = {"L": 0, "RGB": 2}
_PIXELS_AT: Final = 33  # where the second part begins: behind the first one's checksum
_PART: Final = struct.Struct(">I4s")  # its content's length, its kind
_END: Final = struct.pack(">I4s", 0, b"IEND")


def decode_plain(data: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """The pixels, row by row, if `data` is a plain PNG of the size and mode of `spec`, else None.

    Its checksums must have been checked, by `worker.predicting.headers`.
    """
    if data[: _FIRST.size] != beginning(spec):
        return None
    try:
        length, kind = _PART.unpack_from(data, _PIXELS_AT)
    except struct.error:
        return None
    begin = _PIXELS_AT + _PART.size
    end = begin + length
    if kind != b"IDAT" or data[end + 4 : end + 4 + _PART.size] != _END:
        return None
    try:
        return _unpack(data[begin:end], spec)
    except (AttributeError, TypeError):  # another Pillow, whose inner parts are called otherwise
        return None


def _unpack(compressed: bytes | memoryview, spec: InputSpec) -> bytes | None:
    """What `PIL.ImageFile` does with the pixels of a PNG, and `Image.tobytes` with what comes out."""
    size = (spec.width, spec.height)
    pixels = _PILLOW.new(spec.mode, size)
    decoder = _PILLOW.zip_decoder(spec.mode, spec.mode, 0)
    decoder.setimage(pixels, (0, 0, *size))
    consumed, error = decoder.decode(compressed)
    if consumed >= 0 or error < 0:  # it would go on, or something is wrong
        return None
    encoder = _PILLOW.raw_encoder(spec.mode, spec.mode, 0, 1)
    encoder.setimage(pixels, (0, 0, *size))
    _, _, raw = encoder.encode(spec.width * spec.height * len(spec.mode))
    return bytes(raw)


@lru_cache(maxsize=8)
def beginning(spec: InputSpec) -> bytes:
    """How a plain PNG for this model begins."""
    header = (spec.width, spec.height, 8, _COLOUR_TYPES[spec.mode], 0, 0, 0)
    return _FIRST.pack(_SIGNATURE, _FIRST_BYTES, b"IHDR", *header)
