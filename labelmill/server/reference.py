"""`/docs`: a page with all operations, made from the OpenAPI description.

It runs no script and loads nothing, so it works on a closed network.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from labelmill.reporting.model_page import render_template
from labelmill.server.schemas import MAX_NUMBER

Schema = dict[str, Any]

#: Where the description has its schemas.
_SCHEMAS: Final = "#/components/schemas/"

#: What a value of each type looks like in an example.
_EXAMPLES: Final[dict[str, object]] = {"string": "...", "integer": 1, "number": 0.5, "boolean": True}


class Field(NamedTuple):
    """A parameter of an operation, or a field of an object."""

    name: str
    where: str
    type: str
    schema: str | None  # the schema to link to
    required: bool


class Operation(NamedTuple):
    """One operation, as the page shows it."""

    method: str
    path: str
    summary: str
    text: str
    fields: list[Field]
    answers: list[Field]  # named by their status
    curl: str


def render(api: dict[str, Any]) -> tuple[str, str]:
    """Return the page for an OpenAPI description, and the Content-Security-Policy with which it works."""
    groups: dict[str, list[Operation]] = {}
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            groups.setdefault(operation["tags"][0], []).append(_operation(api, method, path, operation))
    schemas = dict(sorted(api["components"]["schemas"].items()))
    page = render_template(
        "http_api.html",
        info=api["info"],
        groups=groups,
        schemas=schemas,
        properties={name: list(_properties(api, schema, "")) for name, schema in schemas.items()},
    )
    style = page.partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return page, f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'; sandbox"


def _operation(api: dict[str, Any], method: str, path: str, operation: dict[str, Any]) -> Operation:
    fields = [
        _field(api, each["name"], each["in"], each["schema"], required=each.get("required", False))
        for each in operation.get("parameters", [])
    ]
    content = operation.get("requestBody", {}).get("content", {})
    for body in content.values():
        fields += _properties(api, _resolved(api, body["schema"]), "body")
    answers = [
        _field(api, status, kind, answer.get("schema", {"format": "binary"}), required=True)
        for status, each in operation["responses"].items()
        if status.startswith("2")
        for kind, answer in each.get("content", {}).items()
    ]
    text = operation.get("description", "")
    return Operation(
        method.upper(),
        path,
        text.partition("\n\n")[0],
        text.partition("\n\n")[2],
        fields,
        answers,
        _curl(api, method, path, operation, content),
    )


def _curl(
    api: dict[str, Any], method: str, path: str, operation: dict[str, Any], content: dict[str, Any]
) -> str:
    """Return a command that calls the operation."""
    words = ["curl"]
    if method != "get" and not (method == "post" and content):
        words += ["-X", method.upper()]
    if operation.get("security"):
        words += ["-H", '"Authorization: Bearer $KEY"']
    for kind, body in list(content.items())[:1]:
        schema = _resolved(api, body["schema"])
        if kind == "application/json":
            words += ["-H", f"'Content-Type: {kind}'", "-d", shlex.quote(json.dumps(_example(api, schema)))]
        elif kind == "image/*":
            words += ["-H", "'Content-Type: image/png'", "--data-binary", "@photo.png"]
        else:
            for name, each in schema["properties"].items():
                words += ["-F", f"{name}=" + (each["enum"][0] if "enum" in each else "@photos.zip")]
    # As shell variables, which a person sets
    named = re.sub(r"{(\w+)}", lambda found: "$" + found[1].upper(), path)
    return " ".join([*words, f"$URL{named}"])


def _example(api: dict[str, Any], schema: Schema) -> object:
    """Return a value with the fields that the schema requires."""
    schema = _resolved(api, schema)
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _example(api, schema["anyOf"][0])
    if schema.get("type") == "array":
        return [_example(api, schema["items"])]
    if schema.get("type") == "object":
        required = schema.get("required") or schema.get("oneOf", [{}])[0].get("required", [])
        return {name: _example(api, schema["properties"][name]) for name in required}
    return _EXAMPLES.get(schema.get("type", ""))


def _resolved(api: dict[str, Any], schema: Schema) -> Schema:
    if "$ref" not in schema:
        return schema
    found: Schema = api["components"]["schemas"][schema["$ref"].removeprefix(_SCHEMAS)]
    return found


def _properties(api: dict[str, Any], schema: Schema, where: str) -> Iterator[Field]:
    """Yield the fields of an object."""
    for name, each in schema.get("properties", {}).items():
        yield _field(api, name, where, each, required=name in schema.get("required", []))


def _field(api: dict[str, Any], name: str, where: str, schema: Schema, *, required: bool) -> Field:
    text, to = _type(api, schema)
    # What can be left out need not be sent as null.
    return Field(name, where, text if required else text.removesuffix(" or null"), to, required)


def _type(api: dict[str, Any], schema: Schema) -> tuple[str, str | None]:
    """Return the type in words, and the name of the schema that it refers to."""
    if "$ref" in schema:
        return _resolved(api, schema)["title"], schema["$ref"].removeprefix(_SCHEMAS)
    if "anyOf" in schema:
        parts = [_type(api, each) for each in schema["anyOf"]]
        return " or ".join(text for text, _ in parts), next((name for _, name in parts if name), None)
    if "enum" in schema:
        return " or ".join(map(json.dumps, schema["enum"])), None
    if "const" in schema:
        return json.dumps(schema["const"]), None
    if schema.get("type") == "array":
        text, name = _type(api, schema["items"])
        return f"list of {text}", name
    text = "bytes" if schema.get("format") == "binary" else schema.get("type", "any")
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        text += f", {low:g} or more" if high >= MAX_NUMBER else f", {low:g} to {high:g}"
    elif "maxLength" in schema:
        text += f", at most {schema['maxLength']} characters"
    return text, None
