"""The manifest: the file in the store that lists the images of one version of a dataset.

It is a digest and a msgpack array `[version, payloads, columns]`: the payload files that hold the images
(`jobs.storage.payloads`), and one column for each field of `DatasetImage`, hashes as bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgpack
from blake3 import blake3

from jobs.errors import DataUnavailable
from jobs.models.dataset import DatasetVersion, Split
from jobs.storage.store import Store

_VERSION: Final = 1

_SPLITS: Final = {split.value: split for split in Split}

#: The file begins with the BLAKE3 digest of the rest.
_DIGEST_BYTES: Final = 32

#: The length of a SHA-256 in hex.
_HASH_CHARACTERS: Final = 64


class PayloadFile(NamedTuple):
    """One payload that holds images of a version."""

    key: str  # in the store
    digest: str  # see `jobs.storage.payloads`
    images: int  # in the file; a version may use only some of them


class DatasetImage(NamedTuple):
    """One image of a version."""

    name: str  # as its owner named it
    split: Split
    label: int  # its class, an index into the version's classes
    payload: int  # its file, an index into the version's payloads
    place: int  # in that file, from 0
    sha256: str  # of its bytes, in hex
    pixels: str  # the hash of its decoded pixels, in hex: identical pictures have the same
    width: int
    height: int
    mode: str  # Pillow's, as stored in the file


_FIELDS: Final = len(DatasetImage._fields)
_SPLIT: Final = DatasetImage._fields.index("split")
_HASHES: Final = tuple(map(DatasetImage._fields.index, ("sha256", "pixels")))


@dataclass(frozen=True, slots=True)
class Manifest:
    """The list of a version's images, in the order of their pixel hashes."""

    payloads: tuple[PayloadFile, ...]
    images: tuple[DatasetImage, ...]

    def fingerprint(self, classes: Iterable[str], splits: Iterable[Split] = tuple(Split)) -> str:
        """Return the SHA-256, in hex, of the classes and of the images of these splits with their labels.

        It depends on the data only, not on names and payloads.
        """
        wanted = set(splits)
        digest = hashlib.sha256(json.dumps(list(classes)).encode())
        for image in self.images:
            if image.split in wanted:
                digest.update(f"{image.sha256} {image.split} {image.label}\n".encode())
        return digest.hexdigest()

    def to_bytes(self) -> bytes:
        """Return the file's content."""
        columns: list[Any] = [[image[field] for image in self.images] for field in range(_FIELDS)]
        for field in _HASHES:
            columns[field] = bytes.fromhex("".join(columns[field]))
        packed: bytes = msgpack.packb([_VERSION, self.payloads, columns])
        return blake3(packed).digest() + packed

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the file's content. Raises ValueError if it is not a manifest."""
        packed = data[_DIGEST_BYTES:]
        if blake3(packed).digest() != data[:_DIGEST_BYTES]:
            raise ValueError("its digest differs")
        try:
            version, payloads, columns = msgpack.unpackb(packed)
            if version != _VERSION:
                raise ValueError(f"its version is {version}")
            columns[_SPLIT] = [_SPLITS[split] for split in columns[_SPLIT]]
            for field in _HASHES:
                columns[field] = _split_hashes(columns[field])
            if len(columns) != _FIELDS:
                raise ValueError(f"it has {len(columns)} columns")
            images = zip(*columns, strict=True)
            return cls(tuple(PayloadFile(*each) for each in payloads), tuple(map(DatasetImage._make, images)))
        except (AttributeError, LookupError, TypeError, ValueError, msgpack.UnpackException) as error:
            raise ValueError(f"it is not a manifest: {error}") from error


def _split_hashes(joined: bytes) -> list[str]:
    """Return the hashes in hex."""
    text = joined.hex()
    return [text[start : start + _HASH_CHARACTERS] for start in range(0, len(text), _HASH_CHARACTERS)]


def read_manifest(store: Store, version: DatasetVersion) -> Manifest:
    """Return the manifest of a version.

    Raises DataUnavailable if it is missing or damaged, Unavailable if the store cannot be reached.
    """
    what = f"The list of images of dataset {version.dataset}, version {version.version},"
    remedy = "restore it, or add the images as a dataset with another name."
    try:
        manifest = Manifest.from_bytes(store.get(version.manifest))
    except FileNotFoundError:
        raise DataUnavailable(f"{what} is missing from the store: {remedy}") from None
    except ValueError as error:
        raise DataUnavailable(f"{what} cannot be read ({error}): {remedy}") from None
    if manifest.fingerprint(version.classes) != version.fingerprint:
        raise DataUnavailable(f"{what} is not what was stored: {remedy}")
    return manifest
