"""Decoding: each documented kind of bad input gets its error code, and each conversion is exact."""

from __future__ import annotations

import io
import struct
import sys
import warnings
import zlib
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageFile, JpegImagePlugin, PngImagePlugin

from benchmarks.harness.photographs import paint
from jobs.errors import ErrorCode, ImageError
from jobs.limits import IMAGE_FORMATS, ImageLimits
from jobs.models.model import MNIST_INPUT, InputSpec
from tests.faults.corpus import CASES, encode
from tests.png import chunk, png
from tests.programs import run_python
from worker.predicting.decode import decode, prepare
from worker.predicting.pictures import DEFAULT_LIMITS, thumbnail

GREY = InputSpec(width=28, height=28)
COLOUR = InputSpec(width=28, height=28, mode="RGB")


def digit() -> np.ndarray:
    """Return a light stroke on black, with values that reveal any shift, turn or clipping."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:20, 8:14] = np.arange(96, dtype=np.uint8).reshape(16, 6) + 100
    return pixels


def error_of(data: bytes, limits: ImageLimits = DEFAULT_LIMITS, spec: InputSpec = GREY) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(data, spec, limits)
    assert "BytesIO" not in caught.value.detail
    return caught.value


def code_of(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> ErrorCode:
    return error_of(data, limits).code


def outcome_of(data: bytes) -> np.ndarray | ErrorCode:
    try:
        return decode(data, GREY)
    except ImageError as error:
        return error.code


PNG = encode(Image.fromarray(digit()))


# --- bad inputs


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number].name)
def test_each_image_of_the_corpus_gets_its_error_or_is_decoded(number: int) -> None:
    case = CASES[number]
    outcome = outcome_of(case.data)
    assert (outcome if isinstance(outcome, ErrorCode) else None) == case.outcome


def test_no_decoder_off_the_list_is_even_imported() -> None:
    # Given a fresh process that decodes each kind of picture, a TIFF, an AVIF, and data that is not a picture
    inputs = [
        b"",
        b"II*\0",
        b"\0\0\0\x20ftypavif",
        b"%!PS",
        b"GIF89a",
        b"P5 1 1 255 7",
        b"RIFF....WEBP",
        b"BM",
        PNG,
    ]
    program = f"""
import sys
from jobs.errors import ImageError
from jobs.models.model import MNIST_INPUT
from worker.predicting.decode import decode
for data in {inputs!r}:
    try:
        decode(data, MNIST_INPUT)
    except ImageError:
        pass
