"""What the API takes and returns, with the names of OpenAI's public client. Times are Unix seconds."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from operator import itemgetter
from typing import Annotated, Any, Final, Generic, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from jobs.ledger.api_objects import describe_run, seconds
from jobs.ledger.jobs.outcomes import Prediction, as_json
from jobs.ledger.jobs.queries import JobStatus
from jobs.ledger.jobs.review_queue import ReviewKind
from jobs.ledger.learning.runs import Run
from jobs.limits import MAX_PRIORITY, MAX_TOP_K
from jobs.models.dataset import MNIST
from jobs.models.training_request import WHOLE, TrainingOptions, TrainingRequest
from jobs.network.webhooks import Event
from jobs.schema import DeliveryState
from labelmill.client.schedules import ScheduleStatus

T = TypeVar("T")

#: How OpenAI's client limits metadata.
_MAX_PAIRS, _MAX_NAME, _MAX_VALUE = 16, 64, 512

#: Maximum characters of a pair, as the list of batches takes it: `name=value`.
MAX_PAIR: Final = _MAX_NAME + 1 + _MAX_VALUE

#: Maximum addresses of one request, and characters of each.
_MAX_URLS, _MAX_URL = 10_000, 2048

#: The largest integer that every JSON parser reads exactly.
MAX_NUMBER: Final = 2**53

#: Maximum corrections of one request.
MAX_CORRECTIONS: Final = 1_000

#: PostgreSQL stores no U+0000.
NO_NUL: Final = r"^[^\x00]*$"

#: Bytes, in the OpenAPI description.
BINARY: Final = {"type": "string", "format": "binary"}

Name = Annotated[str, Field(max_length=_MAX_NAME, pattern=NO_NUL)]
Text = Annotated[str, Field(max_length=_MAX_VALUE, pattern=NO_NUL)]


#: How many of the most probable classes each result has.
TopK = Annotated[int, Field(ge=1, le=MAX_TOP_K), WHOLE]


def _as_mapping(schema: dict[str, Any]) -> None:
    """Describe a mapping by `additionalProperties`: generators do not know `patternProperties`."""
    [(pattern, value)] = schema.pop("patternProperties").items()
    schema["additionalProperties"] = value
    schema["propertyNames"]["pattern"] = pattern


def _limit_pairs(found: object) -> object:
    # Before the pairs are checked: a body has room for a hundred thousand wrong ones.
    if isinstance(found, dict) and len(found) > _MAX_PAIRS:
        raise ValueError(f"at most {_MAX_PAIRS} pairs")
    return found


Metadata = Annotated[
    dict[Name, Text],
    Field(max_length=_MAX_PAIRS, json_schema_extra=_as_mapping),
    BeforeValidator(_limit_pairs),
]


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

    @model_validator(mode="before")
    @classmethod
    def _limit_fields(cls, found: object) -> object:
        # Before the fields are checked: a body has room for a hundred thousand unknown ones.
        if isinstance(found, dict) and len(found) > len(cls.model_fields):
            unknown = next(name for name in found if name not in cls.model_fields)
            raise ValueError(f"{unknown[:_MAX_NAME]!r} and others are no fields: leave them out")
        return found


class Listing(BaseModel, Generic[T]):
    """A list, as OpenAI's clients expect it."""

    object: Literal["list"] = "list"
    data: list[T] = Field(description="the objects")


class Page(Listing[T], Generic[T]):
    """A page of a list, newest first."""

    first_id: str | None = Field(description="the id of the first object; null if there is none")
    last_id: str | None = Field(description="the id of the last object, for `after`")
    has_more: bool = Field(description="whether there are more after `last_id`")

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

    id: str = Field(description="the file's id, such as `file-06h2a6v1nbdtxp2r`")
    object: Literal["file"] = "file"
    bytes: int = Field(
        description="the size; counting that of an output takes seconds per million lines, the first time"
    )
    created_at: int = Field(description="when it was uploaded, or the batch ended")
    filename: str = Field(description="the owner's name for it")
    purpose: Literal["batch", "batch_output"] = Field(description="`batch_output` for the outputs of a batch")
    status: Literal["processed"] = "processed"
    sha256: str | None = Field(default=None, description="SHA-256 of the bytes; null for an output")


