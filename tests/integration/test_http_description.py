"""The OpenAPI description: generators make typed clients from it, and it says what every part is."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from jsonschema import Draft202012Validator

from labelmill.server.examples import EXAMPLES

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

#: What the generator cannot parse by itself: bytes.
GENERATOR = {
    "content_type_overrides": dict.fromkeys(("image/*", "image/webp"), "application/octet-stream"),
    "post_hooks": [],
}

#: A program that uses a generated client. Its types are checked, so no field of ours can be Any.
PROGRAM = """
import sys
from io import BytesIO
from typing import assert_type

from client import AuthenticatedClient
from client.api.batches import create_batch, delete_batch, list_batches
from client.api.files import upload_file
from client.models import BatchObject, BatchOfFile, BatchOfFileMetadataType0, BatchPage, FileObject, Problem
from client.models.upload_file_body import UploadFileBody
from client.models.upload_file_body_purpose import UploadFileBodyPurpose
from client.types import File

api = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])

body = UploadFileBody(File(BytesIO(b"an image"), "a.png"), UploadFileBodyPurpose.BATCH)
uploaded = upload_file.sync(client=api, body=body)
assert isinstance(uploaded, FileObject)

metadata = BatchOfFileMetadataType0()
metadata["album"] = "7"
wanted = BatchOfFile(input_file_id=uploaded.id, metadata=metadata, priority=3)
batch = create_batch.sync(client=api, body=wanted)
assert isinstance(batch, BatchObject)
assert_type(batch.request_counts.total, int)
assert_type(batch.rate, float | None)

page = list_batches.sync(client=api, metadata="album=7")
assert isinstance(page, BatchPage)
assert [each.id for each in page.data] == [batch.id]

refused = delete_batch.sync(batch.id, client=api)
assert isinstance(refused, Problem)
assert_type(refused.error.message, str)
print(refused.error.message)
"""


@pytest.fixture
def described(api: httpx.Client) -> dict[str, Any]:
    """Return the description."""
    found: dict[str, Any] = api.get(api.base_url.join("/openapi.json")).json()
    return found


@pytest.mark.usefixtures("champion")
def test_a_generated_client_knows_all_types(
    api: httpx.Client, described: dict[str, Any], tmp_path: Path
) -> None:
    # Given a client that is generated from the description
    for name, content in (("api.json", described), ("generator.json", GENERATOR)):
        (tmp_path / name).write_text(json.dumps(content))
    command = (
        sys.executable,
        "-m",
        "openapi_python_client",
        "generate",
        "--fail-on-warning",
        "--meta",
        "none",
    )
    run(*command, "--path", "api.json", "--config", "generator.json", "--output-path", "client", cwd=tmp_path)

    # Then nothing in it is Any: apart from its own helpers, and answers that have no body
    for path in (tmp_path / "client" / "models").glob("*.py"):
        assert anys(path) == [], path.name
    untyped = [path.stem for path in (tmp_path / "client" / "api").rglob("*.py") if anys(path)]
    assert sorted(untyped) == ["describe_content", "follow_batch"]

    # When a program uses it, then its types fit, and so do the answers of a real server
    (tmp_path / "program.py").write_text(PROGRAM)
    run(sys.executable, "-m", "mypy", "--strict", "program.py", cwd=tmp_path)
    url, key = str(api.base_url).removesuffix("/v1/"), api.headers["authorization"].split()[1]
    assert "cancel it first" in run(sys.executable, "program.py", url, key, cwd=tmp_path)


def run(*command: str, cwd: Path) -> str:
    """Run a command, and return what it prints."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def anys(path: Path) -> list[str]:
    """Return the lines with the type Any in which the generator has no other choice."""
    helpers = re.compile(r"import|(dict|Mapping)\[str, Any\]|def __[gs]etitem__")
    lines = [line for line in path.read_text().splitlines() if re.search(r"\bAny\b", line)]
    return [line for line in lines if not helpers.search(line)]


def test_every_type_is_told(described: dict[str, Any]) -> None:
    # What makes a schema `unknown` in TypeScript and `Any` in Python: no type, or conditions without one
    for place, schema in schemas_in(described):
        assert {"type", "$ref", "anyOf", "oneOf", "enum", "const"} & set(schema), place
        assert "title" not in schema, place
        if schema.get("type") == "object":
            assert schema.get("properties") or schema["additionalProperties"] is not True, place
        if schema.get("type") == "array":
            assert schema["items"], place
    # A request for a batch has one of three types, and each has its source
    alternatives = described["components"]["schemas"]["NewBatch"]["oneOf"]
    objects = [described["components"]["schemas"][each["$ref"].rpartition("/")[2]] for each in alternatives]
    assert [each["required"] for each in objects] == [["input_file_id"], ["urls"], ["source_url"]]
    assert all(each["additionalProperties"] is False for each in objects)


def schemas_in(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all schemas below a part of the description, each with its place."""
    if isinstance(node, list):
        for number, each in enumerate(node):
            yield from schemas_in(each, f"{place}/{number}")
    elif isinstance(node, dict):
        for name, each in node.items():
            if name in ("example", "examples", "default"):
                continue
            if name in ("schema", "items") and isinstance(each, dict):
                yield f"{place}/{name}", each
            elif name in ("properties", "schemas"):
                yield from ((f"{place}/{name}/{part}", schema) for part, schema in each.items())
            yield from schemas_in(each, f"{place}/{name}")


def test_every_operation_has_a_readable_name(described: dict[str, Any]) -> None:
    names = [
        operation["operationId"]
        for operations in described["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+){0,2}", name) for name in names), names
    assert {"create_batch", "list_files", "delete_batch"} < set(names)


def test_every_part_has_an_example_that_fits(described: dict[str, Any]) -> None:
    assert set(EXAMPLES) <= set(described["components"]["schemas"])
    for name, schema in described["components"]["schemas"].items():
        if "properties" not in schema:
            continue
        for field, kind in schema["properties"].items():
            assert "const" in kind or kind["examples"], f"{name}.{field}"
            check_all(described, kind, kind.get("examples", ()))
        assert schema["examples"], name
        check_all(described, {"$ref": f"#/components/schemas/{name}"}, schema["examples"])
    for path, operations in described["paths"].items():
        for operation in operations.values():
            for each in operation.get("parameters", ()):
                assert each["description"], f"{path}: {each['name']}"
                check_all(described, each["schema"], [each["example"]])


def check_all(described: dict[str, Any], schema: dict[str, Any], examples: Any) -> None:
    """Check that the examples fit the schema."""
    validator = Draft202012Validator(schema | {"components": described["components"]})
    for example in examples:
        validator.validate(example)


def test_every_error_is_a_problem(described: dict[str, Any]) -> None:
    responses = described["components"]["responses"]
    for name, response in responses.items():
        [(media_type, content)] = response["content"].items()
        assert media_type == "application/problem+json", name
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}, name
        assert response["description"], name
        check_all(described, content["schema"], [content["example"]])
    for path, operations in described["paths"].items():
        for operation in operations.values():
            errors = {status: each for status, each in operation["responses"].items() if status >= "4"}
            assert all(each["$ref"].rpartition("/")[2] in responses for each in errors.values()), path
            # Only what it can answer: nothing about a body if it has none, no key if none is needed
            assert ("413" in errors) == ("requestBody" in operation), path
            assert ("401" in errors) == path.startswith("/v1/"), path
