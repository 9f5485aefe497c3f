"""Create the ledger.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from jobs.ids import first_id

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# The types when this migration was written. Not from jobs/schema.py, because a migration must not change.
MOMENT = sa.DateTime(timezone=True).with_variant(sa.String(23), "sqlite")
DOCUMENT = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
ID = sa.String(16)

WEEK_SECONDS = 7 * 86_400

VIEW = """
CREATE VIEW results AS
SELECT predictions.job_id AS job, jobs.key, predictions.name, predictions.label, predictions.confidence,
    predictions.error, jobs.model_id AS model, jobs.finished_at, predictions.alternatives
FROM predictions JOIN jobs ON jobs.id = predictions.job_id
WHERE jobs.shadow_of IS NULL
"""


#: The project of everything that was not given another, and that of shadows, which takes its turn last.
PROJECTS = (
    "INSERT INTO projects (name, created_at) VALUES ('default', CURRENT_TIMESTAMP)",
    "INSERT INTO projects (name, turn, created_at) VALUES ('shadows', NULL, CURRENT_TIMESTAMP)",
)


def upgrade() -> None:
    """Create the tables, the view, and on PostgreSQL the two partitions that every ledger has."""
    # Alembic makes its own table, which also says which older code can use the ledger.
    op.add_column("alembic_version", sa.Column("compatible_since", sa.String(32)))
    op.create_table(
        "dataset_versions",
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("classes", DOCUMENT, nullable=False),
        sa.Column("summary", DOCUMENT, nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("by_reference", sa.Boolean(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", "version", name="pk_dataset_versions"),
    )
    op.create_table(
        "schedules",
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("cron", sa.Text()),
        sa.Column("after_corrections", sa.Integer()),
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.Column("always", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("dataset", name="pk_schedules"),
    )
    op.create_table(
        "backbones",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("input_spec", DOCUMENT, nullable=False),
        sa.Column("features", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=False),
        sa.Column("licence", sa.Text()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_backbones"),
    )
    op.create_table(
        "gate_limits",
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("limits", DOCUMENT, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("dataset", name="pk_gate_limits"),
    )
    op.create_table(
        "models",
        sa.Column("id", ID, nullable=False),
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("classes", DOCUMENT, nullable=False),
        sa.Column("input_spec", DOCUMENT, nullable=False),
        sa.Column("logits", sa.Boolean(), nullable=False),
        sa.Column("accuracy", sa.Double()),
        sa.Column("metrics", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
        sa.UniqueConstraint("sha256", name="uq_models_sha256"),
    )
    op.create_table(
        "aliases",
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("moved_at", MOMENT, nullable=False),
        sa.Column("pinned_at", MOMENT),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_aliases_model_id"),
        sa.PrimaryKeyConstraint("dataset", "name", name="pk_aliases"),
    )
    op.create_table(
        "training_runs",
        sa.Column("id", ID, nullable=False),
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("dataset_version", sa.Integer()),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("recipe", DOCUMENT, nullable=False),
        sa.Column("data_source", sa.Text(), nullable=False),
        sa.Column("data_fingerprint", sa.String(64), nullable=False),
        sa.Column("data", DOCUMENT),
        sa.Column("slot", MOMENT),
        sa.Column("corrections_seen", MOMENT),
        sa.Column("input_file_id", ID),
        sa.Column("delete_input", sa.Boolean()),
        sa.Column("active", sa.Integer()),
        sa.Column("token", ID),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", MOMENT),
        sa.Column("requested_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("expected_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.Column("model_id", ID),
        sa.Column("verdict", sa.Text()),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_training_runs_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_training_runs"),
    )
    op.create_index("ux_training_runs_active", "training_runs", ["dataset", "active"], unique=True)
    op.create_index(
        "ux_training_runs_corrections_seen", "training_runs", ["dataset", "corrections_seen"], unique=True
    )
    op.create_index("ux_training_runs_slot", "training_runs", ["dataset", "slot"], unique=True)
    op.create_table(
        "training_epochs",
        sa.Column("run_id", ID, nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("loss", sa.Double(), nullable=False),
        sa.Column("accuracy", sa.Double(), nullable=False),
        sa.Column("val_loss", sa.Double(), nullable=False),
        sa.Column("val_accuracy", sa.Double(), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["run_id"], ["training_runs.id"], name="fk_training_epochs_run_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("run_id", "epoch", name="pk_training_epochs"),
    )
    op.create_table(
        "evaluations",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("data_fingerprint", sa.String(64), nullable=False),
        sa.Column("part", sa.String(8), nullable=False),
        sa.Column("dataset", sa.String(64), nullable=False),
        sa.Column("dataset_version", sa.Integer()),
        sa.Column("measures", DOCUMENT, nullable=False),
        sa.Column("answers", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_evaluations_model_id"),
        sa.PrimaryKeyConstraint("model_id", "data_fingerprint", name="pk_evaluations"),
    )
    op.create_table(
        "model_runtimes",
        sa.Column("model_id", ID, nullable=False),
        sa.Column("runtime", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("image_microseconds", sa.Double()),
        sa.Column("threads", sa.Integer(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("agreement", sa.Double()),
        sa.Column("confidence_difference", sa.Double()),
        sa.Column("version", sa.Text()),
        sa.Column("sha256", sa.String(64)),
        sa.Column("size_bytes", sa.BigInteger()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["model_id"], ["models.id"], name="fk_model_runtimes_model_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("model_id", "runtime", name="pk_model_runtimes"),
    )
    op.create_table(
        "verdicts",
        sa.Column("id", ID, nullable=False),
        sa.Column("run_id", ID),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("champion_id", ID),
        sa.Column("promote", sa.Boolean(), nullable=False),
        sa.Column("forced", sa.Boolean(), nullable=False),
        sa.Column("checks", DOCUMENT, nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["champion_id"], ["models.id"], name="fk_verdicts_champion_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_verdicts_model_id"),
        sa.ForeignKeyConstraint(["run_id"], ["training_runs.id"], name="fk_verdicts_run_id"),
        sa.PrimaryKeyConstraint("id", name="pk_verdicts"),
    )
    op.create_index("ix_verdicts_model_id", "verdicts", ["model_id"])
    op.create_table(
        "promotions",
        sa.Column("id", ID, nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("previous_id", ID),
        sa.Column("how", sa.String(16), nullable=False),
        sa.Column("verdict_id", ID),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_promotions_model_id"),
        sa.ForeignKeyConstraint(["previous_id"], ["models.id"], name="fk_promotions_previous_id"),
        sa.ForeignKeyConstraint(["verdict_id"], ["verdicts.id"], name="fk_promotions_verdict_id"),
        sa.PrimaryKeyConstraint("id", name="pk_promotions"),
    )
    op.create_table(
        "corrections",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("predicted", sa.Text()),
        sa.Column("confidence", sa.REAL()),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("image_sha256", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_corrections_model_id"),
        sa.PrimaryKeyConstraint("job_id", "index", name="pk_corrections"),
    )
    op.create_index("ix_corrections_image_sha256", "corrections", ["image_sha256"])
    op.create_index("ix_corrections_model_id", "corrections", ["model_id"])
    op.create_table(
        "projects",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("turn", sa.Double(), server_default="0"),
        sa.Column("intake_at", MOMENT),
        sa.Column("webhook_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_projects"),
    )
    op.create_table(
        "jobs",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("key", sa.Text()),
        sa.Column("fingerprint", sa.String(64)),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("model_id", ID, nullable=False),
        sa.Column("total", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("succeeded", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("failed", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("error", sa.Text()),
        sa.Column("error_limit", sa.BigInteger()),
        sa.Column("error_rate_limit", sa.Double()),
        sa.Column("error_rate_sample", sa.BigInteger()),
        sa.Column("top_k", sa.Integer()),
        sa.Column("unlisted", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.Column("retry_of", ID),
        sa.Column("shadow_of", ID),
        sa.Column("traceparent", sa.String(55)),
        sa.Column("paused_at", MOMENT),
        sa.Column("purged_at", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("touched_at", MOMENT, nullable=False),
        sa.Column("submitted_at", MOMENT),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_jobs_model_id"),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_jobs_project"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("key", "project", name="uq_jobs_key_project"),
    )
    op.create_index("ix_jobs_created_at", "jobs", ["created_at"])
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.create_index("ix_jobs_project_created_at", "jobs", ["project", "created_at"])
    op.create_index(
        "ix_jobs_listed",
        "jobs",
        ["project", "created_at"],
        postgresql_where=sa.text("NOT unlisted"),
        sqlite_where=sa.text("unlisted = 0"),
    )
    op.create_index(
        "ix_jobs_open",
        "jobs",
        ["state"],
        postgresql_where=sa.text("state IN ('receiving', 'running')"),
        sqlite_where=sa.text("state IN ('receiving', 'running')"),
    )
    op.create_index(
        "ux_jobs_shadow_of_model_id",
        "jobs",
        ["shadow_of", "model_id"],
        unique=True,
        postgresql_where=sa.text("shadow_of IS NOT NULL"),
        sqlite_where=sa.text("shadow_of IS NOT NULL"),
    )
    op.create_table(
        "chunks",
        sa.Column("id", ID, nullable=False),
        sa.Column("job_id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("first_index", sa.BigInteger(), nullable=False),
        sa.Column("images", sa.Integer(), nullable=False),
        sa.Column("payload", sa.Text(), nullable=False),
        sa.Column("payload_digest", sa.String(64), nullable=False),
        sa.Column("payload_offset", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("releases", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crashes", sa.Integer(), server_default="0", nullable=False),
        sa.Column("crash_code", sa.String(32)),
        sa.Column("token", ID),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", MOMENT),
        sa.Column("not_before", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.Column("error", sa.Text()),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_chunks_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_chunks"),
    )
    op.create_index(
        "ix_chunks_claimed",
        "chunks",
        ["lease_until"],
        postgresql_where=sa.text("state = 'claimed'"),
        sqlite_where=sa.text("state = 'claimed'"),
    )
    op.create_index(
        "ix_chunks_due",
        "chunks",
        ["project", sa.literal_column("priority DESC"), "created_at", "first_index"],
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_chunks_job_id_state_first_index", "chunks", ["job_id", "state", "first_index"])
    op.create_table(
        "files",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_files_project"),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_project_id", "files", ["project", "id"])
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("old_digest", sa.String(64)),
        sa.Column("old_until", MOMENT),
        sa.Column("only_local", sa.Boolean(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("expires_at", MOMENT),
        sa.Column("revoked_at", MOMENT),
        sa.Column("last_used_at", MOMENT),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_api_keys_project"),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
        sa.UniqueConstraint("old_digest", name="uq_api_keys_old_digest"),
    )
    op.create_table(
        "batches",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("request", DOCUMENT, nullable=False),
        sa.Column("file_id", ID),
        sa.Column("key_id", ID),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("releases", sa.Integer(), server_default="0", nullable=False),
        sa.Column("unanswered", sa.Double(), server_default="0", nullable=False),
        sa.Column("token", ID),
        sa.Column("owner", sa.Text()),
        sa.Column("lease_until", MOMENT),
        sa.Column("not_before", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_batches_job_id", ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_batches_key_id"),
        sa.PrimaryKeyConstraint("job_id", name="pk_batches"),
    )
    op.create_index(
        "ix_batches_open",
        "batches",
        ["project", "created_at"],
        postgresql_where=sa.text("state <> 'done'"),
        sqlite_where=sa.text("state <> 'done'"),
    )
    op.create_table(
        "batch_urls",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("urls", DOCUMENT, nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["batches.job_id"], name="fk_batch_urls_job_id", ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("job_id", name="pk_batch_urls"),
    )
    op.create_table(
        "batch_metadata",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_batch_metadata_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "name", name="pk_batch_metadata"),
    )
    op.create_index(
        "ix_batch_metadata_project_name_value_job_id",
        "batch_metadata",
        ["project", "name", "value", "job_id"],
    )
    op.create_table(
        "review_claims",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("holder", sa.String(64), nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_review_claims_job_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "index", name="pk_review_claims"),
    )
    op.create_index("ix_review_claims_until", "review_claims", ["until"])
    op.create_table(
        "sessions",
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("key_id", ID, nullable=False),
        sa.Column("is_link", sa.Boolean(), nullable=False),
        sa.Column("expires_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_sessions_key_id"),
        sa.PrimaryKeyConstraint("digest", name="pk_sessions"),
    )
    op.create_table(
        "audit",
        sa.Column("id", ID, nullable=False),
        sa.Column("key_id", ID),
        sa.Column("address", sa.Text()),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["key_id"], ["api_keys.id"], name="fk_audit_key_id"),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_table(
        "webhook_endpoints",
        sa.Column("id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("events", DOCUMENT, nullable=False),
        sa.Column("secret", sa.Text(), nullable=False),
        sa.Column("old_secret", sa.Text()),
        sa.Column("old_until", MOMENT),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("disabled_at", MOMENT),
        sa.ForeignKeyConstraint(["project"], ["projects.name"], name="fk_webhook_endpoints_project"),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_endpoints"),
    )
    op.create_index(
        "ix_webhook_endpoints_of_batches",
        "webhook_endpoints",
        ["project"],
        unique=True,
        postgresql_where=sa.text("url IS NULL"),
        sqlite_where=sa.text("url IS NULL"),
    )
    op.create_table(
        "webhook_deliveries",
        sa.Column("id", ID, nullable=False),
        sa.Column("endpoint_id", ID, nullable=False),
        sa.Column("project", sa.String(64), server_default="default", nullable=False),
        sa.Column("url", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("token", ID),
        sa.Column("due_at", MOMENT, nullable=False),
        sa.Column("status", sa.Integer()),
        sa.Column("error", sa.Text()),
        sa.Column("created_at", MOMENT, nullable=False),
        sa.Column("finished_at", MOMENT),
        sa.ForeignKeyConstraint(
            ["endpoint_id"],
            ["webhook_endpoints.id"],
            name="fk_webhook_deliveries_endpoint_id",
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_webhook_deliveries"),
    )
    op.create_index(
        "ix_webhook_deliveries_due",
        "webhook_deliveries",
        ["project", "due_at"],
        postgresql_where=sa.text("state = 'pending'"),
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index("ix_webhook_deliveries_endpoint_id", "webhook_deliveries", ["endpoint_id", "id"])
    op.create_table(
        "predictions",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("label", sa.Text()),
        sa.Column("confidence", sa.REAL()),
        sa.Column("error", sa.String(32)),
        sa.Column("detail", sa.Text()),
        sa.Column("alternatives", DOCUMENT),
        sa.PrimaryKeyConstraint("job_id", "index", name="pk_predictions"),
        postgresql_partition_by="RANGE (job_id)",
        sqlite_with_rowid=False,
    )
    for name, column, rows in (
        ("ix_predictions_unsure", "confidence", "confidence < 0.9"),
        ("ix_predictions_errors", "error", "error IS NOT NULL"),
    ):
        where = sa.text(rows)
        columns = ["job_id", column, "index"]
        op.create_index(name, "predictions", columns, postgresql_where=where, sqlite_where=where)
    op.create_table(
        "known_labels",
        sa.Column("job_id", ID, nullable=False),
        sa.Column("index", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("job_id", "index", name="pk_known_labels"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "locks",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("until", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_locks"),
    )
    op.create_table(
        "counters",
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("label", sa.String(64), nullable=False),
        sa.Column("shard", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "label", "shard", name="pk_counters"),
    )
    op.create_table(
        "workers",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("processes", sa.Integer(), nullable=False),
        sa.Column("children", DOCUMENT, nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("problem", sa.Text()),
        sa.Column("model_problem", sa.Text()),
        sa.Column("started_at", MOMENT, nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_workers"),
    )
    op.create_table(
        "disks",
        sa.Column("name", sa.String(16), nullable=False),
        sa.Column("free_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("seen_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_disks"),
    )
    op.create_table(
        "purges",
        sa.Column("id", ID, nullable=False),
        sa.Column("options", DOCUMENT, nullable=False),
        sa.Column("removed", DOCUMENT, nullable=False),
        sa.Column("ended_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_purges"),
    )
    op.create_table(
        "store_identity",
        sa.Column("one", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", ID, nullable=False),
        sa.Column("location", sa.Text(), nullable=False),
        sa.Column("recorded_at", MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("one", name="pk_store_identity"),
    )
    for statement in PROJECTS:
        op.execute(statement)
    op.execute(VIEW)
    if op.get_bind().dialect.name == "postgresql":
        # `labelmill db upgrade` adds the weeks between the two (`jobs.ledger.partitions`).
        this_week = first_id(time.time() // WEEK_SECONDS * WEEK_SECONDS)
        op.execute(
            "CREATE TABLE predictions_first PARTITION OF predictions"
            f" FOR VALUES FROM (MINVALUE) TO ('{this_week}')"
        )
        op.execute("CREATE TABLE predictions_default PARTITION OF predictions DEFAULT")