class FileDeleted(BaseModel):
    """The answer to a deletion."""

    id: str = Field(description="the file's id")
    object: Literal["file"] = "file"
    deleted: Literal[True] = True


#: The sources of images: a batch has exactly one. With the name and the text of such a request.
_SOURCES: Final = {
    "input_file_id": ("BatchOfFile", "A request to classify the images of an uploaded file."),
    "urls": ("BatchOfUrls", "A request to classify the images at these addresses."),
    "source_url": ("BatchBelowUrl", "A request to classify the images below a URL."),
}

Url = Annotated[str, Field(max_length=_MAX_URL, pattern=r"^[A-Za-z][A-Za-z0-9+.-]*://[^\x00]+$")]


def _limit_urls(urls: object) -> object:
    # Before the addresses are checked: a body has room for half a million wrong ones. Not in the schema: so
    # many of the longest addresses would exceed the limit for a body.
    if isinstance(urls, list) and len(urls) > _MAX_URLS:
        raise ValueError(f"at most {_MAX_URLS:,} addresses: upload a manifest instead")
    return urls


Urls = Annotated[list[Url], Field(min_length=1), BeforeValidator(_limit_urls)]


class NewBatch(_Wanted):
    """A request to classify the images of one source."""

    model_config = ConfigDict(
        json_schema_extra={
            "oneOf": [
                {"$id": name, "required": [source], "description": text}
                for source, (name, text) in _SOURCES.items()
            ]
        },
    )

    input_file_id: Name | None = Field(
        default=None,
        json_schema_extra=_never_null,
        description=(
            "an uploaded file: an image, the members of an archive, or what a manifest names. Give exactly "
            "one of `input_file_id`, `urls` and `source_url`"
        ),
    )
    urls: Urls | None = Field(
        default=None,
        json_schema_extra=_never_null,
        description=(
            "up to 10,000 addresses: `http://`, `https://`, or below a root. The list is deleted when the "
            "images have been read"
        ),
    )
    source_url: Url | None = Field(
        default=None,
        json_schema_extra=_never_null,
        description=(
            "everything below a prefix such as `s3://bucket/photos/` or `file:///photos/`, which must be "
            "below a root. Names begin after the prefix. Do not change these files while the batch is "
            "`validating`: it can fail"
        ),
    )
    by_reference: bool | None = Field(
        default=None,
        description=(
            "store where the images are instead of their bytes; all must be below LABELMILL_REFERENCE_ROOTS "
            "of the server"
        ),
    )
    model: Name | None = Field(
        default=None, description="the model that classifies, by id or alias. Default: the champion"
    )
    dataset: Name | None = Field(
        default=None, description="the dataset whose champion classifies. Default: `mnist`"
    )
    metadata: Metadata | None = Field(
        default=None, description="up to 16 pairs of text, returned with the batch"
    )
    priority: Annotated[int, Field(ge=-MAX_PRIORITY, le=MAX_PRIORITY), WHOLE] | None = Field(
        default=None,
        description=(
            "batches with a higher priority are classified first. Default: 10 for at most 64 images, "
            "otherwise 0"
        ),
    )
    top_k: TopK | None = Field(
        default=None,
        description="also return this many of the most probable classes of each image, with the label first",
    )
    max_errors: Annotated[int, Field(ge=0, le=MAX_NUMBER), WHOLE] | None = Field(
        default=None, description="stop the batch if more images than this get an error"
    )
    max_error_rate: Annotated[float, Field(ge=0, le=1)] | None = Field(
        default=None, description="stop the batch if more than this share of its images so far got an error"
    )
    min_sample: Annotated[int, Field(ge=1, le=MAX_NUMBER), WHOLE] | None = Field(
        default=None,
        description="apply `max_error_rate` only after this many images are done. Default: 1,000",
    )
    delete_input: bool | None = Field(
        default=None, description="delete the uploaded file when its images have been read"
    )
    webhook_url: Url | None = Field(
        default=None,
        description=(
            "send a webhook to this address when the batch ends, besides the receivers that `labelmill "
            "webhooks` lists"
        ),
    )
    endpoint: Text = Field(
        default="/v1/classifications",
        description="accepted because OpenAI's clients send it; it has no effect",
    )
    completion_window: Text = Field(
        default="24h", description="accepted because OpenAI's clients send it; it has no effect"
    )

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        given = self.model_fields_set.intersection(_SOURCES)
        if len(given) != 1 or getattr(self, given.pop()) is None:
            raise ValueError(f"give exactly one of {', '.join(_SOURCES)}")
        return self


