"""Open the first page of a TIFF, after a check of its directory.

A TIFF's directory may hold any number of tags, values and references to other parts of the file. Pillow and
libtiff read many of them, and not always in the same way. So this module gives them a directory of its own,
with only the tags that were checked.
"""

from __future__ import annotations

import io
import struct
from operator import add
from typing import Final

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits
from worker.predicting.validation import check_jpeg, check_size

# Uncompressed pixels go through libtiff too: Pillow's own code misreads 16 bits in separate planes.
TiffImagePlugin.READ_LIBTIFF = True

# The tags that are kept.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_ORIENTATION, _SAMPLES, _PLANES, _PREDICTOR, _PALETTE = 274, 277, 284, 317, 320
_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES = 273, 278, 279
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING = 338, 339, 347, 530
_KEPT: Final = frozenset(
    (
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _COLOURS, _FILL_ORDER),
        *(_ORIENTATION, _SAMPLES, _PLANES, _PREDICTOR, _PALETTE),
        *(_STRIP_OFFSETS, _STRIP_ROWS, _STRIP_BYTES),
        *(_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES),
        *(_EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES, _SUBSAMPLING),
    )
)

# The types of their values, as `struct` calls them.
_BYTE, _SHORT, _LONG, _UNDEFINED = 1, 3, 4, 7
_TYPES: Final = {_BYTE: "B", _SHORT: "H", _LONG: "I", _UNDEFINED: "B"}
_ENTRY_BYTES, _INLINE_BYTES = 12, 4  # of a tag in the directory; of the values that fit into it

# Maximum number of values of one tag. Only strips and tiles have many: at most 65,535 rows in seven planes,
# or 64 Mi pixels in tiles of 16 x 16.
_MAX_VALUES: Final = 500_000

# Compressions: none, LZW, JPEG, deflate (two numbers), PackBits. CCITT is left out because libtiff fills up
# missing or broken pixels; LZMA, Zstandard, SGI and old-style JPEG because their decoders are rarely used.
_NONE, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE = 1, 5, 7, 8, 32773, 32946
_COMPRESSIONS: Final = frozenset((_NONE, _LZW, _JPEG, _DEFLATE, _PACKBITS, _OLD_DEFLATE))

# Photometric interpretations, with the bits per sample that each may have. Pillow knows how many samples.
_WHITE_IS_0, _BLACK_IS_0, _RGB, _INDEXED, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_DEPTHS: Final = {
    _WHITE_IS_0: (1, 2, 4, 8, 16),
    _BLACK_IS_0: (1, 2, 4, 8, 16),
    _RGB: (8, 16),
    _INDEXED: (1, 2, 4, 8),
    _CMYK: (8, 16),
    _YCBCR: (8,),
}
_MAX_SAMPLES: Final = 6  # per pixel; Pillow decodes no more, and writes about it to the log
_UNSIGNED: Final = 1  # a sample format
_TOGETHER, _SEPARATE = 1, 2  # planar configurations

# Tiles may extend past the picture's edges, up to this multiple of the limit of pixels.
_MAX_TILING: Final = 4

Tags = dict[int, tuple[int, ...]]


