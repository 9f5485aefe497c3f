"""The input: files in ten folders, MNIST as PNG files, or painted JPEG photographs.

Written once and kept between runs.
"""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import Final

from benchmarks.harness.photographs import ALL_PHOTOGRAPHS, paint_all
from jobs.limits import ArchiveLimits, ImageLimits
from jobs.settings import Settings
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import say
from producer.sources.idx import labels_beside, read_idx, read_labels
from producer.sources.image import Reading


class Pictures(StrEnum):
    """What is on the images."""

    DIGITS = "digits"
    PHOTOGRAPHS = "photographs"


#: MNIST's 60,000 training and 10,000 test images.
ALL_DIGITS: Final = 70_000

#: More digits than MNIST has are hard links: files of their own, but for their bytes on the disk.
MOST_DIGITS: Final = 1_000_000

#: How many images a full run takes, and the most that can be asked for.
ALL_IMAGES: Final = {Pictures.DIGITS: ALL_DIGITS, Pictures.PHOTOGRAPHS: ALL_PHOTOGRAPHS}
MOST_IMAGES: Final = ALL_IMAGES | {Pictures.DIGITS: MOST_DIGITS}


def make_images(pictures: Pictures, count: int, settings: Settings, work_dir: Path) -> Path:
    """Return the folder with the first `count` images, made if it is missing. Raises DataUnavailable."""
    folder = work_dir / f"{pictures}-{count}"
    complete = folder.with_suffix(".complete")
    if complete.exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if pictures == Pictures.PHOTOGRAPHS:
        paint_all(count, folder)
    else:
        _write_digits(count, settings, folder)
    complete.touch()
    return folder


def _write_digits(count: int, settings: Settings, folder: Path) -> None:
    # Imported here, because a second run does not need them.
    from PIL import Image

    from labelmill.datasets.mnist import idx_files

    for label in range(10):
        (folder / str(label)).mkdir()
    paths: list[Path] = []
    with (
        idx_files(settings, say, allow_sample=False) as mnist,
        ProgressLine("writing PNG files", total=count) as progress,
    ):
        digits = chain(_labelled(mnist, "train"), _labelled(mnist, "t10k"))
        for number, (label, picture) in enumerate(islice(digits, count)):
            paths.append(folder / str(label) / f"{number:05}.png")
            Image.open(io.BytesIO(picture)).save(paths[-1])
            progress.update(number + 1)
        for number in range(len(paths), count):
            original = paths[number % len(paths)]
            os.link(original, original.with_name(f"{number:05}.png"))
            progress.update(number + 1)


def _labelled(mnist: Path, part: str) -> Iterator[tuple[int, bytes]]:
    """Yield the label and the picture of each image of a part of MNIST."""
    path = str(next(mnist.glob(f"{part}-images*")))
    labels = read_labels(labels_beside(path) or "", ArchiveLimits())
    for label, image in zip(
        labels, read_idx(path, Reading(ImageLimits().max_bytes, ArchiveLimits())), strict=True
    ):
        assert image.data is not None
        yield label, image.data


def list_images(folder: Path) -> list[str]:
    """Return the paths of all images in the ten folders, in the order of the file system: the fastest way."""
    with os.scandir(folder) as listing:
        tenths = sorted(entry.path for entry in listing)
    return [f"{tenth}/{name}" for tenth in tenths for name in os.listdir(tenth)]  # noqa: PTH208 -- the fastest way
