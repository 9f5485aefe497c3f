"""AVIF, a format that a setting adds: its pixels, and limits on what its AV1 data declares."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.errors import ErrorCode, ImageError
from jobs.limits import IMAGE_FORMATS, ImageLimits
from jobs.models.model import InputSpec
from tests.faults.corpus import encode
from worker.predicting.avif import open_avif
from worker.predicting.decode import decode

LIMITS = ImageLimits(formats=(*IMAGE_FORMATS, "AVIF"))
SMALL = ImageLimits(formats=("AVIF",), max_pixels=28 * 40)
GREY = InputSpec(width=28, height=40)
COLOUR = InputSpec(width=28, height=40, mode="RGB")
RANDOM = np.random.default_rng(5)
SHADES = np.add.outer(np.arange(40) * 3, np.arange(28) * 4).astype(np.uint8)
PHOTO = Image.merge("RGB", [Image.fromarray(SHADES ^ mask) for mask in (0, 128, 255)])
SHOWN = encode(PHOTO, "AVIF", quality=95)
MOVING = encode(PHOTO, "AVIF", save_all=True, append_images=[Image.new("RGB", (28, 40), "red")] * 5)


def outcome_of(data: bytes) -> np.ndarray | ErrorCode:
    try:
        return decode(data, COLOUR, LIMITS)
    except ImageError as error:
        return error.code


def error_of(data: bytes, limits: ImageLimits = LIMITS) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, GREY, limits)
    return caught.value


def box(kind: bytes, *content: bytes) -> bytes:
    """Return a box of the container."""
    inside = b"".join(content)
    return struct.pack(">I4s", 8 + len(inside), kind) + inside


BRAND = box(b"ftyp", b"avif\0\0\0\0avifmif1miaf")


def item(locations: bytes) -> bytes:
    """Return a file with one item of AV1, and this `iloc` box."""
    entry = box(b"infe", b"\2\0\0\0\0\1\0\0av01\0")
    return BRAND + box(b"meta", bytes(4), box(b"iinf", bytes(4), b"\0\1", entry), locations)


def size_declared(data: bytes, width: int, height: int) -> bytes:
    """Return the AVIF with another size in its container; that of the AV1 data stays."""
    at = data.index(b"ispe") + 8
    return data[:at] + struct.pack(">II", width, height) + data[at + 8 :]


def relocated(data: bytes, av1: Callable[[bytes], bytes]) -> bytes:
    """Return an AVIF of one item with other AV1 data, after its end."""
    at = data.index(b"iloc") + 18  # of its first extent
    start, length = struct.unpack_from(">II", data, at)
    other = av1(data[start : start + length])
    return data[:at] + struct.pack(">II", len(data) + 8, len(other)) + data[at + 8 :] + box(b"mdat", other)


# --- what is decoded


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:0"])
def test_a_photo_is_decoded(mode: str, subsampling: str) -> None:
    image = PHOTO.convert(mode)
    data = encode(image, "AVIF", quality=95, subsampling=subsampling)
    wanted = np.asarray(image.convert("RGB")).astype(int)
    assert abs(decode(data, COLOUR, LIMITS) - wanted).mean() < 6


def test_transparency_is_laid_over_white() -> None:
    assert (decode(encode(Image.new("RGBA", (28, 40), 0), "AVIF"), COLOUR, LIMITS) > 250).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_it_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = decode(encode(PHOTO, "PNG", exif=exif), COLOUR).astype(int)
    assert abs(decode(encode(PHOTO, "AVIF", exif=exif, quality=95), COLOUR, LIMITS) - expected).mean() < 6


def test_of_a_sequence_the_first_frame_is_decoded_and_all_are_counted() -> None:
    for limit in (5, 6):
        limits = ImageLimits(formats=("AVIF",), max_frames=limit)
        if limit == 6:
            assert abs(decode(MOVING, COLOUR, limits) - np.asarray(PHOTO).astype(int)).mean() < 12
        else:
            assert error_of(MOVING, limits).code == ErrorCode.TOO_LARGE


def test_only_one_thread_decodes() -> None:
    # Given a picture of which the decoder could decode parts at once
    image = open_avif(encode(Image.new("RGB", (512, 512)), "AVIF"), LIMITS)
    before = len(list(Path("/proc/self/task").iterdir()))
    image.load()
    # Then there is no thread more, while the decoder is still open.
    assert len(list(Path("/proc/self/task").iterdir())) == before


# --- what is not


def test_a_picture_at_the_limit_is_decoded_and_one_over_it_is_not() -> None:
    assert decode(SHOWN, GREY, SMALL).shape == (40, 28)
    error = error_of(encode(Image.new("L", (28, 41)), "AVIF"), SMALL)
    assert (error.code, error.detail) == (ErrorCode.TOO_LARGE, "28 x 41 pixels, more than 1,120")


def test_a_container_that_declares_more_than_there_is_is_too_large() -> None:
    assert error_of(size_declared(SHOWN, 1000, 1000), SMALL).code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("frames", [1, 2])
def test_a_container_that_declares_less_than_its_data_is_too_large(frames: int) -> None:
    # Given a picture or a sequence of 300 x 300 pixels, whose container declares 28 x 40
    large = Image.new("RGB", (300, 300))
    more = {"save_all": True, "append_images": [Image.new("RGB", (300, 300), "red")]} if frames > 1 else {}
    data = size_declared(encode(large, "AVIF", **more), 28, 40)
    data = data.replace(struct.pack(">II", 300 << 16, 300 << 16), struct.pack(">II", 28 << 16, 40 << 16))
    # Then the size of the data counts, in the item and in the track, even if the other one is missing
    for missing in (b"none", b"moov", b"meta"):
        if missing == b"meta" and frames == 1:
            continue
        error = error_of(data.replace(missing, b"free"), SMALL)
        assert (error.code, error.detail) == (ErrorCode.TOO_LARGE, "300 x 300 pixels, more than 1,120")


def test_frames_that_are_not_shown_count() -> None:
    # Given a picture that is decoded if its data contains its frame once more, or sixteen times
    def repeated(count: int) -> bytes:
        def again(av1: bytes) -> bytes:
            at = 4 + av1[3]  # after a delimiter and the header
            return av1[:at] + av1[at:] * count

        return relocated(SHOWN, again)

    assert decode(repeated(16), COLOUR, SMALL).tolist() == decode(SHOWN, COLOUR, SMALL).tolist()
    # When there are too many to be layers
    error = error_of(repeated(17), SMALL)
    # Then it is too large
    assert (error.code, error.detail) == (ErrorCode.TOO_LARGE, "too many pixels in its layers or tiles")


def test_frames_count_that_only_the_decoder_sees() -> None:
    # Given a sequence whose table of sizes has one entry for all frames
    at = MOVING.index(b"stsz") + 8
    limits = ImageLimits(formats=("AVIF",), max_frames=5)
    for common, frames in ((1, 10**9), (50, 1)):
        data = MOVING[:at] + struct.pack(">II", common, frames) + MOVING[at + 8 :]
        # Then it has too many frames, as declared or as libavif counts them
        assert error_of(data, limits).code == ErrorCode.TOO_LARGE


def test_truncated_headers_are_corrupt() -> None:
    # Given a list of items, and AV1 data, that end before what they announce
    for data in (item(box(b"iloc", bytes(4), b"\x44\0\0\2")), relocated(SHOWN, lambda av1: av1[:6])):
        error = error_of(data)
        assert (error.code, error.detail) == (ErrorCode.CORRUPT, "cut short")


def test_parts_without_end_are_too_large() -> None:
    parts = struct.pack(">HHHH", 1, 1, 0, 60_000)
    many_extents = item(box(b"iloc", bytes(4), b"\0\0", parts))
    many_boxes = BRAND + box(b"free") * 10_001
    many_obus = relocated(SHOWN, lambda av1: av1 + b"\x12\0" * 10_001)  # temporal delimiters
    for data in (many_extents, many_boxes, many_obus):
        error = error_of(data)
        assert (error.code, error.detail) == (ErrorCode.TOO_LARGE, "more than 10,000 parts without pixels")
    # And items that read the same data again and again
    extents = struct.pack(">HHHH", 1, 1, 0, 9000) + struct.pack(">II", 0, 70_000) * 9000
    assert error_of(item(box(b"iloc", bytes(4), b"\x44\0", extents))).code == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("data", [SHOWN, MOVING], ids=["still", "sequence"])
def test_a_truncated_avif_is_never_half_an_image(data: bytes) -> None:
    expected = decode(data, COLOUR, LIMITS)
    for length in range(24, len(data), 3):
        outcome = outcome_of(data[:length])
        assert outcome is ErrorCode.CORRUPT or (outcome == expected).all(), length


@pytest.mark.parametrize("sound", [SHOWN, MOVING], ids=["still", "sequence"])
def test_any_damage_ends_in_pixels_or_in_an_image_error(sound: bytes) -> None:
    for _ in range(500):
        damaged = bytearray(sound)
        for place in RANDOM.integers(0, len(damaged), RANDOM.integers(1, 6)):
            damaged[place] = RANDOM.integers(256)
        outcome = outcome_of(bytes(damaged))
        assert isinstance(outcome, ErrorCode) or outcome.size == 28 * 40 * 3


def test_heif_is_not_allowed() -> None:
    for brands in (b"heic\0\0\0\0mif1heic", b"mif1\0\0\0\0mif1heic"):
        assert error_of(box(b"ftyp", brands)).code == ErrorCode.FORMAT_NOT_ALLOWED
    # And a collection that says that it is AVIF is one
    data = SHOWN.replace(b"ftypavif", b"ftypmif1", 1)
    assert decode(data, COLOUR, LIMITS).tolist() == decode(SHOWN, COLOUR, LIMITS).tolist()
