"""The migration after the latest one, which a test writes to see what an upgrade does to a ledger in use."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from sqlalchemy.engine import Connection

import migrations
from jobs.ledger import database
from jobs.ledger.database import REVISION
from labelmill.client import migrating
from labelmill.client.migrating import alembic_config

if TYPE_CHECKING:
    from alembic.config import Config

#: The number of the next version's migration.
NEXT: Final = f"{int(REVISION) + 1:04}"

_MIGRATION: Final = """
from alembic import op

revision, down_revision = {next!r}, {latest!r}

def upgrade():
    for statement in {statements!r}:
        op.execute(statement)
"""


def become_next_version(monkeypatch: pytest.MonkeyPatch, folder: Path, *statements: str) -> None:
    """Make this process the next version of Labelmill: its last migration, `NEXT`, runs these statements."""
    source = _MIGRATION.format(next=NEXT, latest=REVISION, statements=statements)
    (folder / f"{NEXT}_next.py").write_text(source)
    ours = Path(migrations.__file__).parent / "versions"

    def config_with_both(connection: Connection) -> Config:
        config = alembic_config(connection)
        config.set_main_option("version_locations", f"{ours}\n{folder}")
        config.set_main_option("path_separator", "newline")
        return config

    monkeypatch.setattr(migrating, "alembic_config", config_with_both)
    for module in (migrating, database):
        monkeypatch.setattr(module, "REVISION", NEXT)
