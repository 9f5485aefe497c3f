"""Reading a file: anything that is not a regular file is refused, and nothing blocks."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from jobs import reading
from jobs.errors import ErrorCode, ImageError
from jobs.reading import read_files, read_regular

pytestmark = pytest.mark.usefixtures("in_time")

LIMIT = 200_000


def code_of(path: Path | str, *, max_bytes: int = LIMIT) -> ErrorCode:
    with pytest.raises(ImageError) as caught:
        read_regular(str(path), max_bytes=max_bytes)
    return caught.value.code


@pytest.mark.parametrize("size", [0, 1, 4_095, 4_096, 4_097, 65_536, LIMIT])
def test_all_of_a_file_is_read_up_to_the_limit(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "a.png").write_bytes(content)
    assert read_regular(str(tmp_path / "a.png"), max_bytes=LIMIT) == content
    assert read_regular(str(tmp_path / "a.png"), max_bytes=size) == content
    if size:
        assert code_of(tmp_path / "a.png", max_bytes=size - 1) == ErrorCode.TOO_LARGE


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/full", "/dev"])
def test_a_device_or_folder_is_refused(path: str) -> None:
    assert code_of(path) == ErrorCode.SOURCE_FORBIDDEN


def test_a_socket_is_refused(short_folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short_folder / "socket.png"))
        assert code_of(short_folder / "socket.png") == ErrorCode.SOURCE_FORBIDDEN


def test_a_pipe_is_refused_though_it_holds_a_whole_picture(tmp_path: Path) -> None:
    # Given a pipe, empty at first
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    assert code_of(pipe) == ErrorCode.SOURCE_FORBIDDEN

    # And then a pipe with bytes to read
    both_ends = os.open(pipe, os.O_RDWR)
    try:
        os.write(both_ends, b"pixels")
        assert code_of(pipe) == ErrorCode.SOURCE_FORBIDDEN
        # Nothing was read from it
        assert os.read(both_ends, 100) == b"pixels"
    finally:
        os.close(both_ends)


def test_several_files_are_read_up_to_the_first_that_cannot_be(tmp_path: Path) -> None:
    # Given two files, a missing one, and another one after it
    paths = [str(tmp_path / name) for name in ("a", "b", "absent", "c")]
    for path in (paths[0], paths[1], paths[3]):
        Path(path).write_bytes(path.encode())
    # When they are read together
    contents, error = read_files(paths, max_bytes=LIMIT, follow=False, enough=LIMIT)
    # Then the first two are returned with the error, whose traceback would keep their bytes in memory
    assert contents == [paths[0].encode(), paths[1].encode()]
    assert isinstance(error, FileNotFoundError)
    assert error.__traceback__ is None

    # And a forbidden file has our own error
    os.mkfifo(paths[2])
    contents, error = read_files(paths, max_bytes=LIMIT, follow=False, enough=LIMIT)
    assert len(contents) == 2
    assert isinstance(error, ImageError)
    assert (error.code, error.__traceback__) == (ErrorCode.SOURCE_FORBIDDEN, None)


def test_several_files_are_read_until_they_are_enough(tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(6)]
    for path in paths:
        Path(path).write_bytes(bytes(10_000))
    contents, error = read_files(paths, max_bytes=LIMIT, follow=False, enough=25_000)
    assert [len(content) for content in contents] == [10_000] * 3
    assert error is None


@pytest.mark.parametrize("size", [4_096, 100_000])
@pytest.mark.parametrize("said", [-60, 60])
def test_a_file_that_grows_or_shrinks_as_it_is_read_is_read_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, said: int
) -> None:
    # Given a file whose size is reported too small or too large
    content = os.urandom(size)
    (tmp_path / "a.png").write_bytes(content)
    real = os.fstat

    def fstat(descriptor: int) -> os.stat_result:
        found = list(real(descriptor))
        found[stat.ST_SIZE] += said
        return os.stat_result(found)

    monkeypatch.setattr(reading.os, "fstat", fstat)
    assert read_regular(str(tmp_path / "a.png"), max_bytes=LIMIT) == content

    # And a file that grows beyond the limit is too large
    if said < 0:
        assert code_of(tmp_path / "a.png", max_bytes=size - 1) == ErrorCode.TOO_LARGE
