"""The manifest: the file in the store that lists the images of one version of a dataset.

It is gzipped JSON lines: first the payloads that hold the images (`jobs.payloads`), then a line per image.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import starmap
from typing import Any, Final, NamedTuple

from jobs.dataset import DatasetVersion, Split
from jobs.errors import DataUnavailable
from jobs.store import Store

_SPLITS: Final = {str(split): split for split in Split}

#: How many lines are parsed at a time.
_PARSED_LINES: Final = 1000


class PayloadFile(NamedTuple):
    """One payload that holds images of a version."""

    key: str  # in the store
    digest: str  # see `jobs.payloads`
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
        lines = [json.dumps({"payloads": self.payloads}), *map(json.dumps, self.images)]
        return gzip.compress("\n".join(lines).encode(), compresslevel=6, mtime=0)

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read the file's content. Raises ValueError if it is not a manifest."""
        try:
            first, *lines = gzip.decompress(data).splitlines()
            payloads = tuple(PayloadFile(*each) for each in json.loads(first)["payloads"])
            return cls(payloads, tuple(starmap(_to_image, _parsed(lines))))
        except (OSError, EOFError, KeyError, TypeError, zlib.error) as error:
            raise ValueError(f"it is not a manifest: {error}") from error


def _parsed(lines: list[bytes]) -> Iterator[list[Any]]:
    """Yield each line's value. Parsing many lines at a time takes half as long as one by one."""
    for start in range(0, len(lines), _PARSED_LINES):
        yield from json.loads(b"[" + b",".join(lines[start : start + _PARSED_LINES]) + b"]")


def _to_image(name: str, split: str, *others: Any) -> DatasetImage:
    return DatasetImage(name, _SPLITS[split], *others)


def read_manifest(store: Store, version: DatasetVersion) -> Manifest:
    """Return the manifest of a version.

    Raises DataUnavailable if it is missing or damaged, Unavailable if the store cannot be reached.
    """
    what = f"The list of images of dataset {version.dataset}, version {version.version},"
    remedy = "restore it, or add the images as a dataset with another name"
    try:
        manifest = Manifest.from_bytes(store.get(version.manifest))
    except FileNotFoundError:
        raise DataUnavailable(f"{what} is missing from the store: {remedy}.") from None
    except ValueError as error:
        raise DataUnavailable(f"{what} cannot be read ({error}): {remedy}.") from None
    if manifest.fingerprint(version.classes) != version.fingerprint:
        raise DataUnavailable(f"{what} is not what was stored: {remedy}.")
    return manifest
