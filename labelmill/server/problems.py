"""Errors as `application/problem+json` (RFC 9457), with a `code` for programs.

No answer contains a stack trace, and an unexpected error says nothing about its cause.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final, Literal

from fastapi import FastAPI, Request
from fastapi.dependencies.utils import get_flat_params
from fastapi.exceptions import RequestValidationError
from fastapi.params import Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import compile_path

from jobs.described import DescribedEnum
from jobs.errors import (
    Conflict,
    ErrorCode,
    LabelmillError,
    LedgerNotReady,
    NotFound,
    PayloadDamaged,
    SettingsError,
    Stopped,
    Unavailable,
    UserError,
)

logger = logging.getLogger(__name__)

#: Seconds after which a client may try again if a service is unavailable.
_RETRY_SECONDS: Final = 5

PROBLEM_TYPE: Final = "application/problem+json"

#: Maximum fields that one answer lists.
_MAX_FIELDS: Final = 20

#: Maximum characters of a field's name, which the client has chosen.
_MAX_PLACE: Final = 200


class OpenAIError(BaseModel):
    """The same problem, where OpenAI's clients look for it."""

    message: str = Field(description="the same as `detail`")
    type: Literal["invalid_request_error", "server_error"] = Field(description="whose fault it is")
    code: str = Field(description="the same as `code`")
    param: str | None = Field(description="the first field or parameter that is wrong; null if none is")


class FieldProblem(BaseModel):
    """What is wrong with one field or parameter."""

    param: str = Field(description="its name, with dots in between if it is inside another; empty for all")
    detail: str = Field(description="what is wrong with it")


class Problem(BaseModel):
    """Why a request failed (RFC 9457)."""

    model_config = ConfigDict(json_schema_serialization_defaults_required=True)

    type: str = Field(default="about:blank", description="always `about:blank`")
    title: str = Field(description="the status in words")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong, and what to do")
    code: str = Field(description="the error's code, for programs")
    errors: list[FieldProblem] | None = Field(
        default=None, description="each field or parameter that is wrong, the first 20; null if none is"
    )
    error: OpenAIError = Field(description="the same, as OpenAI's clients read it")


class ProblemCode(DescribedEnum):
    """Why a request failed, for programs."""

    MALFORMED = "malformed", "400: the body is not valid JSON, or the form is incomplete"
    UNAUTHORIZED = "unauthorized", "401: there is no key, or it is wrong, expired or revoked"
    FORBIDDEN = (
        "forbidden",
        "403: the key's role may not do this; or the server's LABELMILL_REFERENCE_ROOTS do not contain "
        "`source_url` or what `by_reference` names; or `webhook_url` is an address that may not receive "
        "webhooks (LABELMILL_PRIVATE_HOSTS)",
    )
    NOT_FOUND = (
        "not_found",
        "404: there is no such file, batch, image, model or webhook. For a thumbnail, the code can be the "
        "image's error code",
    )
    METHOD_NOT_ALLOWED = "method_not_allowed", "405: the header `Allow` lists the methods"
    NOT_ACCEPTABLE = "not_acceptable", "406: `Accept` names no format in which results are offered"
    TIMEOUT = "timeout", "408: the body or an upload arrives too slowly"
    CONFLICT = (
        "conflict",
        "409: the request does not fit: the label is not a class of the model, the batch has ended, or the "
        "`Idempotency-Key` belongs to another body",
    )
    NOTHING_TO_RETRY = "nothing_to_retry", "409: no image of the batch can be submitted again"
    LENGTH_REQUIRED = "length_required", "411: the body has no `Content-Length`, and is not an upload"
    TOO_LARGE = "too_large", "413: the body or the file is too large. 431: the head is too large"
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported_media_type",
        "415: the body is not JSON, the upload is not multipart/form-data, or the image is not `image/*`",
    )
    MISDIRECTED = "misdirected", "421: the header `Host` names another server (LABELMILL_API_HOSTS)"
    INVALID = (
        "invalid",
        "422: a field or parameter is unknown, or has a value that it cannot have. 416: the file ends before "
        "the range",
    )
    TOO_MANY_REQUESTS = (
        "too_many_requests",
        "429: a limit is reached; try again after `Retry-After` seconds",
    )
    INTERNAL = "internal", "500: the server is at fault; its log has the reason"
    UNAVAILABLE = (
        "unavailable",
        "503: the ledger or the store cannot be reached or is full, or too many batches or streams are "
        "waiting; try again after `Retry-After` seconds",
    )


