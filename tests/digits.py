"""MNIST's digits as arrays, for tests: read from IDX files and written to them, and as training data."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from PIL import Image

from jobs.models.dataset import MNIST
from jobs.models.evaluation import Part
from jobs.models.model import MNIST_INPUT, InputSpec
from labelmill.client import Client
from labelmill.datasets.mnist import PUBLISHED, idx_bytes
from worker.learning.data import Data, Labelled, no_images
from worker.predicting.decode import prepare

#: The default classes.
DIGITS: Final = tuple("0123456789")


@dataclass(frozen=True, eq=False)
class Digits:
    """Images for training and for testing, with their labels."""

    train_images: npt.NDArray[np.uint8]  # (n, 28, 28), 0 is background
    train_labels: npt.NDArray[np.uint8]
    test_images: npt.NDArray[np.uint8]
    test_labels: npt.NDArray[np.uint8]
    classes: tuple[str, ...] = DIGITS

    @property
    def arrays(self) -> tuple[npt.NDArray[np.uint8], ...]:
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    @property
    def is_published(self) -> bool:
        """Whether these are the published digits."""
        published = [digest for _, digest in PUBLISHED.values()]
        return [hashlib.sha256(idx_bytes(array)).hexdigest() for array in self.arrays] == published

    def write(self, folder: Path) -> Path:
        """Write them as IDX files, and the class names if they are no digits."""
        folder.mkdir(exist_ok=True, parents=True)
        for name, array in zip(PUBLISHED, self.arrays, strict=True):
            (folder / name).write_bytes(idx_bytes(array))
        if self.classes != DIGITS:
            (folder / "classes.txt").write_text("\n".join(self.classes) + "\n", encoding="utf-8")
        return folder

    def add_to(self, client: Client, folder: Path, dataset: str = MNIST) -> str:
        """Add them to a dataset, by way of files in this folder, and return the dataset's name."""
        client.add_dataset(dataset, self.write(folder))
        return dataset

    def prepared(self, validation: int = 100) -> Data:
        """Return them for a training, the last training images as validation images."""
        cut = len(self.train_images) - validation
        return Data(
            dataset=MNIST,
            version=1,
            source="mnist, version 1",
            classes=self.classes,
            spec=MNIST_INPUT,
            train=labelled(self.train_images[:cut], self.train_labels[:cut]),
            validation=labelled(self.train_images[cut:], self.train_labels[cut:]),
            test=labelled(self.test_images, self.test_labels),
            live=no_images(MNIST_INPUT),
            fingerprint="f" * 64,
            evaluation_fingerprints={Part.TEST: "e" * 64},
            part_for=self._part_for,
        )

    def _part_for(self, part: Part, spec: InputSpec) -> Labelled:
        found = labelled(prepare_arrays(self.test_images, spec), self.test_labels)
        return found if part == Part.TEST else no_images(spec)


def prepare_arrays(images: npt.NDArray[np.uint8], spec: InputSpec) -> npt.NDArray[np.uint8]:
    """Prepare raw grey images as decoded ones are."""
    return np.array([prepare(Image.fromarray(pixels), spec) for pixels in images])


def labelled(images: npt.NDArray[np.uint8], labels: npt.NDArray[np.uint8]) -> Labelled:
    """Return grey images of MNIST's size with their labels."""
    height, width = images.shape[1:3]
    heads = f"L {width} {height}\n".encode()
    pictures = tuple(hashlib.sha256(heads + image.tobytes()).hexdigest() for image in images)
    return Labelled(images, labels.astype(np.uint16), pictures)


def read_digits(folder: Path) -> Digits:
    """Read the four files of a folder."""
    return Digits(*(_read_idx(folder, name) for name in PUBLISHED))


def _read_idx(folder: Path, name: str) -> npt.NDArray[np.uint8]:
    path = folder / name
    content = path.read_bytes() if path.exists() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)
