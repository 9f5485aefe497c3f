"""Read the sizes of a Parquet file's pages from their headers.

pyarrow unpacks a page as a whole, whatever its size, and does not show the sizes. It compares the size in the
header with what it unpacks, but not the one in the file's footer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, BinaryIO, Final

#: The numbers of the fields of a page's header: https://github.com/apache/parquet-format.
_UNPACKED: Final = 2
_PACKED: Final = 3

#: The types of Thrift's compact protocol that a header has.
_BOOLEANS: Final = (1, 2)
_INTEGERS: Final = (4, 5, 6)
_BINARY: Final = 8
_STRUCT: Final = 12


def page_sizes(file: BinaryIO, column: Any) -> Iterator[tuple[int, int]]:
    """Yield the unpacked and the packed size of each page of a column chunk, in bytes.

    `column` is pyarrow's ColumnChunkMetaData. Raises ValueError if a header is damaged.
    """
    start = column.data_page_offset
    if column.has_dictionary_page:
        start = min(start, column.dictionary_page_offset)
    file.seek(start)
    while file.tell() < start + column.total_compressed_size:
        fields = _read_struct(file)
        unpacked, packed = fields.get(_UNPACKED, -1), fields.get(_PACKED, -1)
        if unpacked < 0 or packed < 0:
            raise ValueError("a page without a size")
        yield unpacked, packed
        file.seek(packed, os.SEEK_CUR)


def _read_struct(file: BinaryIO) -> dict[int, int]:
    """Return the integers of a struct by the numbers of their fields."""
    found: dict[int, int] = {}
    number = 0
    while header := _read_byte(file):
        step, kind = divmod(header, 16)
        number = number + step if step else _read_integer(file)
        if kind in _INTEGERS:
            found[number] = _read_integer(file)
        elif kind == _BINARY:
            file.seek(_read_varint(file), os.SEEK_CUR)
        elif kind == _STRUCT:
            _read_struct(file)
        elif kind not in _BOOLEANS:  # their value is in the type
            raise ValueError(f"a page's header with a field of type {kind}")
    return found


def _read_integer(file: BinaryIO) -> int:
    number = _read_varint(file)
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
