"""Decode a picture and convert it to the model's input, as `jobs.model.InputSpec` declares.

Training and evaluation use the same `prepare`, so that a model is served what it was trained on. The next
step is `worker.predicting.classifier`.
"""

from __future__ import annotations

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import (
    Image,
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401 (registers WEBP, for which Pillow would import all its plugins)
)

from jobs.errors import ErrorCode, ImageError
from jobs.limits import IMAGE_FORMATS, ImageLimits
from jobs.model import InputSpec
from worker.predicting import fast_png
from worker.predicting.optional_formats import open_optional
from worker.predicting.validation import HEAD_BYTES, check_header, check_size, decoded_format, other_format

#: The limits of an image by default.
DEFAULT_LIMITS: Final = ImageLimits()

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

# Pictures in larger files are not decoded together with others.
_SMALL_BYTES: Final = 4_096

# Modes of more than 8 bits per channel. All are grey.
_DEEP_MODES: Final = frozenset(("I;16", "I;16L", "I;16B", "I;16N", "I", "F"))

_GREYSCALE, _TRUECOLOUR = 0, 2  # PNG colour types in which tRNS declares one transparent colour


def decode(
    data: bytes | memoryview, spec: InputSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> npt.NDArray[np.uint8]:
    """Decode one picture into uint8 of `spec.shape`; the array may be read-only.

    The format is recognised by its bytes, never by a name, and must be one of `limits`. Of an animation, the
    first frame is decoded. Bytes after the picture are ignored. Raises ImageError: UNIDENTIFIED, CORRUPT,
    FORMAT_NOT_ALLOWED, or TOO_LARGE before memory is allocated. MemoryError and what signal handlers raise
    pass through.
    """
    with _picture_errors(data, limits):
        check_header(data, limits)
        if "PNG" in limits.formats and (raw := fast_png.decode_one(data, spec)):
            return _inverted(raw, spec)
        return prepare(_open(data, limits), spec)


class Picture(NamedTuple):
    """What identifies and describes a picture, apart from its pixels."""

    #: The SHA-256, in hex, of its upright pixels in its own size: L if it is grey, else RGB.
    pixels: str
    width: int  # upright
    height: int
    mode: str  # Pillow's, as stored in the file


def describe(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> Picture:
    """Decode a picture and describe it. Raises what `decode` raises."""
    with _picture_errors(data, limits):
        check_header(data, limits)
        spec = fast_png.spec_of(data) if "PNG" in limits.formats else None
        if spec is not None and (raw := fast_png.decode_one(data, spec)):
            return _describe_pixels(raw, spec.width, spec.height, spec.mode, spec.mode)
        image = _open(data, limits)
        mode = image.mode
        image = _upright(image)
        if image.mode != "L":
            image = image.convert("RGB")
        return _describe_pixels(image.tobytes(), *image.size, image.mode, mode)


def describe_many(
    contents: Sequence[bytes], limits: ImageLimits = DEFAULT_LIMITS
) -> list[Picture | ImageError]:
    """Return the description of each picture, or its error. Many small grey PNGs of one size are fast."""
    by_beginning: dict[bytes, list[int]] = {}
    for place, data in enumerate(contents):
        if len(data) < _SMALL_BYTES:
            by_beginning.setdefault(data[: fast_png.BEGINNING_BYTES], []).append(place)
    found: list[Picture | ImageError | None] = [None] * len(contents)
    for beginning, places in by_beginning.items():
        if (spec := fast_png.spec_of(beginning)) is None:
            continue
        decoded, pixels = fast_png.decode_together([contents[place] for place in places], spec, limits)
        raw, size = pixels.tobytes(), spec.width * spec.height
        head = _pixels_head(spec.mode, spec.width, spec.height)
        for number, start in zip(decoded, range(0, len(raw), size), strict=True):
            digest = hashlib.sha256(head + raw[start : start + size]).hexdigest()
            found[places[number]] = Picture(digest, spec.width, spec.height, spec.mode)
    return [
        _describe_or_error(data, limits) if known is None else known
        for data, known in zip(contents, found, strict=True)
    ]


def _describe_or_error(data: bytes, limits: ImageLimits) -> Picture | ImageError:
    try:
        return describe(data, limits)
    except ImageError as error:
        return error.with_traceback(None)  # its frames hold the picture


def content_hash(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> str:
    """Return the hash of a picture's pixels, as `Picture.pixels`.

    Pictures that look the same have the same hash, in whatever format they are stored. Raises what `decode`
    raises.
    """
    return describe(data, limits).pixels


def _describe_pixels(raw: bytes, width: int, height: int, raw_mode: str, mode: str) -> Picture:
    """Describe a picture by its pixels in row order, of mode L or RGB. Equal channels are hashed as L."""
    if raw_mode == "RGB" and raw[::3] == raw[1::3] == raw[2::3]:
        raw, raw_mode = raw[::3], "L"
    head = _pixels_head(raw_mode, width, height)
    return Picture(hashlib.sha256(head + raw).hexdigest(), width, height, mode)


def thumbnail(data: bytes | memoryview, side: int, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """Return a picture as a PNG file of at most `side` x `side` pixels, upright and opaque.

    Raises what `decode` raises.
    """
    with _picture_errors(data, limits):
        check_header(data, limits)
        image = _upright(_open(data, limits))
        if image.mode != "L":
            image = image.convert("RGB")
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.info.clear()  # no metadata of the original, such as a place
    image.save(file, "PNG")
    return file.getvalue()


def _pixels_head(mode: str, width: int, height: int) -> bytes:
    """Return what is hashed before the pixels, because pictures of other sizes may have the same pixels."""
    return f"{mode} {width} {height}\n".encode()


def _open(data: bytes | memoryview, limits: ImageLimits) -> Image.Image:
    """Open a picture whose header was checked. Raises ImageError, and what Pillow raises."""
    image = open_optional(data, limits) or Image.open(
        io.BytesIO(data), formats=[name for name in limits.formats if name in IMAGE_FORMATS]
    )
    check_size(*image.size, limits)
    if image.format == "PNG":
        if image.mode == "P" and image.palette is None:  # Pillow would fail an assertion
            raise ImageError(ErrorCode.CORRUPT, "no palette")
        if "transparency" in image.info:
            _scale_transparency(image, data)
    return image


@contextmanager
def _picture_errors(data: bytes | memoryview, limits: ImageLimits) -> Iterator[None]:
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


def prepare(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Convert an opened picture into uint8 of `spec.shape`; the array may be read-only.

    The steps, in this order: apply the EXIF orientation; scale channels of more than 8 bits to 8; put
    transparent pixels over white; convert to `spec.mode` (grey is ITU-R 601 luma); resize if the size
    differs; invert as `spec.invert` says. Raises what Pillow raises on broken pictures.
    """
    image = _upright(image)
    if image.mode != spec.mode:
        image = image.convert(spec.mode)
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling[spec.resampling.upper()])
    # Faster than np.asarray(image), which gets the bytes indirectly.
    return _inverted(image.tobytes(), spec)


def _upright(image: Image.Image) -> Image.Image:
    """Load a picture, apply its orientation, and make it opaque with at most 8 bits per channel."""
    image.load()
    if image.info and not _METADATA.isdisjoint(image.info):
        image = _apply_orientation(image)
    if image.mode in _DEEP_MODES:
        return _to_8_bits(image)
    if (image.info or image.mode != "L") and image.has_transparency_data:  # a plain grey picture has none
        return _flatten_on_white(image)
    return image


def _inverted(data: bytes, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Return the pixels as an array, inverted as `spec.invert` says."""
    pixels = np.frombuffer(data, np.uint8).reshape(spec.shape)
    if spec.invert == "always" or (spec.invert == "dark_on_light" and _has_light_border(data, spec)):
        return ~pixels
    return pixels


def prepare_arrays(pixels: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Prepare raw grey pictures, uint8 (n, height, width), like decoded ones.

    Return uint8 (n, *spec.shape).
    """
    prepared = np.empty((len(pixels), *spec.shape), np.uint8)
    for place, picture in enumerate(pixels):
        prepared[place] = prepare(Image.fromarray(picture), spec)
    return prepared


def _as_image_error(head: bytes, error: Exception, limits: ImageLimits) -> ImageError:
    """Return the image error for a picture that begins with `head` and could not be decoded."""
    if name := decoded_format(head):
        if name not in limits.formats:
            return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, f"{name} is switched off")
        reason = "broken header" if isinstance(error, UnidentifiedImageError) else str(error)
        return ImageError(ErrorCode.CORRUPT, reason[:200] or type(error).__name__)
    if name := other_format(head):
        return ImageError(ErrorCode.FORMAT_NOT_ALLOWED, name)
    return ImageError(ErrorCode.UNIDENTIFIED)


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
    deep = np.asarray(image)
    if image.mode == "F":
        grey = np.nan_to_num(deep, nan=0.0).clip(0, 1) * 255 + 0.5
    else:
        grey = deep.clip(0, 65535) >> 8
    grey = grey.astype(np.uint8)
    if "transparency" in image.info:
        grey[deep == image.info["transparency"]] = 255
    return Image.fromarray(grey)


def _flatten_on_white(image: Image.Image) -> Image.Image:
    """Put a picture with transparency over white. Return mode RGB."""
    layer = image if image.mode == "RGBA" else image.convert("RGBA")
    paper = Image.new("RGB", image.size, "white")
    paper.paste(layer, mask=layer)
    return paper


def _has_light_border(data: bytes, spec: InputSpec) -> bool:
    """Return whether the border pixels have a mean above 127.5.

    It sums bytes, because that is faster than summing a small array.
    """
    channels = len(data) // (spec.width * spec.height)
    row = spec.width * channels
    if spec.width <= 2 or spec.height <= 2:  # all of it is border
        return 2 * sum(data) > 255 * len(data)
    total = sum(data[:row]) + sum(data[-row:])
    between = data[row:-row]
    for value in range(channels):
        total += sum(between[value::row]) + sum(between[row - 1 - value :: row])
    return 2 * total > 255 * 2 * (row + (spec.height - 2) * channels)
