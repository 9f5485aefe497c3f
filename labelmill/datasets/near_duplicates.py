"""Recognise near-duplicates: images that look the same, although their bytes differ.

A difference hash has a bit for each of 16 x 16 places. It is set if the image gets brighter there, from left
to right. The hash hardly changes if an image is stored as JPEG, made brighter, noisier or smaller. It says
nothing about colour, so the mean colours of the four quarters are compared, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.limits import ImageLimits
from jobs.models.model import InputSpec
from worker.predicting.decode import decode

_SIDE: Final = 16

#: An image as it is hashed: one more column than bits in a row, because a bit compares two. With a reduction
#: of 2, a small JPEG would differ from the same picture as PNG.
_SPEC: Final = InputSpec(width=_SIDE + 1, height=_SIDE, mode="RGB", resampling="box", reduction=4)

#: Smaller differences of grey levels are noise: a flat background must not have random bits.
_MARGIN: Final = 8

#: Two images look the same if at most this share of the bits that either has set differ. It is a share, not a
#: number, because line drawings set few bits.
_DIFFERENT_SHARE: Final = 0.15

#: How far the colours of a quarter may be apart, of 255. Brightness changes more easily than colour, and
#: JPEG and noise change pale colours by up to _PALE.
_BRIGHTNESS: Final = 30
_PALE: Final = 5
_COLOUR_SHARE: Final = 0.25


class Look(NamedTuple):
    """How an image looks."""

    hash: int
    colours: tuple[tuple[float, float, float], ...]  # of the quarters: Y, Cb - 128 and Cr - 128


def look_of(data: bytes, limits: ImageLimits) -> Look:
    """Return how an image file looks. Raises ImageError."""
    image = Image.fromarray(decode(data, _SPEC, limits))
    grey = np.asarray(image.convert("L"), np.int16)
    bits = grey[:, 1:] > grey[:, :-1] + _MARGIN
    quarters = image.resize((2, 2), Image.Resampling.BOX).convert("YCbCr")
    colours = tuple(
        (y, cb - 128, cr - 128) for y, cb, cr in np.asarray(quarters, float).reshape(4, 3).tolist()
    )
    return Look(int.from_bytes(np.packbits(bits).tobytes(), "big"), colours)


def look_the_same(one: Look, other: Look) -> bool:
    """Return whether two images look the same, in shapes and colours."""
    different = (one.hash ^ other.hash).bit_count()
    if different > _DIFFERENT_SHARE * (one.hash | other.hash).bit_count():
        return False
    return all(map(_same_colour, one.colours, other.colours))


def pack_hashes(looks: Sequence[Look]) -> npt.NDArray[np.uint64]:
    """Return the hashes as an array of shape (images, words)."""
    packed = b"".join(look.hash.to_bytes(_SIDE * _SIDE // 8, "big") for look in looks)
    return np.frombuffer(packed, np.uint64).reshape(-1, _SIDE * _SIDE // 64)


def alike(one: Look, hashes: npt.NDArray[np.uint64]) -> list[int]:
    """Return the places of the hashes with the same shapes as an image, as `look_the_same` compares them."""
    own = pack_hashes([one])
    different = np.bitwise_count(own ^ hashes).sum(axis=1)
    found: list[int] = np.flatnonzero(
        different <= _DIFFERENT_SHARE * np.bitwise_count(own | hashes).sum(axis=1)
    ).tolist()
    return found


def _same_colour(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
    (y, *colour), (other_y, *other_colour) = one, other
    strength = max(math.hypot(*colour), math.hypot(*other_colour))
    near = math.dist(colour, other_colour) <= max(_PALE, _COLOUR_SHARE * strength)
    return near and abs(y - other_y) <= _BRIGHTNESS
