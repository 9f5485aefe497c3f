"""The ledger's tables. `migrations/` creates them; a test checks that the two are equal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final

from sqlalchemy import (
    JSON,
    REAL,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    DateTime,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    bindparam,
    false,
    literal,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from jobs.described import DescribedEnum
from jobs.ids import ID_LENGTH
from jobs.models.dataset import MAX_NAME
from jobs.options import DEFAULT_PROJECT


class JobState(DescribedEnum):
    """The state of a job."""

    RECEIVING = "receiving", "the producer is still adding chunks; workers may already classify"
    RUNNING = "running", "all chunks are in the ledger"
    DONE = "done", "every image has an outcome"
    FAILED = (
        "failed",
        "stopped: too many errors, a damaged payload or model, or the producer vanished. Outcomes so far are "
        "kept",
    )
    CANCELLED = "cancelled", "stopped by a person. Outcomes so far are kept"


#: The states of jobs that have ended.
FINISHED: Final = (JobState.DONE, JobState.FAILED, JobState.CANCELLED)

#: The states of jobs that have not ended.
UNFINISHED: Final = (JobState.RECEIVING, JobState.RUNNING)


class ChunkState(DescribedEnum):
    """The state of a chunk."""

    PENDING = "pending", "waits for a worker"
    CLAIMED = "claimed", "a worker owns it until `lease_until`"
    HELD = "held", "its job is paused"
    DONE = "done", "all its images have outcomes"
    DROPPED = "dropped", "its job ended first"


class RunState(DescribedEnum):
    """The state of a training run."""

    PENDING = "pending", "waits for a trainer"
    RUNNING = "running", "a trainer executes it"
    DONE = "done", "it produced a model; `verdict` says whether it became champion"
    FAILED = "failed", "it ended without a model; `error` says why"
    INTERRUPTED = "interrupted", "its trainer died or was stopped. Nothing changed"
    CANCELLED = "cancelled", "a person stopped it. Nothing changed"
    SKIPPED = (
        "skipped",
        "it was due while another run of its dataset was active, or no trainer claimed it within an hour, "
        "not counting time during which trainers execute other runs",
    )


class DeliveryState(DescribedEnum):
    """The state of a webhook message."""

    PENDING = "pending", "is sent, or sent again, when it is due"
    DELIVERED = "delivered", "its receiver answered 2xx"
    FAILED = "failed", "given up"


class UtcTime(TypeDecorator[datetime]):
    """A point in time: `timestamptz` on PostgreSQL, fixed-width text on SQLite, so that it sorts by time."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        """Return the column's type; SQLite has none for times."""
        return dialect.type_descriptor(String(23) if dialect.name == "sqlite" else DateTime(timezone=True))

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> Any:
        """Convert a time for the database, to UTC."""
        if value is None or dialect.name != "sqlite":
            return value
        return value.astimezone(UTC).replace(tzinfo=None).isoformat(sep=" ", timespec="milliseconds")

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Convert a time from the database, to UTC."""
        if value is None:
            return None
        moment = datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value
        return moment.astimezone(UTC)


class db_now(FunctionElement[datetime]):  # noqa: N801 -- reads as the SQL function it is
    """The time now, or `seconds` from now, by the database's clock.

    Leases compare times that many hosts write, so all of them must use one clock.
    """

    inherit_cache = True
    type = UtcTime()

    def __init__(self, seconds: float | str | ColumnElement[float] = 0.0) -> None:
        """Take `seconds` as a number, the name of a statement's parameter, or an SQL expression."""
        double: Double[float] = Double()
        if isinstance(seconds, str):
            seconds = bindparam(seconds, type_=double)
        elif not isinstance(seconds, ColumnElement):
            seconds = literal(seconds, double)
        super().__init__(seconds)


