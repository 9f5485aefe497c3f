"""A harness's HTTP API, and users that repeat every request until it is answered."""

from __future__ import annotations

import io
import sys
import time
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Any, Final

import httpx
import pytest
import sqlalchemy as sa

from jobs.ledger.api.keys import Role, create_key
from jobs.schema import batches
from labelmill.server.serving import listen_on
from tests.console import until
from tests.faults.checker import Verdict
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.pictures import Picture

#: Small: a fault is sure to come in the middle.
CHUNK_IMAGES: Final = 10

#: What a server answers that cannot serve now. A client tries again.
_TRY_AGAIN: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)


class Api:
    """`labelmill serve` as a process of a harness: it is started again when it has ended."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        with harness.ledger.transaction() as connection:
            _, key = create_key(connection, "faults", Role.SUBMIT)
        with listen_on("127.0.0.1", 0) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.process = harness.add_process(
            "api",
            [sys.executable, "-m", "tests.faults.quick_api", "serve", "--listen", address],
            LABELMILL_CHUNK_IMAGES=str(CHUNK_IMAGES),
        )
        self._client = httpx.Client(
            base_url=f"http://{address}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    # ---- a user ---------------------------------------------------------------------------------------

    def status(self) -> int | None:
        """Return the status of an answer to a simple request, or None if there is no answer."""
        try:
            return self._client.get("/batches", params={"limit": 1}).status_code
        except httpx.TransportError:
            return None

    def answers(self) -> bool:
        """Return whether requests are served."""
        return self.status() == HTTPStatus.OK

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send a request again and again until it is answered. Any answer but 2xx and 503 is an error."""
        deadline = time.monotonic() + HEALED_SECONDS
        while True:
            with suppress(httpx.TransportError):
                answer = self._client.request(method, path, **options)
                if answer.status_code not in _TRY_AGAIN:
                    return answer.raise_for_status()
            if time.monotonic() > deadline:
                pytest.fail(f"{method} {path} is not answered")
            time.sleep(0.1)

    def upload(self, archive: bytes) -> str:
        """Upload an archive until that is answered. Return the file's id."""
        file = ("images.zip", archive)
        return self.send("POST", "/files", data={"purpose": "batch"}, files={"file": file}).json()["id"]

    def submit(self, file_id: str, name: str) -> str:
        """Create a batch that has this name, until that is answered. Return its id."""
        wanted = {"input_file_id": file_id, "metadata": {"name": name}}
        return self.send("POST", "/batches", json=wanted, headers={"Idempotency-Key": name}).json()["id"]

    # ---- what has become of it ------------------------------------------------------------------------

    def named(self, name: str) -> list[str]:
        """Return the ids of the batches in the ledger that were created under this name."""
        with self.harness.ledger.reading() as connection:
            found = connection.execute(sa.select(batches.c.job_id, batches.c.request)).all()
        return [row.job_id for row in found if row.request.get("metadata") == {"name": name}]

    def judge(self, name: str, batch_id: str, images: Sequence[Picture]) -> Verdict:
        """Wait for the end of a batch, and compare its images with those that were submitted."""
        verdict = self.harness.judge(batch_id, images)
        found = self.named(name)
        if found != [batch_id]:
            verdict.doubled += len(images) * (len(found) - 1)
            verdict.problems.append(f"{batch_id} was answered, and there are {found}")
        return verdict

    def check_sessions(self) -> None:
        """Check that nobody has left a transaction open. A SQLite that is locked would fail the rest."""
        if self.harness.ledger.is_sqlite:
            return
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        )

        def none_is_open() -> bool:
            with self.harness.ledger.reading() as connection:
                return connection.scalar(query) == 0

        until(none_is_open, "no transaction is open", seconds=HEALED_SECONDS)


def archive_of(images: Sequence[Picture]) -> bytes:
    """Return a ZIP of these pictures, in their order."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as packed:
        for image in images:
            packed.writestr(image.name, image.data)
    return file.getvalue()
