"""In the compose file, the doctor's fixes are commands that an operator can type there."""

from __future__ import annotations

import pytest

from labelmill.operations.doctor.compose import in_compose
from labelmill.operations.doctor.findings import problem


@pytest.mark.parametrize(
    ("fix", "typed"),
    [
        ("labelmill worker", "docker compose up --detach worker"),
        (
            "labelmill workers, then read its log",
            "docker compose run --rm producer workers, then read its log",
        ),
        (
            "labelmill worker --trainer, or labelmill runs cancel 06h0",
            "docker compose up --detach trainer, or docker compose run --rm producer runs cancel 06h0",
        ),
        ("labelmill train", "docker compose run --rm trainer train"),
        ("labelmill db upgrade", "sh deploy/compose/upgrade"),
        (
            "start Redis at LABELMILL_BROKER_URL, or correct the URL; test it: redis-cli -u URL ping",
            "docker compose up --detach redis, then docker compose logs redis",
        ),
        (
            "labelmill keys create anna --role submit; labelmill keys revoke 06h0",
            "docker compose run --rm producer keys create anna --role submit; "
            "docker compose run --rm producer keys revoke 06h0",
        ),
        ("see ledger", "see ledger"),
    ],
)
def test_a_fix_names_services_and_scripts(fix: str, typed: str) -> None:
    assert in_compose(problem("it is broken", fix=fix)).fix == typed
