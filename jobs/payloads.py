"""The payload: one file in the store that holds a chunk's names and image bytes.

A msgpack array `[version, names, contents]`. `contents` holds, for each name, the image's bytes; or a map of
`url`, `sha256` and `size` for an image that was submitted by reference; or `[code, detail]` for an image that
could not even be read when it was submitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

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


def pack_payload(names: Sequence[str], contents: Sequence[Content]) -> bytes:
    """The file's bytes."""
    by_reference = any(isinstance(content, Reference) for content in contents)
    version = _VERSION_WITH_REFERENCES if by_reference else _VERSION
    stored = [_stored(content) for content in contents]
    packed: bytes = msgpack.packb([version, list(names), stored], unicode_errors=_UNICODE_ERRORS)
    return packed


def payload_digest(data: bytes) -> str:
    """The SHA-256 of a payload's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


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
    return Payload(names[offset:end], [_content(content) for content in contents[offset:end]])


def _stored(content: Content) -> Any:
    if isinstance(content, bytes):
        return content
    if isinstance(content, Reference):
        return content._asdict()
    return [str(content.code), content.detail]


def _content(stored: Any) -> Content:
    if isinstance(stored, bytes):
        return stored
    if isinstance(stored, dict):
        return Reference(**stored)
    return ImageError(ErrorCode(stored[0]), stored[1])
