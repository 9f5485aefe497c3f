"""What the API takes and returns, with the names of OpenAI's public client. Times are Unix seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from operator import itemgetter
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from jobs.ledger.descriptions import describe_run, seconds
from jobs.ledger.jobs.outcomes import Prediction, as_json
from jobs.ledger.jobs.queries import JobStatus
from jobs.ledger.learning.runs import Run
from jobs.limits import MAX_PRIORITY, MAX_TOP_K
from jobs.models.dataset import MNIST

T = TypeVar("T")

#: How OpenAI's client limits metadata.
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512

#: Maximum addresses of one request, and characters of each.
_MAX_URLS, _MAX_URL = 10_000, 2048

#: The largest integer that every JSON parser reads exactly.
MAX_NUMBER: Final = 2**53

#: Maximum corrections of one request.
MAX_CORRECTIONS: Final = 1_000

#: PostgreSQL stores no U+0000.
NO_NUL: Final = r"^[^\x00]*$"

#: An uploaded file's id is this, and its id in the ledger.
FILE_PREFIX: Final = "file-"

Name = Annotated[str, Field(max_length=_MAX_NAME, pattern=NO_NUL)]
Text = Annotated[str, Field(max_length=_MAX_VALUE, pattern=NO_NUL)]


def _to_whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: JSON may write an integer as 7.0, too.
_WHOLE: Final = BeforeValidator(_to_whole)

#: How many of the most probable classes each result has.
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K), _WHOLE]

Metadata = Annotated[dict[Name, Text], Field(max_length=_MAX_PAIRS)]


def _never_null(schema: dict[str, Any]) -> None:
    """Describe a field that may be left out, but is never null."""
    del schema["default"]
    schema.update(schema.pop("anyOf")[0])


#: A time in Unix seconds, made from one of the ledger's.
Seconds = Annotated[
    int, BeforeValidator(lambda found: seconds(found) if isinstance(found, datetime) else found)
]


class _Described(BaseModel):
    """A description of an object whose attributes have the fields' names, or their validation aliases."""

    @classmethod
    def of(cls, found: object) -> Self:
        """Return the description of an object."""
        return cls.model_validate(found, from_attributes=True)


class _Wanted(BaseModel):
    """What a request asks for. Strict, because true is no number, and "yes" not true."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Listing(BaseModel, Generic[T]):
    """A list, as OpenAI's clients expect it."""

    object: Literal["list"] = "list"
    data: list[T]


class Page(Listing[T], Generic[T]):
    """A page of a list, newest first."""

    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[Any], limit: int) -> Self:
        """Return a page of at most `limit` items, given one item more than it has if there are more."""
        shown = list(items[:limit])
        return cls(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(items) > limit,
        )


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


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


#: The sources of images: a batch has exactly one.
_SOURCES: Final = ("input_file_id", "urls", "source_url")

