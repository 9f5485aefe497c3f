"""Objects are written completely or not at all, and never overwritten by accident."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile, MemoryFileSystem

from jobs.errors import Conflict, Unavailable, UserError
from jobs.network.objects import writing_object
from labelmill.console.destination import as_text, opened

URL = "shelf://bucket/deep/job.csv"


class Shelf(MemoryFileSystem):
    """An object store in this process that counts as a permanent one, and can fail at a given step."""

    protocol = "shelf"
    store: dict[str, Any] = {}  # noqa: RUF012 -- as its parent has it
    pseudo_dirs = [""]  # noqa: RUF012
    at: str = ""
    failure: BaseException = Exception()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.removeprefix("shelf://"))
        return stripped

    def fails_at(self, place: str) -> None:
        if Shelf.at == place:
            raise Shelf.failure

    def info(self, path: str, **options: Any) -> Any:
        self.fails_at("info")
        return super().info(path, **options)

    def _open(self, path: str, mode: str = "rb", **options: Any) -> MemoryFile:
        self.fails_at("open")
        file = super()._open(path, mode, **options)
        commit = file.commit

        def commits() -> None:
            self.fails_at("commit")
            commit()

        file.commit = commits
        return file


@pytest.fixture(autouse=True)
def shelf() -> Iterator[MemoryFileSystem]:
    """Yield an empty store."""
    fsspec.register_implementation("shelf", Shelf, clobber=True)
    Shelf.store.clear()
    Shelf.pseudo_dirs[:] = [""]
    yield fsspec.filesystem("shelf")
    Shelf.at = ""


def write(url: str, text: str, *, force: bool = False, failure: BaseException | None = None) -> None:
    with opened(url, force=force) as file, as_text(file) as out:
        out.write(text)
        if failure:
            raise failure


def test_an_object_is_there_when_all_of_it_is(shelf: MemoryFileSystem) -> None:
    # Given an object that is being written, Then it does not exist before it is complete
    with writing_object(URL, over=False) as file:
        file.write(b"half")
        assert not shelf.exists(URL)
        file.write(b" and half")
    assert shelf.cat_file(URL) == b"half and half"


@pytest.mark.parametrize("failure", [Unavailable("gone"), KeyboardInterrupt()])
def test_half_of_an_object_is_nothing(shelf: MemoryFileSystem, failure: BaseException) -> None:
    # Given an object, when writing its replacement fails halfway
    write(URL, "before")
    with pytest.raises(type(failure)):
        write(URL, "half", force=True, failure=failure)
    # Then the first one is unchanged, and can be replaced later.
    assert shelf.cat_file(URL) == b"before"
    write(URL, "after", force=True)
    assert shelf.cat_file(URL) == b"after"


def test_what_is_there_stays_unless_it_is_to_go(shelf: MemoryFileSystem) -> None:
    write(URL, "mine")
    with pytest.raises(Conflict, match=f"{URL} exists already: --force"):
        write(URL, "other")
    with pytest.raises(UserError, match="Is a directory"):
        write("shelf://bucket/deep", "other", force=True)
    with pytest.raises(UserError, match="Is a directory"):
        write("shelf://bucket/new/", "other")
    assert shelf.cat_file(URL) == b"mine"


def test_one_that_is_written_elsewhere_meanwhile_is_seen(shelf: MemoryFileSystem) -> None:
    # The fsspec package may cache its listings
    forgotten: list[Any] = []
    shelf.invalidate_cache = lambda path=None: forgotten.append(path)
    try:
        write(URL, "x")
    finally:
        del shelf.invalidate_cache
    assert forgotten == [None]


@pytest.mark.parametrize("at", ["info", "open", "commit"])
@pytest.mark.parametrize(
    ("failure", "meant", "words"),
    [
        (PermissionError(13, "Permission denied"), UserError, "cannot be written (Permission denied)"),
        (PermissionError(), UserError, "cannot be written (Permission denied)"),
        (TimeoutError("anna:sesame"), Unavailable, "cannot be reached: TimeoutError"),
        (Exception("anna:sesame"), Unavailable, "cannot be reached: Exception"),
    ],
)
def test_what_a_package_raises_is_told(at, failure, meant, words):
    Shelf.at, Shelf.failure = at, failure
    with pytest.raises(meant) as told:
        write(URL, "x")
    assert words in str(told.value)
    assert "sesame" not in str(told.value)
    # And once there is no failure, the object is written
    Shelf.at = ""
    write(URL, "x", force=True)


def test_a_bucket_that_is_not_there_is_told():
    Shelf.at, Shelf.failure = "commit", FileNotFoundError()
    with pytest.raises(UserError, match=r"cannot be written \(No such file or directory\)"):
        write("shelf://nowhere/job.csv", "x")


@pytest.mark.parametrize("url", ["https://host/a.csv", "zip://a.csv::memory://bucket/a.zip", URL])
def test_what_is_only_read_is_told_so(url):
    Shelf.at, Shelf.failure = "open", NotImplementedError()
    with pytest.raises(UserError, match="URLs of this kind can only be read"):
        write(url, "x")


@pytest.mark.usefixtures("bucket")
def test_what_would_be_gone_with_the_command_is_refused():
    with pytest.raises(UserError, match=r"memory://job\.csv cannot be written \(this memory ends"):
        write("memory://job.csv", "x")
