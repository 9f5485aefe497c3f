"""The short way through a plain PNG: taken for what it is made for, and never with another answer."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from worker.predicting.plain import decode_plain

from jobs.errors import ImageError
from jobs.limits import ImageLimits
from jobs.model import InputSpec
from tests.unit.test_decode import chunk, encode, png
from worker.predicting import decode as decoding
from worker.predicting.decode import DEFAULT_LIMITS, decode

GREY = InputSpec(width=28, height=28)
COLOUR = replace(GREY, mode="RGB")
NOISE = np.random.default_rng(1).integers(0, 256, (28, 28), np.uint8)
NOISE_IN_COLOUR = np.random.default_rng(2).integers(0, 256, (28, 28, 3), np.uint8)

#: 28 rows of 28 pixels, each filtered in one of PNG's five ways.
ROWS = b"".join(bytes([number % 5]) + row.tobytes() for number, row in enumerate(NOISE))


def long_way(data: bytes, spec: InputSpec) -> bytes | str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "decode_plain", lambda *_: None)
        return outcome(data, spec)


def outcome(data: bytes, spec: InputSpec) -> bytes | str:
    try:
        return decode(data, spec).tobytes()
    except ImageError as error:
        return f"{error.code} {error.detail}"


@pytest.mark.parametrize(("pixels", "spec"), [(NOISE, GREY), (NOISE_IN_COLOUR, COLOUR)])
@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_plain_picture_takes_it(pixels: np.ndarray, spec: InputSpec, level: int) -> None:
    data = encode(Image.fromarray(pixels), compress_level=level)
    assert decode_plain(data, spec) == pixels.tobytes()
    assert decode_plain(memoryview(data), spec) == pixels.tobytes()
    assert decode_plain(data + b"what follows is nobody's", spec) == pixels.tobytes()


def test_each_filter_is_undone() -> None:
    data = png(28, 28, rows=ROWS)
    found = decode_plain(data, GREY)
    assert found is not None
    assert found == long_way(data, GREY)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(encode(Image.fromarray(NOISE[:27])), id="another size"),
        pytest.param(encode(Image.fromarray(NOISE_IN_COLOUR)), id="colour"),
        pytest.param(encode(Image.fromarray(NOISE.astype(np.uint16))), id="16 bits"),
        pytest.param(encode(Image.fromarray(NOISE).convert("P")), id="palette"),
        pytest.param(encode(Image.fromarray(NOISE).convert("LA")), id="alpha"),
        pytest.param(png(28, 28, rows=ROWS, extra=chunk(b"tRNS", b"\0\7")), id="a transparent colour"),
        pytest.param(png(28, 28, rows=ROWS, extra=chunk(b"IDAT", b"")), id="pixels in two parts"),
        pytest.param(png(28, 28, rows=ROWS[:-1]), id="a pixel is missing"),
        pytest.param(png(28, 28, rows=b"\x09" + ROWS[1:]), id="an unknown filter"),
        pytest.param(png(28, 28, rows=ROWS)[:40], id="cut short"),
        pytest.param(encode(Image.fromarray(NOISE), "BMP"), id="no PNG"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_anything_else_does_not(data: bytes) -> None:
    assert decode_plain(data, GREY) is None


def test_a_format_that_is_switched_off_is_refused_all_the_same() -> None:
    limits = ImageLimits(formats=tuple(name for name in DEFAULT_LIMITS.formats if name != "PNG"))
    with pytest.raises(ImageError, match="PNG is switched off"):
        decode(encode(Image.fromarray(NOISE)), GREY, limits)


def test_a_picture_is_inverted_all_the_same() -> None:
    data = encode(Image.fromarray(NOISE))
    assert decode(data, replace(GREY, invert="always")).tobytes() == (~NOISE).tobytes()
    assert decode(data, replace(GREY, invert="dark_on_light")).tobytes() in (
        NOISE.tobytes(),
        (~NOISE).tobytes(),
    )


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
def test_whatever_is_in_it_the_answer_is_the_same(compressed: bytes) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 28, 28, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")
    assert outcome(data, GREY) == long_way(data, GREY)


def damaged(data: bytes, places: list[tuple[int, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        changed[place % len(changed)] = value
    return bytes(changed)