Url = Annotated[str, Field(max_length=_MAX_URL, pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://[^\x00]+$")]


def _limit_urls(urls: list[str]) -> list[str]:
    # Not in the schema: so many of the longest addresses would exceed the limit for a body.
    if len(urls) > _MAX_URLS:
        raise ValueError(f"at most {_MAX_URLS:,} addresses: upload a manifest instead")
    return urls


class NewBatch(_Wanted):
    """A request to classify the images of one source."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": [name]} for name in _SOURCES]},
    )

    input_file_id: Name | None = Field(default=None, json_schema_extra=_never_null)
    urls: Annotated[list[Url], AfterValidator(_limit_urls), Field(min_length=1)] | None = Field(
        default=None, json_schema_extra=_never_null
    )
    source_url: Url | None = Field(default=None, json_schema_extra=_never_null)
    by_reference: bool | None = None
    model: Name | None = None
    dataset: Name | None = None
    metadata: Metadata | None = None
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), _WHOLE] | None = None
    top_k: TopK | None = None
    max_errors: Annotated[int, Field(ge=0, le=MAX_NUMBER), _WHOLE] | None = None
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    min_sample: Annotated[int, Field(ge=1, le=MAX_NUMBER), _WHOLE] | None = None
    delete_input: bool | None = None
    #: Where to report the end of this batch, besides the receivers that `labelmill webhooks` lists.
    webhook_url: Url | None = None
    #: OpenAI's clients send these two. Both are returned as they came, and have no effect.
    endpoint: Text = "/v1/classifications"
    completion_window: Text = "24h"

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = self.model_fields_set.intersection(_SOURCES)
        if len(given) != 1 or getattr(self, given.pop()) is None:
            raise ValueError(f"give exactly one of {', '.join(_SOURCES)}")
        return self


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
    job: JobStatus  # the same with exact times, as `labelmill status --json` prints it

    @property
    def ended(self) -> bool:
        """Return whether nothing more happens to the batch."""
        return self.status in ("completed", "failed", "cancelled")


class RetriedBatch(BatchObject):
    """A batch of images that got no label in another one."""

    unreadable: int  # images of the other one that have no bytes, so that they cannot be submitted again


class ResultError(BaseModel):
    """Why an image got no label."""

    code: str
    message: str | None


class ResultClass(BaseModel):
    """One of the most probable classes of an image."""

    label: str
    confidence: float


class Result(BaseModel):
    """The outcome of one image."""

    custom_id: str
    name: str
    index: int
    label: str | None
    confidence: float | None
    top: list[ResultClass] | None
    error: ResultError | None
    model: str

    @classmethod
    def of(cls, prediction: Prediction) -> Self:
        """Return the outcome that a prediction records."""
        return cls(**describe_result(prediction))


def describe_result(prediction: Prediction) -> dict[str, Any]:
    """Return the fields of a `Result`; error and detail are one object, and the alternatives are `top`."""
    result = as_json(prediction)
    result["custom_id"], result["top"] = prediction.name, result.pop("alternatives")
    code, detail = result.pop("error"), result.pop("detail")
    result["error"] = None if code is None else {"code": code, "message": detail}
    return result


class Classification(BaseModel):
    """The labels of a few images. The id is that of their batch."""

    id: str
    object: Literal["classification"] = "classification"
    model: str
    results: list[Result]


# ---- images and labels --------------------------------------------------------------------------------


class NewLabel(_Wanted):
    """The true label of an image."""

    label: Annotated[str, Field(min_length=1, max_length=1024, pattern=NO_NUL)]


class NewCorrection(NewLabel):
    """The true label of an image of a batch."""

    batch_id: Name
    index: Annotated[int, Field(ge=0, le=MAX_NUMBER), _WHOLE]
    line: Annotated[int, Field(ge=1, le=MAX_NUMBER), _WHOLE] | None = None  # in the sender's file


class NewCorrections(_Wanted):
    """The true labels of many images."""

    corrections: Annotated[list[NewCorrection], Field(min_length=1, max_length=MAX_CORRECTIONS)]


class CorrectionObject(_Described):
    """The true label of an image, given by a person."""

    object: Literal["correction"] = "correction"
    batch_id: str = Field(validation_alias="job_id")
    index: int
    name: str
    label: str
    predicted: str | None
    confidence: float | None
    model: str = Field(validation_alias="model_id")
    image_sha256: str
    created_at: Seconds


# ---- models and training ------------------------------------------------------------------------------


class ModelObject(_Described):
    """A registered model."""

    id: str
    object: Literal["model"] = "model"
    created: Seconds = Field(validation_alias="created_at")
    owned_by: Literal["labelmill"] = "labelmill"
    dataset: str
    aliases: list[str]
    architecture: str
    accuracy: float | None
    classes: list[str]
    sha256: str
    pinned_at: Seconds | None


class HealthObject(_Described):
    """How a model's recent results compare with its evaluation."""

    model: str
    dataset: str
    accuracy: float | None
    live: Annotated[dict[str, Any], BeforeValidator(asdict)]
    jobs: int
    images: int
    warnings: list[str]
    unknown: str | None


class PromotionWanted(_Wanted):
    """Whether to promote a model even if the gate refuses it."""

    force: bool = False


class Decision(BaseModel):
    """The gate's decision about a model."""

    model: str
    promoted: bool
    reason: str


class RollbackWanted(_Wanted):
    """The dataset whose champion is rolled back."""

    dataset: Name = MNIST


class RunObject(BaseModel):
    """A training run."""

    id: str
    object: Literal["run"] = "run"
    status: str
    dataset: str
    created_at: int | None
    started_at: int | None
    finished_at: int | None
    epochs_done: int
    model: str | None
    accuracy: float | None
    verdict: str | None
    error: str | None

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return a training run."""
        return cls(**describe_run(run))


class DatasetObject(_Described):
    """The latest version of a dataset."""

    id: str = Field(validation_alias="dataset")
    object: Literal["dataset"] = "dataset"
    version: int
    classes: list[str]
    images: Annotated[int, BeforeValidator(itemgetter("images"))] = Field(validation_alias="summary")
    fingerprint: str
    created_at: Seconds


class WorkerObject(_Described):
    """A worker or trainer."""

    name: str
    queue: str
    processes: int
    version: str
    alive: bool
    seen_at: Seconds
    chunks: Annotated[int, BeforeValidator(len)]
    run: str | None
    problem: str | None