class RequestCounts(BaseModel):
    """How many images a batch has, and how many of them are done."""

    total: int = Field(description="images so far")
    completed: int = Field(description="images with a label")
    failed: int = Field(description="images with an error")


class BatchError(BaseModel):
    """Why a batch failed."""

    code: str = Field(description="for programs")
    message: str = Field(description="for people")
    line: int | None = Field(
        description="the line of the manifest that cannot be read; null if it is not that"
    )
    param: str | None = Field(description="always null")


class BatchErrors(BaseModel):
    """Why a batch failed: a list, as OpenAI's clients expect it."""

    object: Literal["list"] = "list"
    data: list[BatchError] = Field(description="the reasons")


class BatchObject(BaseModel):
    """A batch: a job, whether it was submitted over HTTP or with the command."""

    id: str = Field(description="the batch's id, which is the id of its job")
    object: Literal["batch"] = "batch"
    status: Literal["validating", "in_progress", "completed", "failed", "cancelled"] = Field(
        description=(
            "`validating`: its images are still being read, and some may be classified already. "
            "`in_progress`: all images are committed. `completed`: every image has a label or an error. "
            "`failed`, `cancelled`: it was stopped; results so far stay, and workers may still add those of "
            "chunks in progress"
        )
    )
    created_at: int = Field(description="when it was created")
    in_progress_at: int | None = Field(description="when all its images had been read and committed")
    completed_at: int | None = Field(description="when it was completed")
    failed_at: int | None = Field(description="when it failed")
    cancelled_at: int | None = Field(description="when it was cancelled")
    request_counts: RequestCounts = Field(description="its images")
    rate: float | None = Field(description="images per second since work began; null if nothing is done yet")
    eta_seconds: float | None = Field(
        description="the estimated seconds to its end; null if unknown, as while it is `validating` or paused"
    )
    errors: BatchErrors | None = Field(description="why it failed")
    metadata: dict[str, str] | None = Field(description="what the request gave")
    input_file_id: str | None = Field(
        description="the uploaded file; null for other sources and for jobs submitted with the command"
    )
    output_file_id: str | None = Field(
        description="a file with the labels, once the batch has ended and if there are any"
    )
    error_file_id: str | None = Field(
        description="a file with the errors, once the batch has ended and if there are any"
    )
    model: str = Field(description="the model that classifies")
    endpoint: str = Field(description="what the request gave")
    completion_window: str = Field(description="what the request gave")
    paused: bool = Field(description="whether it is paused")
    retry_of: str | None = Field(description="the batch whose images it retries")
    submitted_by: str | None = Field(
        description="the name of the API key that submitted it; null for jobs submitted with the command"
    )
    job: JobStatus = Field(
        description="the job with exact times, as `labelmill status` prints it with --json"
    )

    @property
    def ended(self) -> bool:
        """Return whether nothing more happens to the batch."""
        return self.status in ("completed", "failed", "cancelled")


class BatchDeleted(BaseModel):
    """The answer to the deletion of a batch."""

    id: str = Field(description="the batch's id")
    object: Literal["batch"] = "batch"
    deleted: Literal[True] = True


class ResultError(BaseModel):
    """Why an image got no label."""

    code: str = Field(description="the image's error code")
    message: str | None = Field(description="more about it")


class ResultClass(BaseModel):
    """One of the most probable classes of an image."""

    label: str = Field(description="the class")
    confidence: float = Field(description="its probability, 0 to 1")


class Result(BaseModel):
    """The outcome of one image."""

    custom_id: str = Field(description="the manifest's `custom_id`, otherwise the image's name")
    name: str = Field(description="the same; in an archive, the member's path")
    index: int = Field(description="the image's index in the batch, from 0")
    label: str | None = Field(description="the predicted class; null if there is an error")
    confidence: float | None = Field(description="its probability, 0 to 1")
    top: list[ResultClass] | None = Field(
        description="with `top_k`, the most probable classes, with the label first"
    )
    error: ResultError | None = Field(description="why the image got no label")
    model: str = Field(description="the model that classified it")

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

    id: str = Field(description="the id of the batch that the images are")
    object: Literal["classification"] = "classification"
    model: str = Field(description="the model that classified them")
    results: list[Result] = Field(description="the images' results, in order")


