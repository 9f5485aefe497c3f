"""Check what a picture's own bytes declare before a decoder allocates memory for it.

The checks cover the format, the number of pixels and frames, and for PNG and JPEG also completeness. Pillow
allocates the pixels of a GIF or WebP when it opens the file, so these are checked here first. The size of
other formats can be checked once they are open.
"""

from __future__ import annotations

import re
import struct
import zlib
from typing import Final

from jobs.errors import ErrorCode, ImageError
from jobs.limits import MAX_SIDE, ImageLimits

# The first bytes of the formats that can be decoded, by Pillow's names.
_DECODED: Final = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8[79]a)|(?P<WEBP>RIFF.{4}WEBP)"
    rb"|(?P<PPM>P[1-6f][\s#])"
    rb"|(?P<BMP>BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3})",  # "BM" alone could begin any text
    re.DOTALL,
)

# The signatures of other formats: (name, offset, bytes).
_OTHERS: Final = (
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("BigTIFF", 0, b"II+\0"),
    ("BigTIFF", 0, b"MM\0+"),
    ("Photoshop", 0, b"8BPS"),
    ("PostScript", 0, b"%!PS"),
    ("EPS", 0, b"\xc5\xd0\xd3\xc6"),
    ("PDF", 0, b"%PDF-"),
    ("FITS", 0, b"SIMPLE  ="),
    ("JPEG 2000", 0, b"\0\0\0\x0cjP  \r\n\x87\n"),
    ("JPEG 2000", 0, b"\xff\x4f\xff\x51"),
    ("JPEG XL", 0, b"\0\0\0\x0cJXL \r\n\x87\n"),
    ("JPEG XL", 0, b"\xff\x0a"),
    ("WMF", 0, b"\xd7\xcd\xc6\x9a"),
    ("WMF", 0, b"\x01\0\x09\0\0"),
    ("EMF", 40, b" EMF"),
    ("ICO", 0, b"\0\0\x01\0"),
    ("CUR", 0, b"\0\0\x02\0"),
    ("ICNS", 0, b"icns"),
    ("AVIF", 4, b"ftypavif"),
    ("AVIF", 4, b"ftypavis"),
    ("HEIF", 4, b"ftyphe"),  # heic, heix, hevc and so on
    ("HEIF", 4, b"ftypmif1"),
    ("HEIF", 4, b"ftypmsf1"),
    ("Canon raw", 4, b"ftypcrx "),
    ("DDS", 0, b"DDS "),
    ("DICOM", 128, b"DICM"),
    ("GIMP", 0, b"gimp xcf"),
    ("OpenEXR", 0, b"v/1\x01"),
    ("Radiance", 0, b"#?RADIANCE"),
    ("QOI", 0, b"qoif"),
    ("PAM", 0, b"P7\n"),
    ("XPM", 0, b"/* XPM */"),
    ("DjVu", 0, b"AT&TFORM"),
    ("Sun raster", 0, b"\x59\xa6\x6a\x95"),
    ("SGI", 0, b"\x01\xda"),
    ("MNG", 0, b"\x8aMNG"),
    ("JNG", 0, b"\x8bJNG"),
    ("BLP", 0, b"BLP1"),
    ("BLP", 0, b"BLP2"),
)

#: Number of first bytes that show the format: an <svg> tag may come after declarations and comments.
HEAD_BYTES: Final = 1024


def decoded_format(head: bytes) -> str | None:
    """Return which format of `jobs.limits`, on or off, these first bytes belong to, or None."""
    found = _DECODED.match(head)
    return found.lastgroup if found else None


def other_format(head: bytes) -> str | None:
    """Return which format that is never decoded these first bytes belong to, or None."""
    for name, offset, magic in _OTHERS:
        if head.startswith(magic, offset):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return "SVG"
    return None


#: How many first bytes a message shows.
_SHOWN_BYTES: Final = 12


