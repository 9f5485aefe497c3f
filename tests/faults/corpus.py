"""The bad images, and the unusual good ones: each of the list of bad inputs, built here from one real digit.

What is an archive or no regular file is in `tests.faults.bad_archives`. No file of this is in git.
"""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image

from jobs.errors import ErrorCode
from jobs.limits import ImageLimits
from tests.png import chunk, png

Pixels = np.ndarray

LIMITS: Final = ImageLimits()


@dataclass(frozen=True)
class Case:
    """One input, what is in it, and what becomes of it: an error code, or None for a prediction."""

    name: str  # of its file
    data: bytes
    outcome: ErrorCode | None


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    """An image's bytes, as Pillow writes them."""
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def animation(frames: int, format: str, digit: Pixels) -> bytes:  # noqa: A002
    """The digit, and after it frames of plain shades, none like its neighbour."""
    others = [Image.new("L", digit.shape[::-1], 10 + number * 53 % 200) for number in range(frames - 1)]
    return encode(Image.fromarray(digit), format, save_all=True, append_images=others, lossless=True)


def images(digit: Pixels) -> list[Case]:
    """Every image of the list. `digit`: light on black, uint8 (28, 28)."""
    return [
        *_no_pictures(),
        *_broken(digit),
        *_too_large(),
        *_decompression_bombs(digit),
        *_not_allowed(digit),
        *_unusual(digit),
        *_with_archive(digit),
    ]


def _no_pictures() -> Iterator[Case]:
    page = b"<!DOCTYPE html><html><head><title>404</title></head><body><h1>Not Found</h1></body></html>"
    for name, data in {
        "empty.png": b"",
        "one-byte.png": b"\x89",
        "random.png": random.Random(7).randbytes(5000),
        "text.png": b"Dear Sir or Madam,\nplease find attached.\n",
        "error-page.jpg": page,
        "letter.bmp": b"BMW is not BMP, nor is BM anything without a header",
        "letter.pgm": b"Pictures were promised, P1 too",
    }.items():
        yield Case(name, data, ErrorCode.UNIDENTIFIED)


