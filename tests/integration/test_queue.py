"""The queue: each task on its own, ids only, and nothing that grows."""

from __future__ import annotations

import base64
import json

import pytest
from celery import Celery

from jobs.ids import new_id
from jobs.queue import CLASSIFY_QUEUE, RETRAIN_QUEUE, RETRAIN_TASK, Bell
from jobs.settings import Settings
from tests.conftest import Broker

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


def test_a_message_goes_to_its_own_queue_and_no_other(app: Celery, bell: Bell, broker: Broker) -> None:
    bell.ring([new_id(), new_id()])
    app.send_task(RETRAIN_TASK)

    assert broker.waiting(CLASSIFY_QUEUE) == 2
    assert broker.waiting(RETRAIN_QUEUE) == 1
    assert bell.waiting() == 2


def test_a_message_holds_the_chunks_id_in_json_and_nothing_else(bell: Bell, broker: Broker) -> None:
    chunk_id = new_id()
    bell.ring([chunk_id])

    [message] = map(json.loads, broker.messages())
    assert message["content-type"] == "application/json"
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([chunk_id], {})


def test_an_empty_queue_has_nothing_waiting(bell: Bell, broker: Broker) -> None:  # noqa: ARG001
    assert bell.waiting() == 0


def test_only_json_is_accepted_and_no_result_is_kept(app: Celery) -> None:
    assert app.conf.accept_content == ["json"]
    assert app.conf.result_backend is None
    assert app.conf.task_ignore_result


def test_time_limits_end_before_the_lease_and_the_lease_before_redelivery(
    app: Celery, settings: Settings
) -> None:
    visibility = app.conf.broker_transport_options["visibility_timeout"]
    assert app.conf.task_soft_time_limit < app.conf.task_time_limit < settings.lease_seconds < visibility


def test_a_broker_that_is_away_silences_the_bell_and_raises_nothing(settings: Settings) -> None:
    from jobs.queue import make_app

    gone = settings.model_copy(update={"broker_url": f"redis+socket://{settings.home}/nobody.sock"})
    bell = Bell(make_app(gone))

    assert bell.ring([new_id(), new_id()]) == 0
    assert bell.silent
