"""A folder as a bucket of an S3 server (rclone), in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Final, Self
from unittest.mock import patch

#: Access key and secret.
_KEY: Final = "benchmark"

#: What a user sets to reach an S3 server of their own.
_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": _KEY,
    "AWS_SECRET_ACCESS_KEY": _KEY,
    "AWS_DEFAULT_REGION": "us-east-1",
}

#: The server needs no configuration, and no digest of each file that it lists.
_OPTIONS: Final = ("--config", "", "--etag-hash", "", "--no-modtime", "--addr", "127.0.0.1:0")

#: The line that tells the server's address.
_STARTED: Final = re.compile(r"Starting s3 server on \[(http://.+?)/\]")


class Bucket:
    """Serve the files of a folder as the objects of a bucket, as a context manager.

    Within it, `s3://` reaches the server from this process and from those that it starts. The folders beside
    it are buckets, too.
    """

    def __init__(self, folder: Path) -> None:
        self.url = f"s3://{folder.name}/"
        # The package brings the program, beside the environment's Python.
        program = str(Path(sys.executable).with_name("rclone"))
        self._command = [
            *(program, "serve", "s3", str(folder.parent), "--auth-key", f"{_KEY},{_KEY}"),
            *_OPTIONS,
        ]
        self._environment = patch.dict(os.environ)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stderr=subprocess.PIPE, text=True)
        assert self._process.stderr is not None
        lines = []
        for line in self._process.stderr:
            lines.append(line)
            if started := _STARTED.search(line):
                break
        else:
            raise RuntimeError(f"the S3 server has ended with {self._process.wait()}: {''.join(lines)}")
        # A pipe that nobody reads would block the server once it is full.
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self._environment.start()
        os.environ.update(_CREDENTIALS, AWS_ENDPOINT_URL=started[1])
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.stop()
        self._process.terminate()
        self._process.wait()