@compiles(db_now, "postgresql")
def _now_on_postgresql(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


@compiles(db_now, "sqlite")
def _now_on_sqlite(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    seconds = compiler.process(element.clauses, **kw)
    return f"strftime('%Y-%m-%d %H:%M:%f', 'now', printf('%+.3f seconds', {seconds}))"


#: Names for constraints, so that a later migration can name what it changes.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

_Json = JSON().with_variant(JSONB(), "postgresql")
_Id = String(ID_LENGTH)
_Name = String(MAX_NAME)

dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset", _Name, primary_key=True, doc="the dataset's name"),
    Column("version", Integer, primary_key=True, autoincrement=False, doc="1, 2 and so on"),
    Column("fingerprint", String(64), nullable=False, doc="SHA-256 of all images, their labels and splits"),
    Column("classes", _Json, nullable=False, doc="names of the classes, as JSON"),
    Column(
        "summary",
        _Json,
        nullable=False,
        doc="counts of images by split, class, size and mode, and problems in its sources, as JSON",
    ),
    Column("manifest", Text, nullable=False, doc="the store's key of the list of images"),
    Column("by_reference", Boolean, nullable=False, doc="whether the images stay where they are"),
    Column("created_at", UtcTime, nullable=False, doc="when it was added"),
    info={"doc": "one row per version of a dataset, added when its images are in the store"},
)

schedules = Table(
    "schedules",
    metadata,
    Column("dataset", _Name, primary_key=True, doc="the dataset's name"),
    Column("cron", Text, doc="five fields, in UTC; null: never"),
    Column("after_corrections", Integer, doc="a run starts after this many new corrections; null: never"),
    Column("request", _Json, nullable=False, doc="what the run trains, as JSON"),
    Column("changed_at", UtcTime, nullable=False, doc="when a person last changed it"),
    Column("always", Boolean, nullable=False, doc="whether it trains even if nothing is new"),
    info={"doc": "one row per dataset whose model is trained by schedule"},
)

gate_limits = Table(
    "gate_limits",
    metadata,
    Column("dataset", _Name, primary_key=True, doc="the dataset's name"),
    Column("limits", _Json, nullable=False, doc="the limits as JSON; a limit that is null is off"),
    Column("changed_at", UtcTime, nullable=False, doc="when a person last changed them"),
    info={
        "doc": "one row per dataset with its own limits for the promotion gate; all others have the defaults"
    },
)

models = Table(
    "models",
    metadata,
    Column("id", _Id, primary_key=True, doc="the model's id"),
    Column("dataset", _Name, nullable=False, doc="the dataset whose champion it can become"),
    Column("architecture", Text, nullable=False, doc="the kind of network, such as `cnn`"),
    Column("sha256", String(64), nullable=False, unique=True, doc="SHA-256 of its file"),
    Column("size_bytes", BigInteger, nullable=False, doc="size of its file"),
    Column("classes", _Json, nullable=False, doc="names of its classes, as JSON, in the order of its output"),
    Column(
        "input_spec", _Json, nullable=False, doc="size, mode and scaling of the images that it takes, as JSON"
    ),
    Column("logits", Boolean, nullable=False, doc="it returns logits: a softmax is added"),
    Column(
        "accuracy", Double, doc="from its latest evaluation on its dataset's test set; null before the first"
    ),
    Column("metrics", _Json, nullable=False, doc="where it comes from, as JSON"),
    Column("created_at", UtcTime, nullable=False, doc="when it was registered"),
    info={
        "doc": "one row per model: an immutable trained version, whose file is in the store under its SHA-256"
    },
)

backbones = Table(
    "backbones",
    metadata,
    Column("name", _Name, primary_key=True, doc="its name"),
    Column("sha256", String(64), nullable=False, doc="SHA-256 of its file"),
    Column("size_bytes", BigInteger, nullable=False, doc="size of its file"),
    Column(
        "input_spec", _Json, nullable=False, doc="size, mode and scaling of the images that it takes, as JSON"
    ),
    Column("features", Integer, nullable=False, doc="how many numbers it returns for an image"),
    Column("source", Text, nullable=False, doc="the file that it was made from"),
    Column("licence", Text, doc="the licence of its weights, as given; null: none was given"),
    Column("created_at", UtcTime, nullable=False, doc="when it was added"),
    info={"doc": "one row per backbone: a pretrained network on which training builds classifiers"},
)

#: The primary key ensures that each dataset has only one champion.
aliases = Table(
    "aliases",
    metadata,
    Column("dataset", _Name, primary_key=True, doc="the dataset's name"),
    Column("name", String(64), primary_key=True, doc="`champion` or `shadow`"),
    Column("model_id", ForeignKey("models.id"), nullable=False, doc="the model that it points to"),
    Column("moved_at", UtcTime, nullable=False, doc="when it last moved"),
    Column("pinned_at", UtcTime, doc="since when no training run replaces it; null if one may"),
    info={
        "doc": (
            "one row per name that points to a model of a dataset: `champion` is the model of new jobs, "
            "`shadow` the challenger"
        )
    },
)

training_runs = Table(
    "training_runs",
    metadata,
    Column("id", _Id, primary_key=True, doc="the run's id"),
    Column("dataset", _Name, nullable=False, doc="the dataset's name"),
    Column("dataset_version", Integer, doc="null until the data is loaded"),
    Column("state", String(16), nullable=False, doc="see the states"),
    Column("recipe", _Json, nullable=False, doc="what is trained and how, as JSON"),
    Column("data_source", Text, nullable=False, doc="where the data came from; empty until it is loaded"),
    Column(
        "data_fingerprint",
        String(64),
        nullable=False,
        doc="SHA-256 of all its data; empty until it is loaded",
    ),
    Column("data", _Json, doc="the number of images of each kind, including corrections, as JSON"),
    Column("slot", UtcTime, doc="its scheduled time; null if a person requested it"),
    Column("corrections_seen", UtcTime, doc="when the newest of the corrections that triggered it was made"),
    # Not a foreign key: the file may be deleted, and the run stays.
    Column("input_file_id", _Id, doc="the uploaded archive whose images it adds first; null: it adds none"),
    Column("delete_input", Boolean, doc="whether it deletes that file once its images have been read"),
    Column("active", Integer, doc="1 while it waits or runs, otherwise null: each dataset has one such run"),
    Column("token", _Id, doc="fencing token of the trainer that claimed it"),
    Column("owner", Text, doc="host and process id of the trainer that claimed it"),
    Column("lease_until", UtcTime, doc="end of the claim"),
    Column("requested_at", UtcTime, nullable=False, doc="when it was requested"),
    Column("started_at", UtcTime, doc="when a trainer claimed it"),
    Column("expected_at", UtcTime, doc="when its last epoch ends at the latest, estimated from those so far"),
    Column("finished_at", UtcTime, doc="when it ended"),
    Column("model_id", ForeignKey("models.id"), doc="the model that it produced"),
    Column("verdict", Text, doc="whether the model became champion, and why"),
    Column("error", Text, doc="why it ended without a model"),
    Index("ux_training_runs_slot", "dataset", "slot", unique=True),
    Index("ux_training_runs_active", "dataset", "active", unique=True),
    Index("ux_training_runs_corrections_seen", "dataset", "corrections_seen", unique=True),
    info={"doc": "one row per training run, with its data, its model and the verdict"},
)

training_epochs = Table(
    "training_epochs",
    metadata,
    Column(
        "run_id", ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True, doc="the training run"
    ),
    Column("epoch", Integer, primary_key=True, doc="from 1"),
    Column("loss", Double, nullable=False, doc="on the training images"),
    Column("accuracy", Double, nullable=False, doc="on the training images"),
    Column("val_loss", Double, nullable=False, doc="on the validation images"),
    Column("val_accuracy", Double, nullable=False, doc="on the validation images"),
    Column("seconds", Double, nullable=False, doc="duration of the epoch"),
    info={"doc": "one row per epoch of a training run"},
)

evaluations = Table(
    "evaluations",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True, doc="the model"),
    Column(
        "data_fingerprint",
        String(64),
        primary_key=True,
        doc="SHA-256 of the evaluation images and their labels",
    ),
    Column("part", String(8), nullable=False, doc="`test` or `live`: the test set or the live set"),
    Column("dataset", _Name, nullable=False, doc="the dataset's name"),
    Column("dataset_version", Integer, doc="the version of the dataset"),
    Column("measures", _Json, nullable=False, doc="the figures as JSON"),
    Column(
        "answers",
        LargeBinary,
        nullable=False,
        doc=(
            "for each image the predicted class (65535: none) and the true one, two bytes each, little-endian"
        ),
    ),
    Column("created_at", UtcTime, nullable=False, doc="when it was measured"),
    info={"doc": "one row per model and evaluation set: figures, and the model's answer to each image"},
)

