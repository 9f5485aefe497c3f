"""List the folders of remote file systems: S3's page by page, so that its objects are read meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

from jobs.errors import Unavailable

_by_key = attrgetter("key")


class Entry(NamedTuple):
    """An entry of a folder: the needed part of what fsspec returns, which takes 1 KB."""

    key: str  # determines the order
    name: str
    path: str
    kind: str
    size: int | None


def list_folder(filesystem: Any, folder: str) -> Iterator[Entry]:
    """Yield a folder's entries. The same content gives the same order. Raises what the package raises.

    Memory holds all entries, or one page of S3, which has 1,000. S3's order is that of the keys. The key of a
    folder ends in `/`, so `a.png` comes before the folder `a`.
    """
    if hasattr(filesystem, "call_s3") and folder.strip("/"):
        yield from _in_order(_s3_pages(filesystem, folder))
    else:
        yield from sorted(_list_whole(filesystem, folder), key=_by_key)


def _list_whole(filesystem: Any, folder: str) -> list[Entry]:
    listing = filesystem.ls(folder, detail=True)
    prefix = folder.rstrip("/") + "/" if folder.strip("/") else ""
    entries = []
    for entry in listing:
        path = entry["name"].rstrip("/")
        name = path.removeprefix(prefix) if prefix else path.lstrip("/")
        # Some file systems list the folder itself, and a web page may link to other places.
        if path.startswith(prefix) and name and "/" not in name:
            entries.append(Entry(name, name, entry["name"], entry["type"], entry.get("size")))
    del listing
    if filesystem.async_impl:  # other packages look up there what they open
        filesystem.invalidate_cache(folder)
    return entries


def _s3_pages(filesystem: Any, folder: str) -> Iterator[list[Entry]]:
    """Yield a folder's entries as S3 lists them.

    Raises FileNotFoundError if there is nothing below it, Unavailable if listing fails after the first page.
    """
    bucket, below, _ = filesystem.split_path(folder)
    prefix = f"{below}/" if below else ""
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": "/"}
    is_there = not below
    while True:
        try:
            answer = filesystem.call_s3("list_objects_v2", **request)
        except (FileNotFoundError, PermissionError) as error:
            if "ContinuationToken" not in request:
                raise
            # Such as a session that expired. As an error of the folder, it would hide the other images.
            raise Unavailable(f"s3://{bucket}/{prefix} cannot be listed to its end: {error}") from None
        found = [(each["Key"], "file", each["Size"]) for each in answer.get("Contents", ())]
        found += [(each["Prefix"], "directory", None) for each in answer.get("CommonPrefixes", ())]
        is_there = is_there or bool(found)
        page = []
        for key, kind, size in found:
            name = key.removeprefix(prefix).removesuffix("/")
            if name:  # otherwise it stands for the folder itself
                page.append(Entry(key, name, f"{bucket}/{key.removesuffix('/')}", kind, size))
        yield page
        if not answer.get("IsTruncated"):
            break
        request["ContinuationToken"] = answer["NextContinuationToken"]
    if not is_there:
        raise FileNotFoundError(folder)


def _in_order(pages: Iterator[list[Entry]]) -> Iterator[Entry]:
    """Yield the entries in the order of the keys, page by page.

    A few servers list in another order. A page that is out of order is sorted together with all later pages.
    """
    last = ""
    for page in pages:
        objects = [entry.key for entry in page if entry.kind == "file"]
        if objects != sorted(objects) or any(entry.key < last for entry in page):
            page.extend(chain.from_iterable(pages))
        page.sort(key=_by_key)
        yield from page
        last = page[-1].key if page else last
