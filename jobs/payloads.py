"""The payload: one file in the store that holds a chunk's names and image bytes.

A msgpack array `[version, names, contents]`. `contents` holds, for each name, the image's bytes; or a map of
`url`, `sha256` and `size` for an image that was submitted by reference; or `[code, detail]` for an image that
could not even be read when it was submitted.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, cast

import msgpack

from jobs.errors import ErrorCode, ImageError, PayloadDamaged
from jobs.references import Reference
from jobs.store import Store

#: Below this key of the store lie all payloads.
PAYLOADS: Final = "payloads"

#: Payloads without references stay in the first version: every worker there is can read them.
_VERSION: Final = 1
_VERSION_WITH_REFERENCES: Final = 2

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
    by_reference = any(isinstance(content, Reference) for content in contents)
    packer = msgpack.Packer(unicode_errors=_UNICODE_ERRORS, autoreset=False)
    packer.pack_array_header(3)
    packer.pack(_VERSION_WITH_REFERENCES if by_reference else _VERSION)
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
    """The SHA-256 of a payload's bytes, in hex."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def read_payload(store: Store, key: str, sha256: str, *, offset: int = 0, images: int) -> Payload:
    """So many images of a payload, from the one at `offset`. Raises PayloadDamaged where the file is gone, is
    not what was stored, or holds fewer; Unavailable where the store cannot be reached.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        raise PayloadDamaged(f"The payload {key} is gone from the store.") from None
    if payload_digest(data) != sha256:
        raise PayloadDamaged(f"The payload {key} is not what was stored: its SHA-256 differs.")
    version, names, contents = msgpack.unpackb(data, unicode_errors=_UNICODE_ERRORS)
    if version not in (_VERSION, _VERSION_WITH_REFERENCES):
        raise PayloadDamaged(f"The payload {key} is of version {version}, which this program does not know.")
    end = offset + images
    if len(names) != len(contents) or len(names) < end:
        raise PayloadDamaged(
            f"The payload {key} holds {len(names)} names and {len(contents)} images, not {end}."
        )
    contents = contents[offset:end]
    if set(map(type, contents)) != {bytes}:
        contents = list(map(_content, contents))
    return Payload(names[offset:end], contents)


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