print(*(name for name in sys.modules if name.startswith("PIL.") and name.endswith("Plugin")))
"""
    done = run_python(program)
    # Then Pillow has only loaded the plugins of the six allowed formats, without a warning.
    names = {name.removeprefix("PIL.").removesuffix("ImagePlugin") for name in done.stdout.split()}
    assert names == {"Png", "Jpeg", "Gif", "Bmp", "WebP", "Ppm"}
    assert done.stderr == ""


# --- a broken picture


def test_a_wrong_checksum_is_corrupt_wherever_it_is() -> None:
    # Given a PNG with a comment before its pixels
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b")
    sound = encode(Image.fromarray(digit()), pnginfo=info)
    kinds = [b"IHDR", b"tEXt", b"IDAT", b"IEND"]
    for kind in kinds:
        # When one bit of one chunk's checksum is flipped
        at = sound.index(kind)
        (length,) = struct.unpack_from(">I", sound, at - 4)
        broken = bytearray(sound)
        broken[at + 4 + length] ^= 1
        # Then the picture is corrupt, although Pillow alone would accept it.
        assert code_of(bytes(broken)) == ErrorCode.CORRUPT, kind
    assert decode(sound, GREY).tolist() == digit().tolist()


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("PPM", {}),
    ],
)
def test_a_truncated_picture_is_never_half_an_image(format: str, options: dict[str, object]) -> None:  # noqa: A002
    # Given a picture whose lower half is noise
    noise = np.random.default_rng(3).integers(0, 256, (28, 28), dtype=np.uint8)
    whole = encode(Image.fromarray(noise).convert("RGB"), format, **options)
    expected = decode(whole, GREY)
    for length in range(len(whole)):
        # When it is cut anywhere
        outcome = outcome_of(whole[:length])
        if isinstance(outcome, ErrorCode):
            # Then it is corrupt, or unidentified if the cut is within its first bytes,
            allowed = {ErrorCode.CORRUPT} if length > 32 else {ErrorCode.CORRUPT, ErrorCode.UNIDENTIFIED}
            assert outcome in allowed, length
        else:
            # or it has all its pixels because only its end marker is missing, which never holds for JPEG.
            assert (outcome == expected).all(), length
            assert len(whole) - length <= 4, length
            assert format != "JPEG", length
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def noise(side: int = 28) -> Image.Image:
    """Return a picture of noise, so that any lost part shows."""
    return Image.fromarray(np.random.default_rng(3).integers(0, 256, (side, side, 3), dtype=np.uint8))


def with_preview() -> bytes:
    """Return a JPEG with a small complete JPEG in its metadata, as cameras write it."""
    preview = encode(Image.new("L", (8, 8), 99), "JPEG")
    words = b"Exif\0\0MM\0*\0\0\0\x08" + bytes(6) + preview
    return after_start(encode(noise(), "JPEG"), b"\xff\xe1" + struct.pack(">H", 2 + len(words)) + words)


def after_start(jpeg: bytes, what: bytes) -> bytes:
    return jpeg[:2] + what + jpeg[2:]


def filled(jpeg: bytes) -> bytes:
    """Add 0xFF bytes before some markers, as the standard allows."""
    for kind in (b"\xe0", b"\xdb", b"\xc0", b"\xc4", b"\xda", b"\xd9"):
        jpeg = jpeg.replace(b"\xff" + kind, b"\xff\xff\xff" + kind, 1)
    return jpeg


# 8 x 8 pixels, written by libjpeg's arithmetic encoder.
ARITHMETIC = bytes.fromhex(
    "ffd8ffdb004300080606070605080707070909080a0c140d0c0b0b0c1912130f141d1a1f1e1d1a1c1c20242e2720222c"
    "231c1c2837292c30313434341f27393d38323c2e333432ffc9000b080008000801011100ffcc000600101005ffda0008"
    "010100003f00ed202ddcb037827098f235b968544efbef70e596a3c29fc9e0b4564b1676c81fe81f45fd3cb0150ead01"
    "c6f2c97cffd9"
)

# Complete JPEGs of every kind.
JPEGS = {
    "baseline": encode(noise(), "JPEG"),
    "grey": encode(noise().convert("L"), "JPEG"),
    "CMYK": encode(noise().convert("CMYK"), "JPEG"),
    "progressive": encode(noise(), "JPEG", progressive=True),
    "progressive, optimized": encode(noise(), "JPEG", progressive=True, optimize=True, quality=95),
    "restarts": encode(noise(), "JPEG", restart_marker_blocks=1),
    "progressive, restarts": encode(noise(), "JPEG", progressive=True, restart_marker_blocks=2),
    "arithmetic": ARITHMETIC,
    "preview": with_preview(),
    "comments": encode(noise(), "JPEG", comment=b"\xff\xd9\xff\xd8" * 1000),
    "filled": filled(encode(noise(), "JPEG")),
    "junk before its end": encode(noise(), "JPEG")[:-2] + b"\0junk\xff\0\xff\xd0\xff\xd9",
    "one pixel": encode(Image.new("L", (1, 1)), "JPEG"),
}


@pytest.mark.parametrize("kind", JPEGS)
def test_a_whole_jpeg_is_decoded_and_a_cut_one_is_not_whatever_comes_behind(kind: str) -> None:
    # Given a complete JPEG: it has the same pixels as in Pillow, whatever follows its end
    whole = JPEGS[kind]
    pixels = prepare(Image.open(io.BytesIO(whole)), GREY).tolist()
    no_marker = b"\xff\x01\0\4ab\xff\xd9"  # not a marker of the picture, followed by an end marker
    behind = [bytes(5000), b"\xff" * 5000, b"PK\x03\x04" + whole, b"\xff\xd8\xff", whole, no_marker]
    for more in (b"", *behind):
        assert decode(whole + more, GREY).tolist() == pixels
    # When its last scan is cut anywhere after the header, and filled up with the same data
    scan = whole.rindex(b"\xff\xda")
    pixels_from = scan + 2 + whole[scan + 3]
    for length in range(pixels_from, len(whole) - 1, 3):
        for more in (b"", *behind):
            # Then it is corrupt, instead of having pixels that libjpeg makes up.
            assert outcome_of(whole[:length] + more) is ErrorCode.CORRUPT, (length, more[:2])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"])
def test_any_damage_ends_in_pixels_or_in_an_image_error(format: str) -> None:  # noqa: A002
    # Given a valid picture of each format
    sound = encode(Image.fromarray(digit()).convert("RGB"), format)
    random = np.random.default_rng(11)
    for _ in range(400):
        # When some of its bytes are random
        damaged = bytearray(sound)
        for at in random.integers(0, len(damaged), random.integers(1, 6)):
            damaged[at] = random.integers(256)
        # Then only an ImageError is raised: any other exception would crash the chunk.
        outcome = outcome_of(bytes(damaged))
        assert (
            outcome != ErrorCode.FORMAT_NOT_ALLOWED if isinstance(outcome, ErrorCode) else outcome.size == 784
        )


# --- too large


def gif_frame(width: int, height: int, left: int = 0) -> bytes:
    return b"\x2c" + struct.pack("<HHHHB", left, 0, width, height, 0) + b"\x02\x02\x44\x01\0;"


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_of_every_format_the_last_pixel_allowed_is_decoded_and_one_more_is_not(format: str) -> None:  # noqa: A002
    # Given a limit that one picture meets exactly, and another exceeds by one column
    limits = ImageLimits(max_pixels=31)
    at, over, far_over = (encode(Image.new("L", (width, 1), 9), format) for width in (31, 32, 100))
    # When both are decoded, then the allowed one causes no warning
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(at, GREY, limits).shape == (28, 28)
        # and one that Pillow's own limit would refuse gets our error
        assert code_of(far_over, limits) == ErrorCode.TOO_LARGE
    # And the other one's error names its size and the limit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        error = error_of(over, limits)
    assert (error.code, error.detail) == (ErrorCode.TOO_LARGE, "32 x 1 pixels, more than 31")


LONGEST = 65_535


def a_row(format: str, length: int) -> bytes:  # noqa: A002
    """Return a picture one pixel high; the GIF's screen is small, and its first frame is long."""
    if format == "GIF":
        return b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + gif_frame(1, 1, left=length - 1)
    if format == "WEBP":
        canvas = b"WEBPVP8X" + struct.pack("<IIHI", 10, 0, (length - 1) & 0xFFFF, length - 1 >> 16)
        return b"RIFF" + struct.pack("<I", len(canvas)) + canvas
    return encode(Image.new("L", (length, 1), 255), format)


