"""Near-duplicates are recognised after the usual changes of an image, and are not confused with others."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from jobs.limits import ImageLimits
from labelmill.labels.near_duplicates import difference_hash, look_the_same
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
    hashes = [difference_hash(encode(photograph(seed)), LIMITS) for seed in range(20)]
    changed = [difference_hash(encode(change(photograph(seed))), LIMITS) for seed in range(20)]
    found = [
        (seed, place)
        for seed, each in enumerate(changed)
        for place, other in enumerate(hashes)
        if look_the_same(each, other)
    ]
    assert all(seed == place for seed, place in found)
    assert len(found) >= 18


def test_few_of_different_digits_look_the_same(published_mnist: Digits) -> None:
    # Given 400 test digits, some of which are simple strokes
    digits = [Image.fromarray(pixels) for pixels in published_mnist.test_images[:400]]
    hashes = [difference_hash(encode(image), LIMITS) for image in digits]
    # Then at most one in twenty is taken for another one
    taken = [
        place
        for place, each in enumerate(hashes)
        if any(look_the_same(each, other) for other in hashes[:place])
    ]
    assert len(taken) <= 20
    # And nearly all are recognised when they are stored as JPEG
    found = [
        look_the_same(each, difference_hash(encode(jpeg(image)), LIMITS))
        for image, each in zip(digits, hashes, strict=True)
    ]
    assert sum(found) >= 0.75 * len(digits)


def test_all_images_without_a_shape_look_the_same() -> None:
    blank = [difference_hash(encode(Image.new("L", (40, 40), grey)), LIMITS) for grey in (0, 255)]
    assert look_the_same(*blank)
    assert not look_the_same(blank[0], difference_hash(encode(photograph(1)), LIMITS))
