"""Distorted training images: by how much, in which way, and the same for the same seed."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.learning.augmentation import distorter
from worker.learning.learnt_images import shifted_views
from worker.learning.recipes import Augmentation

SEED = np.array((3, 1), np.int32)


def a_bar() -> np.ndarray:
    """Return a white upright bar in the middle of a black picture."""
    picture = np.zeros((1, 29, 29), np.uint8)
    picture[0, 5:24, 13:16] = 255
    return picture


def distorted(
    picture: np.ndarray, augmentation: Augmentation, seed: np.ndarray = SEED, share: float = 1.0
) -> np.ndarray:
    return np.asarray(distorter(augmentation, *picture.shape[1:3])(picture, seed, np.float32(share)))


def test_no_distortion_is_the_picture_itself():
    noise = np.random.default_rng(1).integers(256, size=(4, 29, 29), dtype=np.uint8)
    assert (distorted(noise, Augmentation()) == noise).all()


def test_the_same_seed_bends_the_same_way_and_each_image_another():
    pictures = np.repeat(a_bar(), 3, axis=0)
    augmentation = Augmentation(rotation=20, zoom=0.1, shear=0.1, elastic=1.5)
    once = distorted(pictures, augmentation)
    assert (once == distorted(pictures, augmentation)).all()
    assert (once != distorted(pictures, augmentation, np.array((3, 2), np.int32))).any()
    assert (once[0] != once[1]).any()


def test_of_no_share_of_it_nothing_is_left_and_of_half_of_it_half():
    noise = np.random.default_rng(1).integers(256, size=(4, 29, 29), dtype=np.uint8)
    all_of_it = Augmentation(rotation=20, zoom=0.2, shear=0.2, elastic=2.0)
    half_of_it = Augmentation(rotation=10, zoom=0.1, shear=0.1, elastic=1.0)
    assert (distorted(noise, all_of_it, share=0.0) == noise).all()
    assert (distorted(noise, all_of_it, share=0.5) == distorted(noise, half_of_it)).mean() > 0.99


def test_a_bar_is_turned_within_its_limits():
    # Given many bars, when they are turned by up to 30 degrees
    bars = np.repeat(a_bar(), 400, axis=0)
    turned = distorted(bars, Augmentation(rotation=30)).astype(float)
    # Then their axes of inertia are between -30 and 30 degrees, and use the whole range.
    y, x = np.mgrid[-14:15, -14:15]
    mass = turned.sum(axis=(1, 2))
    xx, yy, xy = ((turned * part).sum(axis=(1, 2)) / mass for part in (x * x, y * y, x * y))
    angles = np.degrees(0.5 * np.arctan2(2 * xy, yy - xx))
    assert np.abs(angles).max() < 30.5
    assert angles.min() < -27
    assert angles.max() > 27


def test_a_bar_is_zoomed_within_its_limits():
    bars = np.repeat(a_bar(), 400, axis=0)
    heights = (distorted(bars, Augmentation(zoom=0.2)).max(axis=2) > 127).sum(axis=1)
    assert heights.min() >= 19 * 0.8 - 1
    assert heights.max() <= 19 * 1.2 + 1
    assert heights.max() - heights.min() > 5


def test_points_stray_as_far_as_they_are_told_and_neighbours_together():
    # Given pictures whose brightness encodes a point's position
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, None, :], (2000, 60, 60))
    # When they are distorted elastically
    strayed = (distorted(np.ascontiguousarray(ramp), Augmentation(elastic=2.0)).astype(float) - ramp) / 4
    # Then points move by two pixels (standard deviation), in the middle and towards the border
    for column in (15, 30, 45):
        assert strayed[:, 30, column].std() == pytest.approx(2.0, rel=0.1)
    # and neighbours move together, and distant points do not.
    middle = strayed[:, 30, 30]
    assert np.corrcoef(middle, strayed[:, 30, 31])[0, 1] > 0.9
    assert abs(np.corrcoef(middle, strayed[:, 30, 45])[0, 1]) < 0.1


def test_what_comes_from_outside_is_black():
    white = np.full((50, 29, 29), 255, np.uint8)
    shrunk = distorted(white, Augmentation(zoom=0.3))
    assert shrunk[:, 14, 14].min() == 255
    assert shrunk[:, 0, 0].min() == 0


@given(shift=st.integers(0, 3), down=st.integers(0, 6), right=st.integers(0, 6), channels=st.booleans())
@settings(max_examples=50)
def test_a_view_is_the_picture_moved(shift, down, right, channels):
    down, right = min(down, 2 * shift), min(right, 2 * shift)
    shape = (2, 7, 9, 3) if channels else (2, 7, 9)
    images = np.random.default_rng(1).integers(1, 256, size=shape, dtype=np.uint8)
    seen = shifted_views(images, shift)[np.arange(2), np.full(2, down), np.full(2, right)]
    assert seen.shape == shape
    for y in range(7):
        for x in range(9):
            from_y, from_x = y + down - shift, x + right - shift
            inside = 0 <= from_y < 7 and 0 <= from_x < 9
            assert (seen[:, y, x] == (images[:, from_y, from_x] if inside else 0)).all()


# ---- recipes ------------------------------------------------------------------------------------------


#: Fields of an `Augmentation` that are not amounts.
HOW = ("smoothness", "at_the_end")


@pytest.mark.parametrize("name", [field.name for field in fields(Augmentation) if field.name not in HOW])
def test_whatever_is_more_than_a_shift_bends(name):
    assert Augmentation(**{name: 1}).distorts == (name != "shift")


# ---- photographs --------------------------------------------------------------------------------------


def photograph(value: int = 100) -> np.ndarray:
    """Return four pictures of 6x8 pixels in colour, red on the left: uint8 (4, 6, 8, 3)."""
    pixels = np.full((4, 6, 8, 3), value, np.uint8)
    pixels[:, :, :4, 0] = 200
    return pixels


def test_about_every_second_photograph_is_mirrored() -> None:
    many = np.repeat(photograph(), 50, axis=0)
    found = np.asarray(distorter(Augmentation(mirror=True), 6, 8)(many, np.array((1, 2)), np.float32(1)))
    mirrored = (found == many[:, :, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored | (found == many).all(axis=(1, 2, 3))).all()
    assert 60 < mirrored.sum() < 140


def test_brightness_and_contrast_move_all_pixels_of_a_picture_alike() -> None:
    pixels = photograph()
    seed, share = np.array((1, 2)), np.float32(1)
    brighter = np.asarray(distorter(Augmentation(brightness=0.2), 6, 8)(pixels, seed, share)).astype(int)
    moved = brighter - pixels
    assert (moved == moved[:, :1, :1, :1]).all()
    assert len({int(each) for each in moved[:, 0, 0, 0]}) > 1
    assert 0 < np.abs(moved).max() <= 51
    contrasted = np.asarray(distorter(Augmentation(contrast=0.5), 6, 8)(pixels, seed, share)).astype(float)
    assert np.allclose(contrasted.mean(axis=(1, 2, 3)), pixels.mean(axis=(1, 2, 3)), atol=1)
    assert len({round(float(each)) for each in contrasted.std(axis=(1, 2, 3))}) > 1
    # and without a share of it nothing moves.
    same = distorter(Augmentation(brightness=0.2, contrast=0.5), 6, 8)(pixels, seed, np.float32(0))
    assert (np.asarray(same) == pixels).all()


def test_all_channels_are_bent_alike_and_edges_are_repeated() -> None:
    augmentation = Augmentation(rotation=30, zoom=0.2)
    grey = np.random.default_rng(1).integers(0, 256, (3, 9, 7), np.uint8)
    seed, share = np.array((4, 5)), np.float32(1)
    alone = np.asarray(distorter(augmentation, 9, 7)(grey, seed, share))
    coloured = np.asarray(distorter(augmentation, 9, 7)(np.stack([grey] * 3, axis=3), seed, share))
    assert (coloured == alone[..., np.newaxis]).all()
    # A white picture stays white if its edges are repeated, and gets black corners otherwise.
    white = np.full((3, 9, 7), 255, np.uint8)
    assert np.asarray(distorter(augmentation, 9, 7)(white, seed, share)).min() == 0
    assert np.asarray(distorter(augmentation, 9, 7, edges=True)(white, seed, share)).min() == 255
    assert shifted_views(white, 2).min() == 0
    assert shifted_views(white, 2, edges=True).min() == 255
