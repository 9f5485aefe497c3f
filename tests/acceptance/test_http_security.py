"""What strangers, and owners of keys, cannot do with the HTTP API. docs/how-to/secure.md has each answer."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path

import httpx
import pytest

from tests.console import Home, processes_below, until
from tests.serving import connect, make_key, served
from tests.web import FORBIDDEN, untouched

HEAD = "HTTP/1.1\r\nHost: localhost\r\n"
AS = HEAD + "Authorization: Bearer {%s}\r\n"


@pytest.fixture(scope="module")
def url(stack: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = Home(stack.path, stack.extra | {"LABELMILL_REFERENCE_ROOTS": "http://example.com/public/"})
    with served(home, tmp_path_factory.mktemp("api") / "serve.log") as url:
        yield url


@pytest.fixture(scope="module")
def keys(stack: Home) -> dict[str, str]:
    revoked = make_key(stack)
    [key_id] = [key["id"] for key in stack.json("keys", "list") if key["revoked_at"] is None][-1:]
    stack.ok("keys", "revoke", key_id)
    return {
        "submit": make_key(stack),
        "expired": make_key(stack, "admin", "--expires", "0"),
        "revoked": revoked,
    }


@pytest.fixture(scope="module")
def client(url: str, keys: dict[str, str]) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {keys['submit']}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
        yield client


def upload(client: httpx.Client, name: str, content: bytes, kind: str = "image/png") -> httpx.Response:
    return client.post("/files", data={"purpose": "batch"}, files={"file": (name, content, kind)})


def finished_batch(client: httpx.Client, name: str, content: bytes) -> dict[str, object]:
    """Upload a file, and return its batch when it has ended."""
    return ended(client, input_file_id=upload(client, name, content).json()["id"])


def ended(client: httpx.Client, **wanted: object) -> dict[str, object]:
    """Create a batch, and return it when it has ended."""
    answer = client.post("/batches", json=wanted)
    assert answer.status_code == 202, answer.text
    batch = answer.json()

    def now() -> dict[str, object]:
        found: dict[str, object] = client.get(f"/batches/{batch['id']}").json()
        return found

    until(lambda: now()["status"] not in ("validating", "in_progress"), "the batch has ended")
    return now()


@pytest.mark.parametrize(
    ("request_text", "status", "code"),
    [
        pytest.param(f"GET /v1/batches {HEAD}", 401, "unauthorized", id="no key"),
        pytest.param(
            f"GET /v1/batches {HEAD}Authorization: Bearer labelmill_x\r\n", 401, "unauthorized", id="wrong"
        ),
        pytest.param(f"GET /v1/batches {AS % 'expired'}", 401, "unauthorized", id="expired"),
        pytest.param(f"GET /v1/batches {AS % 'revoked'}", 401, "unauthorized", id="revoked"),
        pytest.param("GET /v1/batches HTTP/1.1\r\nHost: evil.example.org\r\n", 421, "misdirected", id="host"),
        pytest.param("GET /v1/batches HTTP/1.0\r\n", 400, "malformed", id="no host"),
        pytest.param(
            f"GET /v1/files/..%2F..%2Fledger.sqlite3/content {AS % 'submit'}", 404, "not_found", id="path"
        ),
        pytest.param(f"GET /v1/files/../../etc/passwd {AS % 'submit'}", 404, "not_found", id="dots"),
        pytest.param(
            f"POST /v1/files {AS % 'submit'}Content-Type: multipart/form-data; boundary=b\r\n"
            "Content-Length: 99999999999999\r\n",
            413,
            "too_large",
            id="large upload",
        ),
    ],
)
def test_what_is_refused(url: str, keys: dict[str, str], request_text: str, status: int, code: str) -> None:
    with connect(url, f"{request_text}\r\n".format(**keys).encode()) as connection:
        answer = HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == status, body
    assert answer.headers["Content-Type"] == "application/problem+json"
    problem = json.loads(body)
    assert problem["code"] == code
    # Nothing of this machine is told
    assert "/" not in problem["detail"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("..\\..\\windows\\win.ini", "win.ini"),
        ("/etc/shadow", "shadow"),
        ("..", None),
    ],
)
def test_a_file_name_is_only_a_name(client: httpx.Client, name: str, kept: str | None) -> None:
    answer = upload(client, name, b"x")
    assert (answer.status_code, answer.json().get("filename")) == (200 if kept else 422, kept)


def test_a_zip_bomb_fails_alone_and_needs_no_memory(client: httpx.Client, stack: Home) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(20):
            archive.writestr(f"{number}.png", bytes(30_000_000))
    before = peak_bytes(stack)
    batch = finished_batch(client, "bomb.zip", packed.getvalue())
    assert batch["status"] == "failed"
    assert peak_bytes(stack) - before < 150_000_000
    assert finished_batch(client, "one.png", b"no image")["status"] == "completed"


def peak_bytes(stack: Home) -> int:
    """Return the most memory that the API and its intake processes have ever used."""
    home = f"LABELMILL_HOME={stack.path}".encode()
    found = 0
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            line, environment = (process / "cmdline").read_bytes(), (process / "environ").read_bytes()
        except OSError:
            continue
        if b"\0serve\0" in line and home in environment.split(b"\0"):
            for pid in processes_below(int(process.name)):
                status = Path(f"/proc/{pid}/status").read_text()
                found += 1024 * int(status.partition("VmHWM:")[2].split()[0])
    assert found
    return found


def test_no_browser_shows_what_was_uploaded(client: httpx.Client) -> None:
    # Given a file that is an image for one program, and a page with a script for another
    polyglot = b"GIF89a/*<html><script>alert(document.domain)</script></html>*/=0;"
    uploaded = upload(client, "photo.html", polyglot, "text/html").json()
    batch = finished_batch(client, "photo.html", polyglot)
    for path in (f"/files/{uploaded['id']}/content", f"/batches/{batch['id']}/images/0"):
        # When it is read, then it is a download
        answer = client.get(path)
        assert answer.content == polyglot
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-disposition"] == "attachment"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "sandbox" in answer.headers["content-security-policy"]


def test_no_link_reaches_a_private_address(client: httpx.Client) -> None:
    with untouched() as port:
        urls = [f"http://{host}:{port}/a.png" for host in FORBIDDEN]
        batch = ended(client, urls=urls)
        results = client.get(f"/batches/{batch['id']}/results", params={"limit": 1000}).json()
    codes = [each["error"]["code"] for each in results]
    assert dict(zip(urls, codes, strict=True)) == dict.fromkeys(urls, "source_forbidden")


def test_no_prefix_of_a_web_server_is_asked_for(client: httpx.Client) -> None:
    answer = client.post("/batches", json={"source_url": "http://example.com/public/"})  # an allowed root
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    assert "name its images in `urls`" in answer.json()["detail"]