@pytest.mark.parametrize("format", ["PNG", "BMP", "PPM", "GIF", "WEBP"])
def test_a_side_longer_than_any_is_too_large_however_few_the_pixels(format: str) -> None:  # noqa: A002
    # Given a picture of one row with the greatest allowed length, which is decoded; WebP allows less
    if format != "WEBP":
        assert decode(a_row(format, LONGEST), GREY).shape == (28, 28)
    # And a pixel more, or upright, it is too large: resizing takes many times the memory of its pixels
    error = error_of(a_row(format, LONGEST + 1))
    assert error.code == ErrorCode.TOO_LARGE
    assert error.detail == "65,536 x 1 pixels, a side of more than 65,535"
    if format in ("PNG", "BMP", "PPM"):
        assert code_of(encode(Image.new("L", (1, LONGEST + 1)), format)) == ErrorCode.TOO_LARGE


def test_pixels_may_come_in_any_number_of_parts() -> None:
    # Given an animated PNG, both frames of which have more than ten thousand chunks of pixels
    packed = zlib.compress((b"\0" + b"\xff" * 28) * 28)
    frames = [struct.pack(">IIIIIHHBB", number, 28, 28, 0, 0, 1, 1, 0, 0) for number in (0, 1)]
    white = png(28, 28)
    data = white[:33] + chunk(b"acTL", struct.pack(">II", 2, 0)) + chunk(b"fcTL", frames[0])
    data += b"".join(chunk(b"IDAT", packed[at : at + 1]) for at in range(10_001)) + chunk(b"fcTL", frames[1])
    data += b"".join(chunk(b"fdAT", struct.pack(">I", 2 + at) + packed[at : at + 1]) for at in range(10_001))
    # Then it is decoded
    assert (decode(data + white[-12:], GREY) == 255).all()


def test_of_an_animated_gif_only_what_comes_before_its_first_frame_is_counted() -> None:
    # Given many extensions after the first frame, none of which is read
    white = encode(Image.new("L", (28, 28), 255), "GIF")
    data = white[:-1] + b"!\xfe\x01a\0" * 10_001 + b";"
    assert (decode(data, GREY) == 255).all()


