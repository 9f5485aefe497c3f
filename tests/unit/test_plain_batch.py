"""Plain PNGs decoded together: each has the pixels that it has alone, or is left to be decoded alone."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worker.predicting.plain import decode_plain
from worker.predicting.plain_batch import decode_together, takes

from jobs.limits import ImageLimits
from jobs.model import InputSpec
from tests.unit.test_decode import chunk, encode, png
from worker.predicting.decode import DEFAULT_LIMITS, decode

SPEC = InputSpec(width=28, height=28)
NOISE = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)

#: 28 rows of 28 pixels, each filtered in one of PNG's five ways.
ROWS = b"".join(bytes([number % 5]) + row.tobytes() for number, row in enumerate(NOISE))


def picture(compressed: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def alone(data: bytes, spec: InputSpec) -> bytes:
    return decode(data, spec).tobytes()


@pytest.mark.parametrize("invert", ["never", "always", "dark_on_light"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_pictures_of_all_kinds_have_the_pixels_that_they_have_alone(invert: str, level: int) -> None:
    # Given digits, noise, paper and gradients, as Pillow writes them, in a spec that is not square as well
    for width, height in ((28, 28), (5, 9), (3, 3)):
        spec = replace(SPEC, width=width, height=height, invert=invert)
        chance = np.random.default_rng(level)
        pixels = [chance.integers(0, 256, (height, width), np.uint8) for _ in range(20)]
        pixels += [np.full((height, width), value, np.uint8) for value in (0, 127, 128, 255)]
        pixels += [
            np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8) * step for step in (1, 9)
        ]
        contents = [encode(Image.fromarray(each), compress_level=level) for each in pixels]

        # When they are decoded together, Then all are, as each is alone
        places, found = decode_together(contents, spec, DEFAULT_LIMITS)
        assert places == list(range(len(contents)))
        assert found.shape == (len(contents), *spec.shape)
        assert [each.tobytes() for each in found] == [alone(each, spec) for each in contents]


def test_what_is_not_plain_is_left_and_the_others_keep_their_places() -> None:
    plain = png(28, 28, rows=ROWS)
    wrong_sum = bytearray(plain)
    wrong_sum[60] ^= 1
    wrong_first_sum = bytearray(plain)
    wrong_first_sum[32] ^= 1
    left = [
        encode(Image.fromarray(NOISE[:27])),
        encode(Image.fromarray(NOISE).convert("P")),
        encode(Image.fromarray(NOISE), "BMP"),
        png(28, 28, rows=ROWS, extra=chunk(b"tRNS", b"\0\7")),
        png(28, 28, rows=ROWS, extra=chunk(b"IDAT", b"")),
        png(28, 28, rows=ROWS[:-1]),
        png(28, 28, rows=b"\x09" + ROWS[1:]),
        plain[:40],
        plain[:-1],
        bytes(wrong_sum),
        bytes(wrong_first_sum),
        picture(zlib.compress(ROWS) + b"more"),
        picture(zlib.compress(ROWS + b"more")),
        picture(zlib.compress(bytes(1_000_000))),
        b"",
        None,
    ]
    contents = [each for bad in left for each in (plain, bad)]

    places, found = decode_together(contents, SPEC, DEFAULT_LIMITS)

    assert places == list(range(0, len(contents), 2))
    assert {each.tobytes() for each in found} == {alone(plain, SPEC)}


def test_nothing_is_found_in_nothing() -> None:
    places, found = decode_together([], SPEC, DEFAULT_LIMITS)
    assert (places, found.shape) == ([], (0, 28, 28))


def test_limits_hold() -> None:
    plain = png(28, 28, rows=ROWS)
    assert decode_together([plain], SPEC, ImageLimits(max_bytes=len(plain)))[0] == [0]
    assert decode_together([plain], SPEC, ImageLimits(max_bytes=len(plain) - 1))[0] == []
    assert takes(SPEC, DEFAULT_LIMITS)
    assert not takes(SPEC, ImageLimits(formats=("JPEG",)))
    assert not takes(replace(SPEC, mode="RGB"), DEFAULT_LIMITS)
    assert not takes(replace(SPEC, width=2), DEFAULT_LIMITS)
    assert takes(replace(SPEC, width=32, height=32), DEFAULT_LIMITS)
    assert not takes(replace(SPEC, width=33, height=32), DEFAULT_LIMITS)
    assert takes(SPEC, ImageLimits(max_pixels=28 * 28))
    assert not takes(SPEC, ImageLimits(max_pixels=28 * 28 - 1))


@settings(max_examples=300)
@given(
    filters=st.lists(st.integers(0, 5), min_size=28, max_size=28),
    seed=st.integers(0, 2**32 - 1),
    level=st.sampled_from([0, 1, 9]),
)
def test_whatever_is_in_it_the_pixels_are_the_same(filters: list[int], seed: int, level: int) -> None:
    # Each picture has the filters in other rows.
    noise = np.random.default_rng(seed).integers(0, 256, (3, 28, 28), np.uint8)
    contents = [
        picture(
            zlib.compress(
                b"".join(bytes([kind]) + row.tobytes() for kind, row in zip(kinds, each, strict=True)),
                level,
            )
        )
        for kinds, each in zip(
            (np.roll(filters, 5 * number).tolist() for number in range(3)), noise, strict=True
        )
    ]
    places, found = decode_together(contents, SPEC, DEFAULT_LIMITS)
    assert places == ([] if 5 in filters else [0, 1, 2])
    for place, pixels in zip(places, found, strict=True):
        assert pixels.tobytes() == decode_plain(contents[place], replace(SPEC, invert="never"))
