"""Images in a ZIP archive: read one after the other, nothing is ever extracted.

An archive says what it likes about its members, so its directory is read here and not by Python's zipfile:
that one holds a list of all members before anybody could count them, and lets them overlap. Here memory is
16 bytes a member, and an archive that contradicts itself is refused before anything of it is read.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any, Final, NamedTuple, Self

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.limits import ArchiveLimits
from jobs.reading import OPEN, too_large, why
from jobs.text import storable
from producer.sources.files import no_access, shown
from producer.sources.image import Reading, SourceImage
from producer.sources.members import Output, choose, too_many_members

MAGIC: Final = b"PK\x03\x04"

# The format's records, all little-endian: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
_LOCAL: Final = struct.Struct("<4s5H3L2H")
_ENTRY: Final = struct.Struct("<4s6H3L5H2L")
_ENTRY_MAGIC: Final = b"PK\x01\x02"
_END: Final = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_END64: Final = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC: Final = b"PK\x06\x06"
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_LARGE_END: Final = _END64.size + 20  # with the locator that follows it

_LONGEST_COMMENT: Final = 0xFFFF

#: Stands for a number that does not fit; it is in the extra field then, under this kind.
_ELSEWHERE: Final = 0xFFFFFFFF
_ZIP64_EXTRA: Final = 1

#: Bits of a member's flags: encrypted, strongly encrypted, with an encrypted directory; with a UTF-8 name.
_ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
_UTF8: Final = 0x800

_STORED, _DEFLATED = 0, 8

#: How much of the directory, and of a member, is read at a time.
_DIRECTORY_BUFFER: Final = 64 * 1024
_PIECE_BYTES: Final = 1024 * 1024

_SHOWN_NAME: Final = 200  # characters, in a message


def check_zip(path: str, limits: ArchiveLimits) -> None:
    """Raise SourceError where a file is no ZIP archive that can be read, or one that must not be."""
    with _Zip(path, limits):
        pass


def read_zip(path: str, reading: Reading) -> Iterator[SourceImage]:
    """Every image of an archive, in its order; the names rule as in a folder.

    Raises SourceError where more comes out than may, or where a member is not of the size it is said to have.
    """
    prefix = shown(path)
    with _Zip(path, reading.archives) as archive:
        output = Output(path, reading.archives)
        for member in archive.members():
            if member.name.endswith("/"):
                continue
            name = storable(f"{prefix}/{member.name}")
            chosen = choose(member.name, name, reading, regular=member.is_regular)
            if isinstance(chosen, SourceImage):
                yield chosen
            elif chosen:
                try:
                    yield SourceImage(name, archive.content(member, reading.max_bytes, output), None)
                except ImageError as error:
                    yield SourceImage(name, None, error)


class _Member(NamedTuple):
    """What the directory says of one member."""

    name: str
    stored_name: bytes
    flags: int
    method: int
    checksum: int
    packed: int  # bytes in the archive
    size: int  # bytes that come out
    attributes: int
    offset: int  # where its own header begins

    @property
    def is_regular(self) -> bool:
        """Whether it is a file, and no symlink, device or the like."""
        return stat.S_IFMT(self.attributes >> 16) in (0, stat.S_IFREG)


class _Damaged(Exception):
    """The archive's directory makes no sense."""


