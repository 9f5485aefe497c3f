"""What one types in an installation: to start a part of it, to migrate its ledger, to run a command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from jobs.settings import Settings


@dataclass(frozen=True, slots=True)
class Commands:
    """The commands of one kind of installation."""

    run: str  # before the name of any other command
    run_with_tensorflow: str  # before that of one that needs TensorFlow
    worker: str
    trainer: str
    beat: str
    api: str
    redis: str
    postgresql: str
    upgrade: str


_OWN: Final = Commands(
    run="labelmill",
    run_with_tensorflow="labelmill",
    worker="labelmill worker",
    trainer="labelmill worker --trainer",
    beat="celery -A worker.app beat",
    api="labelmill serve",
    redis="start Redis at LABELMILL_BROKER_URL, or correct the URL; test it: redis-cli -u URL ping",
    postgresql="start PostgreSQL at LABELMILL_LEDGER_URL (its log says why it ended), or correct the URL; "
    "test it: pg_isready -d URL",
    upgrade="labelmill db upgrade",
)

_LOCAL: Final = replace(
    _OWN, worker="labelmill up", trainer="labelmill up", beat="labelmill up", api="labelmill up"
)

_COMPOSE: Final = Commands(
    run="docker compose run --rm producer",
    run_with_tensorflow="docker compose run --rm trainer",
    worker="docker compose up --detach worker",
    trainer="docker compose up --detach trainer",
    beat="docker compose up --detach beat",
    api="docker compose up --detach api",
    redis="docker compose up --detach redis, then docker compose logs redis",
    postgresql="docker compose up --detach db, then docker compose logs db",
    upgrade="sh deploy/compose/upgrade",
)


def commands_of(settings: Settings) -> Commands:
    """Return the commands of this installation: the compose file's, `labelmill up`'s, or one's own."""
    if settings.deployment == "compose":
        return _COMPOSE
    return _LOCAL if settings.embedded_broker else _OWN
