"""`/sign-in` and `/sign-out`: begin and end a browser's session with an API key, or with a one-time link."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated, Final
from urllib.parse import parse_qs

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import RedirectResponse

from jobs.errors import LabelmillError, NotFound
from jobs.ledger import Ledger
from jobs.ledger.api.audit import record_action
from jobs.ledger.api.keys import digest_of
from jobs.ledger.api.sessions import SESSION_DAYS, begin_session, end_session, use_link
from labelmill.server.access import Keys, check_place, session_cookie
from labelmill.server.problems import ApiError, ProblemCode
from labelmill.server.schemas import NO_NUL
from labelmill.server.usage import address_of
from labelmill.web.rendering import page

router = APIRouter(include_in_schema=False)

#: Where people begin.
HOME: Final = "/home"

#: Maximum bytes of the form: a key has fewer than 100.
_MAX_FORM_BYTES: Final = 4096

Next = Annotated[str, Query(max_length=2048, pattern=NO_NUL)]


class SignInNeeded(LabelmillError):
    """A page was asked for without a session."""


def signed_in(request: Request) -> None:
    """Raise SignInNeeded if the browser has no session."""
    if getattr(request.state, "key", None) is None:
        raise SignInNeeded("Sign in first.")


@router.get("/sign-in")
async def show_sign_in(request: Request, link: Next = "", next: Next = HOME) -> Response:  # noqa: A002
    """Show the form, or begin a session with a one-time link."""
    if getattr(request.state, "key", None) is not None:
        return RedirectResponse(_own_path(next), HTTPStatus.SEE_OTHER)
    if not link:
        return page(request, "sign_in.html", next=next, problem=None)
    try:
        secret = await run_in_threadpool(_begin_with_link, request, link)
    except NotFound as error:
        return page(request, "sign_in.html", HTTPStatus.NOT_FOUND, next=next, problem=str(error))
    return await _signed_in(request, secret, next)


@router.post("/sign-in")
async def sign_in(request: Request) -> Response:
    """Begin a session with an API key."""
    _check_same_site(request)
    form = parse_qs((await _body_of(request)).decode(errors="replace"))
    secret, wanted = form.get("key", [""])[0].strip(), form.get("next", [HOME])[0]
    keys: Keys = request.app.state.keys
    key = await keys.find(digest_of(secret), max_age=0)
    if key is None:
        text = "This is not a valid key. `labelmill keys create NAME --role ROLE` makes one."
        return page(request, "sign_in.html", HTTPStatus.UNAUTHORIZED, next=wanted, problem=text)
    check_place(key, address_of(request.scope) or "")
    session = await run_in_threadpool(_begin, request, key.id)
    return await _signed_in(request, session, wanted)


@router.post("/sign-out", dependencies=[Depends(signed_in)])
async def sign_out(request: Request) -> Response:
    """End the browser's session."""
    name = session_cookie(request.scope)
    await run_in_threadpool(_end, request, request.cookies.get(name, ""))
    await request.app.state.keys.find("", max_age=0)
    response = Response(status_code=HTTPStatus.NO_CONTENT, headers={"HX-Redirect": "/sign-in"})
    response.delete_cookie(name)
    return response


async def _signed_in(request: Request, secret: str, wanted: str) -> Response:
    """Give the browser its session, and send it to the page that it wanted."""
    await request.app.state.keys.find("", max_age=0)  # the next request must find the session
    response = RedirectResponse(_own_path(wanted), HTTPStatus.SEE_OTHER)
    response.set_cookie(
        session_cookie(request.scope),
        secret,
        max_age=SESSION_DAYS * 86_400,
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return response


def _own_path(wanted: str) -> str:
    r"""Return the path if it leads to a page of this server, otherwise that of the first page.

    Browsers take `//host` and `/\host` for another server, and leave out tabs and line breaks.
    """
    is_own = wanted.startswith("/") and wanted[1:2] not in ("/", "\\") and wanted.isprintable()
    return wanted if is_own else HOME


def _check_same_site(request: Request) -> None:
    """Raise ApiError if another site sends the form: it could sign people in with a key of its own."""
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != request.headers.get("host"):
        detail = "Sign in on the page of this server: the form came from another site."
        raise ApiError(HTTPStatus.FORBIDDEN, ProblemCode.FORBIDDEN, detail)


async def _body_of(request: Request) -> bytes:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MAX_FORM_BYTES:
            detail = "The form is too large: send a key."
            raise ApiError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, ProblemCode.TOO_LARGE, detail)
    return body


def _begin(request: Request, key_id: str) -> str:
    ledger: Ledger = request.app.state.ledger
    with ledger.transaction() as connection:
        address = address_of(request.scope)
        record_action(connection, "sign in", key_id, key_id=key_id, address=address)
        return begin_session(connection, key_id)


def _begin_with_link(request: Request, link: str) -> str:
    ledger: Ledger = request.app.state.ledger
    with ledger.transaction() as connection:
        secret, key_id = use_link(connection, link)
        record_action(connection, "sign in", key_id, key_id=key_id, address=address_of(request.scope))
    return secret


def _end(request: Request, secret: str) -> None:
    ledger: Ledger = request.app.state.ledger
    with ledger.transaction() as connection:
        end_session(connection, secret)