class _Zip:
    """An open archive whose directory makes sense: not too many members, and no two that overlap."""

    def __init__(self, path: str, limits: ArchiveLimits) -> None:
        self._path = path
        self._limits = limits
        try:
            self._file = os.open(path, OPEN)
        except OSError as error:
            raise self._unreadable(error) from error
        try:
            self._start, self._end, self._shift = self._find_directory()
            self._starts = self._check_members()
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def members(self) -> Iterator[_Member]:
        """What the directory says, entry by entry. Raises SourceError at one entry more than there may be."""
        try:
            for count, member in enumerate(self._entries(), start=1):
                if count > self._limits.max_members:
                    raise too_many_members(self._path, self._limits)
                yield member
        except (_Damaged, OSError) as error:
            raise self._unreadable(error) from error

    def content(self, member: _Member, max_bytes: int, output: Output) -> bytes:
        """A member's bytes. Raises ImageError where it is this member that is wrong, SourceError where it is
        the archive: it overlaps, it lies about sizes, too much comes out of it.
        """
        if member.method not in (_STORED, _DEFLATED):
            # What others make of a few bytes cannot be bounded.
            raise ImageError(ErrorCode.FORMAT_NOT_ALLOWED, "a member neither stored nor deflated")
        try:
            start = self._content_start(member)
            if member.method == _DEFLATED:
                return self._inflated(member, start, max_bytes, output)
            if member.packed > max_bytes:
                raise too_large(max_bytes)
            content = os.pread(self._file, member.packed, start)
        except OSError as error:
            raise ImageError(ErrorCode.SOURCE_MISSING, why(error)) from error
        output.add(len(content))
        _check_sum(content, member)
        return content

    def _inflated(self, member: _Member, start: int, max_bytes: int, output: Output) -> bytes:
        """What really comes out of a deflated member, at the most one byte past the limit."""
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        parts: list[bytes] = []
        found, left = 0, member.packed
        try:
            while found <= max_bytes and not inflate.eof:
                piece = inflate.unconsumed_tail
                if not piece:
                    piece = os.pread(self._file, min(left, _PIECE_BYTES), start)
                    start, left = start + len(piece), left - len(piece)
                    if not piece:
                        raise ImageError(ErrorCode.CORRUPT, "cut short in its archive")
                parts.append(inflate.decompress(piece, max_bytes + 1 - found))
                found += len(parts[-1])
                output.add(len(parts[-1]))
        except zlib.error as error:
            raise ImageError(ErrorCode.CORRUPT, str(error)) from error
        if found > max_bytes:
            raise too_large(max_bytes) if member.size > max_bytes else self._lying(member)
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        # Damage changes what comes out, and the checksum tells. Where that is right, the size is a lie.
        _check_sum(content, member)
        if found != member.size:
            raise self._lying(member)
        return content

    def _content_start(self, member: _Member) -> int:
        """Where a member's content begins, by its own header, which must agree with the directory."""
        header = os.pread(self._file, _LOCAL.size + len(member.stored_name), member.offset)
        if len(header) < _LOCAL.size or not header.startswith(MAGIC):
            raise ImageError(ErrorCode.CORRUPT, "not where its archive says")
        *_, name_size, extra_size = _LOCAL.unpack_from(header)
        if name_size != len(member.stored_name) or not header.endswith(member.stored_name):
            raise ImageError(ErrorCode.CORRUPT, "called otherwise in its archive's directory")
        start = member.offset + _LOCAL.size + int(name_size) + int(extra_size)
        following = bisect_right(self._starts, member.offset)
        end = self._starts[following] if following < len(self._starts) else self._start
        if start + member.packed > end:
            raise self._overlapping()
        return start

    def _entries(self) -> Iterator[_Member]:
        directory = io.BufferedReader(_Part(self._file, self._start, self._end), _DIRECTORY_BUFFER)
        at = self._start
        while at < self._end:
            (magic, _, _, flags, method, _, _, checksum, packed, size, name_size, extra_size, comment_size,
             _, _, attributes, offset) = _ENTRY.unpack(_exactly(directory, _ENTRY.size))  # fmt: skip
            if magic != _ENTRY_MAGIC:
                raise _Damaged("its directory is broken")
            stored_name = _exactly(directory, name_size)
            extra = _exactly(directory, extra_size)
            _exactly(directory, comment_size)
            if _ELSEWHERE in (size, packed, offset):
                size, packed, offset = _large_numbers(extra, size, packed, offset)
            name = stored_name.decode("utf-8" if flags & _UTF8 else "cp437", "surrogateescape")
            offset += self._shift
            yield _Member(name, stored_name, flags, method, checksum, packed, size, attributes, offset)
            at += _ENTRY.size + name_size + extra_size + comment_size

    def _find_directory(self) -> tuple[int, int, int]:
        """Where the directory begins and ends, and by how much all places are off: an archive may have
        something else before it. Raises SourceError where it promises more members than there may be.
        """
        try:
            file_size = os.fstat(self._file).st_size
            longest = min(file_size, _END.size + _LONGEST_COMMENT)
            tail = os.pread(self._file, longest, file_size - longest)
            place = tail.rfind(_END_MAGIC)
            if place < 0 or len(tail) - place < _END.size:
                raise _Damaged("it has no directory")
            *_, count, size, offset, _ = _END.unpack_from(tail, place)
            end = file_size - longest + place
            before = os.pread(self._file, _LARGE_END, end - _LARGE_END) if end >= _LARGE_END else b""
            if before.startswith(_END64_MAGIC) and before.startswith(_LOCATOR_MAGIC, _END64.size):
                *_, count, size, offset = _END64.unpack_from(before)
                end -= _LARGE_END
            start = end - size
            if not 0 <= offset <= start:
                raise _Damaged("its directory is not where it says")
        except (_Damaged, OSError) as error:
            raise self._unreadable(error) from error
        if count > self._limits.max_members:
            raise too_many_members(self._path, self._limits)
        return start, end, start - offset

    def _check_members(self) -> array[int]:
        """Where the members begin, in order. Raises SourceError where the archive must not be read."""
        starts, ends = array("Q"), array("Q")
        for member in self.members():
            if member.flags & _ENCRYPTED:
                raise SourceError(
                    f"{shown(self._path)} is encrypted: unpack it with its password and name the folder"
                )
            if member.method == _STORED and member.packed != member.size:
                raise self._lying(member)
            end = member.offset + _LOCAL.size + len(member.stored_name) + member.packed
            if end > self._start:
                raise self._unreadable(_Damaged("a member is not where it says"))
            starts.append(member.offset)
            ends.append(end)
        # Each sorted by itself: where every end comes before the next start, never are two open at a time.
        starts, ends = array("Q", sorted(starts)), array("Q", sorted(ends))
        if any(end > start for end, start in zip(ends, starts[1:], strict=False)):
            raise self._overlapping()
        return starts

    def _unreadable(self, reason: _Damaged | OSError) -> SourceError:
        if isinstance(reason, OSError):
            return no_access(self._path, reason)
        return SourceError(
            f"{shown(self._path)} is not a ZIP archive that can be read ({reason}): "
            "pack it anew, or unpack it and name the folder"
        )

    def _overlapping(self) -> SourceError:
        return SourceError(
            f"{shown(self._path)} has members that overlap, as a bomb has: pack it anew, or unpack it where "
            "you trust it and name the folder"
        )

    def _lying(self, member: _Member) -> SourceError:
        return SourceError(
            f"{shown(self._path)} lies about sizes: {storable(member.name)[:_SHOWN_NAME]} does not have the "
            f"{member.size:,} bytes it is said to have. Pack it anew, or unpack it where you trust it and "
            "name the folder"
        )


