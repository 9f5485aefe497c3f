"""A picture's description: the same pixels have the same hash in every format."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits
from tests.faults.corpus import encode
from tests.png import png
from worker.predicting import fast_png
from worker.predicting.decode import content_hash, describe, describe_many

GREY = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, (20, 30, 3), np.uint8)


def plain(pixels: np.ndarray) -> bytes:
    """Return a plain PNG of these pixels."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return png(pixels.shape[1], pixels.shape[0], rows, colour=0 if pixels.ndim == 2 else 2)


@pytest.mark.parametrize("pixels", [GREY, COLOUR], ids=["grey", "colour"])
def test_plain_pngs_have_the_hash_of_other_formats(pixels: np.ndarray) -> None:
    data = plain(pixels)
    assert fast_png.spec_of(data) is not None
    height, width = pixels.shape[:2]
    mode = "L" if pixels.ndim == 2 else "RGB"
    expected = (content_hash(encode(Image.fromarray(pixels), "BMP")), width, height, mode)
    assert describe(data) == expected
    assert describe_many([data] * 3) == [expected] * 3


def test_grey_pictures_that_are_stored_in_colour_have_the_hash_of_grey_ones() -> None:
    grey = describe(plain(GREY))
    colour = describe(plain(np.stack([GREY] * 3, axis=-1)))
    assert (colour.pixels, colour.mode, grey.mode) == (grey.pixels, "RGB", "L")


def test_pictures_of_other_sizes_with_the_same_bytes_differ() -> None:
    assert describe(plain(GREY)).pixels != describe(plain(GREY.reshape(14, 56))).pixels


def test_many_pictures_are_described_as_one_by_one() -> None:
    # given enough small grey pictures to be decoded together, and among them some that cannot be
    contents = [plain(np.roll(GREY, number, axis=1)[: 27 + number % 2]) for number in range(2_400)]
    contents[5] = contents[5][:-20]
    contents[1_000] = b"no picture"
    contents[2_000] = encode(Image.fromarray(GREY), "GIF")

    # when they are described together
    found = describe_many(contents)

    # then each description or error is that of the single picture
    for data, each in zip(contents, found, strict=True):
        if isinstance(each, ImageError):
            with pytest.raises(ImageError) as error:
                describe(data)
            assert (error.value.code, error.value.detail) == (each.code, each.detail)
        else:
            assert each == describe(data)
    assert [each.code for each in found if isinstance(each, ImageError)] == [
        ErrorCode.CORRUPT,
        ErrorCode.UNIDENTIFIED,
    ]


def test_limits_hold_for_plain_pngs() -> None:
    [error] = describe_many([plain(GREY)], ImageLimits(formats=("JPEG",)))
    assert isinstance(error, ImageError)
    assert error.code == ErrorCode.FORMAT_NOT_ALLOWED
    [error] = describe_many([plain(GREY)], ImageLimits(max_pixels=100))
    assert isinstance(error, ImageError)
    assert error.code == ErrorCode.TOO_LARGE
