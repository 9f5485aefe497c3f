"""A key sees only its own project's things: for it, those of others are not there, to the last byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import httpx
import pytest

from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.files import add_file, file_key
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.api.webhooks import add_endpoint
from jobs.settings import Settings
from jobs.storage.store import Store
from tests.harness import Harness, digits
from tests.serving import served_here

#: The operations that name a batch or a file in the body, and those whose body is not empty.
BODIES: Final[dict[str, Any]] = {
    "post /v1/batches": lambda sent: {"input_file_id": sent},
    "post /v1/corrections": lambda sent: {"corrections": [{"batch_id": sent, "index": 0, "label": "7"}]},
    "put /v1/batches/{batch_id}/images/{index}/label": lambda _sent: {"label": "7"},
}


@pytest.fixture
def keys(ledger: Ledger) -> tuple[str, str]:
    """Return a key of the default project and one of the project `birds`. Both may do everything."""
    with ledger.transaction() as connection:
        create_project(connection, "birds")
        found = [
            create_key(connection, project, Role.ADMIN, project=project) for project in ("default", "birds")
        ]
    return found[0][1], found[1][1]


def naming_operations(server: httpx.Client) -> list[str]:
    """Return the operations that name something of a project."""
    names = {"batch_id", "file_id", "webhook_id", "after"}
    return [
        f"{method} {path}"
        for path, operations in server.get("/openapi.json").json()["paths"].items()
        for method, operation in operations.items()
        if f"{method} {path}" in BODIES
        or not names.isdisjoint(each["name"] for each in operation.get("parameters", []))
    ]


def request(server: httpx.Client, operation: str, key: dict[str, str], name: str) -> httpx.Response:
    """Send the request of an operation about what has this name."""
    method, path = operation.split()
    for variable in ("batch_id", "file_id", "webhook_id"):
        path = path.replace(f"{{{variable}}}", name)
    body = BODIES.get(operation, lambda _name: None)(name)
    query = {} if "{" in operation or body else {"after": name}
    return server.request(method, path.replace("{index}", "0"), headers=key, json=body, params=query)


def seen(answer: httpx.Response, name: str) -> tuple[object, ...]:
    """Return all that a client sees of an answer, apart from the name that it has sent."""
    headers = {name: value for name, value in answer.headers.items() if name != "date"}
    return answer.status_code, headers, answer.text.replace(name.removeprefix("file-"), "ID")


@pytest.fixture
def server(settings: Settings, ledger: Ledger) -> Iterator[httpx.Client]:
    """Return a client without a key."""
    with (
        served_here(settings, ledger) as (_, client),
        httpx.Client(base_url=str(client.base_url).removesuffix("/v1/"), timeout=60) as server,
    ):
        yield server


def test_what_belongs_to_another_project_is_not_there(
    server: httpx.Client, keys: tuple[str, str], ledger: Ledger, store: Store, harness: Harness
) -> None:
    # Given a finished batch with its output, and an uploaded file, of the default project
    job_id, file_id = harness.submit(digits(1)), new_id()
    harness.classify_all()
    store.put(file_key(file_id), b"secret")
    with ledger.transaction() as connection:
        file = {"name": "a.png", "purpose": "batch", "size": 6, "sha256": "0" * 64}
        add_file(connection, file_id, project="default", **file)
        webhook_id = add_endpoint(connection, "https://example.org/")[0].id
    files = [f"file-{file_id}", f"file-{job_id}-output"]
    owner, stranger = ({"Authorization": f"Bearer {key}"} for key in keys)

    # When the other project's key names them in any operation
    named = naming_operations(server)
    assert len(named) >= 22

    def ids(operation: str) -> list[str]:
        is_file = "file_id" in operation or operation in ("get /v1/files", "post /v1/batches")
        return files if is_file else [webhook_id if "webhook_id" in operation else job_id]

    for operation in named:
        for real in ids(operation):
            never = real
            for each in (file_id, job_id, webhook_id):
                never = never.replace(each, new_id())
            answer = request(server, operation, stranger, real)
            # Then the answer is that for an id which nothing ever had
            assert seen(answer, real) == seen(request(server, operation, stranger, never), never), operation
            assert answer.status_code == 404 or (operation, answer.json()["data"]) == ("get /v1/files", [])

    # And all of it is still there for its owner
    for operation in named:
        if operation.startswith("get "):
            for real in ids(operation):
                if "after" not in operation and operation != "get /v1/files":
                    assert request(server, operation, owner, real).status_code == 200, operation


def test_lists_hold_what_belongs_to_the_project(
    server: httpx.Client, keys: tuple[str, str], harness: Harness
) -> None:
    # Given a batch of each project, the second one submitted with the command's options
    first, second = harness.submit(digits(1)), harness.submit(digits(1), project="birds")
    for key, own in zip(keys, (first, second), strict=True):
        headers = {"Authorization": f"Bearer {key}"}
        uploaded = server.post(
            "/v1/files", data={"purpose": "batch"}, files={"file": ("a.png", b"x")}, headers=headers
        )
        # Then each key lists its own batch and file
        for path, name in (("batches", own), ("files", uploaded.json()["id"])):
            listed = server.get(f"/v1/{path}", headers=headers).json()["data"]
            assert [each["id"] for each in listed] == [name]


def test_an_idempotency_key_of_another_project_is_free(
    server: httpx.Client, keys: tuple[str, str], harness: Harness
) -> None:
    # The submission key, too, which a project chooses for itself
    assert harness.submit(digits(1), key="monday") != harness.submit(digits(1), key="monday", project="birds")
    ids = set()
    for key in keys:
        headers = {"Authorization": f"Bearer {key}", "Idempotency-Key": "monday"}
        headers["Content-Type"] = "image/png"
        answer = server.post("/v1/classifications?wait=0", content=digits(1)[0], headers=headers)
        ids.add(answer.json()["id"])
    assert len(ids) == 2