def test_a_limit_above_pillows_own_holds() -> None:
    # Given a picture with more pixels than Pillow warns about, and a limit of exactly that many
    limits = ImageLimits(max_pixels=9500 * 9500)
    data = png(9500, 9500, depth=1, rows=bytes(9500 * (1 + 9504 // 8)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(data, GREY, limits) == 0).all()
    # And one row more is too large
    assert code_of(png(9500, 9501, depth=1), limits) == ErrorCode.TOO_LARGE


def test_a_second_header_does_not_get_around_the_limit() -> None:
    # Given a PNG with a small header, followed by a huge one that Pillow would use
    huge = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 0, 0, 0, 0))
    assert code_of(png(28, 28, rows=bytes(29 * 28), extra=huge)) == ErrorCode.TOO_LARGE


def test_a_frame_that_only_pillow_sees_does_not_get_around_the_limit() -> None:
    # Given an empty extension, after which Pillow skips one block more than the standard says, so that only
    # Pillow sees the huge frame behind it
    hidden = gif_frame(65535, 65535)
    small = gif_frame(1, 1)[:-1]
    data = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"!\xf9\0" + small
    data += bytes(0x2C + 1 - len(small)) + b"\0" + hidden
    assert code_of(data) == ErrorCode.TOO_LARGE


def test_a_file_exactly_at_the_limit_of_bytes_is_decoded_and_one_more_is_too_large() -> None:
    assert decode(PNG, GREY, ImageLimits(max_bytes=len(PNG))).tolist() == digit().tolist()
    error = error_of(PNG, ImageLimits(max_bytes=len(PNG) - 1))
    assert error.code == ErrorCode.TOO_LARGE
    assert error.detail == f"{len(PNG)} bytes, more than {len(PNG) - 1}"


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_what_does_not_move_has_one_frame(format: str) -> None:  # noqa: A002
    assert decode(encode(Image.fromarray(digit()), format), GREY, ImageLimits(max_frames=1)).shape == (28, 28)


# --- formats that are switched off


@pytest.mark.parametrize("format", IMAGE_FORMATS)
def test_a_format_that_is_switched_off_is_not_allowed_whatever_else_is_wrong_with_it(format: str) -> None:  # noqa: A002
    # Given pictures of a format: a valid one, a truncated one, and one with too many pixels
    others = tuple(name for name in IMAGE_FORMATS if name != format)
    limits = replace(DEFAULT_LIMITS, formats=others, max_pixels=28 * 28)
    sound = encode(Image.fromarray(digit()), format)
    large = encode(Image.new("L", (100, 100)), format)
    # When the format is switched off, then each gets the same error
    for data in (sound, sound[: len(sound) // 2], large):
        error = error_of(data, limits)
        assert (error.code, error.detail) == (ErrorCode.FORMAT_NOT_ALLOWED, f"{format} is switched off")
    # And pictures of the other formats are decoded
    for other in others:
        assert decode(encode(Image.fromarray(digit()), other), GREY, limits).shape == (28, 28)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("TIFF", encode(Image.fromarray(digit()), "TIFF")),
        ("TIFF", b"MM\0*" + bytes(64)),
        ("AVIF", encode(Image.fromarray(digit()), "AVIF")),
        ("AVIF", b"\0\0\0\x20ftypavis" + bytes(64)),
        ("HEIF", b"\0\0\0\x20ftypheic" + bytes(64)),
        ("HEIF", b"\0\0\0\x20ftypmif1" + bytes(64)),
    ],
)
def test_the_error_of_a_format_that_is_never_decoded_says_what_to_do(name: str, data: bytes) -> None:
    error = error_of(data)
    assert (error.code, error.detail) == (
        ErrorCode.FORMAT_NOT_ALLOWED,
        f"{name}: convert it to PNG or JPEG",
    )


@pytest.mark.parametrize(
    ("data", "detail"),
    [
        (b"", "the file is empty"),
        (
            b"\n<!DOCTYPE html><title>Log in</title>",
            "an HTML page, not an image: perhaps a login or error page",
        ),
        (b"\0\0\0\x20ftypisom" + bytes(64), "a video or audio file, not an image"),
        (b"\0\0\0\x14ftypqt  " + bytes(64), "a video or audio file, not an image"),
        (b"Dear Sir or Madam", "not an image of a known format: it begins with b'Dear Sir or '"),
    ],
)
def test_the_error_of_what_is_no_image_says_what_it_looks_like(data: bytes, detail: str) -> None:
    error = error_of(data)
    assert (error.code, error.detail) == (ErrorCode.UNIDENTIFIED, detail)


def test_an_image_file_with_several_pictures_in_it_is_a_jpeg() -> None:
    # Given a JPEG with a preview, as cameras write it; Pillow calls it MPO
    preview = Image.new("L", (8, 8), 99)
    data = encode(Image.new("L", (28, 28), 99), "MPO", save_all=True, append_images=[preview])
    # Then it is decoded if JPEG is allowed, and only then
    assert abs(decode(data, GREY, ImageLimits(formats=("JPEG",))).astype(int) - 99).max() < 4
    assert code_of(data, ImageLimits(formats=("PNG",))) == ErrorCode.FORMAT_NOT_ALLOWED


# --- conversions


@pytest.mark.parametrize("format", ["PNG", "GIF", "BMP", "PPM"])
def test_lossless_formats_agree_to_the_last_bit(format: str) -> None:  # noqa: A002
    assert decode(encode(Image.fromarray(digit()), format), GREY).tolist() == digit().tolist()


def test_sixteen_bits_keep_their_upper_byte() -> None:
    # Given every grey from black to white, in 16 bits
    deep = np.linspace(0, 65535, 784).astype(np.uint16).reshape(28, 28)
    expected = (deep >> 8).tolist()
    # Then no value is clipped, in PNG or PGM
    assert decode(encode(Image.fromarray(deep)), GREY).tolist() == expected
    assert decode(b"P5 28 28 65535\n" + deep.astype(">u2").tobytes(), GREY).tolist() == expected
    assert prepare(Image.fromarray(deep.astype(np.int32)), GREY).tolist() == expected


def test_floats_are_taken_from_0_to_1() -> None:
    values = np.zeros((28, 28), np.float32)
    values[0, :5] = (-1, 0.5, 1, 7, np.nan)
    assert prepare(Image.fromarray(values), GREY)[0, :5].tolist() == [0, 128, 255, 255, 0]


def test_one_bit_is_black_or_white() -> None:
    bits = digit() > 0
    assert decode(encode(Image.fromarray(bits)), GREY).tolist() == (bits * 255).tolist()


def test_a_palette_is_resolved() -> None:
    # Given a palette image whose pixels are red
    image = Image.new("P", (28, 28), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    assert decode(encode(image), COLOUR)[0, 0].tolist() == [255, 0, 0]
    assert decode(encode(image), GREY)[0, 0] == 76  # 0.299 * 255


def test_cmyk_becomes_what_is_seen() -> None:
    ink = Image.new("CMYK", (28, 28), (0, 255, 255, 0))
    red = decode(encode(ink, "JPEG"), COLOUR)[5, 5].astype(int)
    assert abs(red - (255, 0, 0)).max() < 8
    assert abs(int(decode(encode(ink, "JPEG"), GREY)[5, 5]) - 76) < 8


def palette(**options: object) -> bytes:
    image = Image.new("P", (28, 28), 0)
    image.putpalette([0, 0, 0, 9, 9, 9])
    return encode(image, **options)


def plain(row: bytes, transparent: bytes, depth: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of 28 equal rows, with one transparent colour."""
    return png(28, 28, (b"\0" + row) * 28, depth=depth, colour=colour, extra=chunk(b"tRNS", transparent))


# Fully transparent pictures that are dark underneath, in each way in which a file can encode that.
TRANSPARENT = {
    "grey with alpha": encode(Image.new("LA", (28, 28), 0)),
    "colour with alpha": encode(Image.new("RGBA", (28, 28), 0)),
    "WebP": encode(Image.new("RGBA", (28, 28), 0), "WEBP", lossless=True, exact=True),
    "GIF": encode(Image.new("P", (28, 28), 0), "GIF", transparency=0),
    "palette, one entry": palette(transparency=0),
    "palette, alpha each": palette(transparency=b"\0\x80"),
    "grey": plain(bytes(28), b"\0\0"),
    "grey, 1 bit": plain(bytes(4), b"\0\0", depth=1),
    "grey, 2 bits": plain(b"\x55" * 7, b"\0\1", depth=2),
    "grey, 4 bits": plain(b"\x33" * 14, b"\0\3", depth=4),
    "grey, 16 bits": plain(b"\x12\x34" * 28, b"\x12\x34", depth=16),
    "colour": plain(bytes(84), bytes(6), colour=2),
    "colour, 16 bits": plain(b"\x12\x34" * 84, b"\x12\x34" * 3, depth=16, colour=2),
}


@pytest.mark.parametrize("spec", [GREY, COLOUR], ids=["grey", "colour"])
@pytest.mark.parametrize("kind", TRANSPARENT)
def test_transparency_is_laid_over_white(kind: str, spec: InputSpec) -> None:
    assert (decode(TRANSPARENT[kind], spec) == 255).all()


def test_half_transparent_black_over_white_is_mid_grey() -> None:
    assert (decode(encode(Image.new("RGBA", (28, 28), (0, 0, 0, 128))), GREY) == 127).all()


def test_opaque_pixels_of_a_picture_with_transparency_stay() -> None:
    # Given 16-bit grey, where one value is transparent and another is not
    deep = np.full((28, 28), 0x1234, np.uint16)
    deep[3, 3] = 0x1200
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    pixels = decode(png(28, 28, depth=16, rows=rows, extra=chunk(b"tRNS", b"\x12\x34")), GREY)
    assert pixels[3, 3] == 0x12
    assert (pixels == 255).sum() == 783


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_exif_says(format: str, orientation: int) -> None:  # noqa: A002
    # Given an upright picture with one light quarter, stored as a turned camera would store it
    upright = Image.fromarray(np.kron([[255, 0], [80, 0]], np.ones((14, 14))).astype(np.uint8))
    held = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if held is None else upright.transpose(held)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(stored, format, exif=exif, quality=95)
    # Then it is upright again
    assert abs(decode(data, GREY).astype(int) - np.asarray(upright)).mean() < 4


def test_unreadable_exif_does_not_spoil_sound_pixels() -> None:
    image = Image.fromarray(digit())
    for exif in (
        b"Exif\0\0",
        b"Exif\0\0garbage",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff",
    ):
        assert decode(encode(image, exif=exif), GREY).tolist() == digit().tolist()


def test_another_size_is_resized_as_the_spec_says() -> None:
    # Given a picture of twice the size, with every pixel doubled
    chequered = np.kron(digit(), np.ones((2, 2))).astype(np.uint8)
    data = encode(Image.fromarray(chequered))
    nearest = InputSpec(width=28, height=28, resampling="nearest")
    assert decode(data, nearest).tolist() == digit().tolist()
    for resampling in ("box", "bilinear", "bicubic", "lanczos"):
        spec = InputSpec(width=28, height=28, resampling=resampling)
        expected = Image.fromarray(chequered).resize((28, 28), Image.Resampling[resampling.upper()])
        assert decode(data, spec).tolist() == np.asarray(expected).tolist()


def test_width_and_height_are_not_confused() -> None:
    assert decode(PNG, InputSpec(width=10, height=20)).shape == (20, 10)
    assert decode(PNG, InputSpec(width=10, height=20, mode="RGB")).shape == (20, 10, 3)


def test_ink_on_paper_is_inverted_and_mnist_is_not() -> None:
    # Given the same digit as dark ink on white paper
    paper = encode(Image.fromarray(255 - digit()))
    # Then both become light strokes on black
    assert decode(paper, MNIST_INPUT).tolist() == digit().tolist()
    assert decode(PNG, MNIST_INPUT).tolist() == digit().tolist()
    # and a spec that never or always inverts does that.
    assert decode(paper, GREY).tolist() == (255 - digit()).tolist()
    assert decode(PNG, InputSpec(width=28, height=28, invert="always")).tolist() == (255 - digit()).tolist()


def test_only_the_border_decides_on_inversion_and_mid_grey_stays() -> None:
    inside = np.full((28, 28), 255, np.uint8)
    inside[0] = inside[-1] = inside[:, 0] = inside[:, -1] = 127
    assert decode(encode(Image.fromarray(inside)), MNIST_INPUT).tolist() == inside.tolist()
    outside = np.zeros((28, 28), np.uint8)
    outside[0] = outside[-1] = outside[:, 0] = outside[:, -1] = 128
    assert decode(encode(Image.fromarray(outside)), MNIST_INPUT).tolist() == (255 - outside).tolist()


def test_transparent_ink_becomes_light_strokes_on_black() -> None:
    # Given black ink on a transparent background, with the stroke in the alpha channel
    scribble = Image.merge("LA", (Image.new("L", (28, 28), 0), Image.fromarray(digit())))
    assert decode(encode(scribble), MNIST_INPUT).tolist() == digit().tolist()


class Interrupted(Exception):
    """Raised by a time limit's signal handler."""


@pytest.mark.parametrize("interruption", [Interrupted, TimeoutError, MemoryError, KeyboardInterrupt])
def test_an_interruption_is_not_taken_for_a_broken_picture(
    interruption: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a time limit that is reached inside the decoder, in the picture's load
    load = PngImagePlugin.PngImageFile.load

    def struck(image: PngImagePlugin.PngImageFile) -> object:
        load(image)
        raise interruption

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", struck)
    # Then the exception is passed on unchanged.
    with pytest.raises(interruption):
        decode(encode(Image.fromarray(digit()).convert("RGB")), GREY)  # Pillow opens RGB


# ---- thumbnails ---------------------------------------------------------------------------------------


def test_a_thumbnail_is_upright_opaque_and_in_proportion() -> None:
    # Given a transparent picture of 300 x 100 pixels that lies on its side, with the place where it was taken
    picture = Image.new("RGBA", (300, 100), (0, 0, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "at home"
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)

    # Then its thumbnail is a white PNG of 32 x 96 pixels, without the place
    data = thumbnail(file.getvalue(), 96)
    with Image.open(io.BytesIO(data)) as small:
        assert (small.format, small.mode, small.size) == ("PNG", "RGB", (32, 96))
        assert small.getextrema() == ((255, 255),) * 3
        assert not small.getexif()
    assert b"at home" not in data


def test_a_small_picture_is_its_own_thumbnail() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    with Image.open(io.BytesIO(thumbnail(file.getvalue(), 96))) as small:
        assert (np.asarray(small) == pixels).all()


@pytest.mark.parametrize(
    ("picture", "grey"),
    [
        (Image.new("I;16", (300, 100), 128 << 8), 128),
        (Image.new("I;16B", (300, 100), 128 << 8), 128),
        (Image.new("F", (300, 100), 0.5), 128),
    ],
)
def test_a_thumbnail_of_deep_grey_needs_no_numpy(
    picture: Image.Image, grey: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encode(picture, "PPM" if picture.mode == "F" else "PNG")
    monkeypatch.setitem(sys.modules, "numpy", None)
    with Image.open(io.BytesIO(thumbnail(data, 96, file_format="WEBP"))) as small:
        assert (small.format, small.size) == ("WEBP", (96, 32))
        assert small.convert("L").getextrema() == (grey, grey)


def test_a_thumbnail_of_a_large_jpeg_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    load = JpegImagePlugin.JpegImageFile.load

    def noted(image: JpegImagePlugin.JpegImageFile) -> object:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", noted)
    data = encode(Image.linear_gradient("L").resize((4_000, 2_000)), "JPEG")
    with Image.open(io.BytesIO(thumbnail(data, 96))) as small:
        assert small.size == (96, 48)
    assert max(decoded) == (500, 250)


@pytest.mark.parametrize(("orientation", "size"), [(1, (1600, 1200)), (6, (1600, 1200)), (1, (200, 150))])
def test_a_large_jpeg_is_decoded_in_a_smaller_size_and_looks_the_same(
    orientation: int, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded = []
    load = JpegImagePlugin.JpegImageFile.load

    def noted(image: JpegImagePlugin.JpegImageFile) -> object:
        decoded.append(image.size)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", noted)
    # Given a photograph, whose width may be its height once it is upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(paint(1).resize(size), "JPEG", quality=90, exif=exif)
    full = InputSpec(96, 64, "RGB")
    expected = decode(data, full).astype(int)
    assert decoded.pop() == size
    # When it may be reduced, then it is decoded in the smallest size of at least twice 96 in both directions
    found = decode(data, replace(full, reduction=2))
    assert decoded[-1] == ((400, 300) if size == (1600, 1200) else size)
    # and looks the same
    assert abs(found - expected).mean() < 1


def test_a_thumbnail_of_what_is_no_picture_is_its_error() -> None:
    with pytest.raises(ImageError) as raised:
        thumbnail(b"no picture", 96)
    assert raised.value.code == ErrorCode.UNIDENTIFIED