def _broken(digit: Pixels) -> Iterator[Case]:
    picture = Image.fromarray(digit)
    # Noise does not compress: there is something to be cut off.
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 256, (64, 64), dtype=np.uint8))
    whole_png, whole_jpeg = encode(picture, "PNG"), encode(noise, "JPEG")
    flipped = bytearray(whole_png)
    flipped[whole_png.index(b"IDAT") + 10] ^= 0xFF
    checksum = bytearray(whole_png)
    checksum[-1] ^= 0xFF  # of the last chunk, behind all pixels
    cut_jpeg = whole_jpeg[: len(whole_jpeg) * 2 // 3]
    bmp = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54)
    for name, data in {
        "truncated.jpg": cut_jpeg,
        "truncated-and-filled.jpg": cut_jpeg.ljust(len(whole_jpeg), b"\0"),
        "truncated-with-zip-behind.jpg": cut_jpeg + _archive(),
        "without-its-end.jpg": whole_jpeg[:-2],
        "empty-control.png": png(28, 28, bytes(29 * 28), extra=chunk(b"acTL", b"")),
        "without-palette.png": png(28, 28, bytes(29 * 28), colour=3),
        # A frame header without a size, followed by bytes that are not a size.
        "without-its-size.jpg": whole_jpeg[:2] + b"\xff\xc0\0\2\xff\xff\xff\xff\xff\xfe\0\2" + whole_jpeg[2:],
        "truncated.png": whole_png[: len(whole_png) // 2],
        "without-its-end.png": whole_png[:-12],
        "wrong-checksum-of-pixels.png": bytes(flipped),
        "wrong-checksum-of-end.png": bytes(checksum),
        "header-only.png": whole_png[:33],
        "header-only.jpg": whole_jpeg[:20],
        "header-only.gif": encode(picture, "GIF")[:13],
        "header-only.webp": encode(picture, "WEBP")[:30],
        "header-only.bmp": encode(picture, "BMP")[:54],
        "no-pixels.png": png(0, 0),
        "no-height.png": png(28, 0),
        "no-pixels.gif": b"GIF89a" + struct.pack("<HHBBB", 0, 0, 0, 0, 0) + b";",
        "no-pixels.pgm": b"P5\n0 0\n255\n",
        "no-pixels.bmp": bmp + struct.pack("<IiiHHIIIIII", 40, 0, 0, 1, 24, *[0] * 6),
        "unknown-depth.png": png(28, 28, depth=3),
        "unknown-depth.bmp": bmp + struct.pack("<IiiHHIIIIII", 40, 9, 9, 1, 77, *[0] * 6),
        "no-numbers.pgm": b"P5\nx y\n255\n",
        "unknown-depth.pgm": b"P5 28 28 70000\n" + bytes(784),
        "over-its-maximum.pgm": b"P2\n2 2\n255\n1 2 3 999",
    }.items():
        yield Case(name, data, ErrorCode.CORRUPT)


def _too_large() -> Iterator[Case]:
    side = int(LIMITS.max_pixels**0.5)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\0"
    many_frames = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame * 1_000_000 + b";"
    large_frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;"
    # An extension that says to clear what the frame covers: Pillow makes room for it when it opens the file.
    clearing = b"!\xf9\x04\x08\0\0\0\0"
    one_pixel = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    promise = chunk(b"acTL", struct.pack(">II", 2**31, 0))
    comments = one_pixel + b"!\xfe\x01a\0" * 3_000_000 + frame + b";"
    scans = encode(Image.new("L", (2000, 2000), 3), "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xda") : -2]
    canvas = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + b"\xff\xff\0\xff\xff\0"
    moving_canvas = b"VP8X" + struct.pack("<I", 10) + b"\x02" + bytes(9)
    moving = b"WEBP" + moving_canvas + (b"ANMF" + struct.pack("<I", 16) + bytes(16)) * 1_000_000
    # An animation that declares one frame and has many.
    control = chunk(b"acTL", struct.pack(">II", 1, 0))
    one_more = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1, 1, 0, 0, 1, 1, 0, 0))
    for name, data in {
        "50000x50000.png": png(50_000, 50_000, b"\0" * 100_000),
        "wide.png": png(10**9, 1),
        "high.png": png(1, 10**9),
        "50000x50000.jpg": b"\xff\xd8\xff\xc0" + struct.pack(">HBHHBI", 11, 8, 50_000, 50_000, 1, 0x01110000),
        "wide.pgm": b"P5 1000000000 1 255\n",
        "wide.bmp": b"BM" + bytes(12) + struct.pack("<IiiHHIIIIII", 40, 10**9, 1, 1, 8, *[0] * 6),
        "65536x65536.webp": b"RIFF" + struct.pack("<I", len(canvas)) + canvas,
        "just-over-the-pixels.png": png(side, side + 1, depth=1),
        "long.png": png(LIMITS.max_pixels, 1, bytes(1 + LIMITS.max_pixels)),
        "tall.png": png(1, LIMITS.max_pixels, bytes(2 * LIMITS.max_pixels)),
        "many-scans.jpg": scans[:-2] + scan * 2000 + scans[-2:],
        "many-comments.gif": comments,
        "many-comments.jpg": scans[:2] + b"\xff\xfe\0\2" * 3_000_000 + scans[2:],
        "many-chunks.png": png(28, 28, bytes(29 * 28), extra=chunk(b"teSt", b"") * 1_000_000),
        "animated-bomb.gif": many_frames,
        "huge-frame.gif": one_pixel + clearing + large_frame,
        "animated-bomb.webp": b"RIFF" + struct.pack("<I", len(moving)) + moving,
        "animated-bomb.png": png(1, 1, b"\0\0", extra=control + one_more * 500_000),
        "endless-animation.png": png(28, 28, extra=promise),
        "over-the-bytes.png": png(28, 28, bytes(29 * 28)).ljust(LIMITS.max_bytes + 1, b"\0"),
    }.items():
        yield Case(name, data, ErrorCode.TOO_LARGE)


def _decompression_bombs(digit: Pixels) -> Iterator[Case]:
    rows = b"".join(b"\0" + row.tobytes() for row in digit)
    compressor = zlib.compressobj(9)
    zeros = b"".join(compressor.compress(bytes(2**20)) for _ in range(256)) + compressor.flush()
    for kind, words in {b"zTXt": b"a\0\0", b"iCCP": b"a\0\0", b"iTXt": b"a\0\x01\0\0\0"}.items():
        data = png(28, 28, rows, extra=chunk(kind, words + zeros))
        yield Case(f"{kind.decode()}.png", data, ErrorCode.CORRUPT)