class _Part(io.RawIOBase):
    """A part of a file, read without moving the file's own position."""

    def __init__(self, file: int, start: int, end: int) -> None:
        self._file = file
        self._at = start
        self._end = end

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, as far as there is something to fill it with."""
        data = os.pread(self._file, min(len(buffer), self._end - self._at), self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _exactly(stream: io.BufferedReader[_Part], size: int) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise _Damaged("its directory is cut short")
    return data


def _large_numbers(extra: bytes, size: int, packed: int, offset: int) -> tuple[int, int, int]:
    """Size, packed size and offset; those that did not fit are in the extra field, in this order."""
    numbers, at = [size, packed, offset], 0
    try:
        while True:
            kind, length = struct.unpack_from("<HH", extra, at)
            at += 4
            if kind == _ZIP64_EXTRA:
                break
            at += length
        for place, number in enumerate(numbers):
            if number == _ELSEWHERE:
                (numbers[place],) = struct.unpack_from("<Q", extra, at)
                at += 8
    except struct.error:
        raise _Damaged("its directory is broken") from None
    return numbers[0], numbers[1], numbers[2]


def _check_sum(content: bytes, member: _Member) -> None:
    if zlib.crc32(content) != member.checksum:
        raise ImageError(ErrorCode.CORRUPT, "wrong checksum in its archive")
