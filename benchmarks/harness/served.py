"""A pipeline with the HTTP API, and requests to it that cost the measuring process little."""

from __future__ import annotations

import http.client
import json
import time
from typing import IO, Any, Final, Self

from benchmarks.harness.pipeline import Pipeline
from benchmarks.harness.processes import child_with, memory_kib, with_children
from benchmarks.harness.setup import Setup
from jobs.ledger.api.keys import Role, create_key
from labelmill.server.serving import listen_on

#: How long the API may take to start, and a batch to be taken in or classified.
_START_SECONDS: Final = 60.0
_BATCH_SECONDS: Final = 7_200.0

#: Between two looks at the memory of a service that is starting.
_SETTLE_SECONDS: Final = 3.0

_BOUNDARY: Final = "labelmill-benchmark"

#: Bytes of an upload that are sent at a time.
_BLOCK_BYTES: Final = 1024 * 1024


class ServedPipeline(Pipeline):
    """Run the stack with the API, as a context manager."""

    def __init__(self, setup: Setup, **stack: Any) -> None:
        self._listening = listen_on("127.0.0.1", 0)
        self._port = self._listening.getsockname()[1]
        super().__init__(setup, api=self._listening, **stack)
        with self.client.ledger.transaction() as connection:
            _, self._key = create_key(connection, "benchmark", Role.SUBMIT)

    def __enter__(self) -> Self:
        super().__enter__()
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._listening.close()

    @property
    def url(self) -> str:
        """Return where it is served."""
        return f"http://127.0.0.1:{self._port}"

    def connect(self) -> Api:
        """Return a connection, for one thread."""
        return Api(self._port, self._key)

    def api_memory_kib(self) -> int:
        """Return the memory of the process that answers requests and its children, which take in images."""
        return sum(map(memory_kib, with_children(child_with("labelmill", "serve"))))

    def _wait_until_ready(self) -> None:
        """Wait until the API answers, and has started its intake processes. Raises RuntimeError."""
        deadline = time.monotonic() + _START_SECONDS
        with self.connect() as api:
            while not api.is_ready():
                self._stack.check_running()
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the API does not answer after {_START_SECONDS:g} seconds")
                time.sleep(0.05)
        # The API is ready before its intake processes are: these still load modules, and the memory grows.
        before = 0
        while (now := self.api_memory_kib()) > 1.01 * before:
            before = now
            time.sleep(_SETTLE_SECONDS)


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
