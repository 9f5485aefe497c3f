"""What the API takes and returns, with the names of OpenAI's public client. Times are Unix seconds."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

#: How OpenAI's client limits metadata.
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512

#: An uploaded file's id is this, and its id in the ledger.
FILE_PREFIX: Final = "file-"

Metadata = Annotated[
    dict[Annotated[str, Field(max_length=_MAX_NAME)], Annotated[str, Field(max_length=_MAX_VALUE)]],
    Field(max_length=_MAX_PAIRS),
]


def seconds(moment: datetime | None) -> int | None:
    """Return a time in Unix seconds."""
    return None if moment is None else int(moment.timestamp())


class FileObject(BaseModel):
    """An uploaded file, or the output of a batch."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"
    sha256: str | None = None


class FileList(BaseModel):
    """A page of files, newest first."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


class NewBatch(BaseModel):
    """A request to classify the images of an uploaded file."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: str
    model: str | None = None
    dataset: str | None = None
    metadata: Metadata | None = None
    priority: Annotated[int, Field(ge=-100, le=100)] | None = None
    max_errors: Annotated[int, Field(ge=0, le=2**53)] | None = None
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    #: OpenAI's clients send these two. Both are returned as they came, and mean nothing here.
    endpoint: Annotated[str, Field(max_length=_MAX_VALUE)] = "/v1/classifications"
    completion_window: Annotated[str, Field(max_length=_MAX_VALUE)] = "24h"


class RequestCounts(BaseModel):
    """How many images a batch has, and how many of them are done."""

    total: int
    completed: int
    failed: int


class BatchError(BaseModel):
    """Why a batch failed."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    """Why a batch failed: a list, as OpenAI's clients expect it."""

    object: Literal["list"] = "list"
    data: list[BatchError]


class BatchObject(BaseModel):
    """A batch: a job, whether it was submitted over HTTP or with the command."""

    id: str
    object: Literal["batch"] = "batch"
    status: Literal["validating", "in_progress", "completed", "failed", "cancelled"]
    created_at: int
    in_progress_at: int | None
    completed_at: int | None
    failed_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    errors: BatchErrors | None
    metadata: dict[str, str] | None
    input_file_id: str | None
    output_file_id: str | None
    error_file_id: str | None
    model: str
    endpoint: str
    completion_window: str
    paused: bool
    retry_of: str | None


class BatchList(BaseModel):
    """A page of batches, newest first."""

    object: Literal["list"] = "list"
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResultError(BaseModel):
    """Why an image got no label."""

    code: str
    message: str | None


class Result(BaseModel):
    """The outcome of one image."""

    custom_id: str
    name: str
    index: int
    label: str | None
    confidence: float | None
    error: ResultError | None
    model: str


def page_of(items: list[Any], limit: int) -> dict[str, Any]:
    """Return the fields of a page, given one item more than it has if there are more."""
    shown = items[:limit]
    return {
        "data": shown,
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(items) > limit,
    }