model_runtimes = Table(
    "model_runtimes",
    metadata,
    Column("model_id", ForeignKey("models.id", ondelete="CASCADE"), primary_key=True, doc="the model"),
    Column("runtime", String(16), primary_key=True, doc="for example `keras` or `openvino`"),
    Column("state", String(16), nullable=False, doc="`passed`, `differs` or `failed`"),
    Column("reason", Text, doc="why it differs or failed; what a lower precision changes"),
    Column("image_microseconds", Double, doc="time per image on full batches"),
    Column("threads", Integer, nullable=False, doc="how many threads computed them"),
    Column("images", Integer, nullable=False, doc="on how many images it was compared with Keras"),
    Column("agreement", Double, doc="share of the images with the same label"),
    Column("confidence_difference", Double, doc="largest difference of a confidence"),
    Column("version", Text, doc="the runtime's version"),
    Column("sha256", String(64), doc="SHA-256 of the file that it runs; null for Keras, or if there is none"),
    Column("size_bytes", BigInteger, doc="size of that file"),
    Column("created_at", UtcTime, nullable=False, doc="when it was measured"),
    info={"doc": "one row per model and runtime: whether it answers as Keras does, and its speed"},
)

verdicts = Table(
    "verdicts",
    metadata,
    Column("id", _Id, primary_key=True, doc="the verdict's id; ids sort by time"),
    Column("run_id", ForeignKey("training_runs.id"), doc="the training run; null if a person asked"),
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True, doc="the model"),
    Column("champion_id", ForeignKey("models.id"), doc="the champion that it was compared with"),
    Column("promote", Boolean, nullable=False, doc="whether the model becomes champion"),
    Column("forced", Boolean, nullable=False, doc="whether a person overruled the gate"),
    Column("checks", _Json, nullable=False, doc="each check with its result, as JSON"),
    Column("created_at", UtcTime, nullable=False, doc="when it was decided"),
    info={"doc": "one row per decision of the promotion gate about a model, check by check"},
)

