"""The payload: one file in the store that holds a chunk's names and image bytes.

A msgpack array `[version, names, contents]`. `contents` holds, for each name, the image's bytes; or a map of
`url`, `sha256` and `size` for an image that was submitted by reference; or `[code, detail]` for an image that
could not even be read when it was submitted.

What a payload is verified by, its digest, is a BLAKE3: that takes a half to a quarter of what SHA-256 takes
where a processor has instructions for the latter, and a fifth to a tenth where it has none.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack
from blake3 import blake3

from jobs.errors import ErrorCode, ImageError, PayloadDamaged
from jobs.references import Reference
from jobs.store import Store

#: Below this key of the store lie all payloads.
PAYLOADS: Final = "payloads"

_VERSION: Final = 3

#: How payloads of the versions before begin: an array of three, and the first of these. Their digest is a
#: SHA-256.
_OLD: Final = (b"\x93\x01", b"\x93\x02")

#: A path may be no UTF-8, and must lead to its file all the same.
_UNICODE_ERRORS: Final = "surrogateescape"

#: An image from this size on is a piece of its own, and never copied: a copy of all costs photographs a
#: fifth of what a producer has to do for them, and three times the chunk's memory.
_LARGE: Final = 16 * 1024

#: Before the bytes of such a piece: msgpack's `bin 32` (its specification, "bin format family").
_LARGE_HEAD: Final = struct.Struct(">BI")
_BIN_32: Final = 0xC6

Content = bytes | Reference | ImageError


class Payload(NamedTuple):
    """Images, in order: names, and beside each its bytes, where they are, or why there are none."""

    names: list[str]
    contents: list[Content]

    def part(self, offset: int, images: int) -> Payload:
        """Return so many images, from the one at `offset`. Raises PayloadDamaged if it holds fewer."""
        end = offset + images
        if len(self.names) != len(self.contents) or len(self.names) < end:
            raise PayloadDamaged(
                f"A payload holds {len(self.names)} names and {len(self.contents)} images, not {end}."
            )
        return Payload(self.names[offset:end], self.contents[offset:end])


def payload_key(job_id: str, chunk_id: str) -> str:
    """Where a chunk's payload lies in the store."""
    return f"{payload_folder(job_id)}/{chunk_id}.msgpack"


def payload_folder(job_id: str) -> str:
    """Where all payloads of a job lie in the store."""
    return f"{PAYLOADS}/{job_id}"


def pack_payload(names: Sequence[str], contents: Sequence[Content]) -> list[bytes]:
    """The file's bytes, in pieces: a large image is one of them."""
    if set(map(type, contents)) == {bytes} and max(map(len, cast("Sequence[bytes]", contents))) < _LARGE:
        # As the rest would have it, in one step for all.
        return [msgpack.packb([_VERSION, list(names), list(contents)], unicode_errors=_UNICODE_ERRORS)]
    packer = msgpack.Packer(unicode_errors=_UNICODE_ERRORS, autoreset=False)
    packer.pack_array_header(3)
    packer.pack(_VERSION)
    packer.pack(list(names))
    packer.pack_array_header(len(contents))
    pieces: list[bytes] = []
    for content in contents:
        if not isinstance(content, bytes):
            packer.pack(_stored(content))
        elif len(content) < _LARGE:
            packer.pack(content)
        else:
            pieces += [packer.bytes() + _LARGE_HEAD.pack(_BIN_32, len(content)), content]
            packer.reset()
    return [*pieces, packer.bytes()]


def payload_digest(*pieces: bytes) -> str:
    """Of a payload's bytes, 256 bits in hex."""
    digest = hashlib.sha256() if pieces[0][:2] in _OLD else blake3()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def read_payload(store: Store, key: str, digest: str) -> Payload:
    """Read a payload from the store and check it.

    Raises PayloadDamaged if the file is gone or is not what was stored; Unavailable if the store cannot be
    reached.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        raise PayloadDamaged(f"The payload {key} is gone from the store.") from None
    if payload_digest(data) != digest:
        raise PayloadDamaged(f"The payload {key} is not what was stored: its digest differs.")
    version, names, contents = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
    if version not in range(1, _VERSION + 1):
        raise PayloadDamaged(f"The payload {key} is of version {version}, which this program does not know.")
    if set(map(type, contents)) != {bytes}:
        contents = list(map(_content, contents))
    return Payload(names, contents)


def _stored(content: Reference | ImageError) -> Any:
    if isinstance(content, Reference):
        return content._asdict()
    return [str(content.code), content.detail]


def _content(stored: Any) -> Content:
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict):
        return Reference(**stored)
    return ImageError(ErrorCode(stored[0]), stored[1])
