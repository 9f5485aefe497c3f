"""Decode a picture and convert it to the model's input, as `jobs.models.model.InputSpec` declares.

Training and evaluation use the same `prepare`, so that a model is served what it was trained on. The next
step is `worker.predicting.classifier`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.errors import ImageError
from jobs.limits import ImageLimits
from jobs.models.model import InputSpec
from worker.predicting import fast_png
from worker.predicting.pictures import DEFAULT_LIMITS, open_picture, picture_errors, upright
from worker.predicting.validation import check_header

# The formats, as Pillow names them, that can be decoded in a smaller size.
_REDUCED: Final = ("JPEG", "MPO")

# Pictures in larger files are not decoded together with others.
_SMALL_BYTES: Final = 4_096


def decode(
    data: bytes | memoryview, spec: InputSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> npt.NDArray[np.uint8]:
    """Decode one picture into uint8 of `spec.shape`; the array may be read-only.

    The format is recognised by its bytes, never by a name, and must be one of `limits`. Of an animation, the
    first frame is decoded. Bytes after the picture are ignored. Raises ImageError: UNIDENTIFIED, CORRUPT,
    FORMAT_NOT_ALLOWED, or TOO_LARGE before memory is allocated. MemoryError and what signal handlers raise
    pass through.
    """
    with picture_errors(data, limits):
        check_header(data, limits)
        if "PNG" in limits.formats and (raw := fast_png.decode_one(data, spec)):
            return _inverted(raw, spec)
        return prepare(open_picture(data, limits), spec)


class Picture(NamedTuple):
    """What identifies and describes a picture, apart from its pixels."""

    #: The SHA-256, in hex, of its upright pixels in its own size: L if it is grey, else RGB.
    pixels: str
    width: int  # upright
    height: int
    mode: str  # Pillow's, as stored in the file


def describe(data: bytes | memoryview, limits: ImageLimits = DEFAULT_LIMITS) -> Picture:
    """Decode a picture and describe it. Raises what `decode` raises."""
    with picture_errors(data, limits):
        check_header(data, limits)
        spec = fast_png.spec_of(data) if "PNG" in limits.formats else None
        if spec is not None and (raw := fast_png.decode_one(data, spec)):
            return _describe_pixels(raw, spec.width, spec.height, spec.mode, spec.mode)
        image = open_picture(data, limits)
        mode = image.mode
        image = upright(image)
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


def _pixels_head(mode: str, width: int, height: int) -> bytes:
    """Return what is hashed before the pixels, because pictures of other sizes may have the same pixels."""
    return f"{mode} {width} {height}\n".encode()


def prepare(image: Image.Image, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Convert an opened picture into uint8 of `spec.shape`; the array may be read-only.

    The steps, in this order: decode a large JPEG in a smaller size; apply the EXIF orientation; scale
    channels of more than 8 bits to 8; put transparent pixels over white; convert to `spec.mode` (grey is
    ITU-R 601 luma); resize if the size differs; invert as `spec.invert` says. Raises what Pillow raises on
    broken pictures.
    """
    if spec.reduction and image.format in _REDUCED:
        # Before it is turned upright: its width may become its height.
        side = spec.reduction * max(spec.width, spec.height)
        image.draft(None, (side, side))
    image = upright(image)
    if image.mode != spec.mode:
        image = image.convert(spec.mode)
    if image.size != (spec.width, spec.height):
        image = image.resize((spec.width, spec.height), Image.Resampling[spec.resampling.upper()])
    # Faster than np.asarray(image), which gets the bytes indirectly.
    return _inverted(image.tobytes(), spec)


def _inverted(data: bytes, spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Return the pixels as an array, inverted as `spec.invert` says."""
    pixels = np.frombuffer(data, np.uint8).reshape(spec.shape)
    if spec.invert == "always" or (spec.invert == "dark_on_light" and _has_light_border(data, spec)):
        return ~pixels
    return pixels


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
