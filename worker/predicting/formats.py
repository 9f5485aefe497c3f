"""Which format a picture's bytes are of, told by how they begin and never by a name."""

from __future__ import annotations

import re
from typing import Final

# How the formats that can be decoded begin, by Pillow's names.
_DECODED: Final = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<GIF>GIF8[79]a)|(?P<WEBP>RIFF.{4}WEBP)"
    rb"|(?P<PPM>P[1-6f][\s#])"
    rb"|(?P<BMP>BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3})",  # "BM" alone begins a text on cars, too
    re.DOTALL,
)

# How other formats begin: (name, offset, bytes).
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
    ("HEIF or AVIF", 4, b"ftyp"),
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

#: How many of a picture's first bytes it takes to tell: an <svg> tag stands behind declarations and comments.
HEAD_BYTES: Final = 1024


def decoded_format(head: bytes) -> str | None:
    """Which of `jobs.limits.IMAGE_FORMATS` these first bytes begin."""
    found = _DECODED.match(head)
    return found.lastgroup if found else None


def other_format(head: bytes) -> str | None:
    """Which format, of those that are never decoded, these first bytes begin."""
    for name, offset, magic in _OTHERS:
        if head.startswith(magic, offset):
            return name
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return "SVG"
    return None
