"""Near-duplicates are recognised after the usual changes of an image, and are not confused with others."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance

from jobs.limits import ImageLimits
from labelmill.datasets.near_duplicates import look_of, look_the_same
from tests.digits import Digits
from tests.faults.corpus import encode

LIMITS = ImageLimits()

Change = Callable[[Image.Image], Image.Image]


def photograph(seed: int) -> Image.Image:
    """Return a picture with large and small shapes in colour, as photographs have them."""
    chance = np.random.default_rng(seed)
    pixels = sum(
        (np.asarray(Image.fromarray(layer).resize((200, 150), Image.Resampling.BICUBIC), np.float64) * weight)
        for layer, weight in (
            (chance.integers(0, 256, (3 * 2**level, 4 * 2**level, 3), np.uint8), 2.0**-level)
            for level in range(4)
        )
    )
    return Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8))


def jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encode(image.convert("RGB"), "JPEG", quality=75)))


def noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    noise = np.random.default_rng(1).normal(0, 5, pixels.shape)
    return Image.fromarray((pixels + noise).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(
    "change",
    [
        jpeg,
        noisy,
        lambda image: ImageEnhance.Brightness(image).enhance(1.1),
        lambda image: image.resize((120, 90)),
    ],
    ids=["jpeg", "noisy", "brighter", "smaller"],
)
def test_a_changed_photograph_looks_the_same_and_others_do_not(change: Change) -> None:
    looks = [look_of(encode(photograph(seed)), LIMITS) for seed in range(20)]
    changed = [look_of(encode(change(photograph(seed))), LIMITS) for seed in range(20)]
    found = [
        (seed, place)
        for seed, each in enumerate(changed)
        for place, other in enumerate(looks)
        if look_the_same(each, other)
    ]
    assert all(seed == place for seed, place in found)
    assert len(found) >= 18


def test_few_of_different_digits_look_the_same(published_mnist: Digits) -> None:
    # Given 400 test digits, some of which are simple strokes
    digits = [Image.fromarray(pixels) for pixels in published_mnist.test_images[:400]]
    looks = [look_of(encode(image), LIMITS) for image in digits]
    # Then at most one in twenty is taken for another one
    taken = [
        place
        for place, each in enumerate(looks)
        if any(look_the_same(each, other) for other in looks[:place])
    ]
    assert len(taken) <= 20
    # And nearly all are recognised when they are stored as JPEG
    found = [
        look_the_same(each, look_of(encode(jpeg(image)), LIMITS))
        for image, each in zip(digits, looks, strict=True)
    ]
    assert sum(found) >= 0.75 * len(digits)


def circle(colour: str, *, radius: int = 20) -> Image.Image:
    """Return a circle of this colour on white."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).circle((32, 32), radius, fill=colour)
    return image


@pytest.mark.parametrize("radius", [20, 30])
def test_circles_of_other_colours_look_different(radius: int) -> None:
    # Given nine circles that differ by their colours alone, as emoji do
    colours = ("red", "orange", "yellow", "green", "blue", "purple", "brown", "black", "grey")
    looks = [look_of(encode(circle(colour, radius=radius)), LIMITS) for colour in colours]

    # Then each looks different from all others, and the same as its own JPEG
    same = [
        (i, j)
        for i, one in enumerate(looks)
        for j, other in enumerate(looks[:i])
        if look_the_same(one, other)
    ]
    assert same == []
    for colour, look in zip(colours, looks, strict=True):
        assert look_the_same(look, look_of(encode(jpeg(circle(colour, radius=radius))), LIMITS)), colour


def test_all_images_without_a_shape_look_the_same() -> None:
    blank = [look_of(encode(Image.new("L", (40, 40), grey)), LIMITS) for grey in (235, 255)]
    assert look_the_same(*blank)
    assert not look_the_same(blank[0], look_of(encode(photograph(1)), LIMITS))
