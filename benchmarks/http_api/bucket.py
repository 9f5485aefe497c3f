"""A bucket of digits on an S3 server (moto), in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final, Self
from unittest.mock import patch

from benchmarks.images import list_images

_BUCKET: Final = "benchmark"

#: What a user sets to reach an S3 server of their own. Moto takes any credentials.
_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "benchmark",
    "AWS_SECRET_ACCESS_KEY": "benchmark",
    "AWS_DEFAULT_REGION": "us-east-1",
}


class Bucket:
    """Serve the first so many images of a folder from a bucket, as a context manager.

    Within it, `s3://` reaches the server from this process and from those that it starts.
    """

    url: Final = f"s3://{_BUCKET}/photos/"

    def __init__(self, folder: Path, images: int) -> None:
        self._command = [sys.executable, "-m", "benchmarks.http_api.bucket", str(folder), str(images)]
        self._environment = patch.dict(os.environ)

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        address = self._process.stdout.readline().strip()
        if not address:
            raise RuntimeError("the S3 server does not start")
        self._environment.start()
        os.environ.update(_CREDENTIALS, AWS_ENDPOINT_URL=address)
        return self

    def __exit__(self, *_: object) -> None:
        self._environment.stop()
        self._process.terminate()
        self._process.wait()


def _serve(folder: Path, images: int) -> None:
    """Put the images into a bucket, and serve it until the process ends."""
    import logging

    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(_BUCKET, "us-east-1")
    for path in list_images(folder)[:images]:
        file = Path(path)
        backend.put_object(_BUCKET, f"photos/{file.parent.name}/{file.name}", file.read_bytes())
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]), int(sys.argv[2]))
