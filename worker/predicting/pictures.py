"""Open a picture of any allowed format, and make it upright and opaque, with Pillow alone.

`worker.predicting.decode` makes a model's input of it. The HTTP API makes thumbnails, and has no NumPy.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final, Literal

from PIL import (
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 (registers WEBP, for which Pillow would import all its plugins)
)

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits
from worker.predicting.validation import (
    HEAD_BYTES,
    check_header,
    check_size,
    decoded_format,
    describe_unknown,
    other_format,
)

#: The limits of an image by default.
DEFAULT_LIMITS: Final = ImageLimits()

#: Pixels of the largest image of which a server makes a thumbnail. Each takes up to 20 bytes.
_CAUTIOUS_PIXELS: Final = 16 * 1024 * 1024

warnings.filterwarnings("ignore", module=r"PIL\.")  # about unused metadata, for every malicious picture

# Errors that Pillow's decoders raise on broken bytes, according to their source code. Not simply Exception: a
# time limit or a shutdown that a signal handler raises during decoding is not the picture's fault. Neither is
# a MemoryError, which the machine's other load may cause.
_PILLOW_ERRORS: Final = (
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
    Warning,  # if a filter turns warnings into errors
    struct.error,
    zlib.error,
)

# Metadata in which Pillow may find the orientation.
_METADATA: Final = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))

# EXIF's tag for the orientation, and the operation that undoes each value.
_ORIENTATION: Final = 0x0112
_TRANSPOSES: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Modes of more than 8 bits per channel. All are grey.
_DEEP_MODES: Final = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I", "F"))

_GREYSCALE, _TRUECOLOUR = 0, 2  # PNG colour types in which tRNS declares one transparent colour


def open_picture(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Open a picture whose header was checked. Raises ImageError, and what Pillow raises."""
    image = Image.open(io.BytesIO(data), formats=limits.formats)
    check_size(*image.size, limits)
    if image.format == "PNG":
        if image.mode == "P" and image.palette is None:  # Pillow would fail an assertion
            raise ImageError(ErrorCode.CORRUPT, "no palette")
        if "transparency" in image.info:
            _scale_transparency(image, data)
    return image


@contextmanager
def picture_errors(data: bytes | memoryview, limits: ImageLimits) -> Iterator[None]:
    """Raise ImageError for the errors of a broken picture."""
    if len(data) > limits.max_bytes:
        raise ImageError(ErrorCode.TOO_LARGE, f"{len(data):,} bytes, more than {limits.max_bytes:,}")
    # Pillow's own limit is a second check. It raises an error above twice this value and warns above it, so a
    # picture within our limit never causes a warning.
    Image.MAX_IMAGE_PIXELS = limits.max_pixels
    try:
        yield
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(ErrorCode.TOO_LARGE, f"more than {limits.max_pixels:,} pixels") from error
    except TimeoutError:  # an OSError, but never one of Pillow's
        raise
    except _PILLOW_ERRORS as error:
        raise _as_image_error(bytes(data[:HEAD_BYTES]), error, limits) from error


def upright(image: Image.Image) -> Image.Image:
    """Load a picture, apply its orientation, and make it opaque with at most 8 bits per channel."""
    image.load()
    if image.info and not _METADATA.isdisjoint(image.info):
        image = _apply_orientation(image)
    if image.mode in _DEEP_MODES:
        return _to_8_bits(image)
    if (image.info or image.mode != "L") and image.has_transparency_data:  # a plain grey picture has none
        return _flatten_on_white(image)
    return image


def thumbnail(
    data: bytes | memoryview,
    side: int,
    limits: ImageLimits = DEFAULT_LIMITS,
    file_format: Literal["PNG", "WEBP"] = "PNG",
) -> bytes:
    """Return a picture as a file of at most `side` x `side` pixels, upright and opaque.

    Raises what `decode` raises.
    """
    with picture_errors(data, limits):
        check_header(data, limits)
        image = open_picture(data, limits)
        image.draft(None, (2 * side, 2 * side))  # a JPEG is decoded in an eighth of its size
        if image.mode in _DEEP_MODES:
            image = _to_8_bits_roughly(image)
        image = upright(image)
        if image.mode != "L":
            image = image.convert("RGB")
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.info.clear()  # no metadata of the original, such as a place
    image.save(file, file_format)
    return file.getvalue()


def cautious_limits(data: bytes | memoryview, limits: ImageLimits) -> ImageLimits:
    """Return the limits for a thumbnail of this picture in a process that must not take much memory.

    JPEGs may be larger, because a thumbnail decodes them in an eighth of their size.
    """
    if decoded_format(bytes(data[:HEAD_BYTES])) == "JPEG":
        return limits
    return replace(limits, max_pixels=min(limits.max_pixels, _CAUTIOUS_PIXELS))


def _as_image_error(head: bytes, error: Exception, limits: ImageLimits) -> ImageError:
    """Return the image error for a picture that begins with `head` and could not be decoded."""
    if name := decoded_format(head):
        if name not in limits.formats:
            return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"{name} is switched off")
        reason = "broken header" if isinstance(error, UnidentifiedImageError) else str(error)
        return ImageError(ErrorCode.CORRUPT, reason[:200] or type(error).__name__)
    if name := other_format(head):
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"{name}: convert it to PNG or JPEG")
    return ImageError(ErrorCode.UNIDENTIFIED, describe_unknown(head))


def _scale_transparency(image: Image.Image, data: bytes | memoryview) -> None:
    """Scale a PNG's transparent colour to 8 bits, as Pillow does with the pixels but not with this colour."""
    depth, colour_type = data[24:26]
    transparent = image.info["transparency"]
    if colour_type == _GREYSCALE and depth in (2, 4):
        image.info["transparency"] = transparent * (255 // (2**depth - 1))
    elif colour_type == _TRUECOLOUR and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Apply the picture's orientation. Unreadable metadata is ignored, because the pixels are intact."""
    try:
        transpose = _TRANSPOSES.get(image.getexif().get(_ORIENTATION, 1))
    except TimeoutError:
        raise
    except _PILLOW_ERRORS:
        return image
    return image if transpose is None else image.transpose(transpose)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale a picture of more than 8 bits to mode L: integers by their upper byte, floats from 0..1.

    Transparent pixels become white. Pillow's own conversion clips at 255, so that a 16-bit picture would be
    all white.
    """
    import numpy as np  # the HTTP API, which has no NumPy, does not need this

    deep = np.asarray(image)
    if image.mode == "F":
        grey = np.nan_to_num(deep, nan=0.0).clip(0, 1) * 255 + 0.5
    else:
        grey = deep.clip(0, 65535) >> 8
    grey = grey.astype(np.uint8)
    if "transparency" in image.info:
        grey[deep == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _to_8_bits_roughly(image: Image.Image) -> Image.Image:
    """Scale to mode L without NumPy. A value may differ by one, and transparent pixels keep theirs."""
    if image.mode == "F":
        grey = image.point(lambda value: value * 255 + 0.5)
    else:
        grey = image.convert("I").point(lambda value: value * (1 / 256))
    grey = grey.convert("L")
    grey.info.pop("transparency", None)
    return grey


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Put a picture with transparency over white. Return mode RGB."""
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(layer, mask=layer)
    return paper
