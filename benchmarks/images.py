"""The input, files in ten folders, as a person's own images would lie: MNIST's images as PNG files, or JPEG
photographs (`benchmarks.photographs`).

Written once and kept between runs. Next: `benchmarks.pipeline` and `benchmarks.bare_loop` read them.
"""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Final

from benchmarks.photographs import ALL_PHOTOGRAPHS, paint_all
from jobs.settings import Settings
from labelmill.progress import ProgressLine


class Pictures(StrEnum):
    """What the files hold."""

    DIGITS = "digits"
    PHOTOGRAPHS = "photographs"


#: All there are. Of MNIST 60,000 training and 10,000 test images.
ALL_DIGITS: Final = 70_000

#: By what is on them.
ALL_IMAGES: Final = {Pictures.DIGITS: ALL_DIGITS, Pictures.PHOTOGRAPHS: ALL_PHOTOGRAPHS}


def make_images(pictures: Pictures, count: int, settings: Settings, work_dir: Path) -> Path:
    """The folder with the first `count` images, made where it is not there yet. Raises DataUnavailable."""
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
    # They take a moment to import, which a second run need not wait for.
    from PIL import Image

    from worker.learning import mnist

    data = mnist.load(settings.mnist_dir, settings.cache_dir)
    for label in range(10):
        (folder / str(label)).mkdir()
    pictures = chain(data.train_images, data.test_images)
    labels = chain(data.train_labels, data.test_labels)
    with ProgressLine("writing PNG files", total=count) as progress:
        for number, pixels, label in zip(range(count), pictures, labels, strict=False):
            Image.fromarray(pixels).save(folder / str(label) / f"{number:05}.png")
            progress.update(number + 1)


def list_images(folder: Path) -> list[str]:
    """The paths of all images in the ten folders, in the least time: in the order that the file system gives,
    which is the same one each time as long as nobody writes there.
    """
    with os.scandir(folder) as listing:
        tenths = sorted(entry.path for entry in listing)
    return [f"{tenth}/{name}" for tenth in tenths for name in os.listdir(tenth)]  # noqa: PTH208 -- in the least time
