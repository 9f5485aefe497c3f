"""Plain PNGs are decoded without Pillow, alone and together, with the same pixels as in Pillow."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from jobs.errors import ErrorCode, ImageError
from jobs.limits import ImageLimits
from jobs.models.model import InputSpec
from tests.faults.corpus import encode
from tests.png import chunk, png
from worker.predicting import fast_png
from worker.predicting.decode import decode
from worker.predicting.fast_png import decode_one, decode_together
from worker.predicting.pictures import DEFAULT_LIMITS
from worker.predicting.windows import decode_many

GREY = InputSpec(width=28, height=28)
COLOUR = replace(GREY, mode="RGB")
NOISE = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)
NOISE_IN_COLOUR = np.random.default_rng(2).integers(0, 256, (28, 28, 3), np.uint8)

#: 28 rows of 28 pixels, with each of PNG's five filters.
ROWS = b"".join(bytes([number % 5]) + row.tobytes() for number, row in enumerate(NOISE))
PLAIN = png(28, 28, rows=ROWS)


def picture(compressed: bytes) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


def with_a_byte_changed(place: int) -> bytes:
    changed = bytearray(PLAIN)
    changed[place] ^= 1
    return bytes(changed)


#: What only Pillow can decode, and what is not a valid picture.
NOT_PLAIN = {
    "another size": encode(Image.fromarray(NOISE[:27])),
    "colour": encode(Image.fromarray(NOISE_IN_COLOUR)),
    "16 bits": encode(Image.fromarray(NOISE.astype(np.uint16))),
    "palette": encode(Image.fromarray(NOISE).convert("P")),
    "alpha": encode(Image.fromarray(NOISE).convert("LA")),
    "a transparent colour": png(28, 28, rows=ROWS, extra=chunk(b"tRNS", b"\0\7")),
    "pixels in two parts": png(28, 28, rows=ROWS, extra=chunk(b"IDAT", b"")),
    "a pixel is missing": png(28, 28, rows=ROWS[:-1]),
    "an unknown filter": png(28, 28, rows=b"\x09" + ROWS[1:]),
    "cut short": PLAIN[:40],
    "no PNG": encode(Image.fromarray(NOISE), "BMP"),
    "nothing": b"",
}

#: `decode_one` leaves these to its caller.
WRONG = {
    "checksum of the pixels": with_a_byte_changed(60),
    "checksum of the header": with_a_byte_changed(32),
    "cut at the end": PLAIN[:-1],
    "more than deflate's end": picture(zlib.compress(ROWS) + b"more"),
    "more than all rows": picture(zlib.compress(ROWS + b"more")),
    "a bomb": picture(zlib.compress(bytes(1_000_000))),
}


@pytest.fixture(scope="module", autouse=True)
def _few_are_enough() -> Iterator[None]:
    """Decode even a single picture by the code for many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_png, "_MIN_PICTURES", 1)
        yield


