"""A project that does to the HTTP API all that one key can do, and a project that works alongside it."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from tests.serving import connect

#: Connections that send or accept nothing.
SLOW_CLIENTS: Final = 64

#: Links of one batch to a host that never answers.
LINKS: Final = 10_000


@dataclass
class Neighbour:
    """A client with the role `submit` that tries to keep all others from the service."""

    url: str
    key: str
    tarpit: str  # the URL of a host that accepts connections and never answers
    image: bytes
    ended: threading.Event = field(default_factory=threading.Event)
    #: How often each attack was made, by its name.
    made: dict[str, int] = field(default_factory=dict)

    def attack(self) -> None:
        """Attack until `ended` is set, then cancel all that was begun."""
        attacks = (
            *(self.search, self.retry, self.refuse, self.name_tarpits, self.call_tarpits),
            *(self.guess, self.nest, self.send_slowly, self.never_read, self.send_two_lengths),
            *(self.pack_rows, self.follow, self.name_a_bucket),
        )
        self.made = {each.__name__: 0 for each in attacks}
        threads = [threading.Thread(target=self._repeat, args=(each,)) for each in attacks]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self._cancel_all()

    def _client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=30)

    def _repeat(self, attack: Callable[[httpx.Client], None]) -> None:
        with self._client() as client:
            while not self.ended.is_set():
                # Limits may answer anything: the others count, not this project.
                with suppress(httpx.HTTPError, OSError, KeyError, ValueError):
                    attack(client)
                    self.made[attack.__name__] += 1
                self.ended.wait(0.1)

    def _cancel_all(self) -> None:
        with self._client() as client:
            for state in ("receiving", "running") * 5:  # more than a page may be open
                found = client.get("/batches", params={"state": state, "limit": 100}).json()
                for each in found["data"]:
                    client.post(f"/batches/{each['id']}/cancel")

    def _head(self, request: str) -> str:
        return (
            f"{request} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.key}\r\n"
            "Content-Type: image/png\r\n"
        )

    def _upload(self, client: httpx.Client, name: str, content: bytes) -> str:
        file = {"file": (name, content)}
        return str(client.post("/files", data={"purpose": "batch"}, files=file).json()["id"])

    def search(self, client: httpx.Client) -> None:
        """Search a name of 2,500 letters with a glob that fits it in very many ways."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            archive.writestr("a" * 2_500, self.image)
        file_id = self._upload(client, "a.zip", packed.getvalue())
        batch = client.post("/batches", json={"input_file_id": file_id, "priority": 100}).json()["id"]
        self.ended.wait(5)
        for _ in range(20):
            client.get(f"/batches/{batch}/results", params={"name": "*a*a*ab"})

    def retry(self, client: httpx.Client) -> None:
        """Cancel a batch of many images, and retry it again and again."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for number in range(5_000):
                archive.writestr(f"{number}.png", self.image)
        file_id = self._upload(client, "many.zip", packed.getvalue())
        batch = client.post("/batches", json={"input_file_id": file_id, "priority": 100}).json()["id"]
        self.ended.wait(1)
        client.post(f"/batches/{batch}/cancel")
        for _ in range(20):
            client.post(f"/batches/{batch}/retry")

    def refuse(self, client: httpx.Client) -> None:
        """Send a megabyte of links for a model that does not exist."""
        urls = [f"https://example.com/{number:060}" for number in range(9_000)]
        client.post("/batches", json={"urls": urls, "model": "none"})

    def name_tarpits(self, client: httpx.Client) -> None:
        """Name images on a host that never answers."""
        urls = [f"{self.tarpit}/{number}.png" for number in range(LINKS)]
        client.post("/batches", json={"urls": urls, "priority": 100})
        self.ended.wait(10)

    def name_a_bucket(self, client: httpx.Client) -> None:
        """Name an image in a bucket that cannot be reached."""
        for _ in range(12):
            client.post("/batches", json={"urls": ["s3://bucket/a.png?versionId=bogus"]})
        self.ended.wait(10)

    def call_tarpits(self, client: httpx.Client) -> None:
        """Let webhooks be sent to a host that never answers."""
        file_id = self._upload(client, "a.png", self.image)
        for number in range(24):
            wanted = {"input_file_id": file_id, "webhook_url": f"{self.tarpit}/{number}"}
            client.post("/batches", json=wanted)
        self.ended.wait(10)

    def guess(self, client: httpx.Client) -> None:
        """Guess keys."""
        for number in range(60):
            client.get("/batches", headers={"Authorization": f"Bearer labelmill_{number}"})

    def nest(self, client: httpx.Client) -> None:
        """Send a megabyte that is slow to parse, without a key and with one."""
        body = b"[" + b"[]," * 340_000 + b"[]]"
        kind = {"Content-Type": "application/json"}
        client.post("/batches", content=body, headers=kind)
        httpx.post(f"{self.url}/v1/batches", content=body, headers=kind)

    def send_two_lengths(self, _client: httpx.Client) -> None:
        """Send images of 31 MB that say two lengths."""
        head = (
            f"{self._head('POST /v1/classifications')}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(20):
            with suppress(OSError), connect(self.url, head.encode() + chunk * 31):
                pass

    def pack_rows(self, client: httpx.Client) -> None:
        """Upload a small Parquet file of long strings."""
        packed = io.BytesIO()
        pq.write_table(pa.table({"url": ["a" * 4 * 1024 * 1024] * 64}), packed, write_statistics=False)
        file_id = self._upload(client, "rows.parquet", packed.getvalue())
        client.post("/batches", json={"input_file_id": file_id})
        self.ended.wait(2)

    def follow(self, client: httpx.Client) -> None:
        """Follow a batch on many connections."""
        [batch, *_] = client.get("/batches", params={"limit": 1}).json()["data"]
        events = self._head(f"GET /v1/batches/{batch['id']}/events")
        self._hold(f"{events}\r\n".encode(), b"")

    def send_slowly(self, _client: httpx.Client) -> None:
        """Send bodies byte by byte."""
        head = f"{self._head('POST /v1/classifications')}Content-Length: 900000\r\n\r\n"
        self._hold(head.encode(), b"x")

    def never_read(self, _client: httpx.Client) -> None:
        """Ask for much, and read none of it."""
        self._hold(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 30, b"")

    def _hold(self, begin: bytes, more: bytes) -> None:
        held: list[socket.socket] = []
        try:
            for _ in range(SLOW_CLIENTS):
                held.append(connect(self.url, begin))
            while held and not self.ended.wait(1):
                for each in list(held):
                    try:
                        each.sendall(more)
                    except OSError:
                        held.remove(each)
        finally:
            for each in held:
                each.close()


@contextmanager
def attacked(url: str, key: str, tarpit: str, image: Path) -> Iterator[dict[str, int]]:
    """Let a process of its own attack as a `Neighbour`. At the end, the dictionary counts its attacks."""
    command = [sys.executable, "-m", "tests.neighbours", url, key, tarpit, str(image)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    made: dict[str, int] = {}
    try:
        yield made
    finally:
        process.terminate()
        made |= json.loads(process.communicate(timeout=180)[0])


@dataclass
class Measured:
    """How long a client's requests took, and those that failed."""

    seconds: list[float] = field(default_factory=list)
    failed: list[Any] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return the seconds that this share of the requests took at most."""
        return sorted(self.seconds)[min(len(self.seconds) - 1, int(share * len(self.seconds)))]

    def __str__(self) -> str:
        median, most, worst = map(self.quantile, (0.5, 0.99, 1.0))
        return f"{len(self.seconds)}, median {median:.3f} s, p99 {most:.3f} s, max {worst:.3f} s"


def work(url: str, key: str, image: bytes, *, seconds: float) -> Measured:
    """Submit one image a second, and follow each to its end."""
    found = Measured()
    headers = {"Authorization": f"Bearer {key}"}
    end = time.monotonic() + seconds
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=30) as client:
        while (began := time.monotonic()) < end:
            answer = client.post("/files", data={"purpose": "batch"}, files={"file": ("a.png", image)})
            if answer.is_success:
                answer = client.post("/batches", json={"input_file_id": answer.json()["id"]})
            while answer.is_success and answer.json()["status"] in ("validating", "in_progress"):
                time.sleep(0.05)  # as a client that polls
                answer = client.get(f"/batches/{answer.json()['id']}")
            if not answer.is_success or answer.json()["status"] != "completed":
                found.failed.append((answer.status_code, answer.text))
            found.seconds.append(time.monotonic() - began)
            time.sleep(max(0.0, began + 1 - time.monotonic()))
    return found


@contextmanager
def health_checked(url: str) -> Iterator[Measured]:
    """Ask ten times a second whether the server works, each time on a new connection."""
    found, ended = Measured(), threading.Event()

    def check() -> None:
        while not ended.wait(0.1):
            began = time.monotonic()
            try:
                # Not httpx: a client of its own for each request would take longer than the server.
                with urllib.request.urlopen(f"{url}/healthz", timeout=30):
                    pass
            except OSError as error:
                found.failed.append(repr(error))
            found.seconds.append(time.monotonic() - began)

    thread = threading.Thread(target=check)
    thread.start()
    try:
        yield found
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    neighbour = Neighbour(*sys.argv[1:4], image=Path(sys.argv[4]).read_bytes())
    signal.signal(signal.SIGTERM, lambda *_: neighbour.ended.set())
    neighbour.attack()
    print(json.dumps(neighbour.made))  # noqa: T201 -- for the process that started this one
