"""A picture's bytes become the model's input: decoded, then converted as `jobs.model.InputSpec` declares.

Training and evaluation go through the same `prepare`, so that a model is served what it was trained on.
Next on an image's way: `worker.predicting.classifier`.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
import zlib
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import (
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 (registers WEBP, for which Pillow would import all its plugins)
)

from jobs.errors import ErrorCode, ImageError
from jobs.model import InputSpec

#: Pixels a picture may have: 64 Mi, more than most cameras make. One pixel takes up to 4 bytes decoded and 4
#: more while it is converted, so the largest picture needs half a gigabyte.
MAX_IMAGE_PIXELS: Final = 64 * 2**20

# Pillow raises beyond twice its limit, from the header alone, before it allocates; between once and twice
# it warns. With half our limit it raises exactly where we want it, and the warnings mean nothing; neither
# do its others (of metadata nobody reads), which would fill the log with every hostile picture.
Image.MAX_IMAGE_PIXELS = MAX_IMAGE_PIXELS // 2
warnings.filterwarnings("ignore", module=r"PIL\.")

# Pillow's other forty decoders are the ones that corrupt memory, call Ghostscript or follow references.
_FORMATS: Final = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM")

# How the allowed formats begin. Pillow says "unidentified" of a picture whose header is broken, too.
_ALLOWED: Final = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF.{4}WEBP|P[1-6f][\s#]"
    rb"|BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0{3}",  # "BM" alone begins a text on cars, too
    re.DOTALL,
)

# How other formats begin: (name, offset, bytes).
_NOT_ALLOWED: Final = (
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

# How much of a text is searched for an <svg> tag behind its declarations and comments.
_SVG_HEAD: Final = 1024

# What Pillow's decoders raise on broken bytes, going by their source; each may come from any of them. Not
# simply Exception: a time limit or a shutdown raised by a signal handler in here is not the picture's fault.
# Not MemoryError either: it is the machine that is full, and small pictures suffer with the large.
_BROKEN: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,  # where somebody made them errors
    struct.error,
    zlib.error,
)

# Where Pillow may find how the camera was held.
_METADATA: Final = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))

# EXIF's orientation, and what undoes it.
_ORIENTATION: Final = 0x0112
_TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes of more than 8 bits a channel, all of them grey.
_DEEP: Final = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I", "F"))

_GREYSCALE, _TRUECOLOUR = 0, 2  # PNG's colour types that tRNS makes one colour transparent in


def decode(data: bytes | memoryview, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Decode one picture into uint8 of `spec.shape`; the array may be read-only.

    PNG, JPEG, GIF and WebP (their first frame), BMP and PPM, told by their bytes, never by a name. What
    follows the picture in the bytes is ignored. Raises ImageError: UNIDENTIFIED, CORRUPT, TOO_LARGE or
    FORMAT_NOT_ALLOWED. MemoryError and what signal handlers raise pass through.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.format == "PNG":
            _check_png(image, data)
        return prepare(image, spec)
    except Image.DecompressionBombError as error:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {MAX_IMAGE_PIXELS:,} pixels") from error
    except TimeoutError:  # an OSError, but never one of Pillow's
        raise
    except _BROKEN as error:
        raise _explain(bytes(data[:_SVG_HEAD]), error) from error


def prepare(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Convert an opened picture into uint8 of `spec.shape`; the array may be read-only.

    In this order: turned as its EXIF orientation says; more than 8 bits a channel scaled to 8; transparency
    laid over white; converted to `spec.mode` (grey is ITU-R 601 luma); resized if the size differs;
    inverted as `spec.invert` says. Raises what Pillow raises on broken pictures.
    """
    image.load()
    if image.info and not _METADATA.isdisjoint(image.info):
        image = _upright(image)
    if image.mode in _DEEP:
        image = _to_8_bits(image)
    elif image.has_transparency_data:
        image = _over_white(image)
    if image.mode != spec.mode:
        image = image.convert(spec.mode)
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling[spec.resampling.upper()])
    # Quicker than np.asarray(image), which asks the image for its bytes in a roundabout way.
    pixels = np.frombuffer(image.tobytes(), np.uint8).reshape(spec.shape)
    if spec.invert == "always" or (spec.invert == "dark_on_light" and _has_light_border(pixels)):
        return ~pixels
    return pixels