def describe_unknown(head: bytes) -> str:
    """Return what a file is that begins with these bytes and is not an image, in words."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not head:
        return "the file is empty"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<body")):
        return "an HTML page, not an image: perhaps a login or error page"
    if head.startswith(b"ftyp", 4):
        return "a video or audio file, not an image"
    return f"not an image of a known format: it begins with {head[:_SHOWN_BYTES]!r}"


# Limit of chunks, blocks and segments without pixels. Pillow keeps each of them: 6.5 million comments in a
# GIF of 32 MB took a gigabyte. Real comments and profiles, even long ones, have few parts.
_MAX_PARTS: Final = 10_000

# Limit of a JPEG's scans. A progressive JPEG has about ten, any other at most four, one per colour. Each scan
# goes over all pixels, however few bytes it has: 2,000 scans in 440 KB took three minutes, in C code, which
# no soft time limit interrupts.
_MAX_SCANS: Final = 100

_PNG: Final = b"\x89PNG\r\n\x1a\n"
_PNG_FIRST: Final = struct.Struct(">I4sII")  # the first chunk's length and kind; the width and height
_PNG_LINK: Final = struct.Struct(">I I4s")  # the checksum that ends a chunk; the next one's length and kind
_PNG_NUMBER: Final = struct.Struct(">I")
_PNG_PIXELS: Final = (b"IDAT", b"fdAT")

_GIF: Final = (b"GIF87a", b"GIF89a")
_GIF_SCREEN: Final = struct.Struct("<HHB")  # width, height, flags
_GIF_FRAME: Final = struct.Struct("<HHHHB")  # left, top, width, height, flags
_GIF_BLOCK: Final = re.compile(rb"[,!;]")  # a frame, an extension, the end; Pillow skips other bytes
_GIF_COLOURS: Final = 0x80  # flag: a colour table follows

_WEBP_CHUNK: Final = struct.Struct("<4sI")  # kind, length of the content
_WEBP_ANIMATED: Final = 0x02  # flag in VP8X

_JPEG: Final = b"\xff\xd8\xff"
# A marker, after pixels, junk, or any number of 0xFF bytes. 0xFF followed by 0 is a byte of the pixels, and
# followed by D0 to D7 a restart marker among them.
_JPEG_MARKER: Final = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
_JPEG_LENGTH: Final = struct.Struct(">H")  # of a segment, including these bytes, excluding the marker
_JPEG_SIZE: Final = struct.Struct(">HBHH")  # a frame header's length, bits per sample, height, width
_JPEG_MARK, _JPEG_END, _JPEG_SCAN = 0xFF, 0xD9, 0xDA
_JPEG_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # frame headers, with the size
# Tables, comments and application data: segments that may be between two scans, or after the last.
_JPEG_BETWEEN: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDC, 0xDD, *range(0xE0, 0xF0), 0xFE))
_JPEG_SEGMENTS: Final = _JPEG_BETWEEN | _JPEG_FRAMES | {_JPEG_SCAN}


def check_header(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Check a PNG, JPEG, GIF or WebP before it is opened.

    Nothing is decoded, and memory is constant. Raises ImageError: TOO_LARGE, or CORRUPT for a PNG or JPEG.
    """
    if data[:8] == _PNG:
        if "PNG" in limits.formats:
            _check_png(data, limits)
    elif data[:3] == _JPEG:
        if "JPEG" in limits.formats:
            _check_jpeg(data, limits)
    elif data[:6] in _GIF:
        if "GIF" in limits.formats:
            _check_gif(data, limits)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP" and "WEBP" in limits.formats:
        _check_webp(memoryview(data), limits)


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raise ImageError, TOO_LARGE, if an image has too many pixels or too long a side."""
    if width * height > limits.max_pixels:
        reason = f"more than {limits.max_pixels:,}"
    elif width > MAX_SIDE or height > MAX_SIDE:
        reason = f"a side of more than {MAX_SIDE:,}"
    else:
        return
    raise ImageError(ErrorCode.TOO_LARGE, f"{width:,} x {height:,} pixels, {reason}")


def _check_parts(parts: int) -> None:
    """Raise ImageError, TOO_LARGE, if a picture has too many parts without pixels."""
    if parts > _MAX_PARTS:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {_MAX_PARTS:,} parts without pixels")


def _check_frames(frames: int, limits: ImageLimits) -> None:
    """Raise ImageError, TOO_LARGE, if an animation has too many frames."""
    if frames > limits.max_frames:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {limits.max_frames:,} frames")


def _check_png(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Check the pixels, the frames, and that all chunks are complete and have the right checksum.

    Pillow checks neither the checksums of the pixels' chunks nor whether the end is missing.
    """
    view, frames, parts, at = memoryview(data), 0, 0, len(_PNG)
    try:
        length, kind, width, height = _PNG_FIRST.unpack_from(view, at)
        if kind == b"IHDR":
            check_size(width, height, limits)
        while kind != b"IEND":
            end = at + 8 + length
            checksum, length, following = _PNG_LINK.unpack_from(view, end)
            if zlib.crc32(view[at + 4 : end]) != checksum:
                raise ImageError(ErrorCode.CORRUPT, f"its part {kind!r} has a wrong checksum")
            if kind == b"acTL":  # the declared number of an animation's frames
                _check_frames(_PNG_NUMBER.unpack_from(view[at + 8 : end])[0], limits)
            elif kind == b"fcTL":  # the frames themselves
                frames += 1
                _check_frames(frames, limits)
            elif kind not in _PNG_PIXELS:
                parts += 1
                _check_parts(parts)
            at, kind = end + 4, following
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != _PNG_NUMBER.unpack_from(view, end)[0]:
            raise ImageError(ErrorCode.CORRUPT, f"its part {kind!r} has a wrong checksum")
    except struct.error:
        raise ImageError(ErrorCode.CORRUPT, "cut short") from None


