"""TIFF, a format that a setting adds: exact pixels, one page, and errors for what a directory may claim."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ErrorCode, ImageError
from jobs.limits import IMAGE_FORMATS, ImageLimits
from jobs.models.model import InputSpec
from tests import tiff as tags
from tests.faults.corpus import encode
from tests.tiff import tiff
from worker.predicting.decode import decode

LIMITS = ImageLimits(formats=(*IMAGE_FORMATS, "TIFF"))
GREY = InputSpec(width=28, height=40)
COLOUR = InputSpec(width=28, height=40, mode="RGB")
RANDOM = np.random.default_rng(5)
GREYS = RANDOM.integers(0, 256, (40, 28), dtype=np.uint8)
DEEP = RANDOM.integers(0, 65536, (40, 28, 3), dtype=np.uint16)
PHOTO = Image.fromarray((DEEP >> 8).astype(np.uint8))

DEFLATE, LZW, JPEG, PACKBITS = 8, 5, 7, 32773


def outcome_of(data: bytes) -> np.ndarray | ErrorCode:
    try:
        return decode(data, COLOUR, LIMITS)
    except ImageError as error:
        return error.code


def error_of(data: bytes, limits: ImageLimits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, GREY, limits)
    return caught.value


def rows(pixels: np.ndarray, order: str = "<") -> bytes:
    """Return the bytes of pixels of 8 or 16 bits."""
    return pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()


def grey(found: dict[int, tags.Value | None] | None = None) -> bytes:
    """Return a TIFF of the greys, with some tags replaced."""
    return tiff(28, 40, [GREYS.tobytes()], found)


# --- what is decoded


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate"])
@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "RGBA", "LA"])
def test_each_mode_and_lossless_compression_is_decoded_exactly(mode: str, compression: str) -> None:
    image = PHOTO.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(255)
    data = encode(image, "TIFF", compression=compression)
    assert (decode(data, COLOUR, LIMITS) == np.asarray(image.convert("RGB"))).all()


def test_jpeg_within_a_tiff_is_decoded() -> None:
    plain = Image.new("RGB", (28, 40), (200, 60, 90))
    for image in (plain, plain.convert("YCbCr"), plain.convert("L").convert("RGB")):
        data = encode(image, "TIFF", compression="jpeg", quality=95)
        assert abs(decode(data, COLOUR, LIMITS) - np.asarray(image.convert("RGB")).astype(int)).max() < 4


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("planes", [1, 2])
def test_sixteen_bits_keep_their_upper_byte_in_either_order_and_plane(order: str, planes: int) -> None:
    # Given 16-bit colours, together and in a plane each, in both byte orders, compressed and not
    parts = [DEEP] if planes == 1 else [DEEP[..., channel] for channel in range(3)]
    found = {tags.BITS: [16] * 3, tags.SAMPLES: 3, tags.COLOURS: 2, tags.PLANES: planes}
    for compression, pack in ((1, bytes), (DEFLATE, zlib.compress)):
        strips = [pack(rows(part, order)) for part in parts]
        data = tiff(28, 40, strips, {**found, tags.COMPRESSION: compression}, order=order)
        # Then each channel has its upper byte
        assert (decode(data, COLOUR, LIMITS) == DEEP >> 8).all()


@pytest.mark.parametrize(("bits", "dtype"), [(8, np.uint8), (16, np.uint16)])
def test_white_may_be_0(bits: int, dtype: type) -> None:
    dark = (GREYS.astype(dtype) << bits - 8) + (bits > 8)
    for kind, expected in ((1, GREYS), (0, 255 - GREYS)):
        data = tiff(28, 40, [rows(dark)], {tags.BITS: bits, tags.COLOURS: kind, tags.ORIENTATION: 3})
        assert (decode(data, GREY, LIMITS) == expected[::-1, ::-1]).all()


def test_tiles_are_put_together() -> None:
    # Given a picture in tiles of 16 x 16, some of which go over its edges
    padded = np.pad(GREYS, ((0, 8), (0, 4)))
    parts = [padded[y : y + 16, x : x + 16].tobytes() for y in (0, 16, 32) for x in (0, 16)]
    data = tiff(28, 40, parts, {tags.TILE_WIDTH: 16, tags.TILE_HEIGHT: 16})
    assert (decode(data, GREY, LIMITS) == GREYS).all()


def test_transparency_is_laid_over_white_and_other_extra_channels_are_ignored() -> None:
    black = bytes(28 * 40 * 4)
    for extra, expected in ((2, 255), (1, 255), (0, 0)):
        found = {tags.BITS: [8] * 4, tags.SAMPLES: 4, tags.COLOURS: 2, tags.EXTRA: extra}
        assert (decode(tiff(28, 40, [black], found), COLOUR, LIMITS) == expected).all()
        found = {tags.SAMPLES: 2, tags.EXTRA: extra}
        assert (decode(tiff(28, 40, [black[:2240]], found), COLOUR, LIMITS) == expected).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_scan_is_turned_as_its_tag_says(orientation: int) -> None:
    # Given the picture as Pillow turns a JPEG of this orientation
    exif = Image.Exif()
    exif[tags.ORIENTATION] = orientation
    expected = decode(encode(PHOTO, "PNG", exif=exif), COLOUR)
    # Then a TIFF with this tag is turned in the same way
    data = encode(PHOTO, "TIFF", tiffinfo={tags.ORIENTATION: orientation})
    assert (decode(data, COLOUR, LIMITS) == expected).all()


def test_only_the_first_page_counts() -> None:
    # Given two pages, the second of which is too large and of a kind that is not decoded
    other = Image.new("F", (1000, 1000))
    data = encode(PHOTO, "TIFF", save_all=True, append_images=[other])
    limits = ImageLimits(formats=("TIFF",), max_frames=1, max_pixels=28 * 40)
    assert (decode(data, COLOUR, limits) == np.asarray(PHOTO)).all()
    # And a directory that refers to itself
    looping = bytearray(grey())
    (at,) = struct.unpack_from("<I", looping, 4)
    (entries,) = struct.unpack_from("<H", looping, at)
    struct.pack_into("<I", looping, at + 2 + 12 * entries, at)
    assert decode(bytes(looping), GREY, LIMITS).shape == (40, 28)


def test_a_directory_may_hold_any_other_tag() -> None:
    # Given references to an EXIF directory and a profile that are not there, of which Pillow would read both
    data = grey({34665: 2**31, 34853: 4, 34675: b"x" * 1000, 700: b"<x", 282: [1] * 1000})
    assert (decode(data, GREY, LIMITS) == GREYS).all()


# --- what is not


FLOATS = rows(GREYS.astype(np.float32))
KINDS = {
    "floating point": encode(Image.new("F", (28, 40)), "TIFF"),
    "16-bit floating point": tiff(28, 40, [bytes(28 * 40 * 2)], {tags.BITS: 16, tags.FORMAT: 3}),
    "signed": tiff(28, 40, [bytes(28 * 40 * 2)], {tags.BITS: 16, tags.FORMAT: 2}),
    "32 bits": tiff(28, 40, [FLOATS], {tags.BITS: 32}),
    "12 bits": tiff(28, 40, [bytes(28 * 40 * 2)], {tags.BITS: 12}),
    "different depths": tiff(
        28, 40, [bytes(5000)], {tags.BITS: [8, 8, 16], tags.SAMPLES: 3, tags.COLOURS: 2}
    ),
    "LAB": tiff(28, 40, [bytes(28 * 40 * 3)], {tags.BITS: [8] * 3, tags.SAMPLES: 3, tags.COLOURS: 8}),
    "YCbCr without JPEG": encode(PHOTO.convert("YCbCr"), "TIFF"),
    "nine channels": tiff(28, 40, [bytes(28 * 40 * 9)], {tags.SAMPLES: 9, tags.COLOURS: 2}),
    "16-bit grey and transparency": tiff(28, 40, [bytes(28 * 40 * 4)], {tags.BITS: 16, tags.SAMPLES: 2}),
    "reversed bits": grey({tags.FILL_ORDER: 2}),
    "third planar configuration": grey({tags.PLANES: 3}),
    "12-bit JPEG": tiff(28, 40, [b"x"], {tags.BITS: 16, tags.COMPRESSION: JPEG}),
    "CCITT": encode(PHOTO.convert("1"), "TIFF", compression="group4"),
    "Zstandard": grey({tags.COMPRESSION: 50000}),
    "JPEG of the old kind": grey({tags.COMPRESSION: 6}),
    "BigTIFF": b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + bytes(64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_of_tiff_that_is_not_decoded_is_not_allowed(kind: str) -> None:
    error = error_of(KINDS[kind])
    assert error.code == ErrorCode.FORMAT_NOT_ALLOWED
    assert "TIFF" in error.detail


def test_channels_without_end_are_refused_without_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    assert error_of(KINDS["nine channels"]).code == ErrorCode.FORMAT_NOT_ALLOWED
    assert not caplog.records


def jpeg_strip(height: int) -> bytes:
    return encode(Image.fromarray(GREYS[:height]), "JPEG")


CORRUPT = {
    "header only": b"II*\0\x08\0\0\0",
    "directory outside": b"II*\0\xff\xff\xff\xff" + bytes(64),
    "no colours": grey({tags.COLOURS: None}),
    "size as text": grey({tags.WIDTH: b"2800"}),
    "depths for other channels": grey({tags.BITS: [8, 8]}),
    "values outside": grey({tags.LENGTHS: [1120] * 2}).replace(struct.pack("<I", 2), struct.pack("<I", 9)),
    "strip outside": grey({tags.OFFSETS: 2**32 - 1}),
    "empty strip": grey({tags.LENGTHS: 0}),
    "no strips": grey({tags.OFFSETS: None, tags.LENGTHS: None}),
    "too many strips": grey({tags.OFFSETS: [8, 8], tags.LENGTHS: [9, 9]}),
    "strip too short": grey({tags.LENGTHS: 28 * 39}),
    "overlapping strips": grey({tags.ROWS: 1, tags.OFFSETS: [8] * 40, tags.LENGTHS: [1120] * 40}),
    "odd tiles": tiff(28, 40, [bytes(31 * 47)], {tags.TILE_WIDTH: 31, tags.TILE_HEIGHT: 47}),
    "no palette": grey({tags.COLOURS: 3}),
    "not deflated": grey({tags.COMPRESSION: DEFLATE}),
    "not LZW": grey({tags.COMPRESSION: LZW}),
    "too little deflated": tiff(28, 40, [zlib.compress(bytes(28 * 39))], {tags.COMPRESSION: DEFLATE}),
    "too few runs": tiff(28, 40, [b"\x81\0" * 8], {tags.COMPRESSION: PACKBITS}),
    "JPEG too short": tiff(28, 40, [jpeg_strip(20)], {tags.COMPRESSION: JPEG}),
    "JPEG too narrow": tiff(29, 40, [jpeg_strip(40)], {tags.COMPRESSION: JPEG}),
    "JPEG without its end": tiff(28, 40, [jpeg_strip(40)[:-2]], {tags.COMPRESSION: JPEG}),
}


@pytest.mark.parametrize("kind", CORRUPT)
def test_a_broken_tiff_is_corrupt(kind: str) -> None:
    assert error_of(CORRUPT[kind]).code == ErrorCode.CORRUPT


def with_height(entry: bytes) -> bytes:
    """Return a TIFF with another entry in the place of its height."""
    data = bytearray(grey())
    (at,) = struct.unpack_from("<I", data, 4)
    data[at + 2 + 12 : at + 2 + 24] = entry
    return bytes(data)


def test_what_is_wrong_with_a_directory_is_said() -> None:
    wrong = "its tag {} is given twice, empty, or of a wrong type"
    for data, detail in (
        (with_height(struct.pack("<HHII", tags.WIDTH, 4, 1, 28)), wrong.format(tags.WIDTH)),
        (with_height(struct.pack("<HHII", tags.HEIGHT, 4, 0, 28)), wrong.format(tags.HEIGHT)),
        (with_height(struct.pack("<HHIf", tags.HEIGHT, 11, 1, 28)), wrong.format(tags.HEIGHT)),
        (grey({tags.HEIGHT: None}), f"its tag {tags.HEIGHT} is missing, or has several values"),
        (grey({tags.HEIGHT: [40, 40]}), f"its tag {tags.HEIGHT} is missing, or has several values"),
        (grey({tags.HEIGHT: 0}), "no pixels"),
        (grey({tags.WIDTH: 0}), "no pixels"),
        (grey({tags.ROWS: 0}), "strips or tiles of 28 x 0 pixels"),
        (
            tiff(28, 40, [b"x"], {tags.TILE_WIDTH: 0, tags.TILE_HEIGHT: 16}),
            "strips or tiles of 0 x 16 pixels",
        ),
        (grey({tags.ROWS: 20}), "1 offsets and 1 lengths of 2 strips or tiles"),
        (grey({tags.LENGTHS: None}), "1 offsets and 0 lengths of 1 strips or tiles"),
    ):
        assert error_of(data).detail == detail


def test_limits_hold_before_anything_is_decoded() -> None:
    # Given a limit of exactly the picture's pixels
    limits = ImageLimits(formats=("TIFF",), max_pixels=28 * 40)
    assert decode(grey(), GREY, limits).shape == (40, 28)
    deflated = {tags.COMPRESSION: DEFLATE}
    scans = encode(Image.fromarray(GREYS), "JPEG", progressive=True)
    scan = scans[scans.rindex(b"\xff\xda") : -2]
    for data in (
        # Then a row more is too large, and so are sides, tiles, scans and values without end
        tiff(28, 41, [bytes(28)], {tags.ROWS: 1}),
        tiff(50_000, 50_000, [b"x"], deflated),
        tiff(65_536, 1, [bytes(65_536)]),
        tiff(28, 40, [bytes(2048)] * 2, {tags.TILE_WIDTH: 64, tags.TILE_HEIGHT: 32}),
        tiff(28, 40, [b"x"], {tags.TILE_WIDTH: 65_520, tags.TILE_HEIGHT: 65_520}),
        tiff(
            1,
            1120,
            [zlib.compress(bytes(1120))] * 70,
            {**deflated, tags.TILE_WIDTH: 64, tags.TILE_HEIGHT: 16},
        ),
        tiff(28, 40, [scans[:-2] + scan * 200 + scans[-2:]], {tags.COMPRESSION: JPEG}),
        grey({tags.OFFSETS: bytes(500_001)}),
    ):
        assert error_of(data, limits).code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_a_truncated_tiff_is_never_half_an_image(compression: str) -> None:
    whole = encode(PHOTO, "TIFF", compression=compression)
    expected = decode(whole, COLOUR, LIMITS)
    for length in range(8, len(whole), 3):
        outcome = outcome_of(whole[:length])
        assert outcome is ErrorCode.CORRUPT or (outcome == expected).all(), length


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_deflate", "jpeg"])
def test_any_damage_ends_in_pixels_or_in_an_image_error(compression: str) -> None:
    sound = encode(PHOTO, "TIFF", compression=compression)
    (at,) = struct.unpack_from("<I", sound, 4)
    for turn in range(300):
        # Given random bytes, every other time in the directory
        damaged = bytearray(sound)
        places = (0, len(sound)) if turn % 2 else (at, min(at + 200, len(sound)))
        for place in RANDOM.integers(*places, RANDOM.integers(1, 6)):
            damaged[place] = RANDOM.integers(256)
        outcome = outcome_of(bytes(damaged))
        assert isinstance(outcome, ErrorCode) or outcome.size == 28 * 40 * 3
