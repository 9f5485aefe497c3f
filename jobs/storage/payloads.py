"""The payload: one file in the store that holds a chunk's names and image bytes.

It is a msgpack array `[version, names, contents]`. For each name, `contents` holds the image's bytes; or a
map of `url`, `sha256` and `size` if the image was submitted by reference; or `[code, detail]` if it could not
be read when it was submitted.

Payloads are verified by a BLAKE3 digest: it takes a quarter to half of the time of SHA-256 on a processor
with SHA instructions, and a tenth to a fifth on one without.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack
from blake3 import blake3

from jobs.errors import ErrorCode, ImageError, PayloadDamaged
from jobs.network.references import Reference
from jobs.storage.store import Store

#: The store's folder of all payloads.
PAYLOADS: Final = "payloads"

_VERSION: Final = 1

#: A path may not be valid UTF-8, and must still lead to its file.
_UNICODE_ERRORS: Final = "surrogateescape"

#: An image of at least this size is a piece of its own and is never copied. Copying would cost a producer of
#: photographs a fifth of its time, and three times the chunk's memory.
_LARGE: Final = 16 * 1024

#: The header of such a piece: msgpack's `bin 32` (its specification, "bin format family").
_LARGE_HEAD: Final = struct.Struct(">BI")
_BIN_32: Final = 0xC6

Content = bytes | Reference | ImageError


class Payload(NamedTuple):
    """Images in order: their names, and for each its bytes, a reference to them, or the error that it got."""

    names: list[str]
    contents: list[Content]

    def part(self, offset: int, images: int) -> Payload:
        """Return `images` images from position `offset`. Raises PayloadDamaged if there are fewer."""
        end = offset + images
        if len(self.names) != len(self.contents) or len(self.names) < end:
            raise PayloadDamaged(
                f"A payload holds {len(self.names)} names and {len(self.contents)} images, not {end}: "
                "restore it from a backup."
            )
        return Payload(self.names[offset:end], self.contents[offset:end])


def payload_key(job_id: str, chunk_id: str) -> str:
    """Return the key of a chunk's payload in the store."""
    return f"{payload_folder(job_id)}/{chunk_id}.msgpack"


def payload_folder(job_id: str) -> str:
    """Return the key of the folder that holds a job's payloads."""
    return f"{PAYLOADS}/{job_id}"


def pack_payload(names: Sequence[str], contents: Sequence[Content]) -> list[bytes]:
    """Return the file's bytes in pieces, with each large image as a piece of its own."""
    if set(map(type, contents)) == {bytes} and max(map(len, cast("Sequence[bytes]", contents))) < _LARGE:
        # The same bytes as below, in one step.
        return [msgpack.packb([_VERSION, list(names), list(contents)], unicode_errors=_UNICODE_ERRORS)]
    packer = msgpack.Packer(unicode_errors=_UNICODE_ERRORS, autoreset=False)
    packer.pack_array_header(3)
    packer.pack(_VERSION)
    packer.pack(list(names))
    packer.pack_array_header(len(contents))
    pieces: list[bytes] = []
    for content in contents:
        if isinstance(content, Reference):
            packer.pack(content._asdict())
        elif isinstance(content, ImageError):
            packer.pack([str(content.code), content.detail])
        elif len(content) < _LARGE:
            packer.pack(content)
        else:
            pieces += [packer.bytes() + _LARGE_HEAD.pack(_BIN_32, len(content)), content]
            packer.reset()
    return [*pieces, packer.bytes()]


def payload_digest(*pieces: bytes) -> str:
    """Return the digest of a payload's bytes: 256 bits in hex."""
    digest = blake3()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def read_payload(store: Store, key: str, digest: str) -> Payload:
    """Read a payload from the store and verify it.

    Raises PayloadDamaged if the file is gone or is not what was stored, Unavailable if the store cannot be
    reached.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        raise PayloadDamaged(f"The payload {key} is gone from the store: restore it from a backup.") from None
    if payload_digest(data) != digest:
        raise PayloadDamaged(
            f"The payload {key} is not what was stored, its digest differs: restore it from a backup."
        )
    version, names, contents = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
    if version != _VERSION:
        raise PayloadDamaged(
            f"The payload {key} has the version {version}, which this program cannot read: upgrade it."
        )
    if set(map(type, contents)) != {bytes}:
        contents = list(map(_content, contents))
    return Payload(names, contents)


def _content(stored: Any) -> Content:
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict):
        return Reference(**stored)
    return ImageError(ErrorCode(stored[0]), stored[1])
