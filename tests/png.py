"""PNG files made by hand, without a library: any header, any chunks."""

from __future__ import annotations

import struct
import zlib


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int,
    height: int,
    rows: bytes = b"",
    *,
    depth: int = 8,
    colour: int = 0,
    extra: bytes = b"",
    interlaced: bool = False,
) -> bytes:
    """Return a PNG, grey by default: `rows` with their filter bytes, `extra` chunks before the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")
