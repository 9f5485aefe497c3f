"""The payload: one file in the store that holds a chunk's names and image bytes.

A msgpack array `[version, names, contents]`. `contents` holds, for each name, the image's bytes, or
`[code, detail]` for an image that could not even be read when it was submitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgpack

from jobs.errors import ErrorCode, ImageError, PayloadDamaged
from jobs.store import Store

_VERSION: Final = 1


class Payload(NamedTuple):
    """A chunk's images, in order: names, and beside each its bytes or why there are none."""

    names: list[str]
    contents: list[bytes | ImageError]


def payload_key(job_id: str, chunk_id: str) -> str:
    """Where a chunk's payload lies in the store."""
    return f"{payload_folder(job_id)}/{chunk_id}.msgpack"


def payload_folder(job_id: str) -> str:
    """Where all payloads of a job lie in the store."""
    return f"payloads/{job_id}"


def pack_payload(names: Sequence[str], contents: Sequence[bytes | ImageError]) -> bytes:
    """The file's bytes."""
    stored = [
        content if isinstance(content, bytes) else [str(content.code), content.detail] for content in contents
    ]
    packed: bytes = msgpack.packb([_VERSION, list(names), stored])
    return packed


def payload_digest(data: bytes) -> str:
    """The SHA-256 of a payload's bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def read_payload(store: Store, key: str, sha256: str, *, images: int) -> Payload:
    """A chunk's images. Raises PayloadDamaged where the file is gone or is not what was stored, Unavailable
    where the store cannot be reached.
    """
    try:
        data = store.get(key)
    except FileNotFoundError:
        raise PayloadDamaged(f"The payload {key} is gone from the store.") from None
    if payload_digest(data) != sha256:
        raise PayloadDamaged(f"The payload {key} is not what was stored: its SHA-256 differs.")
    version, names, contents = msgpack.unpackb(data)
    if version != _VERSION or len(names) != images or len(contents) != images:
        raise PayloadDamaged(
            f"The payload {key} holds {len(names)} images of version {version}, not {images}."
        )
    return Payload(names, [_content(content) for content in contents])


def _content(stored: Any) -> bytes | ImageError:
    return stored if isinstance(stored, bytes) else ImageError(ErrorCode(stored[0]), stored[1])
