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
    and_,
    bindparam,
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

#: One row per version of a dataset, added when its images are in the store.
dataset_versions = Table(
    "dataset_versions",
    metadata,
    Column("dataset", _Name, primary_key=True),
    Column("version", Integer, primary_key=True, autoincrement=False),  # 1, 2, ...
    Column("fingerprint", String(64), nullable=False),  # of all images, their labels and splits
    Column("classes", _Json, nullable=False),
    Column("summary", _Json, nullable=False),  # counts, for people; see `labelmill.datasets.summary`
    Column("manifest", Text, nullable=False),  # the store's key of the list of images
    Column("by_reference", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

#: When a dataset's model is trained; at no time if it has no row.
schedules = Table(
    "schedules",
    metadata,
    Column("dataset", _Name, primary_key=True),
    Column("cron", Text),  # five fields, in UTC
    Column("after_corrections", Integer),  # start a run when so many new corrections have arrived
    Column("request", _Json, nullable=False),  # what the run is to train, as a person would request it
    Column("changed_at", UtcTime, nullable=False),
)

#: A dataset's own limits of the promotion gate. The defaults of GateLimits apply where it has none.
gate_limits = Table(
    "gate_limits",
    metadata,
    Column("dataset", _Name, primary_key=True),
    Column("limits", _Json, nullable=False),  # fields of GateLimits; null switches one off
    Column("changed_at", UtcTime, nullable=False),
)

#: One row per model: an immutable trained version. Its file is in the store under its SHA-256.
models = Table(
    "models",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("dataset", _Name, nullable=False),  # whose champion it can become
    Column("architecture", Text, nullable=False),
    Column("sha256", String(64), nullable=False, unique=True),
    Column("size_bytes", BigInteger, nullable=False),
    Column("classes", _Json, nullable=False),
    Column("input_spec", _Json, nullable=False),
    Column("logits", Boolean, nullable=False),  # it answers logits: softmax is added
    Column("accuracy", Double),
    Column("metrics", _Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

#: A name that moves from model to model. `champion` is the model that new jobs are pinned to; the primary key
#: ensures that each dataset has only one.
aliases = Table(
    "aliases",
    metadata,
    Column("dataset", _Name, primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("moved_at", UtcTime, nullable=False),
    Column("pinned_at", UtcTime),  # since when no training run replaces it; empty if one may
)

#: One row per training run, with its data, metrics and verdict.
training_runs = Table(
    "training_runs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("dataset", _Name, nullable=False),
    Column("dataset_version", Integer),  # empty until the data is loaded
    Column("state", String(16), nullable=False),
    Column("recipe", _Json, nullable=False),
    Column("data_source", Text, nullable=False),  # empty until the data is loaded
    Column("data_fingerprint", String(64), nullable=False),  # of all its data; empty until it is loaded
    Column("data", _Json),  # how many images of each kind, the corrections among them
    Column("slot", UtcTime),  # its scheduled time; empty if a person requested it
    Column("corrections_seen", UtcTime),  # when the newest of the corrections that triggered it was made
    Column("active", Integer),  # 1 while it waits or runs, else empty; unique, so one run per dataset
    Column("token", _Id),  # the fencing token of the trainer that claimed it
    Column("owner", Text),  # who claimed it, for people to read
    Column("lease_until", UtcTime),
    Column("requested_at", UtcTime, nullable=False),
    Column("started_at", UtcTime),  # empty until a trainer claims it
    Column("finished_at", UtcTime),
    Column("model_id", ForeignKey("models.id")),
    Column("verdict", Text),
    Column("error", Text),
    Index("ux_training_runs_slot", "dataset", "slot", unique=True),
    Index("ux_training_runs_active", "dataset", "active", unique=True),
    Index("ux_training_runs_corrections_seen", "dataset", "corrections_seen", unique=True),
)

training_epochs = Table(
    "training_epochs",
    metadata,
    Column("run_id", ForeignKey("training_runs.id", ondelete="CASCADE"), primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("loss", Double, nullable=False),
    Column("accuracy", Double, nullable=False),
    Column("val_loss", Double, nullable=False),
    Column("val_accuracy", Double, nullable=False),
    Column("seconds", Double, nullable=False),
)

#: A model's evaluation on one set: `jobs.models.evaluation` as JSON, and the model's answer to each image.
evaluations = Table(
    "evaluations",
    metadata,
    Column("model_id", ForeignKey("models.id"), primary_key=True),
    Column("data_fingerprint", String(64), primary_key=True),  # of the evaluation images and their labels
    Column("part", String(8), nullable=False),  # the test set or the live set
    Column("dataset", _Name, nullable=False),
    Column("dataset_version", Integer),
    Column("measures", _Json, nullable=False),
    Column("answers", LargeBinary, nullable=False),  # see `jobs.models.evaluation.pack_answers`
    Column("created_at", UtcTime, nullable=False),
)

#: The gate's decision about a model, check by check.
verdicts = Table(
    "verdicts",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("run_id", ForeignKey("training_runs.id")),  # empty if a person asked
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True),
    Column("champion_id", ForeignKey("models.id")),  # the champion that it was compared with
    Column("promote", Boolean, nullable=False),
    Column("forced", Boolean, nullable=False),
    Column("checks", _Json, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

#: The moves of the champion alias, in the order of their ids.
promotions = Table(
    "promotions",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    Column("previous_id", ForeignKey("models.id")),  # the champion before; empty for the first
    Column("how", String(16), nullable=False),  # retrain, promote or rollback
    Column("verdict_id", ForeignKey("verdicts.id")),
    Column("created_at", UtcTime, nullable=False),
)

#: The true label of an image, given by a person. No foreign key to the job, because a correction outlives its
#: job.
corrections = Table(
    "corrections",
    metadata,
    Column("job_id", _Id, primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("label", Text, nullable=False),  # the true label
    Column("predicted", Text),  # the model's label; empty if the image got an error
    Column("confidence", REAL),
    Column("model_id", ForeignKey("models.id"), nullable=False, index=True),  # the model that predicted
    Column("image_sha256", String(64), nullable=False, index=True),  # names its copy in the store
    Column("created_at", UtcTime, nullable=False),
)

jobs = Table(
    "jobs",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key", Text, unique=True),  # the submission key
    Column("fingerprint", String(64)),  # of what was submitted under the key
    Column("state", String(16), nullable=False),
    Column("model_id", ForeignKey("models.id"), nullable=False),
    # Counters, updated in the transaction that changes what they count: reading progress is reading one row.
    Column("total", BigInteger, nullable=False, server_default="0"),
    Column("succeeded", BigInteger, nullable=False, server_default="0"),
    Column("failed", BigInteger, nullable=False, server_default="0"),
    Column("error", Text),  # why it failed
    # When to stop early: more images failed than this, or a larger share, once this many have an outcome.
    Column("error_limit", BigInteger),
    Column("error_rate_limit", Double),
    Column("error_rate_sample", BigInteger),
    Column("top_k", Integer),  # how many of the most probable classes each prediction keeps
    Column("retry_of", _Id),  # the job whose unlabelled images these are; it may be purged by now
    # If this is a shadow: the job whose images the challenger classifies again (`jobs.ledger.jobs.shadows`).
    Column("shadow_of", _Id),
    Column("traceparent", String(55)),  # the trace of its submission, as W3C writes it
    Column("paused_at", UtcTime),  # when it was paused; kept if it ends while paused
    Column("purged_at", UtcTime),  # when the removal of its payloads began
    Column("created_at", UtcTime, nullable=False),
    Column("touched_at", UtcTime, nullable=False),  # the producer's last heartbeat while receiving
    Column("submitted_at", UtcTime),
    Column("started_at", UtcTime),
    Column("finished_at", UtcTime),
    Index(None, "created_at"),
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
)

#: A job of at most this many images is small: it gets a higher priority, and its chunk is claimed together
#: with other small ones (`jobs.ledger.jobs.claims`).
SMALL_JOB_IMAGES: Final = 64

chunks = Table(
    "chunks",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), nullable=False),
    Column("first_index", BigInteger, nullable=False),  # of its first image in the job
    Column("images", Integer, nullable=False),
    Column("payload", Text, nullable=False),  # its key in the store
    Column("payload_digest", String(64), nullable=False),  # see `jobs.storage.payloads`
    Column("payload_offset", Integer, nullable=False, server_default="0"),  # its first image in the file
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False, server_default="0"),  # higher ones are claimed first
    Column("attempts", Integer, nullable=False, server_default="0"),  # claims; counted before the work begins
    # How attempts ended without results. `releases`: an unavailable service or a stopped worker, not the
    # chunk's fault. `crashes`: a death, a timeout or an unexpected error, which the chunk may have caused.
    Column("releases", Integer, nullable=False, server_default="0"),
    Column("crashes", Integer, nullable=False, server_default="0"),
    Column("crash_code", String(32)),  # the error code of an image that crashes alone, by the latest crash
    Column("token", _Id),  # the latest claim's fencing token, kept after the end
    Column("owner", Text),  # who claimed it, for people to read
    Column("lease_until", UtcTime),
    Column("not_before", UtcTime),  # back-off: not due before this
    Column("created_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("error", Text),  # how the latest attempt without results ended
    Index("ix_chunks_job_id_state_first_index", "job_id", "state", "first_index"),
    # For the next due chunk. Small, because chunks leave it when they are claimed.
    Index(
        "ix_chunks_due",
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
)

#: The conditions of these indexes, literally: with parameters instead of the states, neither database sees
#: that the index applies, and reads the whole table.
CHUNK_IS_PENDING: Final = text("chunks.state = 'pending'")
CHUNK_IS_CLAIMED: Final = text("chunks.state = 'claimed'")

#: The condition for a chunk that a worker has under a lease that has not run out.
CHUNK_IS_IN_WORK: Final = and_(CHUNK_IS_CLAIMED, chunks.c.lease_until >= db_now())

#: One row per file that was uploaded over HTTP; its bytes are in the store.
files = Table(
    "files",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", Text, nullable=False),  # the owner's name for it
    Column("purpose", String(32), nullable=False),
    Column("size", BigInteger, nullable=False),  # in bytes
    Column("sha256", String(64), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

#: One row per job that was submitted over HTTP: what it is made from, and the lease of the process that takes
#: its images in.
batches = Table(
    "batches",
    metadata,
    Column("job_id", ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("request", _Json, nullable=False),  # as it was sent
    Column("file_id", _Id),  # the uploaded file with the images; no foreign key: it may be deleted later
    Column("state", String(16), nullable=False),  # pending, claimed or done
    Column("attempts", Integer, nullable=False, server_default="0"),  # claims since the latest progress
    Column("token", _Id),  # the fencing token of the latest claim
    Column("owner", Text),  # who claimed it, for people to read
    Column("lease_until", UtcTime),
    Column("not_before", UtcTime),  # back-off: not claimed before this
    Column("created_at", UtcTime, nullable=False),
    Index(
        "ix_batches_open",
        "created_at",
        postgresql_where=text("state <> 'done'"),
        sqlite_where=text("state <> 'done'"),
    ),
)

#: One row per key of the HTTP API. Only the key's SHA-256 is stored.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("created_at", UtcTime, nullable=False),
    Column("expires_at", UtcTime),
    Column("revoked_at", UtcTime),
)

#: One row per change that was made over HTTP: who, what, when.
audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("key_id", ForeignKey("api_keys.id"), nullable=False),
    Column("action", String(64), nullable=False),  # such as "create batch"
    Column("object", Text, nullable=False),  # the id of what was changed
    Column("created_at", UtcTime, nullable=False),
)

#: One row per receiver of webhooks. The row with the id `batches` has the secret that signs messages to the
#: `webhook_url` of batches.
webhook_endpoints = Table(
    "webhook_endpoints",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("url", Text),  # empty in the row `batches`
    Column("events", _Json, nullable=False),  # the types of events that it wants; none: all
    Column("secret", Text, nullable=False),
    Column("old_secret", Text),  # signs too until `old_until`
    Column("old_until", UtcTime),
    Column("created_at", UtcTime, nullable=False),
    Column("disabled_at", UtcTime),  # when it answered 410
)

#: The outbox: one row per event and receiver, written in the transaction of the change that it reports.
webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("id", _Id, primary_key=True),  # the `webhook-id`
    Column("endpoint_id", ForeignKey("webhook_endpoints.id", ondelete="CASCADE"), nullable=False),
    Column("url", Text, nullable=False),
    Column("event", String(32), nullable=False),
    Column("body", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("token", _Id),  # the fencing token of the latest attempt
    Column("due_at", UtcTime, nullable=False),  # the next attempt; while one is made, the end of its lease
    Column("status", Integer),  # of the latest answer
    Column("error", Text),  # why the latest attempt failed
    Column("created_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Index(
        "ix_webhook_deliveries_due",
        "due_at",
        postgresql_where=text("state = 'pending'"),
        sqlite_where=text("state = 'pending'"),
    ),
)

#: The columns that say which images a chunk holds, and where.
PAYLOAD_COLUMNS: Final[tuple[Column[Any], ...]] = (
    *(chunks.c.first_index, chunks.c.images, chunks.c.payload, chunks.c.payload_digest),
    chunks.c.payload_offset,
)

#: The one recorded outcome of an image. The primary key is the last guard against a second one. A foreign key
#: would be checked for every row, and rows are only written by a worker that holds the chunk. On PostgreSQL
#: they are in partitions (`jobs.ledger.partitions`).
predictions = Table(
    "predictions",
    metadata,
    Column("job_id", _Id, primary_key=True),
    Column("index", BigInteger, primary_key=True, autoincrement=False),
    Column("name", Text, nullable=False),
    Column("label", Text),
    Column("confidence", REAL),
    Column("error", String(32)),
    Column("detail", Text),
    Column(
        "alternatives", _Json
    ),  # the most probable classes, if the job asked for them (`jobs.ledger.jobs.outcomes`)
    sqlite_with_rowid=False,
    postgresql_partition_by="RANGE (job_id)",
)

#: The tables with rows of a job, each by the column that says where in the job a row begins, in the order in
#: which they are emptied: as long as a job has chunks, it has all its predictions. A batch goes with its
#: job's row, by a foreign key, and corrections stay.
JOB_PLACES: Final[tuple[Column[Any], ...]] = (chunks.c.first_index, predictions.c.index)

#: Named locks: who holds each, and until when.
locks = Table(
    "locks",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("holder", Text, nullable=False),
    Column("until", UtcTime, nullable=False),
)

#: Counters that only grow and survive a purge. `jobs.ledger.counters` says what is counted.
counters = Table(
    "counters",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("label", String(64), primary_key=True),  # for example an error code
    Column("shard", Integer, primary_key=True, autoincrement=False),  # the counter is the sum over its shards
    Column("value", Double, nullable=False),
)

#: The heartbeats: one row for beat, and for the main process of each worker, trainer or sender of webhooks.
workers = Table(
    "workers",
    metadata,
    Column("name", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("queue", String(64), nullable=False),
    Column("processes", Integer, nullable=False),  # children that have started
    Column("children", _Json, nullable=False),  # the names under which these claim
    Column("version", String(64), nullable=False),  # of Labelmill
    Column("problem", Text),  # what keeps it from working properly, according to its main process
    Column("model_problem", Text),  # why its children cannot load a champion
    Column("started_at", UtcTime, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

disks = Table(
    "disks",
    metadata,
    Column("name", String(16), primary_key=True),  # `ledger` or `store`
    Column("free_bytes", BigInteger, nullable=False),
    Column("total_bytes", BigInteger, nullable=False),
    Column("seen_at", UtcTime, nullable=False),
)

#: One row per purge: what it removed, and when.
purges = Table(
    "purges",
    metadata,
    Column("id", _Id, primary_key=True),
    Column("options", _Json, nullable=False),
    Column("removed", _Json, nullable=False),
    Column("ended_at", UtcTime, nullable=False),
)

#: The object store that holds the ledger's files (`jobs.storage.store_identity`): at most one row.
store_identity = Table(
    "store_identity",
    metadata,
    Column("one", Integer, primary_key=True, autoincrement=False),  # always 1
    Column("id", _Id, nullable=False),  # the name of the file in the store
    Column("location", Text, nullable=False),  # where the store was then, for people to read
    Column("recorded_at", UtcTime, nullable=False),
)