promotions = Table(
    "promotions",
    metadata,
    Column("id", _Id, primary_key=True, doc="ids sort by time"),
    Column("model_id", ForeignKey("models.id"), nullable=False, doc="the new champion"),
    Column("previous_id", ForeignKey("models.id"), doc="the champion before; null for the first"),
    Column("how", String(16), nullable=False, doc="`retrain`, `promote` or `rollback`"),
    Column("verdict_id", ForeignKey("verdicts.id"), doc="the gate's decision; null for a rollback"),
    Column("created_at", UtcTime, nullable=False, doc="when it changed"),
    info={"doc": "one row per change of a champion"},
)

#: The project of shadows, which nobody submitted. It is no tenant's, and takes its turn after all others.
SHADOWS: Final = "shadows"

#: Each of these tables' rows belongs to one project. A key of the HTTP API sees only its own.
projects = Table(
    "projects",
    metadata,
    Column("name", _Name, primary_key=True, doc="the project's name"),
    Column(
        "turn",
        Double,
        server_default="0",
        doc="work claimed while others waited, in full claims; the least is next, null comes last",
    ),
    Column("intake_at", UtcTime, doc="when an intake process last claimed one of its batches"),
    Column("webhook_at", UtcTime, doc="when a webhook sender last claimed one of its messages"),
    Column("created_at", UtcTime, nullable=False, doc="when it was created"),
    info={
        "doc": "one row per project, which owns jobs, files, API keys and webhooks, and one for all shadows"
    },
)


def _project(*, in_index: bool = False) -> Column[Any]:
    """Return the column that says to which project a row belongs."""
    key = () if in_index else (ForeignKey("projects.name"),)
    return Column("project", _Name, *key, nullable=False, server_default=DEFAULT_PROJECT, doc="its project")


#: No foreign key to the job, because a correction outlives its job.
corrections = Table(
    "corrections",
    metadata,
    Column("job_id", _Id, primary_key=True, doc="the image's job"),
    Column("index", BigInteger, primary_key=True, autoincrement=False, doc="the image's index in the job"),
    Column("name", Text, nullable=False, doc="the image's name"),
    Column("label", Text, nullable=False, doc="the true label"),
    Column("predicted", Text, doc="the model's label; null if the image got an error"),
    Column("confidence", REAL, doc="the model's confidence"),
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True, doc="the model that predicted"),
    Column(
        "image_sha256",
        String(64),
        nullable=False,
        index=True,
        doc="SHA-256 of the image, which names its copy in the store",
    ),
    Column("created_at", UtcTime, nullable=False, doc="when it was given"),
    info={"doc": "one row per image whose true label a person gave; it outlives its job"},
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True, doc="the job's id"),
    _project(),
    Column("key", Text, doc="the submission key, or null"),
    Column("fingerprint", String(64), doc="SHA-256 of what was submitted under the key"),
    Column("state", String(16), nullable=False, doc="see the states"),
    Column("model_id", ForeignKey("models.id"), nullable=False, doc="the model that classifies the job"),
    # Counters, updated in the transaction that changes what they count: reading progress is reading one row.
    Column("total", BigInteger, nullable=False, server_default="0", doc="images submitted"),
    Column("succeeded", BigInteger, nullable=False, server_default="0", doc="images with a label"),
    Column("failed", BigInteger, nullable=False, server_default="0", doc="images with an error"),
    Column("error", Text, doc="why the job failed"),
    Column("error_limit", BigInteger, doc="stop if more images than this failed"),
    Column("error_rate_limit", Double, doc="stop if a larger share of the images failed"),
    Column("error_rate_sample", BigInteger, doc="apply the share after this many images"),
    Column("top_k", Integer, doc="how many of the most probable classes each prediction keeps"),
    Column(
        "unlisted",
        Boolean,
        nullable=False,
        server_default=false(),
        doc="whether its caller waits for it: lists of batches leave it out, and no webhook reports it",
    ),
    Column("retry_of", _Id, doc="the job whose images are retried; it may be purged"),
    Column("shadow_of", _Id, doc="for a shadow: the job whose images the challenger classifies again"),
    Column("traceparent", String(55), doc="the W3C trace of the submission"),
    Column("paused_at", UtcTime, doc="when it was paused; kept if it ends while paused"),
    Column("purged_at", UtcTime, doc="when the removal of its payloads began"),
    Column("created_at", UtcTime, nullable=False, doc="when its first chunk was stored"),
    Column("touched_at", UtcTime, nullable=False, doc="latest heartbeat of the submitting process"),
    Column("submitted_at", UtcTime, doc="when the submission was complete"),
    Column("started_at", UtcTime, doc="when the first recorded chunk was begun"),
    Column("finished_at", UtcTime, doc="when it ended"),
    UniqueConstraint("key", "project"),
    Index(None, "created_at"),
    Index(None, "project", "created_at"),
    Index(
        "ix_jobs_listed",
        "project",
        "created_at",
        postgresql_where=text("NOT unlisted"),
        sqlite_where=text("unlisted = 0"),
    ),
    # Only shadows: otherwise SQLite would use this index to find jobs that are not shadows, and then sort
    # them.
    Index(
        "ux_jobs_shadow_of_model_id",
        "shadow_of",
        "model_id",
        unique=True,
        postgresql_where=text("shadow_of IS NOT NULL"),
        sqlite_where=text("shadow_of IS NOT NULL"),
    ),
    # Unfinished jobs: their number does not depend on how many have finished.
    Index(
        "ix_jobs_open",
        "state",
        postgresql_where=text("state IN ('receiving', 'running')"),
        sqlite_where=text("state IN ('receiving', 'running')"),
    ),
    Index(None, "finished_at"),  # for people who query the latest results
    info={
        "doc": (
            "one row per job. The counters change in the transaction that changes what they count, so you "
            "need not count rows"
        )
    },
)