# ---- images and labels --------------------------------------------------------------------------------


#: A class, as people give it.
Label = Annotated[str, Field(min_length=1, max_length=1024, pattern=NO_NUL)]


class NewLabel(_Wanted):
    """The true label of an image."""

    label: Label = Field(description="the true label: a class of the model")


class NewCorrection(_Wanted):
    """The true label of an image of a batch."""

    batch_id: Name = Field(description="the image's batch")
    index: Annotated[int, Field(ge=0, le=MAX_NUMBER), WHOLE] = Field(
        description="the image's index in the batch"
    )
    label: Label | None = Field(
        description="the true label: a class of the model; null removes the image's correction"
    )
    line: Annotated[int, Field(ge=1, le=MAX_NUMBER), WHOLE] | None = Field(
        default=None, description="its number in your file, which messages then name"
    )
    confirms: bool = Field(
        default=True,
        description="whether the label is stored even if it is the predicted one, which it then confirms: "
        "false for the rows of an edited export, so that unchanged ones are ignored",
    )


class NewCorrections(_Wanted):
    """The true labels of many images."""

    corrections: Annotated[list[NewCorrection], Field(min_length=1, max_length=MAX_CORRECTIONS)] = Field(
        description="the true labels: all are stored, or none if one is wrong"
    )
    undo: bool = Field(
        default=False,
        description="take back what the same request without `undo` stored: corrections with a different "
        "label by now stay",
    )


class ReviewWanted(_Wanted):
    """Which images to review."""

    dataset: str = Field(
        default=MNIST, max_length=64, pattern=NO_NUL, description="the dataset of the models"
    )
    kind: Annotated[ReviewKind, Field(strict=False)] = Field(
        default=ReviewKind.UNSURE,
        description="which images: " + "; ".join(f"`{each}`: {each.meaning}" for each in ReviewKind),
    )
    batch_id: str | None = Field(
        default=None, max_length=64, pattern=NO_NUL, description="only images of this batch"
    )
    limit: int = Field(default=20, ge=1, le=100, description="at most this many images")
    again: bool = Field(
        default=False, description="give images again that this key was given and has not corrected"
    )


class ReviewObject(BaseModel):
    """An image to review."""

    object: Literal["review"] = "review"
    batch_id: str = Field(description="the image's batch")
    index: int = Field(description="its index in the batch")
    name: str = Field(description="its name")
    label: str = Field(description="the predicted class")
    confidence: float = Field(description="its probability, 0 to 1")


_EFFECT: Final = "what the next training makes of the change, in a sentence for each dataset"


class CorrectionObject(_Described):
    """The true label of an image, given by a person."""

    object: Literal["correction"] = "correction"
    batch_id: str = Field(validation_alias="job_id", description="the image's batch")
    index: int = Field(description="the image's index in the batch")
    name: str = Field(description="the image's name")
    label: str = Field(description="the true label")
    predicted: str | None = Field(description="the model's label; null if the image got an error")
    confidence: float | None = Field(description="the model's confidence")
    model: str = Field(validation_alias="model_id", description="the model that predicted")
    image_sha256: str = Field(description="SHA-256 of the image, which names its copy in the store")
    created_at: Seconds = Field(description="when it was stored")


class ChangedCorrection(CorrectionObject):
    """A correction that was stored or removed."""

    effect: str = Field(description=_EFFECT)


class ChangedCorrections(Listing[CorrectionObject]):
    """The corrections that were stored, or with `undo` removed. Those that null removed are not listed."""

    effect: str = Field(description=_EFFECT)


# ---- models and training ------------------------------------------------------------------------------


