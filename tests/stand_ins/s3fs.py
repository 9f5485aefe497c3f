"""In the place of the package s3fs, for tests that put this folder on the path: a bucket that is a folder.

Its URLs may hold credentials, which the real package does not know.

Its errors are what the worst of such packages do: no OSError, and the whole path quoted, credentials and all.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem

__version__ = "2026.9.0"  # fsspec asks for it


class S3FileSystem(AbstractFileSystem):
    """`s3://KEY:SECRET@BUCKET/PATH` is `BUCKET/PATH` in the folder S3_STAND_IN; a bucket `away` is broken."""

    protocol = ("s3", "s3a")

    def _file(self, path: str) -> Path:
        bucket = path.rpartition("@")[2]
        if bucket.startswith("away/"):
            raise RuntimeError(f"403 Forbidden: https://{path}\nand more lines of it")
        return Path(os.environ["S3_STAND_IN"]) / bucket

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        file = self._file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(value)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        return self._file(path).read_bytes()[start:end]

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        entries = [
            {
                "name": f"{path}/{entry.name}",
                "size": entry.stat().st_size,
                "type": "directory" if entry.is_dir() else "file",
            }
            for entry in self._file(path).iterdir()
        ]
        return entries if detail else [entry["name"] for entry in entries]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        file = self._file(path)
        kind = "directory" if file.is_dir() else "file"
        return {"name": path, "size": file.stat().st_size, "type": kind}

    def rm(self, path: str, recursive: bool = False, **_: Any) -> None:
        file = self._file(path)
        shutil.rmtree(file) if recursive and file.is_dir() else file.unlink()