#: A job of at most this many images is small: it gets a higher priority, and its chunk is claimed together
#: with other small ones (`jobs.ledger.jobs.claims`).
SMALL_JOB_IMAGES: Final = 64

chunks = Table(
    "chunks",
    metadata,
    Column("id", _Id, primary_key=True, doc="the chunk's id"),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False, doc="its job"),
    _project(in_index=True),  # a copy of the job's: checking it would cost each chunk
    Column("first_index", BigInteger, nullable=False, doc="index of its first image in the job"),
    Column("images", Integer, nullable=False, doc="number of images"),
    Column("payload", Text, nullable=False, doc="its key in the store"),
    Column("payload_digest", String(64), nullable=False, doc="BLAKE3 digest of the payload"),
    Column(
        "payload_offset",
        Integer,
        nullable=False,
        server_default="0",
        doc="position of its first image in the payload",
    ),
    Column("state", String(16), nullable=False, doc="see the states"),
    Column("priority", Integer, nullable=False, server_default="0", doc="higher ones are claimed first"),
    Column("attempts", Integer, nullable=False, server_default="0", doc="claims so far"),
    Column(
        "releases",
        Integer,
        nullable=False,
        server_default="0",
        doc="attempts that ended through nobody's fault: a service was unavailable, or the worker stopped",
    ),
    Column(
        "crashes",
        Integer,
        nullable=False,
        server_default="0",
        doc="attempts that ended in a death, a timeout or an unexpected error: perhaps the chunk's fault",
    ),
    Column("crash_code", String(32), doc="error code of an image that crashes alone, by the latest crash"),
    Column("token", _Id, doc="fencing token of the latest claim, kept after the end"),
    Column("owner", Text, doc="host and process id of the latest claim"),
    Column("lease_until", UtcTime, doc="end of the claim"),
    Column("not_before", UtcTime, doc="it is not claimed again before this"),
    Column("created_at", UtcTime, nullable=False, doc="when it was submitted"),
    Column("finished_at", UtcTime, doc="when its results were recorded"),
    Column("error", Text, doc="how the latest attempt without results ended"),
    Index("ix_chunks_job_id_state_first_index", "job_id", "state", "first_index"),
    # For a project's next due chunk. Small, because chunks leave it when they are claimed.
    Index(
        "ix_chunks_due",
        "project",
        text("priority DESC"),
        "created_at",
        "first_index",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
    # For expired leases, and for what a dead process had claimed.
    Index(
        "ix_chunks_claimed",
        "lease_until",
        postgresql_where=text("state = 'claimed'"),
        sqlite_where=text("state = 'claimed'"),
    ),
    info={"doc": "one row per chunk: images of one job that one process classifies in one go"},
)

#: The conditions of these indexes, literally: with parameters instead of the states, neither database sees
#: that the index applies, and reads the whole table.
CHUNK_IS_PENDING: Final = text("chunks.state = 'pending'")
CHUNK_IS_CLAIMED: Final = text("chunks.state = 'claimed'")