def _check_jpeg(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Check the pixels, the scans, and that the end is present.

    If a file was cut short but other data follows, libjpeg invents the missing pixels, and Pillow discards
    its warnings. Data after the end is ignored, such as the other pictures of an MPO. Segments are skipped as
    a whole, because a preview in the metadata contains markers of its own.
    """
    at, parts, scans = 2, 0, 0
    try:
        while (at := _jpeg_marker(data, at)) and (kind := data[at - 1]) != _JPEG_END:
            (length,) = _JPEG_LENGTH.unpack_from(data, at)
            if kind == _JPEG_SCAN:
                scans += 1
                if scans > _MAX_SCANS:
                    raise ImageError(ErrorCode.TOO_LARGE, f"more than {_MAX_SCANS} scans")
            elif kind in _JPEG_BETWEEN:
                parts += 1
                _check_parts(parts)
            elif scans:
                break  # another picture begins, or the supposed pixels are other data
            elif kind in _JPEG_FRAMES and length >= _JPEG_SIZE.size:
                _, _, height, width = _JPEG_SIZE.unpack_from(data, at)
                check_size(width, height, limits)
            at += length
        else:
            if at:
                return
    except (struct.error, IndexError):
        pass
    raise ImageError(ErrorCode.CORRUPT, "cut short: its end is missing")


def _jpeg_marker(data: bytes | memoryview, at: int) -> int:
    """Return the position after the next marker from `at` on, or 0. Raises IndexError at the data's end."""
    if data[at] == _JPEG_MARK and data[at + 1] in _JPEG_SEGMENTS:
        return at + 2  # the usual case in headers: faster than a search
    found = _JPEG_MARKER.search(data, at)
    return found.end() if found else 0


def _check_gif(data: bytes | memoryview, limits: ImageLimits) -> None:
    """Check the pixels of the screen and of the first frame, the frames, and the extensions before the first.

    The first frame may be larger than the screen, and Pillow keeps these extensions. It detects other errors.
    """
    frames = parts = 0
    try:
        width, height, flags = _GIF_SCREEN.unpack_from(data, 6)
        check_size(width, height, limits)
        at = 13 + _gif_colours(flags)
        while (block := _GIF_BLOCK.search(data, at)) and (kind := block[0]) != b";":
            at = block.end()
            if kind == b",":
                left, top, frame_width, frame_height, flags = _GIF_FRAME.unpack_from(data, at)
                frames += 1
                _check_frames(frames, limits)
                if frames == 1:
                    check_size(max(width, left + frame_width), max(height, top + frame_height), limits)
                at += _GIF_FRAME.size + _gif_colours(flags)
            elif not frames:
                parts += 1
                _check_parts(parts)
            at += 1  # skip the minimum code size, or the extension's kind
            while size := data[at]:
                at += 1 + size
            at += 1
    except (struct.error, IndexError):  # cut short
        return


def _gif_colours(flags: int) -> int:
    """Return the size, in bytes, of the colour table that these flags announce."""
    return 3 << (flags & 7) + 1 if flags & _GIF_COLOURS else 0


def _check_webp(data: memoryview, limits: ImageLimits) -> None:
    """Check the pixels of the canvas and the frames. libwebp detects other errors."""
    try:
        kind, _ = _WEBP_CHUNK.unpack_from(data, 12)
        if kind == b"VP8X":
            flags, width, height = data[20], data[24:27], data[27:30]
            check_size(int.from_bytes(width, "little") + 1, int.from_bytes(height, "little") + 1, limits)
            if flags & _WEBP_ANIMATED:
                _check_frames(_webp_frames(data, limits.max_frames), limits)
        elif kind == b"VP8L":
            (bits,) = struct.unpack_from("<I", data, 21)
            check_size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, limits)
        elif kind == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            check_size(width & 0x3FFF, height & 0x3FFF, limits)
    except (struct.error, IndexError):  # cut short
        return


def _webp_frames(data: memoryview, limit: int) -> int:
    """Return the number of frames; counting stops at `limit` + 1."""
    frames, at = 0, 12
    end = min(len(data), 8 + struct.unpack_from("<I", data, 4)[0])
    while at + _WEBP_CHUNK.size <= end and frames <= limit:
        kind, length = _WEBP_CHUNK.unpack_from(data, at)
        frames += kind == b"ANMF"
        at += _WEBP_CHUNK.size + length + length % 2
    return frames
