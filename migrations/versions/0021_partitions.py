"""Give `predictions` partitions by week on PostgreSQL, so that a purge removes a week's rows at once.

All existing rows stay in the first partition. `labelmill db upgrade` first checks that their jobs' ids are
within its bounds (`migrations.bounding`): the check reads all rows, and during the migration readers would
wait for it. Processes of the previous version keep working.

Revision ID: 0021
Revises: 0020
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from migrations.bounding import BOUND, bound_of

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

VIEW = """
CREATE OR REPLACE VIEW results AS
SELECT predictions.job_id AS job, jobs.key, predictions.name, predictions.label, predictions.confidence,
    predictions.error, jobs.model_id AS model, jobs.finished_at, predictions.alternatives
FROM {table} AS predictions JOIN jobs ON jobs.id = predictions.job_id
WHERE jobs.shadow_of IS NULL
"""

KEY = 'CONSTRAINT pk_predictions PRIMARY KEY (job_id, "index")'


def upgrade() -> None:
    """Make the table a partition of a new one, which takes over its name, its rights and its view."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute("CREATE TABLE predictions_new (LIKE predictions) PARTITION BY RANGE (job_id)")
    op.execute(f"ALTER TABLE predictions_new ADD {KEY.replace('pk_predictions', 'pk_predictions_new')}")
    copy_rights(connection, source="predictions", target="predictions_new")
    # The view first, as its readers do: otherwise a reader and this migration could wait for each other.
    op.execute(VIEW.format(table="predictions_new"))
    op.execute("LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE")
    bound = bound_of(connection)
    op.execute("ALTER TABLE predictions RENAME TO predictions_first")
    op.execute("ALTER TABLE predictions_first RENAME CONSTRAINT pk_predictions TO pk_predictions_first")
    op.execute("ALTER TABLE predictions_new RENAME TO predictions")
    op.execute("ALTER TABLE predictions RENAME CONSTRAINT pk_predictions_new TO pk_predictions")
    op.execute(
        "ALTER TABLE predictions ATTACH PARTITION predictions_first"
        f" FOR VALUES FROM (MINVALUE) TO ('{bound}')"
    )
    op.execute(f"ALTER TABLE predictions_first DROP CONSTRAINT IF EXISTS {BOUND}")
    op.execute("CREATE TABLE predictions_default PARTITION OF predictions DEFAULT")


def downgrade() -> None:
    """Copy all rows into one table."""
    connection = op.get_bind()
    if connection.dialect.name != "postgresql":
        return
    op.execute("CREATE TABLE predictions_plain (LIKE predictions)")
    op.execute("INSERT INTO predictions_plain SELECT * FROM predictions")
    copy_rights(connection, source="predictions", target="predictions_plain")
    op.execute(VIEW.format(table="predictions_plain"))
    op.execute("DROP TABLE predictions")
    op.execute("ALTER TABLE predictions_plain RENAME TO predictions")
    op.execute(f"ALTER TABLE predictions ADD {KEY}")


def copy_rights(connection: sa.Connection, *, source: str, target: str) -> None:
    """Give everybody but the owner the same rights on the target table as on the source table."""
    rights = sa.text(
        "SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END"
        " FROM pg_class, aclexplode(relacl) WHERE oid = to_regclass(:table) AND grantee <> relowner"
    )
    # A new table has the default rights, which may be more.
    for right, role in connection.execute(rights, {"table": target}).all():
        op.execute(f"REVOKE {right} ON {target} FROM {role}")
    for right, role in connection.execute(rights, {"table": source}).all():
        op.execute(f"GRANT {right} ON {target} TO {role}")