def open_tiff(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Open the first page, which is not decoded yet. Further pages are ignored.

    Raises ImageError: CORRUPT, TOO_LARGE, or FORMAT_NOT_ALLOWED for kinds of TIFF that are not decoded.
    """
    view = memoryview(data)
    order = "<" if bytes(view[:2]) == b"II" else ">"
    try:
        tags = _read_tags(view, order, *struct.unpack_from(order + "I", view, 4))
    except struct.error:
        raise _corrupt("cut short") from None
    _check_pixels(tags, limits)
    _check_parts(tags, view, limits)
    header = bytes(view[:4]) + struct.pack(order + "I", len(view))
    file = io.BytesIO(b"".join((header, view[8:], _directory(tags, order, len(view)))))
    try:
        image = Image.open(file, formats=("TIFF",))
    except UnidentifiedImageError:  # all tags are valid, so Pillow does not know their combination
        raise _not_allowed("TIFF with an unusual combination of channels") from None
    if image.mode == "I;16" and tags[_COLOURS] == (_WHITE_IS_0,):  # Pillow does not invert 16 bits
        image.load()
        return Image.fromarray(~np.asarray(image))
    if image.mode == "La":  # its transparency is already in its colours; Pillow converts it to LA only
        return image.convert("LA")
    return image


def _read_tags(view: memoryview, order: str, at: int) -> Tags:
    """Return the values of the tags that are kept. Raises struct.error if one is outside the file."""
    (entries,) = struct.unpack_from(order + "H", view, at)
    tags: Tags = {}
    for place in range(at + 2, at + 2 + entries * _ENTRY_BYTES, _ENTRY_BYTES):
        tag, kind, count = struct.unpack_from(order + "HHI", view, place)
        if tag not in _KEPT:
            continue
        if tag in tags or kind not in _TYPES or not count:
            raise _corrupt(f"its tag {tag} is given twice, empty, or of a wrong type")
        if count > _MAX_VALUES:
            raise ImageError(ErrorCode.TOO_LARGE, f"its tag {tag} has more than {_MAX_VALUES:,} values")
        values = struct.Struct(f"{order}{count}{_TYPES[kind]}")
        start = place + 8
        if values.size > _INLINE_BYTES:
            (start,) = struct.unpack_from(order + "I", view, start)
        tags[tag] = values.unpack_from(view, start)
    return tags


def _one(tags: Tags, tag: int, default: int | None = None) -> int:
    """Return the only value of a tag. Raises ImageError if it is missing and has no default."""
    values = tags.get(tag, () if default is None else (default,))
    if len(values) != 1:
        raise _corrupt(f"its tag {tag} is missing, or has several values")
    return values[0]


def _check_pixels(tags: Tags, limits: ImageLimits) -> None:
    """Check the number and the kind of the pixels."""
    width, height = _one(tags, _WIDTH), _one(tags, _HEIGHT)
    if not width or not height:
        raise _corrupt("no pixels")
    check_size(width, height, limits)
    compression, kind, planes = _one(tags, _COMPRESSION, _NONE), _one(tags, _COLOURS), _one(tags, _PLANES, 1)
    samples, depths = _one(tags, _SAMPLES, 1), tags.get(_BITS, (1,))
    if len(depths) not in (1, samples):
        raise _corrupt(f"{len(depths)} depths for {samples} samples per pixel")
    if compression not in _COMPRESSIONS:
        raise _not_allowed(f"TIFF with compression {compression}")
    if set(tags.get(_SAMPLE_FORMAT, ())) - {_UNSIGNED}:
        raise _not_allowed("TIFF with signed or floating-point pixels")
    if (
        depths[0] not in _DEPTHS.get(kind, ())
        or samples > _MAX_SAMPLES
        or (compression == _JPEG and (depths[0] != 8 or planes != _TOGETHER))
        or (kind == _YCBCR and compression != _JPEG)
        or planes not in (_TOGETHER, _SEPARATE)
        or _one(tags, _FILL_ORDER, 1) != 1  # reversed bits, which only CCITT uses
    ):
        bits = f"{samples} x {depths[0]} bits"
        raise _not_allowed(f"TIFF with {bits}, photometric interpretation {kind}, compression {compression}")
    if kind == _INDEXED and len(tags.get(_PALETTE, ())) != 3 << depths[0]:
        raise _corrupt("no palette, or one of another size")


def _check_parts(tags: Tags, view: memoryview, limits: ImageLimits) -> None:
    """Check that all strips or tiles are in the file, and do not overlap."""
    width, height = _one(tags, _WIDTH), _one(tags, _HEIGHT)
    tiled = _TILE_OFFSETS in tags
    if tiled:
        part_width, part_height = _one(tags, _TILE_WIDTH), _one(tags, _TILE_HEIGHT)
        offsets, lengths = tags[_TILE_OFFSETS], tags.get(_TILE_BYTES, ())
    else:
        part_width, part_height = width, min(height, _one(tags, _STRIP_ROWS, height))
        offsets, lengths = tags.get(_STRIP_OFFSETS, ()), tags.get(_STRIP_BYTES, ())
    if not part_width * part_height or (tiled and (part_width % 16 or part_height % 16)):
        raise _corrupt(f"strips or tiles of {part_width:,} x {part_height:,} pixels")
    check_size(part_width, part_height, limits)
    across, down = -(-width // part_width), -(-height // part_height)
    if across * part_width * down * part_height > _MAX_TILING * limits.max_pixels:
        raise ImageError(ErrorCode.TOO_LARGE, "its tiles are much larger than the picture")
    samples, separate = _one(tags, _SAMPLES, 1), _one(tags, _PLANES, 1) == _SEPARATE
    number = across * down * (samples if separate else 1)
    if not len(offsets) == len(lengths) == number:
        raise _corrupt(f"{len(offsets):,} offsets and {len(lengths):,} lengths of {number:,} strips or tiles")
    if max(map(add, offsets, lengths)) > len(view):
        raise _corrupt("cut short")
    if sum(lengths) > len(view):
        raise _corrupt("its strips or tiles overlap")
    bits = tags.get(_BITS, (1,))[0] * (1 if separate else samples)
    row_bytes = -(-part_width * bits // 8)
    compression = _one(tags, _COMPRESSION, _NONE)
    for place, (offset, length) in enumerate(zip(offsets, lengths, strict=True)):
        rows = part_height if tiled else min(part_height, height - place % down * part_height)
        if compression == _NONE and length < rows * row_bytes:
            raise _corrupt("cut short")
        if compression == _JPEG:
            _check_jpeg(view[offset : offset + length], part_width, rows, limits)


def _check_jpeg(data: memoryview, width: int, rows: int, limits: ImageLimits) -> None:
    """Check that a strip or tile is a whole JPEG of its size: libtiff fills up a smaller one."""
    jpeg_width, jpeg_height = check_jpeg(data, limits)
    if jpeg_width != width or jpeg_height < rows:
        raise _corrupt("a strip or tile of another size")


def _directory(tags: Tags, order: str, at: int) -> bytes:
    """Return the tags as a TIFF's only directory, to be written at the position `at`."""
    entries, behind = [struct.pack(order + "H", len(tags))], bytearray()
    start = at + 2 + len(tags) * _ENTRY_BYTES + 4
    for tag, values in sorted(tags.items()):
        kind = _LONG if max(values) > 0xFFFF else _SHORT
        if tag == _JPEG_TABLES:
            kind = _UNDEFINED
        packed = struct.pack(f"{order}{len(values)}{_TYPES[kind]}", *values)
        if len(packed) > _INLINE_BYTES:
            behind += packed
            packed = struct.pack(order + "I", start + len(behind) - len(packed))
        entries.append(
            struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(_INLINE_BYTES, b"\0")
        )
    return b"".join((*entries, bytes(4), behind))


def _corrupt(reason: str) -> ImageError:
    return ImageError(ErrorCode.CORRUPT, reason)


def _not_allowed(kind: str) -> ImageError:
    return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, kind)