class ModelObject(_Described):
    """A registered model."""

    id: str = Field(description="the model's id")
    object: Literal["model"] = "model"
    created: Seconds = Field(validation_alias="created_at", description="when it was registered")
    owned_by: Literal["labelmill"] = "labelmill"
    dataset: str = Field(description="the dataset whose champion it can become")
    aliases: list[str] = Field(description="the aliases that point to it, such as `champion`")
    architecture: str = Field(description="the kind of network")
    accuracy: float | None = Field(description="from its latest evaluation; null before the first")
    classes: list[str] = Field(description="names of its classes, in the order of its output")
    sha256: str = Field(description="SHA-256 of its file")
    pinned_at: Seconds | None = Field(description="since when no training run replaces it; null if one may")


class LiveObject(_Described):
    """How often a model was right, among the images that people corrected or confirmed."""

    right: int = Field(description="images whose label was right")
    labelled: int = Field(description="images that people corrected or confirmed")


class HealthObject(_Described):
    """How a model's recent results compare with its evaluation."""

    model: str = Field(description="the model's id")
    dataset: str = Field(description="its dataset")
    accuracy: float | None = Field(description="from its evaluation")
    live: LiveObject = Field(description="its accuracy on corrected and confirmed images")
    jobs: int = Field(description="number of recent jobs")
    images: int = Field(description="number of images in these jobs")
    warnings: list[str] = Field(description="what has changed, in sentences")
    unknown: str | None = Field(description="why drift cannot be measured; null if it can")


class PromotionWanted(_Wanted):
    """Whether to promote a model even if the gate refuses it."""

    force: bool = Field(default=False, description="promote the model even if the gate refuses it")


class Decision(BaseModel):
    """The gate's decision about a model."""

    model: str = Field(description="the model's id")
    promoted: bool = Field(description="whether it is the champion now")
    reason: str = Field(description="the gate's reason")


class RollbackWanted(_Wanted):
    """The dataset whose champion is rolled back."""

    dataset: Name = Field(default=MNIST, description="the dataset whose champion is rolled back")


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class RunWanted(TrainingRequest):
    """What to train, and how. What is None is chosen from the data."""

    input_file_id: Annotated[
        Name | None,
        Field(
            description="An uploaded ZIP or TAR archive with one subfolder per class. The run first adds its "
            "images to the dataset, and creates the dataset if needed."
        ),
    ] = None
    delete_input: Annotated[
        bool, Field(strict=True, description="Delete the archive when its images have been read.")
    ] = False


class RunObject(BaseModel):
    """A training run."""

    id: str = Field(description="the run's id")
    object: Literal["run"] = "run"
    status: str = Field(description="the state of the run, as in the ledger")
    dataset: str = Field(description="the dataset that it trains on")
    created_at: int | None = Field(description="when it was requested")
    started_at: int | None = Field(description="when a trainer claimed it")
    expected_at: int | None = Field(description="when its last epoch ends at the latest, if that is known")
    finished_at: int | None = Field(description="when it ended")
    epochs_done: int = Field(description="finished epochs")
    model: str | None = Field(description="the model that it produced")
    accuracy: float | None = Field(description="the model's accuracy")
    verdict: str | None = Field(description="whether the model became champion, and why")
    error: str | None = Field(description="why the run produced no model")

    @classmethod
    def of(cls, run: Run) -> Self:
        """Return a training run."""
        return cls(**describe_run(run))


class ScheduleWanted(_Wanted):
    """When a dataset's model is trained, and how."""

    cron: Text | None = Field(
        default=None,
        description="five cron fields, in UTC: minute, hour, day of the month, month and day of the week. "
        "Default: at no fixed time",
    )
    after_corrections: Annotated[int, Field(ge=0, le=999_999), WHOLE] | None = Field(
        default=None,
        description="as soon as this many corrections are new since the latest run. Default: never for that "
        "reason",
    )
    always: bool = Field(
        default=False,
        description="whether it trains at the times of the cron line even if no image, no correction and no "
        "option is new since its last run",
    )
    training: TrainingOptions | None = Field(
        default=None, description="how to train: replaces all earlier options. Default: as before"
    )


