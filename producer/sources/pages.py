"""Read what the headers of a Parquet file's pages say.

pyarrow unpacks a page as a whole, whatever its size, and does not show the sizes. It compares the size in the
header with what it unpacks, but not the one in the file's footer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

#: The encodings whose decoder allocates memory for as many values as a page claims to have.
UNBOUNDED: Final = {6: "DELTA_LENGTH_BYTE_ARRAY", 7: "DELTA_BYTE_ARRAY"}

#: The numbers of the fields of a page's header: https://github.com/apache/parquet-format.
_UNPACKED: Final = 2
_PACKED: Final = 3

#: The fields with the header of each kind of data page, and the field of the encoding in each.
_ENCODINGS: Final = {5: 2, 8: 4}

#: The types of Thrift's compact protocol that a header has.
_BOOLEANS: Final = (1, 2)
_INT32: Final = 5
_OTHER_INTEGERS: Final = (4, 6)
_BINARY: Final = 8
_STRUCT: Final = 12


class Page(NamedTuple):
    """A page of a column chunk."""

    unpacked: int  # bytes
    packed: int
    encodings: list[int]  # one, or none for a dictionary


def read_pages(file: BinaryIO, column: Any) -> Iterator[Page]:
    """Yield the pages of a column chunk, given pyarrow's metadata of it.

    Raises ValueError if a header is damaged.
    """
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    file.seek(start)
    while file.tell() < start + column.total_compressed_size:
        fields = _read_struct(file)
        try:
            unpacked, packed = int(fields[_UNPACKED]), int(fields[_PACKED])
            encodings = [int(fields[kind][at]) for kind, at in _ENCODINGS.items() if kind in fields]
        except (LookupError, TypeError):
            raise ValueError("a page's header without a size or an encoding") from None
        if unpacked < 0 or packed < 0:
            raise ValueError("a page's header with a negative size")
        yield Page(unpacked, packed, encodings)
        file.seek(packed, os.SEEK_CUR)


def _read_struct(file: BinaryIO) -> dict[int, Any]:
    """Return the integers and the structs of a struct by the numbers of their fields."""
    found: dict[int, Any] = {}
    number = 0
    while header := _read_byte(file):
        step, kind = divmod(header, 16)
        number = number + step if step else _read_integer(file)
        if kind == _INT32:
            found[number] = _read_integer(file)
        elif kind in _OTHER_INTEGERS:  # of a field that pyarrow does not know
            _read_varint(file)
        elif kind == _BINARY:
            file.seek(_read_varint(file), os.SEEK_CUR)
        elif kind == _STRUCT:
            found[number] = _read_struct(file)
        elif kind not in _BOOLEANS:  # their value is in the type
            raise ValueError(f"a page's header with a field of type {kind}")
    return found


def _read_integer(file: BinaryIO) -> int:
    number = _read_varint(file)
    if number >= 2**32:  # pyarrow would cut it
        raise ValueError("a page's header with a number that is too large")
    return number >> 1 ^ -(number & 1)


def _read_varint(file: BinaryIO) -> int:
    number = 0
    for shift in range(0, 64, 7):
        byte = _read_byte(file)
        number |= (byte & 0x7F) << shift
        if byte < 0x80:  # the highest bit says that more bytes follow
            return number
    raise ValueError("a number without end")


def _read_byte(file: BinaryIO) -> int:
    if not (byte := file.read(1)):
        raise ValueError("the end is missing")
    return byte[0]
