"""Celery is configured as docs/decisions.md says, and every setting is documented there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from kombu import Queue

from jobs.queue import make_app
from jobs.settings import Settings
from labelmill.local.stack import worker_command

DECISIONS = Path(__file__).parents[2] / "docs" / "decisions.md"

#: Settings that every application has, which need no reason.
_PLAIN = {"broker_url", "broker_transport_options", "deprecated_settings"}

LEASE_SECONDS = 200.0


def chapter() -> str:
    """Return the section of docs/decisions.md on Celery's settings."""
    [_, rest] = DECISIONS.read_text().split("### Celery's settings\n")
    return rest.partition("\n### ")[0]


def table() -> dict[str, str]:
    """Return each setting with its value, in the document's words."""
    said: dict[str, str] = {}
    for line in chapter().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        names = re.findall(r"`(\w+)`", cells[1]) if len(cells) > 3 else []
        values = cells[2].split(", ") if names else []
        if len(values) != len(names):  # one value for all of them
            values = [cells[2]] * len(names)
        said |= dict(zip(names, values, strict=True))
    return said


SAID = table()

#: The values in the document that are not a number with a unit.
WORDS = {
    "true": lambda value: value is True,
    "false": lambda value: value is False,
    "none": lambda value: value is None,
    "UTC": lambda value: value in ("UTC", True),
    "json only": lambda value: value in ("json", ["json"]),
    "`labelmill:`": lambda value: value == "labelmill:",
    "8 GiB": lambda value: value == 8 * 1024 * 1024,  # in KiB, as in Celery
    "three named queues, an exchange each": lambda value: is_of_our_queues(value),
}


def is_of_our_queues(value: Any) -> bool:
    """Tell whether this is the default queue, all queues, or a route to each."""
    if isinstance(value, str):
        return value == "labelmill.classify"
    if isinstance(value, dict):
        names = ["labelmill.classify", "labelmill.retrain", "labelmill.webhooks"]
        return [route["queue"] for route in value.values()] == names
    queues: list[Queue] = value
    return len({(each.name, each.exchange.name, each.routing_key) for each in queues}) == 3 and all(
        each.name == each.exchange.name == each.routing_key for each in queues
    )


def is_said(words: str, value: Any) -> bool:
    """Tell whether these words of the document describe this value."""
    if words in WORDS:
        return WORDS[words](value)
    number = re.fullmatch(r"([\d.]+)( s| leases| of the lease)?", words)
    assert number, f"what does {words!r} mean?"
    times = LEASE_SECONDS if "lease" in (number[2] or "") else 1.0
    return not isinstance(value, bool) and value == pytest.approx(float(number[1]) * times)


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Celery:
    home = tmp_path_factory.mktemp("home")
    return make_app(Settings.load(home=home, lease_seconds=LEASE_SECONDS))


@pytest.mark.parametrize("name", SAID)
def test_each_setting_is_what_the_document_says(app: Celery, name: str) -> None:
    transport = app.conf.broker_transport_options
    # Set explicitly, because another version may change Celery's default.
    given = transport if name in transport else app.conf.changes
    assert name in given, f"{name} is not set"
    assert is_said(SAID[name], given[name]), f"{name} is {given[name]!r}, and not {SAID[name]!r}"


def test_the_document_tells_of_each_setting(app: Celery) -> None:
    assert {*app.conf.changes, *app.conf.broker_transport_options} - _PLAIN == set(SAID)


def test_a_workers_command_has_the_options_of_the_document() -> None:
    said = re.findall(r"--without-\w+", chapter())
    command = worker_command(queue="a queue", processes=2, name="worker")
    assert said
    assert [word for word in command if word.startswith("--without")] == said