class ApiError(LabelmillError):
    """A request that cannot be served, with its status and code."""

    def __init__(
        self,
        status: HTTPStatus,
        code: ProblemCode | ErrorCode,
        detail: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = headers


_INVALID: Final = (HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID)

#: The status and the code of our own errors. The first class that fits counts.
_OWN: Final[tuple[tuple[type[LabelmillError], HTTPStatus, ProblemCode], ...]] = (
    (NotFound, HTTPStatus.NOT_FOUND, ProblemCode.NOT_FOUND),
    (Conflict, HTTPStatus.CONFLICT, ProblemCode.CONFLICT),
    (Stopped, HTTPStatus.CONFLICT, ProblemCode.CONFLICT),
    (PayloadDamaged, HTTPStatus.CONFLICT, ProblemCode.CONFLICT),
    (LedgerNotReady, HTTPStatus.SERVICE_UNAVAILABLE, ProblemCode.UNAVAILABLE),
    (Unavailable, HTTPStatus.SERVICE_UNAVAILABLE, ProblemCode.UNAVAILABLE),
    (SettingsError, HTTPStatus.SERVICE_UNAVAILABLE, ProblemCode.UNAVAILABLE),
    (UserError, *_INVALID),
)

#: The codes of errors that the framework raises.
_CODES: Final = {
    HTTPStatus.BAD_REQUEST: ProblemCode.MALFORMED,
    HTTPStatus.NOT_FOUND: ProblemCode.NOT_FOUND,
    HTTPStatus.METHOD_NOT_ALLOWED: ProblemCode.METHOD_NOT_ALLOWED,
    HTTPStatus.REQUEST_TIMEOUT: ProblemCode.TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ProblemCode.TOO_LARGE,
}


def add_handlers(app: FastAPI) -> None:
    """Let the application answer every error with a problem."""

    @app.exception_handler(LabelmillError)
    async def own_error(_request: Request, error: LabelmillError) -> Response:
        return answer_to(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_request: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        if found[0]["type"] == "json_invalid":
            return problem(HTTPStatus.BAD_REQUEST, ProblemCode.MALFORMED, "The body is not valid JSON.")
        shown = [_describe_field(each) for each in found[:_MAX_FIELDS]]
        told = [f"{each.param}: {each.detail}" if each.param else each.detail for each in shown]
        if len(found) > _MAX_FIELDS:
            told.append(f"and {len(found) - _MAX_FIELDS:,} more")
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID, "; ".join(told), errors=shown)

    @app.exception_handler(HTTPException)
    async def of_the_framework(request: Request, error: HTTPException) -> Response:
        status = HTTPStatus(error.status_code)
        headers = dict(error.headers or {})
        if status is HTTPStatus.METHOD_NOT_ALLOWED:
            # The framework names the methods of the first route only.
            headers = {"Allow": ", ".join(_allowed_methods(app, request)) or headers.get("Allow", "GET")}
        return problem(status, _CODES.get(status, ProblemCode.INVALID), str(error.detail), headers)

    @app.exception_handler(Exception)
    async def unexpected_error(_request: Request, _error: Exception) -> Response:
        return unexpected()


@contextmanager
def conflicts() -> Iterator[None]:
    """Turn the error of a well-formed request that does not fit the batch or the run into a Conflict."""
    try:
        yield
    except UserError as error:
        if _status_and_code(error) != _INVALID:
            raise
        raise Conflict(str(error)) from None


def answer_to(error: LabelmillError) -> Response:
    """Return the response to one of our own errors."""
    if isinstance(error, ApiError):
        return problem(error.status, error.code, str(error), error.headers)
    found = _status_and_code(error)
    if found is None:
        logger.error("a request failed", exc_info=error)
        return unexpected()
    status, code = found
    if status is not HTTPStatus.SERVICE_UNAVAILABLE:
        return problem(status, code, str(error))
    logger.warning("a request failed: %s", error)
    # Without the reason: it may name hosts and paths.
    detail = "A service that this request needs cannot be reached: try again."
    return problem(status, code, detail, {"Retry-After": str(_RETRY_SECONDS)})


def _status_and_code(error: LabelmillError) -> tuple[HTTPStatus, ProblemCode] | None:
    return next(((status, code) for kind, status, code in _OWN if isinstance(error, kind)), None)


def _allowed_methods(app: FastAPI, request: Request) -> list[str]:
    """Return the methods that are served at the path of a request."""
    # A path without parameters is meant before one that has some.
    for template, operations in sorted(app.openapi()["paths"].items(), key=lambda each: each[0].count("{")):
        if compile_path(template)[0].match(request.url.path):
            return sorted(map(str.upper, operations))
    return []


def _describe_field(error: dict[str, Any]) -> FieldProblem:
    """Return what pydantic found wrong with a field."""
    place = ".".join(str(part) for part in error["loc"][1:])
    detail = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        detail = "there is no such field: leave it out"
    return FieldProblem(param=place[:_MAX_PLACE], detail=detail)


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise RequestValidationError if the query has parameters that the route does not have."""
    if not request.scope["query_string"]:
        return
    parameters = get_flat_params(request.scope["route"].dependant)
    known = sorted(each.alias for each in parameters if isinstance(each.field_info, Query))
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        hint = f"choose from {', '.join(known)}" if known else "leave it out"
        found = {"type": "unknown_parameter", "msg": f"there is no such parameter: {hint}"}
        raise RequestValidationError([found | {"loc": ("query", name)} for name in unknown])


def problem(
    status: HTTPStatus,
    code: ProblemCode | ErrorCode,
    detail: str,
    headers: dict[str, str] | None = None,
    *,
    errors: list[FieldProblem] | None = None,
) -> JSONResponse:
    """Return an error as a response."""
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    body = Problem(
        title=status.phrase,
        status=status,
        detail=detail,
        code=code,
        errors=errors,
        error=OpenAIError(
            message=detail,
            type="server_error" if is_ours else "invalid_request_error",
            code=code,
            param=(errors[0].param or None) if errors else None,
        ),
    )
    if status is HTTPStatus.CONFLICT:
        # OpenAI's client would repeat the request, as if the state could change by itself.
        headers = {"x-should-retry": "false", **(headers or {})}
    return JSONResponse(body.model_dump(), status_code=status, headers=headers, media_type=PROBLEM_TYPE)


def unexpected() -> Response:
    """Return the response to an error that is our own mistake. The server logs its cause."""
    detail = "The server failed in a way that it should not: its log has the reason."
    return problem(HTTPStatus.INTERNAL_SERVER_ERROR, ProblemCode.INTERNAL, detail)
