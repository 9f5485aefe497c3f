"""The OpenAPI description: what FastAPI makes of the routes, completed for people and for client generators.

FastAPI describes no error by its own media type, gives every field a title that generators take for a name,
and knows no examples of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from http import HTTPStatus
from inspect import cleandoc
from typing import Any, Final

from fastapi import FastAPI
from fastapi.routing import APIRoute

from labelmill.server.examples import EXAMPLES, PARAMETERS
from labelmill.server.problems import PROBLEM_TYPE, Problem, ProblemCode
from labelmill.server.schemas import Listing, Page

_REF: Final = "#/components/schemas/"

#: The name that pydantic gives to a list of objects.
_LIST: Final = re.compile(r"(Page|Listing)_(\w+?)(?:Object)?_")

#: Errors that any request can get, and those that only one with a key, an id in the path, a body, or a body
#: in JSON can get.
_ANY: Final = (400, 421, 422, 431, 500)
_WITH_KEY: Final = (401, 429, 503)
_WITH_ID: Final = (404, 409)
_WITH_BODY: Final = (408, 413, 415)
_WITH_JSON: Final = (411,)

#: What the parts of paths are.
_PARTS: Final = {
    "batch_id": "the batch's id",
    "file_id": "the file's id",
    "model_id": "the model's id, the beginning of it, or an alias such as `champion`",
    "run_id": "the training run's id, or the beginning of it",
    "webhook_id": "the webhook's id",
}

#: The headers of errors.
_HEADERS: Final = {
    401: {"WWW-Authenticate": "which kind of key is wanted"},
    416: {"Content-Range": "the size of the file"},
    429: {"Retry-After": "seconds after which to try again"},
    503: {"Retry-After": "seconds after which to try again"},
}


class DescribedApp(FastAPI):
    """An application with a description that generators can make clients from."""

    def openapi(self) -> dict[str, Any]:
        """Return the description, which is made once."""
        made = self.openapi_schema
        if made is None:
            made = super().openapi()  # which keeps it
            _complete(made)
        return made


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation, which becomes that of a function in clients."""
    return route.name