class ScheduleObject(BaseModel):
    """When a dataset's model is trained, and how."""

    object: Literal["schedule"] = "schedule"
    dataset: str = Field(description="the dataset's name")
    cron: str | None = Field(description="five cron fields, in UTC; null: at no fixed time")
    after_corrections: int | None = Field(
        description="a run starts when this many corrections are new; null: never for that reason"
    )
    always: bool = Field(description="whether it trains at the times of the cron line even if nothing is new")
    training: TrainingOptions = Field(description="how to train")
    next_at: int | None = Field(description="the next time; null without one")
    new_corrections: int = Field(description="corrections since the latest run was requested")
    changed_at: int = Field(description="when it was last changed")

    @classmethod
    def of(cls, found: ScheduleStatus) -> Self:
        """Return a schedule."""
        schedule = found.schedule
        return cls(
            dataset=schedule.dataset,
            cron=schedule.cron,
            after_corrections=schedule.after_corrections,
            always=schedule.always,
            training=TrainingOptions(**schedule.request),
            next_at=seconds(found.next_slot),
            new_corrections=found.new_corrections,
            changed_at=int(schedule.changed_at.timestamp()),
        )


class DatasetObject(_Described):
    """The latest version of a dataset."""

    id: str = Field(validation_alias="dataset", description="the dataset's name")
    object: Literal["dataset"] = "dataset"
    version: int = Field(description="its latest version")
    classes: list[str] = Field(description="names of its classes")
    images: Annotated[int, BeforeValidator(itemgetter("images"))] = Field(
        validation_alias="summary", description="number of images"
    )
    fingerprint: str = Field(description="SHA-256 of all images, their labels and splits")
    created_at: Seconds = Field(description="when this version was added")


class WorkerObject(_Described):
    """A worker or trainer."""

    name: str = Field(description="host and process id")
    queue: str = Field(description="the queue that it works on")
    processes: int = Field(description="child processes that have started")
    version: str = Field(description="of Labelmill")
    alive: bool = Field(description="whether it was seen within 30 seconds")
    seen_at: Seconds = Field(description="its latest heartbeat")
    chunks: Annotated[int, BeforeValidator(len)] = Field(description="chunks that it has claimed")
    run: str | None = Field(description="the training run that it executes")
    problem: str | None = Field(description="what keeps it from working")


class NewWebhook(_Wanted):
    """A receiver of webhooks to add."""

    url: Url = Field(description="where to send them: `https://...`")
    events: Annotated[list[Annotated[Event, Field(strict=False)]], Field(max_length=len(Event))] = Field(
        default=[], description="the events to send; none: all"
    )


class WebhookObject(_Described):
    """A receiver of webhooks."""

    id: str = Field(description="the webhook's id")
    object: Literal["webhook"] = "webhook"
    url: str | None = Field(
        description="where messages are sent; null for the `webhook_url` of all batches of the project"
    )
    events: list[Event] = Field(description="the events that are sent; none: all")
    created_at: Seconds = Field(description="when it was added")
    disabled_at: Seconds | None = Field(description="when it answered 410, so that nothing more is sent")


class WebhookWithSecret(WebhookObject):
    """A receiver of webhooks with its new secret, which is shown only now."""

    secret: str = Field(description="what signs the messages: `whsec_...`")


class WebhookSecret(BaseModel):
    """The secret for the `webhook_url` of batches."""

    secret: str = Field(description="what signs the messages: `whsec_...`")


class WebhookDeleted(BaseModel):
    """The answer to the deletion of a webhook."""

    id: str = Field(description="the webhook's id")
    object: Literal["webhook"] = "webhook"
    deleted: Literal[True] = True


class DeliveryStarted(BaseModel):
    """A message that will be sent."""

    id: str = Field(description="its `webhook-id`")
    object: Literal["webhook.delivery"] = "webhook.delivery"


class DeliveryObject(_Described):
    """A message to a receiver of webhooks."""

    id: str = Field(description="its `webhook-id`")
    object: Literal["webhook.delivery"] = "webhook.delivery"
    event: str = Field(description="its event, or `test`")
    url: str = Field(description="where it is sent")
    status: DeliveryState = Field(validation_alias="state", description="whether it was delivered")
    attempts: int = Field(description="attempts so far")
    answer: int | None = Field(
        validation_alias="status", description="HTTP status of the latest answer; null if there was none"
    )
    error: str | None = Field(description="why the latest attempt failed")
    created_at: Seconds = Field(description="when the event happened")
    due_at: Seconds | None = Field(description="the next attempt; null if there is none")
    finished_at: Seconds | None = Field(description="when it was delivered or given up")
