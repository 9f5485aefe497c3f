"""Fixes for the compose file: the commands that its operator types."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from labelmill.operations.doctor.findings import Finding

#: Patterns in a fix, and what replaces them, in this order.
_COMMANDS: Final = (
    (
        r"start Redis at LABELMILL_BROKER_URL.*",
        "docker compose up --detach redis, then docker compose logs redis",
    ),
    (
        r"start PostgreSQL at LABELMILL_LEDGER_URL.*",
        "docker compose up --detach db, then docker compose logs db",
    ),
    (r"labelmill worker --trainer", "docker compose up --detach trainer"),
    (r"labelmill worker\b(?!s)", "docker compose up --detach worker"),
    (r"celery -A worker.app beat", "docker compose up --detach beat"),
    (r"labelmill serve", "docker compose up --detach api"),
    (r"labelmill db upgrade", "sh deploy/compose/upgrade"),
    (r"labelmill train\b", "docker compose run --rm trainer train"),
    (r"(?<!docker compose )\blabelmill (?=[a-z])", "docker compose run --rm producer "),
)


def in_compose(finding: Finding) -> Finding:
    """Return the finding with a fix that names the compose file's services and scripts."""
    fix = finding.fix
    if fix is not None:
        for pattern, command in _COMMANDS:
            fix = re.sub(pattern, command, fix)
    return replace(finding, fix=fix)
