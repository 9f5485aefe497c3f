"""The HTTP API for the remote client: requests that are repeated if they break, and errors as exceptions.

The key is in no message.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, Final

import httpx

from jobs.errors import Conflict, LabelmillError, NotFound, Unavailable, UserError
from jobs.network.urls import check_api_key, check_api_url

#: How long the server may take for an answer, or for the next bytes of an upload.
_TIMEOUT_SECONDS: Final = 60.0

#: The pauses before a request is repeated: a minute, in which a server can be started again.
_PAUSES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0)

#: The longest pause that a server can ask for.
_LONGEST_PAUSE_SECONDS: Final = 300.0

#: A connection that was idle for longer is replaced: servers close it after about five seconds.
_IDLE_SECONDS: Final = 2.0

#: Answers after which the same request may succeed.
_TEMPORARY: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

#: Those of them that say that the request had no effect. After the others, it may have had one.
_REFUSED: Final = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)

_CHECK_IT: Final = "Check whether it took effect, then try again."


class NothingToRetry(Conflict):
    """The batch has no image that could be submitted again."""


#: The errors by the `code` of a problem. All other refusals are UserErrors.
_ERRORS: Final[dict[str, type[LabelmillError]]] = {
    "not_found": NotFound,
    "conflict": Conflict,
    "nothing_to_retry": NothingToRetry,
    "internal": LabelmillError,
}


class Api:
    """A connection to one server. Do not share it between threads."""

    def __init__(self, url: str, key: str, *, on_retry: Callable[[str], None]) -> None:
        """Prepare requests. `on_retry` is called with the reason when a request breaks and will be repeated.

        Raises UserError if the URL or the key is malformed.
        """
        try:
            self.url = check_api_url(url)
            authorization = f"Bearer {check_api_key(key)}"
        except ValueError as error:
            raise UserError(f"The URL or the key of the API {error}.") from None
        self._on_retry = on_retry
        self._answered = False
        try:
            self._client = httpx.Client(
                base_url=f"{self.url}/v1",
                headers={"Accept": "application/json", "Authorization": authorization},
                timeout=_TIMEOUT_SECONDS,
                limits=httpx.Limits(keepalive_expiry=_IDLE_SECONDS),
                verify=ssl.create_default_context(),  # the system's authorities, not those of certifi
                trust_env=False,
            )
        except httpx.InvalidURL as error:
            raise UserError(f"The URL of the API is malformed: {error}. Check LABELMILL_API_URL.") from None

    def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Mapping[str, object] | None = None,
        idempotency_key: str | None = None,
        repeat: bool = True,
    ) -> Any:
        """Send a request and return the JSON of the answer.

        It is repeated if the server asks for it; without `repeat`, only if it certainly had no effect.
        Raises NotFound, Conflict and other UserErrors as the server does; Unavailable if it does not answer
        for a minute. What is None in `query` and `body` is left out.
        """
        options: dict[str, Any] = {"params": _given(query or {})}
        if body is not None:
            options["json"] = _given(body)
        if idempotency_key is not None:
            options["headers"] = {"Idempotency-Key": idempotency_key}
        return self._result(lambda: self._client.request(method, path, **options), repeat=repeat)

    def upload(self, name: str, pieces: Callable[[], Iterable[bytes]]) -> Any:
        """Upload a file, and return its description. `pieces` is called again if the upload breaks.

        An exception of `pieces` ends the upload, and nothing of the file is stored.
        """

        def send() -> httpx.Response:
            unsent = filter(None, pieces())
            file: Any = SimpleNamespace(read=lambda _size: next(unsent, b""))
            form = {"file": (name, file, "application/octet-stream")}
            return self._client.post("/files", data={"purpose": "batch"}, files=form)

        return self._result(send)

    def delete_quietly(self, path: str) -> None:
        """Try once to delete something that is no longer needed, and ignore a failure."""
        with suppress(httpx.RequestError):
            self._client.delete(path)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _result(self, send: Callable[[], httpx.Response], *, repeat: bool = True) -> Any:
        """Return the JSON of the answer. Raises what the server reports."""
        answer = self._answer_to(send, repeat=repeat)
        if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._error(answer)
        try:
            return answer.json()
        except ValueError:
            raise self._not_ours(answer) from None

    def _answer_to(self, send: Callable[[], httpx.Response], *, repeat: bool) -> httpx.Response:
        """Send until there is an answer that is not temporary. Raises Unavailable."""
        for pause in (*_PAUSES, None):
            asked = 0.0
            try:
                answer = send()
            except httpx.RequestError as error:
                cause = _cause(error)
                if isinstance(cause, ssl.SSLCertVerificationError):
                    raise Unavailable(
                        f"{self.url} cannot be trusted: {cause.verify_message}. SSL_CERT_FILE can name a "
                        "file with the certificate of its CA."
                    ) from None
                why = f"{self.url} cannot be reached: {_reason(cause)}"
                if isinstance(cause, socket.gaierror) and not self._answered:  # probably mistyped
                    raise Unavailable(f"{why}. Check LABELMILL_API_URL.") from None
                if not repeat:
                    raise Unavailable(f"{why}. {_CHECK_IT}") from None
            else:
                self._answered = True
                if answer.status_code not in _TEMPORARY:
                    return answer
                why = f"{self.url} cannot serve this now ({answer.status_code}): {_detail(answer)}"
                if not repeat and answer.status_code not in _REFUSED:
                    raise Unavailable(f"{why.rstrip('.')}. {_CHECK_IT}") from None
                after = answer.headers.get("Retry-After", "")
                asked = float(after) if after.isdecimal() else 0.0
            if pause is None:
                raise Unavailable(f"{why.rstrip('.')}. Try again later.")
            self._on_retry(why)
            time.sleep(min(max(pause, asked), _LONGEST_PAUSE_SECONDS))
        raise AssertionError  # the last pause is None

    def _error(self, answer: httpx.Response) -> LabelmillError:
        """Return the exception for an answer that is an error."""
        code = _problem(answer).get("code")
        if not isinstance(code, str):
            return self._not_ours(answer)
        if code == "unauthorized":
            return UserError(
                f"{self.url} refuses the key: it is wrong, expired or revoked. `labelmill keys create` makes "
                "one, where the server runs; LABELMILL_API_KEY holds it."
            )
        return _ERRORS.get(code, UserError)(_detail(answer))

    def _not_ours(self, answer: httpx.Response) -> LabelmillError:
        kind = Unavailable if answer.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR else UserError
        return kind(
            f"{self.url} answers, but not as Labelmill's API ({answer.status_code}): check LABELMILL_API_URL."
        )


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _detail(answer: httpx.Response) -> str:
    return str(_problem(answer).get("detail") or answer.status_code)


def _cause(error: BaseException) -> BaseException | None:
    """Return the OSError with which an error of httpx began, if there is one."""
    found: BaseException | None = error
    while found is not None and not isinstance(found, OSError):
        found = found.__context__  # httpcore's pool clears `__cause__`
    return found


def _reason(cause: BaseException | None) -> str:
    if isinstance(cause, TimeoutError):
        return f"no answer for {_TIMEOUT_SECONDS:g} seconds"
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return "the connection broke"