def prepare_arrays(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Prepare raw greyscale pictures, uint8 (n, height, width), as if decoded: uint8 (n, *spec.shape)."""
    prepared = np.empty((len(pixels), *spec.shape), np.uint8)
    for place, picture in enumerate(pixels):
        prepared[place] = prepare(Image.fromarray(picture), spec)
    return prepared


def _explain(head: bytes, error: Exception) -> ImageError:
    """Whose fault it is that the picture beginning with `head` could not be decoded."""
    if _ALLOWED.match(head):
        reason = "broken header" if isinstance(error, UnidentifiedImageError) else str(error)
        return ImageError(ErrorCode.CORRUPT, reason[:200] or type(error).__name__)
    for name, offset, magic in _NOT_ALLOWED:
        if head.startswith(magic, offset):
            return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, name)
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<svg", b"<?xml", b"<!--", b"<!doctype svg")) and b"<svg" in text:
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "SVG")
    return ImageError(ErrorCode.UNIDENTIFIED)


def _check_png(image: Image.Image, data: bytes | memoryview) -> None:
    """Raise SyntaxError or struct.error unless each chunk up to IEND is whole and has its checksum.

    Pillow checks neither the checksums of the pixels' chunks nor that there is an end.
    """
    view, at = memoryview(data), 8
    while True:
        length, kind = struct.unpack_from(">I4s", view, at)
        end = at + 8 + length
        if zlib.crc32(view[at + 4 : end]) != struct.unpack_from(">I", view, end)[0]:
            raise SyntaxError(f"wrong checksum of chunk {kind!r}")
        if kind == b"IEND":
            break
        at = end + 4
    if "transparency" in image.info:
        # The transparent colour comes as the file has it, the pixels come scaled to 8 bits.
        depth, colour_type = view[24:26]
        transparent = image.info["transparency"]
        if colour_type == _GREYSCALE and depth in (2, 4):
            image.info["transparency"] = transparent * (255 // (2**depth - 1))
        elif colour_type == _TRUECOLOUR and depth == 16:
            image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its orientation says. Unreadable metadata says nothing: the pixels are sound."""
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except TimeoutError:
        raise
    except _BROKEN:
        return image
    return image if turn is None else image.transpose(turn)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a deep picture to mode L: 0..65535 by its upper byte, floats from 0..1. Transparent is white.

    Pillow's own conversion would cut off at 255 and leave a 16-bit picture all white.
    """
    deep = np.asarray(image)
    if image.mode == "F":
        grey = np.nan_to_num(deep, nan=0.0).clip(0, 1) * 255 + 0.5
    else:
        grey = deep.clip(0, 65535) >> 8
    grey = grey.astype(np.uint8)
    if "transparency" in image.info:
        grey[deep == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _over_white(image: Image.Image) -> Image.Image:
    """Lay a picture with transparency over white: mode RGB."""
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(layer, mask=layer)
    return paper


def _has_light_border(pixels: npt.NDArray[np.uint8]) -> bool:
    """Whether the mean of the outermost ring of pixels is above 127.5."""
    ring = pixels.ravel().take(_ring(pixels.shape))
    return 2 * int(ring.sum()) > 255 * ring.size


@lru_cache(maxsize=8)
def _ring(shape: tuple[int, ...]) -> npt.NDArray[np.intp]:
    """The flat places of the outermost ring's values in an array of this shape."""
    ring = np.zeros(shape, bool)
    ring[0] = ring[-1] = True
    ring[:, 0] = ring[:, -1] = True
    return np.flatnonzero(ring)
