"""Read uploaded files from a `multipart/form-data` body, in constant memory and without a copy on disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from http import HTTPStatus
from typing import Final

from fastapi import Request
from python_multipart.exceptions import FormParserError, MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from labelmill.server.problems import ApiError, ProblemCode

#: Bytes of a body that are parsed and stored in one go.
_BLOCK_BYTES: Final = 256 * 1024

#: Maximum bytes of a field other than the file.
_MAX_FIELD_BYTES: Final = 1024

_MAX_PARTS: Final = 32

#: Maximum characters of an unknown field's name in a message.
_MAX_SHOWN: Final = 200

_FORM: Final = "send it as multipart/form-data, with the file in the field `file`"

#: Maximum bytes of a form beside the file.
MAX_FORM_BYTES: Final = 64 * 1024


class Upload:
    """Parses the body of an upload: passes the bytes of the part `file` on, and keeps the other fields."""

    def __init__(
        self,
        content_type: str,
        write: Callable[[memoryview], None],
        *,
        fields: Collection[str],
        max_bytes: int,
        begin_file: Callable[[str], None] | None = None,
    ) -> None:
        """Prepare. `write` is called with the file's bytes. Raises ApiError if the body is not a form.

        `fields` are the names that its parts can have.
        `begin_file` is called with the name of each file; without it, there may be only one.
        """
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise ApiError(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                "Send the file as multipart/form-data, with the fields `file` and `purpose`.",
            )
        self.filename: str | None = None
        self.fields: dict[str, str] = {}
        self.is_complete = False
        self._known = fields
        self._write = write
        self._begin_file = begin_file
        self._left = max_bytes + MAX_FORM_BYTES
        self._parts = 0
        self._headers: dict[bytes, bytes] = {}
        self._header, self._value = b"", b""
        self._field: str | None = None  # the field of the present part, unless it is the file
        self._text = b""
        self._parser = MultipartParser(
            options[b"boundary"],
            {
                "on_part_begin": self._begin_part,
                "on_header_field": self._add_to_header,
                "on_header_value": self._add_to_value,
                "on_header_end": self._end_header,
                "on_headers_finished": self._end_headers,
                "on_part_data": self._add_data,
                "on_part_end": self._end_part,
                "on_end": self._end,
            },
        )

    def write(self, data: bytes) -> None:
        """Parse the next bytes of the body. Raises ApiError, and what the function raises."""
        self._left -= len(data)
        if self._left < 0:
            raise too_large()
        try:
            self._parser.write(data)
        except (FormParserError, MultipartParseError):
            raise _malformed(f"The form is malformed: {_FORM}.") from None

    def finish(self) -> str:
        """Return the file's name. Raises ApiError if the body ended too early or has no file."""
        if not self.is_complete:
            raise _malformed("The form ends too early: send it again, whole.")
        if self.filename is None:
            raise _invalid("file: the form has no file: send it in the field `file`, with a file name.")
        return self.filename

    def _begin_part(self) -> None:
        self._headers, self._text = {}, b""
        self._parts += 1
        if self._parts > _MAX_PARTS:
            raise _malformed(f"The form has more than {_MAX_PARTS} fields: leave some out.")

    def _add_to_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        self._headers[self._header.lower()] = self._value
        self._header, self._value = b"", b""

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        name = options.get(b"name", b"").decode(errors="replace")
        if name not in self._known:
            raise _invalid(
                f"{name[:_MAX_SHOWN]}: there is no such field: choose from {', '.join(self._known)}."
            )
        if name == "file" and b"filename" in options:
            if self.filename is not None and self._begin_file is None:
                raise _malformed("The form has more than one file: send each in a request of its own.")
            self.filename = options[b"filename"].decode(errors="replace")
            self._field = None
            if self._begin_file is not None:
                self._begin_file(self.filename)
            return
        self._field = name

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        if self._field is not None:
            self._text += data[start:end]
            if len(self._text) > _MAX_FIELD_BYTES:
                raise _malformed(
                    f"The field {self._field} has more than {_MAX_FIELD_BYTES:,} bytes: shorten it."
                )
            return
        self._write(memoryview(data)[start:end])

    def _end_part(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._text.decode(errors="replace")

    def _end(self) -> None:
        self.is_complete = True


async def body_blocks(request: Request) -> AsyncIterator[bytes]:
    """Yield the request's body in blocks. Raises ApiError if it ends too early."""
    block = bytearray()
    try:
        async for data in request.stream():
            block += data
            if len(block) >= _BLOCK_BYTES:
                yield bytes(block)
                block.clear()
    except ClientDisconnect:
        raise _malformed("The body ends too early: send it again, whole.") from None
    if block:
        yield bytes(block)


def _invalid(detail: str) -> ApiError:
    return ApiError(HTTPStatus.UNPROCESSABLE_ENTITY, ProblemCode.INVALID, detail)


def _malformed(detail: str) -> ApiError:
    return ApiError(HTTPStatus.BAD_REQUEST, ProblemCode.MALFORMED, detail)


def too_large() -> ApiError:
    """Return the error of a file that is larger than a job may be."""
    return ApiError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        ProblemCode.TOO_LARGE,
        "The file is larger than a job may be: send it in parts, or raise LABELMILL_MAX_JOB_BYTES.",
    )
