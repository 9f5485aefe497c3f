"""The object store: a file is there completely or not at all, and only its owner can read it."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs.errors import SettingsError, Unavailable
from jobs.files import unfinished
from jobs.storage.store import Store, write_whole


@pytest.fixture(params=["folder", "file URL", "memory", "s3"])
def store(request, tmp_path) -> Store:
    """Return an empty store of each kind."""
    if request.param == "s3":
        return Store(f"{request.getfixturevalue('s3_bucket')}/a store")
    return Store(
        {
            "folder": str(tmp_path / "store"),
            "file URL": f"file://{tmp_path}/store",
            "memory": f"memory://{tmp_path}/store",
        }[request.param]
    )


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "store"


def files_under(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 5000], ids=len)
def test_what_was_put_comes_back(store, data):
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data


@pytest.mark.parametrize("at_once", [None, 1, 7_000], ids=lambda bytes_: f"{bytes_ or 'all'} at once")
def test_what_was_put_in_pieces_comes_back_as_one(store, monkeypatch, at_once):
    # Given more pieces than the system writes at once, some empty, some large, and partial writes
    pieces = [bytes([number % 256]) * (number % 3) for number in range(3_000)] + [b"", b"x" * 20_000, b""]
    if at_once is not None:
        real = os.writev
        monkeypatch.setattr(os, "writev", lambda file, given: real(file, [b"".join(given)[:at_once]]))

    # When they are stored, Then they are one file
    store.put("a/b", *pieces)
    assert store.get("a/b") == b"".join(pieces)


def test_whether_a_file_is_there_is_asked_without_reading_it(store):
    assert not store.exists("a/b")
    store.put("a/b", b"x")
    assert store.exists("a/b")
    store.remove("a/b")
    assert not store.exists("a/b")


@pytest.mark.parametrize("store", ["folder", "file URL"], indirect=True)
def test_a_folder_without_anything_of_the_kind_is_a_disk_that_is_not_mounted(store, tmp_path):
    # Given a store in use whose disk is not mounted: its folder is missing or empty
    store.put("payloads/one/a", b"x")
    (tmp_path / "store").rename(tmp_path / "elsewhere")

    # Then the error is Unavailable, instead of a lost file
    with pytest.raises(Unavailable, match=r"no .*/payloads on this machine. Is its disk mounted"):
        store.get("payloads/one/a")
    (tmp_path / "store").mkdir()
    with pytest.raises(Unavailable, match=r"no .*/payloads on this machine. Is its disk mounted"):
        store.get("payloads/one/a")

    # And once the disk is mounted, everything is there
    (tmp_path / "store").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    assert store.get("payloads/one/a") == b"x"


@pytest.mark.parametrize("store", ["memory"], indirect=True)
def test_a_bucket_without_anything_of_the_kind_is_not_the_one_that_was_written_to(store, tmp_path):
    # Given a store in use, and a worker with another bucket that has other files
    store.put("payloads/one/a", b"x")
    other = Store(f"memory://{tmp_path}/other")
    other.put("models/a", b"x")

    # Then the error is Unavailable, and names the setting
    with pytest.raises(Unavailable, match=r"it has no payloads at all. Is LABELMILL_STORE_URL the same"):
        other.get("payloads/one/a")


def test_a_folder_is_removed_and_its_neighbours_stay(store):
    # Given three folders
    for key in ("payloads/one/a", "payloads/one/b", "payloads/one2/a", "models/a"):
        store.put(key, b"x")

    # When one is removed, twice
    store.remove_folder("payloads/one")
    store.remove_folder("payloads/one")

    # Then it is gone, and the others stay
    for key in ("payloads/one/a", "payloads/one/b"):
        with pytest.raises(FileNotFoundError):
            store.get(key)
    assert store.get("payloads/one2/a") == store.get("models/a") == b"x"

    # And it can be written again
    store.put("payloads/one/b", b"y")
    assert store.get("payloads/one/b") == b"y"


def test_everything_is_its_owners_alone(folder):
    # Given a process whose umask would share its files with everybody
    before = os.umask(0)
    try:
        Store(str(folder)).put("payloads/job/chunk", b"x")
    finally:
        os.umask(before)

    # Then the file and all folders are private all the same
    assert stat.S_IMODE((folder / "payloads/job/chunk").stat().st_mode) == 0o600
    for path in (folder, folder / "payloads", folder / "payloads/job"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_store_that_cannot_be_written_is_unavailable(folder):
    # Given a file where the folder should be
    folder.write_bytes(b"")
    with pytest.raises(Unavailable, match="cannot be written"):
        Store(str(folder)).put("a/b", b"x")
    with pytest.raises(Unavailable, match="cannot be read"):
        Store(str(folder)).get("a/b")


@pytest.mark.parametrize("url", ["nonsense://x", "s4://bucket"])
def test_a_url_nobody_knows_names_its_setting(url):
    with pytest.raises(SettingsError, match="LABELMILL_STORE_URL"):
        Store(url)


# ---- whole or not at all ------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    # Given a file, and a limit on the process's file size that acts like a full disk
    path = tmp_path / "file"
    write_whole(path, b"before")
    script = (
        "import resource, signal, sys; from pathlib import Path; from jobs.storage.store import write_whole\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_whole(Path(sys.argv[1]), b'x' * 100_000)\n"
        "except OSError: sys.exit(7)"
    )

    # When the file is overwritten
    ended = subprocess.run([sys.executable, "-c", script, str(path)], timeout=30, check=False)

    # Then the write fails, and the file is unchanged, without a partial file beside it
    assert ended.returncode == 7
    assert path.read_bytes() == b"before"
    assert files_under(tmp_path) == ["file"]


def test_a_new_folder_survives_a_power_cut_as_well_as_the_file_in_it(folder, monkeypatch):
    # Given a store whose folder does not exist yet, and a record of what is synced to the disk
    synced: list[int] = []

    def sync(descriptor: int) -> None:
        original(descriptor)
        synced.append(os.fstat(descriptor).st_ino)

    def paths() -> list[str]:
        by_number = {path.stat().st_ino: path for path in (folder.parent, *folder.parent.rglob("*"))}
        return [str(by_number[number].relative_to(folder.parent)) for number in synced]

    original = os.fsync
    monkeypatch.setattr(os, "fsync", sync)
    store = Store(str(folder))

    # When the first file is written, Then each new folder's entry in its parent is synced too
    store.put("payloads/job/one", b"x")
    assert paths() == ["store/payloads/job/one", "store/payloads/job", ".", "store", "store/payloads"]

    # And for an existing folder, only the file and its own entry are
    synced.clear()
    store.put("payloads/job/two", b"x")
    assert paths() == ["store/payloads/job/two", "store/payloads/job"]


# ---- listing ------------------------------------------------------------------------------------------


def test_folders_and_files_are_listed_by_name(store):
    # Given folders, a folder inside one of them, and files beside them
    for key in ("payloads/one/a", "payloads/two/b/c", "payloads/file", "payloads/other", "models/a"):
        store.put(key, b"x")
    assert sorted(store.folders("payloads")) == ["one", "two"]
    assert sorted(store.files("payloads")) == ["file", "other"]
    assert store.files("nothing") == []


def test_a_folder_that_another_has_made_or_removed_meanwhile_is_seen(store):
    other = Store(store.url)
    assert store.folders("payloads") == []
    other.put("payloads/one/a", b"x")
    assert store.folders("payloads") == ["one"]
    other.remove_folder("payloads/one")
    assert store.folders("payloads") == []


def test_a_folder_has_the_bytes_of_all_files_below_it(store):
    store.put("payloads/one/a", b"12345")
    store.put("payloads/one/b/c", b"678")
    store.put("payloads/one2/a", b"x")
    assert store.folder_bytes("payloads/one") == 8
    assert store.folder_bytes("payloads/nothing") == 0


def test_a_file_is_as_old_as_its_last_writing(store, monkeypatch):
    # Given a file that is written twice
    before = time.time() - 1  # file systems round times
    store.put("a/b", b"x")
    first = store.written_at("a/b")
    store.put("a/b", b"y")

    # Then its time is that of the second write
    assert before <= first <= store.written_at("a/b") <= time.time() + 1

    # And a missing file has no time
    assert store.written_at("a/c") is None
    assert store.written_at("b/c") is None

    # And with a protocol that does not tell, no file has one
    def untold(*_):
        raise NotImplementedError

    monkeypatch.setattr(type(store._fs), "modified", untold)
    assert store.written_at("a/b") is None


def test_what_a_killed_writer_leaves_is_known_by_its_name(folder, monkeypatch):
    # Given the names in the folder while a file is written
    seen = []
    original = os.fsync

    def look(descriptor):
        seen.extend(path.name for path in (folder / "a").iterdir())
        original(descriptor)

    (folder / "a").mkdir(parents=True)
    monkeypatch.setattr(os, "fsync", look)
    Store(str(folder)).put("a/b.bin", b"x")

    # Then the partial file is recognised as a part of that file, and the file itself is not
    assert [unfinished(name) for name in seen] == ["b.bin", None]
    assert unfinished(".b.bin") is unfinished(".b.bin.xyz") is None
