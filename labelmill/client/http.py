"""The HTTP API for the remote client: requests that are repeated if they break, and errors as exceptions.

Only the standard library is used. The key is in no message.
"""

from __future__ import annotations

import json
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urlsplit

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


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    data: bytes


class Api:
    """A connection to one server. Do not share it between threads."""

    def __init__(self, url: str, key: str, *, on_retry: Callable[[str], None]) -> None:
        """Prepare requests. `on_retry` is called with the reason when a request breaks and will be repeated.

        Raises UserError if the URL or the key is malformed.
        """
        try:
            self.url = check_api_url(url)
            self._authorization = f"Bearer {check_api_key(key)}"
        except ValueError as error:
            raise UserError(f"The URL or the key of the API {error}.") from None
        self._on_retry = on_retry
        parts = urlsplit(self.url)
        self._host, self._port = parts.hostname or "", parts.port
        self._base = f"{parts.path}/v1"
        self._context = ssl.create_default_context() if parts.scheme == "https" else None
        self._connection: HTTPConnection | None = None
        self._used_at = 0.0
        self._answered = False

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
        query = _given(query or {})
        target = self._base + path + (f"?{urlencode(query)}" if query else "")
        headers = {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
        data = None
        if body is not None:
            data = json.dumps(_given(body)).encode()
            headers["Content-Type"] = "application/json"
        return self._result(lambda: self._send(method, target, data, headers), repeat=repeat)

    def upload(self, name: str, pieces: Callable[[], Iterable[bytes]]) -> Any:
        """Upload a file, and return its description. `pieces` is called again if the upload breaks.

        An exception of `pieces` ends the upload, and nothing of the file is stored.
        """
        boundary = secrets.token_hex(16)
        headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
        start = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        )

        def form() -> Iterator[bytes]:
            yield start.encode()
            yield from pieces()
            yield f"\r\n--{boundary}--\r\n".encode()

        return self._result(lambda: self._send("POST", f"{self._base}/files", form(), headers))

    def delete_quietly(self, path: str) -> None:
        """Try once to delete something that is no longer needed, and ignore a failure."""
        with suppress(OSError, HTTPException):
            self._send("DELETE", self._base + path, None, {})

    def close(self) -> None:
        """Close the connection. The next request opens another one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _result(self, send: Callable[[], _Answer], *, repeat: bool = True) -> Any:
        """Return the JSON of the answer. Raises what the server reports."""
        answer = self._answer_to(send, repeat=repeat)
        if answer.status >= HTTPStatus.MULTIPLE_CHOICES:
            raise self._error(answer)
        try:
            return json.loads(answer.data)
        except ValueError:
            raise self._not_ours(answer) from None

    def _answer_to(self, send: Callable[[], _Answer], *, repeat: bool) -> _Answer:
        """Send until there is an answer that is not temporary. Raises Unavailable."""
        for pause in (*_PAUSES, None):
            asked = 0.0
            try:
                answer = send()
            except ssl.SSLCertVerificationError as error:
                raise Unavailable(
                    f"{self.url} cannot be trusted: {error.verify_message}. SSL_CERT_FILE can name a file "
                    "with the certificate of its CA."
                ) from None
            except (OSError, HTTPException) as error:
                why = f"{self.url} cannot be reached: {_reason(error)}"
                if isinstance(error, socket.gaierror) and not self._answered:  # probably mistyped
                    raise Unavailable(f"{why}. Check LABELMILL_API_URL.") from None
                if not repeat:
                    raise Unavailable(f"{why}. {_CHECK_IT}") from None
            else:
                self._answered = True
                if answer.status not in _TEMPORARY:
                    return answer
                why = f"{self.url} cannot serve this now ({answer.status}): {_detail(answer)}"
                if not repeat and answer.status not in _REFUSED:
                    raise Unavailable(f"{why.rstrip('.')}. {_CHECK_IT}") from None
                after = answer.headers.get("retry-after", "")
                asked = float(after) if after.isdecimal() else 0.0
            if pause is None:
                raise Unavailable(f"{why.rstrip('.')}. Try again later.")
            self._on_retry(why)
            time.sleep(min(max(pause, asked), _LONGEST_PAUSE_SECONDS))
        raise AssertionError  # the last pause is None

    def _send(
        self, method: str, target: str, body: bytes | Iterator[bytes] | None, headers: Mapping[str, str]
    ) -> _Answer:
        connection = self._open()
        headers = {**headers, "Accept": "application/json", "Authorization": self._authorization}
        was_sent = False
        try:
            try:
                connection.request(method, target, body, headers)
                was_sent = True
            except (BrokenPipeError, ConnectionResetError):
                pass  # the server may have refused the upload early, and its answer says why
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            answer = _Answer(response.status, found, response.read())
        except BaseException:
            self.close()
            raise
        if response.will_close or not was_sent:
            self.close()
        self._used_at = time.monotonic()
        return answer

    def _open(self) -> HTTPConnection:
        if time.monotonic() - self._used_at > _IDLE_SECONDS:
            self.close()
        if self._connection is None:
            if self._context is not None:
                self._connection = HTTPSConnection(
                    self._host, self._port, timeout=_TIMEOUT_SECONDS, context=self._context
                )
            else:
                self._connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        return self._connection

    def _error(self, answer: _Answer) -> LabelmillError:
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

    def _not_ours(self, answer: _Answer) -> LabelmillError:
        kind = Unavailable if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR else UserError
        return kind(
            f"{self.url} answers, but not as Labelmill's API ({answer.status}): check LABELMILL_API_URL."
        )


def _given(values: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in values.items() if value is not None}


def _problem(answer: _Answer) -> dict[str, Any]:
    try:
        found = json.loads(answer.data)
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _detail(answer: _Answer) -> str:
    return str(_problem(answer).get("detail") or answer.status)


def _reason(error: OSError | HTTPException) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer for {_TIMEOUT_SECONDS:g} seconds"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "the connection broke"
