"""TIFF files, valid or not, built tag by tag."""

from __future__ import annotations

import struct
from collections.abc import Sequence

WIDTH, HEIGHT, BITS, COMPRESSION, COLOURS, OFFSETS, SAMPLES, ROWS, LENGTHS = (
    *(256, 257, 258, 259, 262),
    *(273, 277, 278, 279),
)
FILL_ORDER, ORIENTATION, PLANES, EXTRA, FORMAT = 266, 274, 284, 338, 339
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_LENGTHS = 322, 323, 324, 325

Value = int | Sequence[int] | bytes


def tiff(
    width: int,
    height: int,
    parts: Sequence[bytes],
    tags: dict[int, Value | None] | None = None,
    *,
    order: str = "<",
) -> bytes:
    """Return a TIFF of these strips (tiles if `tags` has a tile's width); by default it has 8-bit grey.

    `tags` replaces values, or leaves a tag out if its value is None.
    """
    data, offsets = bytearray(8), []
    for part in parts:
        offsets.append(len(data))
        data += part
    tiled = TILE_WIDTH in (tags or {})
    found: dict[int, Value | None] = {
        WIDTH: width,
        HEIGHT: height,
        BITS: 8,
        COMPRESSION: 1,
        COLOURS: 1,
        SAMPLES: 1,
        TILE_OFFSETS if tiled else OFFSETS: offsets,
        TILE_LENGTHS if tiled else LENGTHS: [len(part) for part in parts],
        **(tags or {}),
    }
    return _header(order, len(data)) + bytes(data[8:]) + directory(found, len(data), order)


def _header(order: str, at: int) -> bytes:
    return (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, at)


def directory(tags: dict[int, Value | None], at: int, order: str = "<") -> bytes:
    """Return a directory for the position `at`: numbers as LONG, bytes as UNDEFINED."""
    kept = sorted((tag, value) for tag, value in tags.items() if value is not None)
    entries, behind = struct.pack(order + "H", len(kept)), b""
    start = at + 2 + 12 * len(kept) + 4
    for tag, value in kept:
        numbers = [value] if isinstance(value, int) else value
        packed = value if isinstance(value, bytes) else struct.pack(f"{order}{len(numbers)}I", *numbers)
        kind = 7 if isinstance(value, bytes) else 4
        if len(packed) > 4:
            behind += packed
            packed = struct.pack(order + "I", start + len(behind) - len(packed))
        entries += struct.pack(order + "HHI", tag, kind, len(numbers)) + packed.ljust(4, b"\0")
    return entries + bytes(4) + behind
