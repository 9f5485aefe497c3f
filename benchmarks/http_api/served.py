"""`labelmill serve` for a benchmark, and requests to it that cost the measuring process little."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any, Final, Self

from benchmarks.processes import memory_kib, with_children
from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.settings import Settings
from labelmill.server.serving import listen_on

#: How long the API may take to start, and a batch to be taken in or classified.
_START_SECONDS: Final = 60.0
_BATCH_SECONDS: Final = 7_200.0

#: Between two looks at the memory of a service that is starting.
_SETTLE_SECONDS: Final = 3.0

_BOUNDARY: Final = "labelmill-benchmark"

#: Bytes of an upload that are sent at a time.
_BLOCK_BYTES: Final = 1024 * 1024


def in_threads(number: int, task: Callable[[], None]) -> None:
    """Run a task in so many threads until all have ended. Raises what one of them raises."""
    with ThreadPoolExecutor(number) as threads:
        for each in [threads.submit(task) for _ in range(number)]:
            each.result()


class Served:
    """Serve the API of these settings, as a context manager. The ledger must be migrated."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        with ledger.transaction() as connection:
            _, self.key = create_key(connection, "benchmark", Role.SUBMIT)
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        with listen_on("127.0.0.1", 0) as listening:
            self.port = listening.getsockname()[1]
            log = self._settings.home / "logs" / "api.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("ab") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "labelmill", "serve", "--listen", f"fd:{listening.fileno()}"],
                    env=os.environ | self._settings.environment(),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(listening.fileno(),),
                    start_new_session=True,  # as `labelmill up` does: the kernel shares the cores by session
                )
        deadline = time.monotonic() + _START_SECONDS
        with self.connect() as api:
            while not api.is_ready():
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__()
                    raise RuntimeError(f"the API does not start: see {log}")
                time.sleep(0.05)
        # The API is ready before its intake processes are: these still load modules, and the memory grows.
        before = 0
        while (now := self.memory_kib()) > 1.01 * before:
            before = now
            time.sleep(_SETTLE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def memory_kib(self) -> int:
        """Return the memory of the process that answers requests and its children, which take in images."""
        assert self._process is not None
        return sum(map(memory_kib, with_children(self._process.pid)))

    def connect(self) -> Api:
        """Return a connection, for one thread."""
        return Api(self.port, self.key)


class Api:
    """A connection that stays open, as a context manager."""

    def __init__(self, port: int, key: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        self._headers = {"Authorization": f"Bearer {key}"}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def is_ready(self) -> bool:
        """Return whether the API answers that it is ready."""
        try:
            self._connection.request("GET", "/readyz")
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return False
        return response.status == 200

    def get(self, path: str) -> Any:
        """Return what is at this path below /v1. Raises RuntimeError."""
        return self._answer("GET", path)

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send an object to this path below /v1, and return the answer. Raises RuntimeError."""
        return self._answer("POST", path, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def classify(self, image: bytes) -> Any:
        """Send one image, and return its result once it has a label. Raises RuntimeError."""
        return self._answer("POST", "/classifications?wait=60", image, {"Content-Type": "image/png"})

    def upload(self, name: str, file: IO[bytes], size: int) -> str:
        """Upload a file of this size; return its id. Raises RuntimeError."""
        part = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
        head = f'{part}"purpose"\r\n\r\nbatch\r\n{part}"file"; filename="{name}"\r\n\r\n'.encode()
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
        kind = f"multipart/form-data; boundary={_BOUNDARY}"
        headers = {"Content-Type": kind, "Content-Length": str(len(head) + size + len(tail))}

        def parts() -> Any:
            yield head
            while block := file.read(_BLOCK_BYTES):
                yield block
            yield tail

        return str(self._answer("POST", "/files", parts(), headers)["id"])

    def wait(self, batch_id: str, *until: str) -> Any:
        """Return the batch once its status is one of these. Raises RuntimeError if it fails, or hangs."""
        deadline = time.monotonic() + _BATCH_SECONDS
        while (batch := self.get(f"/batches/{batch_id}"))["status"] not in until:
            if batch["status"] in ("failed", "cancelled") or time.monotonic() > deadline:
                raise RuntimeError(f"batch {batch_id} is {batch['status']}: {batch['errors']}")
            time.sleep(0.1)
        return batch

    def _answer(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> Any:
        self._connection.request(method, f"/v1{path}", body, self._headers | (headers or {}))
        response = self._connection.getresponse()
        answer = response.read()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path} answers {response.status}: {answer[:500]!r}")
        return json.loads(answer)