def _not_allowed(digit: Pixels) -> Iterator[Case]:
    picture = Image.fromarray(digit)
    tiff = encode(picture, "TIFF")
    wmf = (
        b"\xd7\xcd\xc6\x9a"
        + bytes(6)
        + struct.pack("<HHH", 28, 28, 96)
        + bytes(6)
        + b"\x01\0\x09\0"
        + bytes(40)
    )
    card = "SIMPLE  =                    T".ljust(80)
    fits = (
        card + "BITPIX  =                    8".ljust(80) + "NAXIS   =                    0".ljust(80) + "END"
    )
    for name, data in {
        "scan.tif": tiff,
        "layers.psd": b"8BPS\0\x01" + bytes(6) + struct.pack(">HIIHH", 1, 28, 28, 8, 1) + bytes(12),
        "drawing.eps": encode(picture, "EPS"),
        "stars.fits": fits.ljust(2880).encode(),
        "archive.jp2": encode(picture, "JPEG2000"),
        "old.wmf": wmf,
        "paper.pdf": encode(picture, "PDF"),
        "big-endian.tif": tiff.replace(b"II*\0", b"MM\0*", 1),
        "big.tif": b"II+\0\x08\0\0\0" + bytes(64),
        "with-preview.eps": b"\xc5\xd0\xd3\xc6" + bytes(64),
        "stream.j2k": b"\xff\x4f\xff\x51" + bytes(64),
        "enhanced.emf": b"\x01\0\0\0" + bytes(36) + b" EMF" + bytes(64),
        "icon.ico": encode(picture, "ICO"),
        "photo.avif": b"\0\0\0\x20ftypavif" + bytes(64),
        "sgi-named.png": encode(picture, "SGI"),
        "dds-named.png": encode(picture, "DDS"),
        "svg-with-mark.png": b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- drawn -->\n<!DOCTYPE svg>\n<SVG/>",
        "svg-named.png": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" width="28"/>',
        "scan-named.png": tiff,
    }.items():
        yield Case(name, data, ErrorCode.FORMAT_NOT_ALLOWED)


def _unusual(digit: Pixels) -> Iterator[Case]:
    """The same digit in many ways. What is a prediction of it must be the digit's own."""
    picture = Image.fromarray(digit)
    colour = picture.convert("RGB")
    ink = Image.fromarray(digit).convert("P")  # black ink, and how much of it is each entry's alpha
    ink.frombytes(digit.tobytes())
    ink.putpalette(bytes(768))
    turned = Image.Exif()
    turned[0x0112] = 6
    for name, data in {
        "cmyk.jpg": encode(colour.convert("CMYK"), "JPEG", quality=95),
        "palette-with-alpha.png": encode(ink, "PNG", transparency=bytes(range(256))),
        "16-bit.png": encode(Image.fromarray(digit.astype(np.uint16) * 257), "PNG"),
        "1-bit.png": encode(Image.fromarray(digit > 100), "PNG"),
        "rotated-by-exif.jpg": encode(picture.rotate(90), "JPEG", quality=95, exif=turned),
        "progressive.jpg": encode(picture, "JPEG", quality=95, progressive=True),
        "restarts.jpg": encode(picture, "JPEG", quality=95, restart_marker_blocks=1),
        "several-pictures.jpg": encode(colour, "MPO", quality=95, save_all=True, append_images=[colour] * 2),
        "interlaced.png": png(28, 28, _interlaced(digit), interlaced=True),
        "picture.webp": encode(picture, "WEBP", lossless=True),
        "lossy.webp": encode(picture, "WEBP", quality=95),
        "picture.bmp": encode(picture, "BMP"),
        "picture.gif": encode(picture, "GIF"),
        "first-frame.gif": animation(5, "GIF", digit),
        "first-frame.webp": animation(5, "WEBP", digit),
        "first-frame.png": animation(5, "PNG", digit),
        "ink-on-paper.png": encode(Image.fromarray(255 - digit), "PNG"),
        "picture.pgm": encode(picture, "PPM"),
    }.items():
        yield Case(name, data, None)


def _interlaced(pixels: Pixels) -> bytes:
    """The rows of PNG's seven passes (Adam7): where each begins, and how far apart its pixels are."""
    passes = (
        (0, 0, 8, 8),
        (0, 4, 8, 8),
        (4, 0, 8, 4),
        (0, 2, 4, 4),
        (2, 0, 4, 2),
        (0, 1, 2, 2),
        (1, 0, 2, 1),
    )
    return b"".join(
        b"\0" + row.tobytes() for top, left, down, right in passes for row in pixels[top::down, left::right]
    )


def _archive() -> bytes:
    behind = io.BytesIO()
    with zipfile.ZipFile(behind, "w") as archive:
        archive.writestr("../escaped.png", b"not a picture")
    return behind.getvalue()


def _with_archive(digit: Pixels) -> Iterator[Case]:
    picture = Image.fromarray(digit)
    yield Case("with-zip-behind.png", encode(picture, "PNG") + _archive(), None)
    yield Case("with-zip-behind.jpg", encode(picture, "JPEG", quality=95) + _archive(), None)


#: The names of all cases, with their codes, if it does not matter which digit is in them.
CASES: Final = images(np.zeros((28, 28), np.uint8))