#: The condition for a chunk that a worker has under a lease that has not run out.
CHUNK_IS_IN_WORK: Final = and_(CHUNK_IS_CLAIMED, chunks.c.lease_until >= db_now())

files = Table(
    "files",
    metadata,
    Column("id", _Id, primary_key=True, doc="the file's id, without `file-`"),
    _project(),
    Column("name", Text, nullable=False, doc="the owner's name for it"),
    Column("purpose", String(32), nullable=False, doc="always `batch`"),
    Column("size", BigInteger, nullable=False, doc="in bytes"),
    Column("sha256", String(64), nullable=False, doc="SHA-256 of its bytes"),
    Column("created_at", UtcTime, nullable=False, doc="when it was uploaded"),
    Index(None, "project", "id"),
    info={"doc": "one row per file that was uploaded over HTTP; its bytes are in the store below `files/`"},
)

batches = Table(
    "batches",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, doc="the job"),
    _project(in_index=True),
    Column("request", _Json, nullable=False, doc="the request as JSON, with a hash instead of `urls`"),
    Column("file_id", _Id, doc="the uploaded file with the images; it may be deleted later"),
    Column("key_id", ForeignKey("api_keys.id"), doc="the key that submitted it; null: a command"),
    Column("state", String(16), nullable=False, doc="`pending`, `claimed` or `done`"),
    Column("attempts", Integer, nullable=False, server_default="0", doc="claims since the latest progress"),
    Column(
        "releases",
        Integer,
        nullable=False,
        server_default="0",
        doc="claims since the latest progress that ended because something was unavailable",
    ),
    Column(
        "unanswered",
        Double,
        nullable=False,
        server_default="0",
        doc="seconds of waiting for servers since the latest image that could be read",
    ),
    Column("token", _Id, doc="fencing token of the latest claim"),
    Column("owner", Text, doc="host and process id of the latest claim"),
    Column("lease_until", UtcTime, doc="end of the claim"),
    Column("not_before", UtcTime, doc="it is not claimed again before this"),
    Column("created_at", UtcTime, nullable=False, doc="when it was created"),
    Index(
        "ix_batches_open",
        "project",
        "created_at",
        postgresql_where=text("state <> 'done'"),
        sqlite_where=text("state <> 'done'"),
    ),
    info={
        "doc": (
            "one row per job that was submitted over HTTP: what it is made from, and the claim of the "
            "process that reads its images"
        )
    },
)

batch_urls = Table(
    "batch_urls",
    metadata,
    Column("job_id", ForeignKey("batches.job_id", ondelete="CASCADE"), primary_key=True, doc="the batch"),
    Column("urls", _Json, nullable=False, doc="its `urls` as JSON"),
    info={
        "doc": (
            "one row per batch of `urls` whose images are not all read. It is deleted then, because "
            "addresses may contain keys"
        )
    },
)

batch_metadata = Table(
    "batch_metadata",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, doc="the job"),
    _project(in_index=True),
    Column("name", String(64), primary_key=True, doc="the pair's name"),
    Column("value", String(512), nullable=False, doc="the pair's value"),
    # For a project's newest batches with a pair: ids sort by time.
    Index(None, "project", "name", "value", "job_id"),
    info={"doc": "one row per pair in the metadata of a batch, to find batches by it"},
)

api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _Id, primary_key=True, doc="the key's id"),
    _project(),
    Column("name", String(64), nullable=False, doc="who or what uses it"),
    Column("role", String(16), nullable=False, doc="`submit`, `review` or `admin`"),
    Column("digest", String(64), nullable=False, unique=True, doc="SHA-256 of the key"),
    Column("old_digest", String(64), unique=True, doc="that of the previous key, until `old_until`"),
    Column("old_until", UtcTime, doc="end of the previous key"),
    Column("only_local", Boolean, nullable=False, doc="whether it works from loopback addresses alone"),
    Column("created_at", UtcTime, nullable=False, doc="when it was created"),
    Column("expires_at", UtcTime, doc="when it expires; null: never"),
    Column("revoked_at", UtcTime, doc="when it was revoked"),
    Column("last_used_at", UtcTime, doc="when it was last used, to within a minute"),
    info={"doc": "one row per key of the HTTP API; only the key's SHA-256 is stored"},
)

