"""The queue: each task on its own, ids only, and nothing that grows."""

from __future__ import annotations

import base64
import json

import pytest
from celery import Celery

from jobs import queue
from jobs.ids import new_id
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE, RETRAIN_TASK
from jobs.queue import KEY_PREFIX, Publisher
from jobs.settings import Settings
from tests.conftest import Broker

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


def test_a_message_goes_to_its_own_queue_and_no_other(app: Celery, publisher: Publisher, broker: Broker) -> None:
    publisher.ring([new_id(), new_id()])
    app.send_task(RETRAIN_TASK)

    assert broker.waiting(CLASSIFY_QUEUE) == 2
    assert broker.waiting(RETRAIN_QUEUE) == 1
    assert publisher.waiting() == 2


def test_a_message_holds_the_chunks_id_in_json_and_nothing_else(publisher: Publisher, broker: Broker) -> None:
    chunk_id = new_id()
    publisher.ring([chunk_id])

    [message] = map(json.loads, broker.messages())
    assert message["content-type"] == "application/json"
    args, kwargs, _ = json.loads(base64.b64decode(message["body"]))
    assert (args, kwargs) == ([chunk_id], {})


def test_what_goes_ahead_is_taken_before_all_that_waits(publisher: Publisher, broker: Broker) -> None:
    # Given messages that wait, when one is to go ahead of them
    waiting = [new_id(), new_id()]
    small = new_id()
    publisher.ring(waiting)
    publisher.ring([small], ahead=True)

    # Then it is the next that is taken, as workers take them, and the others come as they did
    taken = []
    while (message := broker.client.rpop(KEY_PREFIX + CLASSIFY_QUEUE)) is not None:
        args, _, _ = json.loads(base64.b64decode(json.loads(message)["body"]))  # type: ignore[arg-type]
        taken += args
    assert taken == [small, *waiting]


def test_what_goes_ahead_has_room_where_others_have_none(
    publisher: Publisher, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 2)
    monkeypatch.setattr(queue, "MAX_AHEAD", 1)

    assert publisher.ring_for([(new_id(), False)] * 3) == 2
    assert publisher.ring_for([(new_id(), True), (new_id(), True), (new_id(), False)]) == 1
    assert broker.waiting() == 3


def test_small_jobs_have_so_many_messages_and_no_more(
    publisher: Publisher, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a queue full of other messages
    monkeypatch.setattr(queue, "MAX_WAITING", 5)
    monkeypatch.setattr(queue, "MAX_AHEAD", 2)
    assert publisher.ring(new_id() for _ in range(6)) == 5

    # When five small jobs come, Then two of them have a message
    for _ in range(5):
        publisher.ring_for_small(new_id())
    assert broker.waiting() == 7

    # And when one is taken, one more has
    broker.client.rpop(KEY_PREFIX + CLASSIFY_QUEUE)
    for _ in range(5):
        publisher.ring_for_small(new_id())
    assert broker.waiting() == 7


@pytest.mark.parametrize("foreign", [b"garbage", b"null", b"[]", b"{}", b'{"properties": []}', b"\xff\xfe"])
def test_small_jobs_have_a_message_whatever_lies_on_the_queue(
    publisher: Publisher, broker: Broker, foreign: bytes
) -> None:
    # Given a queue with so many messages that are none of ours that one of them is where we look
    for _ in range(queue.MAX_AHEAD):
        broker.client.lpush(KEY_PREFIX + CLASSIFY_QUEUE, foreign)
    # When a small job comes, Then it has its message
    assert publisher.ring_for_small(new_id()) == 1
    assert not publisher.unavailable
    assert broker.waiting() == queue.MAX_AHEAD + 1


def test_an_empty_queue_has_nothing_waiting(publisher: Publisher, broker: Broker) -> None:  # noqa: ARG001
    assert publisher.waiting() == 0


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
    publisher = Publisher(make_app(gone))

    publisher.ring_for_small(new_id())
    assert publisher.unavailable
    publisher.unavailable = False
    assert publisher.ring([new_id(), new_id()]) == 0
    assert publisher.unavailable