def _complete(api: dict[str, Any]) -> None:
    """Complete a description in place."""
    schemas: dict[str, Any] = api["components"]["schemas"]
    schemas |= _schemas_of_problems()
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    _clean(api)
    for name in list(schemas):
        if found := _LIST.fullmatch(name):
            text = cleandoc((Page if found[1] == "Page" else Listing).__doc__ or "")
            schemas[found[2] + found[1]] = schemas.pop(name) | {"description": text}
    for name in list(schemas):
        _split_alternatives(schemas, name)
    for name, schema in schemas.items():
        _add_examples(schema, EXAMPLES.get(name) or [_example_of_list(schema)])
    statuses: set[int] = set()
    for path, operations in api["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                _complete_parameter(parameter)
            statuses |= (errors_of_it := _errors_of(path, operation))
            errors = {str(each): {"$ref": f"#/components/responses/{_name(each)}"} for each in errors_of_it}
            operation["responses"] = dict(sorted((operation["responses"] | errors).items()))
    api["components"]["schemas"] = dict(sorted(schemas.items()))
    api["components"]["responses"] = {_name(status): _response(status) for status in sorted(statuses)}


def _schemas_of_problems() -> dict[str, Any]:
    problem = Problem.model_json_schema(ref_template=f"{_REF}{{model}}", mode="serialization")
    return {**problem.pop("$defs"), "Problem": problem}


def _clean(node: Any) -> None:
    """Remove the titles that pydantic makes of the names of fields, because those of several objects collide.

    Also give references to lists names such as BatchPage, not Page_BatchObject_.
    """
    if isinstance(node, dict):
        if isinstance(node.get("title"), str) and "version" not in node:  # the API itself has a title
            del node["title"]
        if found := _LIST.fullmatch(str(node.get("$ref")).removeprefix(_REF)):
            node["$ref"] = _REF + found[2] + found[1]
    if isinstance(node, dict | list):
        for each in node.values() if isinstance(node, dict) else node:
            _clean(each)


def _split_alternatives(schemas: dict[str, Any], name: str) -> None:
    """Make objects of the alternatives of an object that must have exactly one of several fields.

    Generators make types of them; of conditions within an object, they make none.
    """
    whole = schemas[name]
    alternatives = whole.pop("oneOf", None)
    if alternatives is None:
        return
    choices = {each["required"][0] for each in alternatives}
    for each in alternatives:
        [chosen] = each["required"]
        fields = {
            field: kind for field, kind in whole["properties"].items() if field not in choices - {chosen}
        }
        required = [chosen, *whole.get("required", ())]
        schemas[each["$id"]] = whole | {
            "properties": fields,
            "required": required,
            "description": each["description"],
        }
    refs = [{"$ref": f"{_REF}{each['$id']}"} for each in alternatives]
    schemas[name] = {"description": whole["description"], "oneOf": refs}


def _add_examples(schema: dict[str, Any], examples: list[dict[str, Any]]) -> None:
    """Add the examples of an object, to its fields as well; and say that it always has its constants."""
    for field, kind in schema.get("properties", {}).items():
        if "const" in kind:
            kind.pop("default", None)
            schema["required"] = sorted({*schema.get("required", ()), field})
        elif found := [each[field] for each in examples if each.get(field) is not None]:
            kind["examples"] = found[:1]
    if any(examples):
        schema["examples"] = examples[:1]


def _example_of_list(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the example of a page or list of objects, from theirs; empty if it is neither."""
    listed = schema.get("properties", {}).get("data", {}).get("items", {}).get("$ref", "").removeprefix(_REF)
    if not listed:
        return {}
    [example, *_] = EXAMPLES[listed]
    whole = {"object": "list", "data": [example], "has_more": False}
    whole["first_id"] = whole["last_id"] = example.get("id")
    return {field: whole[field] for field in schema["properties"]}


def _complete_parameter(parameter: dict[str, Any]) -> None:
    name, schema = parameter["name"], parameter["schema"]
    schema.pop("description", None)  # the parameter has it
    if "anyOf" in schema:  # a parameter is left out, never null
        [kind] = [each for each in schema.pop("anyOf") if each != {"type": "null"}]
        schema |= kind
    if "description" not in parameter and name in _PARTS:
        parameter["description"] = _PARTS[name]
    [parameter["example"]] = schema.pop("examples", None) or [PARAMETERS.get(name.lower())]


def _errors_of(path: str, operation: dict[str, Any]) -> set[int]:
    """Return the statuses of the errors that an operation can answer."""
    found = {int(status) for status in operation["responses"] if int(status) >= HTTPStatus.BAD_REQUEST}
    found.update(_ANY)
    roles = {role for each in operation.get("security", ()) for scopes in each.values() for role in scopes}
    if path.startswith("/v1/"):
        found.update(_WITH_KEY)
    if roles - {"submit"}:
        found.add(HTTPStatus.FORBIDDEN)
    if "{" in path:
        found.update(_WITH_ID)
    if "requestBody" in operation:
        found.update(_WITH_BODY)
        if "application/json" in operation["requestBody"]["content"]:
            found.update(_WITH_JSON)
    return found


def _response(status: int) -> dict[str, Any]:
    """Return the description of an error: why there is such an answer, from the codes of problems."""
    reasons = {code: text for code in ProblemCode for text in _meanings(code, status)}
    code = next(iter(reasons), ProblemCode.INVALID)
    [problem] = EXAMPLES["Problem"]
    if status != HTTPStatus.UNPROCESSABLE_ENTITY:
        detail = "What is wrong, and what to do."
        kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
        error = {"message": detail, "type": kind, "code": code.value, "param": None}
        problem = problem | {
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "code": code.value,
            "errors": None,
            "error": error,
        }
    response: dict[str, Any] = {
        "description": "; ".join(f"`{code}`: {text}" for code, text in reasons.items()),
        "content": {PROBLEM_TYPE: {"schema": {"$ref": f"{_REF}Problem"}, "example": problem}},
    }
    if status in _HEADERS:
        response["headers"] = {
            name: {"description": text, "schema": {"type": "string"}}
            for name, text in _HEADERS[status].items()
        }
    return response


def _meanings(code: ProblemCode, status: int) -> Iterator[str]:
    """Yield what a code means in an answer with this status."""
    parts = re.split(r"\b(\d{3}): ", code.meaning)
    for number, text in zip(parts[1::2], parts[2::2], strict=True):
        if int(number) == status:
            yield text.strip().rstrip(".")


def _name(status: int) -> str:
    """Return the name of an error in the description, such as NotFound."""
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")
