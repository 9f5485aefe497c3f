"""Recognise near-duplicates: images that look the same, although their bytes differ.

A difference hash has a bit for each of 16 x 16 places. It is set if the image gets brighter there, from left
to right. The hash hardly changes if an image is stored as JPEG, made brighter, noisier or smaller.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from jobs.limits import ImageLimits
from jobs.models.model import InputSpec
from worker.predicting.decode import decode

_SIDE: Final = 16

#: An image as it is hashed: one more column than bits in a row, because a bit compares two.
_SPEC: Final = InputSpec(width=_SIDE + 1, height=_SIDE, mode="L", resampling="box")

#: Smaller differences of grey levels are noise: a flat background must not have random bits.
_MARGIN: Final = 8

#: Two images look the same if at most this share of the bits that either has set differ. It is a share, not a
#: number, because line drawings set few bits.
_DIFFERENT_SHARE: Final = 0.15


def difference_hash(data: bytes, limits: ImageLimits) -> int:
    """Return the hash of an image file. Raises ImageError."""
    grey = decode(data, _SPEC, limits).astype(np.int16)
    bits = grey[:, 1:] > grey[:, :-1] + _MARGIN
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def look_the_same(one: int, other: int) -> bool:
    """Return whether two images look the same, by their hashes."""
    return (one ^ other).bit_count() <= _DIFFERENT_SHARE * (one | other).bit_count()
