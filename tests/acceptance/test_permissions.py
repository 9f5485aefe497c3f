"""What the state folder holds is its owner's alone, whatever the umask is."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.settings import ENV_PREFIX, Settings
from tests.console import Home, until, wait_for_broker
from tests.digits import Digits


@pytest.fixture
def careless_umask() -> Iterator[None]:
    """A umask that takes no permission away, for this process and all it starts."""
    before = os.umask(0)
    yield
    os.umask(before)


def open_to_others(folder: Path) -> list[str]:
    """What is in the folder, itself included, that group or others may do anything with."""
    found = [folder, *folder.rglob("*")]
    modes = {path: path.lstat().st_mode for path in found if not path.is_symlink()}
    return [
        f"{stat.filemode(mode)} {path.relative_to(folder)}" for path, mode in modes.items() if mode & 0o077
    ]


@pytest.mark.usefixtures("careless_umask")
def test_all_that_lies_in_the_state_folder_is_its_owners_alone(
    short_folder: Path, few_digits: Path, little_mnist: Digits, tmp_path: Path
) -> None:
    # given a home that is made when nothing is taken from anybody's permissions, and few digits to train with
    data = tmp_path / "data"
    little_mnist.write(data)
    home = Home(short_folder / "state" / "home", {ENV_PREFIX + "MNIST_DIR": str(data)})

    # when it is used for all there is: training and the demo, the stack, a job, and the short way
    home.ok("demo")
    with home.started("up", log=tmp_path / "up.log"):
        wait_for_broker(home)
        home.ok("submit", few_digits, "--watch")

        # then, while it runs, with its socket and the ledger's companions
        expected = ["ledger.sqlite3", "ledger.sqlite3-wal", "ledger.sqlite3-shm", "broker/valkey.sock"]
        until(lambda: all((home.path / name).exists() for name in expected), "all is there", seconds=10)
        assert open_to_others(short_folder / "state") == []

    home.ok("classify", few_digits / "7")
    expected = ["logs/worker.log", "logs/broker.log", "demo/mnist-*", "cache/models", "store/models"]
    expected += ["store/payloads"]
    assert all(any(home.path.glob(name)) for name in expected)

    # and after it
    assert open_to_others(short_folder / "state") == []


@pytest.mark.usefixtures("careless_umask")
def test_a_socket_outside_of_a_long_home_is_its_owners_alone(short_folder: Path, tmp_path: Path) -> None:
    # given a home whose path is too long for a socket in it
    home = Home(short_folder / ("long-" + "x" * 100))
    socket = Settings.load(home=home.path).broker_socket
    assert not socket.is_relative_to(home.path)

    # when the stack is up
    with home.started("up", log=tmp_path / "up.log"):
        wait_for_broker(home)

        # then nobody else may come near the socket
        assert socket.is_socket()
        assert open_to_others(socket.parent) == []
    shutil.rmtree(socket.parent)