review_claims = Table(
    "review_claims",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True, doc="the image's job"),
    Column("index", BigInteger, primary_key=True, autoincrement=False, doc="the image's index in the job"),
    Column("holder", String(64), nullable=False, doc="who reviews it: SHA-256 of a session or a key"),
    Column("until", UtcTime, nullable=False, doc="when others are given it"),
    Index(None, "until"),
    info={"doc": "one row per image that a person was given to review, so that nobody else is given it"},
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True, doc="SHA-256 of the browser's cookie, or of the link"),
    Column("key_id", ForeignKey("api_keys.id"), nullable=False, doc="the key with which it was begun"),
    Column("is_link", Boolean, nullable=False, doc="whether it is a link with which one session can begin"),
    Column("expires_at", UtcTime, nullable=False, doc="when it ends"),
    info={"doc": "one row per browser that is signed in to the pages, and per unused link for signing in"},
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True, doc="ids sort by time"),
    Column(
        "key_id", ForeignKey("api_keys.id"), doc="the key with which it was done; null: none, or a command"
    ),
    Column("address", Text, doc="the client's address; null: a command"),
    Column("action", String(64), nullable=False, doc="such as `create batch` or `refused 403`"),
    Column("object", Text, nullable=False, doc="the id of what was changed, or the request that was refused"),
    Column("created_at", UtcTime, nullable=False, doc="when it was done"),
    info={
        "doc": "one row per change over HTTP and of an API key; and per minute, client and status of refused "
        "requests; kept for 90 days"
    },
)

webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", _Id, primary_key=True, doc="the receiver's id"),
    _project(),
    Column("url", Text, doc="where messages are sent; null for the `webhook_url` of batches"),
    Column("events", _Json, nullable=False, doc="the event types that it receives, as JSON; none: all"),
    Column("secret", Text, nullable=False, doc="the secret that signs messages"),
    Column("old_secret", Text, doc="the previous secret, which also signs until `old_until`"),
    Column("old_until", UtcTime, doc="end of the previous secret"),
    Column("created_at", UtcTime, nullable=False, doc="when it was added"),
    Column("disabled_at", UtcTime, doc="when it answered 410"),
    Index(
        "ix_webhook_endpoints_of_batches",
        "project",
        unique=True,
        postgresql_where=text("url IS NULL"),
        sqlite_where=text("url IS NULL"),
    ),
    info={
        "doc": "one row per webhook receiver, and one per project for the `webhook_url` of all its batches"
    },
)

#: The outbox.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _Id, primary_key=True, doc="the `webhook-id`"),
    Column(
        "endpoint_id",
        ForeignKey("webhook_endpoints.id", ondelete="CASCADE"),
        nullable=False,
        doc="the receiver",
    ),
    _project(in_index=True),
    Column("url", Text, nullable=False, doc="where it is sent"),
    Column("host", Text, nullable=False, doc="the host in the URL, with its port if it has one"),
    Column("event", String(32), nullable=False, doc="the event type"),
    Column("body", Text, nullable=False, doc="what is sent"),
    Column("state", String(16), nullable=False, doc="see the states"),
    Column("attempts", Integer, nullable=False, server_default="0", doc="attempts so far"),
    Column("token", _Id, doc="fencing token of the latest attempt"),
    Column(
        "due_at", UtcTime, nullable=False, doc="the next attempt; during an attempt, the end of its lease"
    ),
    Column("status", Integer, doc="HTTP status of the latest answer"),
    Column("error", Text, doc="why the latest attempt failed"),
    Column("created_at", UtcTime, nullable=False, doc="when the event happened"),
    Column("finished_at", UtcTime, doc="when it was delivered or given up"),
    Index(
        "ix_webhook_deliveries_due",
        "project",
        "due_at",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
    Index("ix_webhook_deliveries_endpoint_id", "endpoint_id", "id"),
    info={
        "doc": "one row per message to a receiver, written in the transaction of the change that it reports"
    },
)

#: The columns that say which images a chunk holds, and where.
PAYLOAD_COLUMNS: Final[tuple[Column[Any], ...]] = (
    *(chunks.c.first_index, chunks.c.images, chunks.c.payload, chunks.c.payload_digest),
    chunks.c.payload_offset,
)

#: The primary key is the last guard against a second outcome of an image. A foreign key would be checked for
#: every row, and rows are only written by a worker that holds the chunk. On PostgreSQL they are in partitions
#: (`jobs.ledger.partitions`).
#: Labels with a confidence below this are unsure: an index has them in order.
UNSURE: Final = 0.9

