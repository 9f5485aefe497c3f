"""What a picture's own words say of it, looked at before a decoder makes room for anything: how many pixels,
how many frames, and of a PNG whether all of it is there.

Pillow makes room for a GIF's and a WebP's pixels as soon as it opens them, so they are looked at here first;
for the others their size is enough once they are open.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_FIRST: Final = struct.Struct(">I4sII")  # a chunk's length, its kind; of the first one: width, height
_PNG_LINK: Final = struct.Struct(">I I4s")  # the checksum that ends a chunk; the next one's length and kind
_PNG_NUMBER: Final = struct.Struct(">I")

_GIF: Final = (b"GIF87a", b"GIF89a")
_GIF_SCREEN: Final = struct.Struct("<HHB")  # width, height, flags
_GIF_FRAME: Final = struct.Struct("<HHHHB")  # left, top, width, height, flags
_GIF_BLOCK: Final = re.compile(rb"[,!;]")  # a frame, an extension, the end: Pillow skips what is none of them
_GIF_COLOURS: Final = 0x80  # among the flags: a table of colours follows

_WEBP_CHUNK: Final = struct.Struct("<4sI")  # its kind, its content's length
_WEBP_ANIMATED: Final = 0x02  # among VP8X's flags


def check_header(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Check what is to be checked before a PNG, GIF or WebP is opened; anything else is let pass.

    Nothing is decoded, and memory is constant. Raises ImageError: TOO_LARGE, or CORRUPT for a PNG.
    """
    if data[:8] == _PNG:
        if "PNG" in limits.formats:
            _check_png(data, limits)
    elif data[:6] in _GIF:
        if "GIF" in limits.formats:
            _check_gif(data, limits)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and "WEBP" in limits.formats:
        _check_webp(memoryview(data), limits)


def too_many_pixels(width: int, height: int, limits: ImageLimits) -> ImageError:
    """What becomes of an image that has more pixels than an image may have."""
    return ImageError(ErrorCode.TOO_LARGE, f"{width:,} x {height:,} pixels, more than {limits.max_pixels:,}")


def _check_pixels(width: int, height: int, limits: ImageLimits) -> None:
    if width * height > limits.max_pixels:
        raise too_many_pixels(width, height, limits)


def _check_frames(frames: int, limits: ImageLimits) -> None:
    if frames > limits.max_frames:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {limits.max_frames:,} frames")


def _check_png(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Pixels, frames, and that each chunk up to the end is whole and has its checksum: Pillow checks neither
    the checksums of the pixels' chunks nor that there is an end.
    """
    view, frames, at = memoryview(data), 0, len(_PNG)
    try:
        length, kind, width, height = _PNG_FIRST.unpack_from(view, at)
        if width * height > limits.max_pixels and kind == b"IHDR":
            raise too_many_pixels(width, height, limits)
        while kind != b"IEND":
            end = at + 8 + length
            checksum, length, following = _PNG_LINK.unpack_from(view, end)
            if zlib.crc32(view[at + 4 : end]) != checksum:
                raise ImageError(ErrorCode.CORRUPT, f"wrong checksum of its part {kind!r}")
            if kind == b"acTL":  # what an animation says of itself, before the first of them
                _check_frames(_PNG_NUMBER.unpack_from(view, at + 8)[0], limits)
            elif kind == b"fcTL":  # and what there really is
                frames += 1
                _check_frames(frames, limits)
            at, kind = end + 4, following
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != _PNG_NUMBER.unpack_from(view, end)[0]:
            raise ImageError(ErrorCode.CORRUPT, f"wrong checksum of its part {kind!r}")
    except struct.error:
        raise ImageError(ErrorCode.CORRUPT, "cut short") from None


def _check_gif(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Pixels of the screen, and of the first frame, which may outgrow it; frames. Pillow tells the rest."""
    frames = 0
    try:
        width, height, flags = _GIF_SCREEN.unpack_from(data, 6)
        _check_pixels(width, height, limits)
        at = 13 + _gif_colours(flags)
        while (block := _GIF_BLOCK.search(data, at)) and (kind := block[0]) != b";":
            at = block.end()
            if kind == b",":
                left, top, frame_width, frame_height, flags = _GIF_FRAME.unpack_from(data, at)
                frames += 1
                _check_frames(frames, limits)
                if frames == 1:
                    _check_pixels(max(width, left + frame_width), max(height, top + frame_height), limits)
                at += _GIF_FRAME.size + _gif_colours(flags)
            at += 1  # how many bits the smallest code has, or the extension's kind
            while size := data[at]:
                at += 1 + size
            at += 1
    except (struct.error, IndexError):  # cut short
        return


def _gif_colours(flags: int) -> int:
    """How many bytes the table of colours has that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & _GIF_COLOURS else 0


def _check_webp(data: memoryview, limits: ImageLimits) -> None:
    """Pixels of the canvas; frames. libwebp tells the rest."""
    try:
        kind, _ = _WEBP_CHUNK.unpack_from(data, 12)
        if kind == b"VP8X":
            flags, width, height = data[20], data[24:27], data[27:30]
            _check_pixels(int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1, limits)
            if flags & _WEBP_ANIMATED:
                _check_frames(_webp_frames(data, limits.max_frames), limits)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            _check_pixels((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, limits)
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            _check_pixels(width & 0x3FFF, height & 0x3FFF, limits)
    except (struct.error, IndexError):  # cut short
        return


def _webp_frames(data: memoryview, most: int) -> int:
    """How many frames there are; one more than `most` is enough."""
    frames, at = 0, 12
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at + _WEBP_CHUNK.size <= end and frames <= most:
        kind, length = _WEBP_CHUNK.unpack_from(data, at)
        frames += kind == b"ANMF"
        at += _WEBP_CHUNK.size + length + length % 2
    return frames