def opened(data: bytes, spec: InputSpec) -> bytes | str:
    """Return the outcome without the fast way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fast_png, "decode_one", lambda *_: None)
        return outcome(data, spec)


def outcome(data: bytes, spec: InputSpec) -> bytes | str:
    try:
        return decode(data, spec).tobytes()
    except ImageError as error:
        return f"{error.code} {error.detail}"


# ---- one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pixels", "spec"), [(NOISE, GREY), (NOISE_IN_COLOUR, COLOUR)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_plain_picture_is_decoded_without_being_opened(
    pixels: np.ndarray, spec: InputSpec, level: int
) -> None:
    data = encode(Image.fromarray(pixels), compress_level=level)
    assert decode_one(data, spec) == pixels.tobytes()
    assert decode_one(memoryview(data), spec) == pixels.tobytes()
    assert decode_one(data + b"anything behind its end", spec) == pixels.tobytes()


@settings(max_examples=500)
@given(
    compressed=st.binary(max_size=40)
    | st.builds(
        lambda cut, places, level: damaged(
            zlib.compress(ROWS[:cut] + bytes(max(0, cut - len(ROWS))), level), places
        ),
        st.integers(0, 2 * len(ROWS)),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3),
        st.sampled_from([0, 1, 9]),
    )
)
@example(compressed=zlib.compress(ROWS)[:-1])
@example(compressed=zlib.compress(ROWS)[:-4] + b"\0\0\0\0")
@example(compressed=zlib.compress(ROWS) + b"more")
def test_any_compressed_bytes_have_the_same_outcome_as_if_opened(compressed: bytes) -> None:
    data = picture(compressed)
    expected = opened(data, GREY)
    assert outcome(data, GREY) == expected
    # and together with others, a picture is decoded only if it is valid
    places, found = together([data], GREY)
    assert not places or found[0].tobytes() == expected


def damaged(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed)


# ---- many together --------------------------------------------------------------------------------------


def together(
    contents: Sequence[object], spec: InputSpec, limits: ImageLimits = DEFAULT_LIMITS
) -> tuple[list[int], np.ndarray]:
    return decode_together(contents, spec, limits)


@pytest.mark.parametrize("invert", ["never", "always", "dark_on_light"])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_pictures_have_the_same_pixels_together_and_alone(invert: str, level: int) -> None:
    # Given noise, plain shades and gradients, as Pillow writes them, also in sizes that are not square
    for width, height in ((28, 28), (5, 9), (3, 3)):
        spec = replace(GREY, width=width, height=height, invert=invert)
        chance = np.random.default_rng(level)
        pixels = [chance.integers(0, 256, (height, width), np.uint8) for _ in range(20)]
        pixels += [np.full((height, width), value, np.uint8) for value in (0, 127, 128, 255)]
        pixels += [
            np.add.outer(np.arange(height), np.arange(width)).astype(np.uint8) * step for step in (1, 9)
        ]
        contents = [encode(Image.fromarray(each), compress_level=level) for each in pixels]

        # when they are decoded together, then each has the same pixels as alone
        places, found = together(contents, spec)
        assert places == list(range(len(contents)))
        assert found.shape == (len(contents), *spec.shape)
        assert [each.tobytes() for each in found] == [opened(each, spec) for each in contents]


@settings(max_examples=300)
@given(
    filters=st.lists(st.integers(0, 5), min_size=28, max_size=28),
    seed=st.integers(0, 2**32 - 1),
    level=st.sampled_from([0, 1, 9]),
)
def test_any_rows_of_filters_are_undone_as_pillow_does(filters: list[int], seed: int, level: int) -> None:
    # Given three pictures with the same filters in different rows; 5 is not a filter of PNG
    noise = np.random.default_rng(seed).integers(0, 256, (3, 28, 28), np.uint8)
    contents = []
    for number, pixels in enumerate(noise):
        kinds = np.roll(filters, 5 * number).tolist()
        rows = (bytes([kind]) + row.tobytes() for kind, row in zip(kinds, pixels, strict=True))
        contents.append(picture(zlib.compress(b"".join(rows), level)))

    places, found = together(contents, GREY)

    assert places == ([] if 5 in filters else [0, 1, 2])
    for place, pixels in zip(places, found, strict=True):
        assert pixels.tobytes() == decode_one(contents[place], GREY)


def test_the_others_among_many_are_decoded_alone_in_their_places() -> None:
    # Given plain pictures, each next to one that is not plain, not valid, or without bytes
    others = [*NOT_PLAIN.values(), *WRONG.values(), ImageError(ErrorCode.SOURCE_MISSING, "it is gone")]
    contents = [each for other in others for each in (PLAIN, other)]
    assert together(contents, GREY)[0] == list(range(0, len(contents), 2))

    # when all are decoded, then each has the same pixels or error as alone
    pixels, errors = decode_many(contents, GREY, DEFAULT_LIMITS, image_seconds=5)
    for place, content in enumerate(contents):
        if isinstance(content, ImageError):
            assert errors[place] is content
        elif place in errors:
            assert outcome(content, GREY) == f"{errors[place].code} {errors[place].detail}"
            assert not pixels[place].any()
        else:
            assert pixels[place].tobytes() == outcome(content, GREY)
    assert {errors[place].code for place in errors} == {
        ErrorCode.CORRUPT,
        ErrorCode.UNIDENTIFIED,
        ErrorCode.SOURCE_MISSING,
    }


@pytest.mark.parametrize(
    ("spec", "limits", "is_taken"),
    [
        (GREY, DEFAULT_LIMITS, True),
        (GREY, ImageLimits(max_bytes=len(PLAIN)), True),
        (GREY, ImageLimits(max_bytes=len(PLAIN) - 1), False),
        (GREY, ImageLimits(formats=("JPEG",)), False),
        (GREY, ImageLimits(max_pixels=28 * 28), True),
        (GREY, ImageLimits(max_pixels=28 * 28 - 1), False),
    ],
)
def test_limits_hold_among_many(spec: InputSpec, limits: ImageLimits, is_taken: bool) -> None:
    assert together([PLAIN], spec, limits)[0] == ([0] if is_taken else [])