predictions = Table(
    "predictions",
    metadata,
    Column("job_id", _Id, primary_key=True, doc="the image's job"),
    Column(
        "index", BigInteger, primary_key=True, autoincrement=False, doc="the image's index in the job, from 0"
    ),
    Column("name", Text, nullable=False, doc="the name that the submitter gave it"),
    Column("label", Text, doc="the predicted class; null if there is an error"),
    Column("confidence", REAL, doc="the probability of the class, 0 to 1; null if there is an error"),
    Column("error", String(32), doc="the error code; null if there is a label"),
    Column("detail", Text, doc="more about the error"),
    Column(
        "alternatives",
        _Json,
        doc=(
            "the `top_k` most probable classes as JSON; null if the job has no `top_k` or there is an error: "
            '`[{"label", "confidence"}, ...]`'
        ),
    ),
    # For the pages: the least sure images first, and the images with an error. Both are few.
    Index(
        "ix_predictions_unsure",
        "job_id",
        "confidence",
        "index",
        postgresql_where=text(f"confidence < {UNSURE}"),
        sqlite_where=text(f"confidence < {UNSURE}"),
    ),
    Index(
        "ix_predictions_errors",
        "job_id",
        "error",
        "index",
        postgresql_where=text("error IS NOT NULL"),
        sqlite_where=text("error IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (job_id)",
    info={
        "doc": (
            "one row per image that has its outcome. On PostgreSQL the table is partitioned by week; rows of "
            "a purged job may stay until all jobs of its week are purged, so join with `jobs`, as the view "
            "`results` does"
        )
    },
)

known_labels = Table(
    "known_labels",
    metadata,
    Column("job_id", _Id, primary_key=True, doc="the image's job"),
    Column("index", BigInteger, primary_key=True, autoincrement=False, doc="the image's index in the job"),
    Column("label", Text, nullable=False, doc="its true label; a correction replaces it"),
    sqlite_with_rowid=False,
    info={"doc": "one row per image whose true label is in the manifest that it was submitted with"},
)

#: The tables with rows of a job, each by the column that says where in the job a row begins, in the order in
#: which they are emptied: as long as a job has chunks, it has all its predictions. A batch goes with its
#: job's row, by a foreign key, and corrections stay.
JOB_PLACES: Final[tuple[Column[Any], ...]] = (
    chunks.c.first_index,
    predictions.c.index,
    known_labels.c.index,
)

locks = Table(
    "locks",
    metadata,
    Column("name", String(64), primary_key=True, doc="what is locked"),
    Column("holder", Text, nullable=False, doc="host and process id of its holder"),
    Column("until", UtcTime, nullable=False, doc="when it expires"),
    info={"doc": "one row per named lock, such as the reconciler's"},
)

counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True, doc="what is counted"),
    Column("label", String(64), primary_key=True, doc="for example an error code"),
    Column("shard", Integer, primary_key=True, autoincrement=False, doc="the shard's number"),
    Column("value", Double, nullable=False, doc="the sum so far"),
    info={
        "doc": (
            "one row per shard of a counter that only grows and survives a purge; a counter's value is the "
            "sum of its shards"
        )
    },
)

workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True, doc="host and process id"),
    Column("host", Text, nullable=False, doc="its host"),
    Column("queue", String(64), nullable=False, doc="its queue"),
    Column("processes", Integer, nullable=False, doc="child processes that have started"),
    Column("children", _Json, nullable=False, doc="the names under which these claim, as JSON"),
    Column("version", String(64), nullable=False, doc="of Labelmill"),
    Column("problem", Text, doc="what keeps it from working properly"),
    Column("model_problem", Text, doc="why its processes cannot load a champion"),
    Column("started_at", UtcTime, nullable=False, doc="when it started"),
    Column("seen_at", UtcTime, nullable=False, doc="its latest heartbeat"),
    info={
        "doc": (
            "one row per heartbeat: of beat, and of the main process of each worker, trainer and webhook "
            "sender"
        )
    },
)

disks = Table(
    "disks",
    metadata,
    Column("name", String(16), primary_key=True, doc="`ledger` or `store`"),
    Column("free_bytes", BigInteger, nullable=False, doc="free space"),
    Column("total_bytes", BigInteger, nullable=False, doc="size of the disk"),
    Column("seen_at", UtcTime, nullable=False, doc="when it was reported"),
    info={"doc": "one row per disk whose free space is reported"},
)

purges = Table(
    "purges",
    metadata,
    Column("id", _Id, primary_key=True, doc="ids sort by time"),
    Column("options", _Json, nullable=False, doc="what was requested, as JSON"),
    Column("removed", _Json, nullable=False, doc="what was removed, as JSON"),
    Column("ended_at", UtcTime, nullable=False, doc="when it ended"),
    info={"doc": "one row per purge: what it removed, and when"},
)

store_identity = Table(
    "store_identity",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False, doc="always 1"),
    Column("id", _Id, nullable=False, doc="the name of the identity file in the store"),
    Column("location", Text, nullable=False, doc="where the store was when this was recorded"),
    Column("recorded_at", UtcTime, nullable=False, doc="when this was recorded"),
    info={"doc": "the object store that holds the ledger's files: at most one row"},
)
