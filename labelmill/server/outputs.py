"""The output and the errors of a batch as files of JSON lines, as OpenAI's Batch API writes them.

They are not stored: each line is made from a row of the ledger when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from jobs.errors import NotFound
from jobs.ids import is_id
from jobs.ledger.jobs.queries import JobStatus, Prediction
from labelmill.client import Client
from labelmill.server.schemas import FILE_PREFIX, FileObject
from producer.export import pages_of

_OUTPUT: Final = "-output"
_ERRORS: Final = "-errors"

#: Sizes that were counted before, by batch, kind and number of rows: counting reads all rows of a batch.
_sizes: Final[dict[tuple[str, bool, int], int]] = {}

_MAX_SIZES: Final = 10_000


def output_id(job_id: str) -> str:
    """Return the id of the file with the labels of a batch."""
    return f"{FILE_PREFIX}{job_id}{_OUTPUT}"


def errors_id(job_id: str) -> str:
    """Return the id of the file with the errors of a batch."""
    return f"{FILE_PREFIX}{job_id}{_ERRORS}"


@dataclass(frozen=True, slots=True)
class Output:
    """The labels, or the errors, of a finished batch."""

    client: Client
    status: JobStatus
    errors: bool

    def pieces(self) -> Iterator[bytes]:
        """Yield a line for each image with a label, or for each with an error: many at a time, in order."""
        found = self.client.predictions(self.status.id, errors=self.errors)
        for page in pages_of(each for each in found if self.errors or each.error is None):
            lines = (json.dumps(_line(self.status.id, each), ensure_ascii=False) for each in page)
            yield "".join(f"{line}\n" for line in lines).encode()

    def to_object(self) -> FileObject:
        """Return the file's description."""
        file_id = (errors_id if self.errors else output_id)(self.status.id)
        finished = self.status.finished_at or self.status.created_at
        return FileObject(
            id=file_id,
            bytes=self._size(),
            created_at=int(finished.timestamp()),
            filename=f"{self.status.id}{_ERRORS if self.errors else _OUTPUT}.jsonl",
            purpose="batch_output",
        )

    def _size(self) -> int:
        """Return the file's size in bytes. The first call makes all lines."""
        # Workers may still add rows to a batch that was stopped.
        key = (self.status.id, self.errors, self.status.done)
        if key not in _sizes:
            if len(_sizes) >= _MAX_SIZES:
                _sizes.clear()
            _sizes[key] = sum(map(len, self.pieces()))
        return _sizes[key]


def find_output(client: Client, file_id: str) -> Output | None:
    """Return the output that a file's id means, or None if it means an uploaded file.

    Raises NotFound if there is no such batch, or it has not finished.
    """
    for ending in (_OUTPUT, _ERRORS):
        job_id = file_id.removeprefix(FILE_PREFIX).removesuffix(ending)
        if file_id == f"{FILE_PREFIX}{job_id}{ending}" and is_id(job_id):
            try:
                status = client.status(job_id)
            except NotFound:  # its message is about jobs and commands
                raise NotFound(f"There is no file {file_id!r}.") from None
            if not status.finished:
                raise NotFound(f"Batch {job_id} has not finished, so it has no file {file_id!r} yet.")
            return Output(client, status, errors=ending == _ERRORS)
    return None


def _line(job_id: str, prediction: Prediction) -> dict[str, Any]:
    line: dict[str, Any] = {
        "id": f"{job_id}-{prediction.index}",
        "custom_id": prediction.name,
        "response": None,
        "error": None,
    }
    if prediction.error is not None:
        line["error"] = {"code": prediction.error, "message": prediction.detail}
    else:
        body: dict[str, Any] = {"label": prediction.label, "confidence": prediction.confidence}
        if prediction.alternatives is not None:
            body["top"] = prediction.alternatives
        line["response"] = {"status_code": HTTPStatus.OK, "body": body}
    return line
