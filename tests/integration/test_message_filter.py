"""The message filter lets all our own messages through, and keeps all others from breaking a worker."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from kombu.transport.redis import Transport

from jobs.ids import new_id
from jobs.messages import (
    CLASSIFY_QUEUE,
    CLASSIFY_TASK,
    RETRAIN_QUEUE,
    RETRAIN_TASK,
    WEBHOOK_QUEUE,
    WEBHOOK_TASK,
    MessageError,
)
from jobs.queue import KEY_PREFIX, Publisher, make_app
from jobs.settings import Settings
from tests.conftest import Broker
from worker import message_filter
from worker.celery_patches import filter_messages
from worker.message_filter import MAX_MESSAGE_BYTES, rebuild, rebuild_or_drop

on_one_database = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


def task_of(item: bytes) -> tuple[str, Any]:
    """Return a message's task, and its arguments with what follows them."""
    message = json.loads(item)
    return message["headers"]["task"], json.loads(base64.b64decode(message["body"]))


# ---- our messages -------------------------------------------------------------------------------------


@on_one_database
def test_our_messages_pass(publisher: Publisher, broker: Broker) -> None:
    run_id = new_id()
    publisher.wake_up()
    publisher.wake_up(task=WEBHOOK_TASK)
    publisher.request_run(run_id)
    [wake_up], [request] = broker.messages(), broker.messages(RETRAIN_QUEUE)
    [webhook] = broker.messages(WEBHOOK_QUEUE)
    assert task_of(rebuild(wake_up)) == (CLASSIFY_TASK, [[], {}, {}])
    assert task_of(rebuild(webhook)) == (WEBHOOK_TASK, [[], {}, {}])
    assert task_of(rebuild(request)) == (RETRAIN_TASK, [[run_id], {}, {}])
    assert max(len(wake_up), len(request)) < MAX_MESSAGE_BYTES / 8


@on_one_database
def test_a_wake_up_that_names_something_and_a_training_that_names_no_run_are_dropped(
    app: Celery, broker: Broker
) -> None:
    app.send_task(CLASSIFY_TASK, args=(new_id(),), time_limit=None, soft_time_limit=None)
    app.send_task(RETRAIN_TASK)
    [wake_up], [request] = broker.messages(), broker.messages(RETRAIN_QUEUE)
    with pytest.raises(MessageError, match="it is not a wake-up"):
        rebuild(wake_up)
    with pytest.raises(MessageError, match="it names no training run"):
        rebuild(request)


@on_one_database
def test_a_message_that_comes_back_from_a_lost_worker_passes(
    app: Celery, publisher: Publisher, broker: Broker
) -> None:
    # given a message that was taken and put back
    publisher.wake_up()
    with app.connection_for_read() as connection:
        channel = connection.channel()
        got: list[Any] = []
        with app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append):
            connection.drain_events(timeout=60)
            got.pop().reject(requeue=True)

    # then it is marked as redelivered, and passes
    [message] = broker.messages()
    assert json.loads(message)["headers"]["redelivered"] is True
    assert rebuild(message) == rebuild(rebuild(message))
    assert json.loads(rebuild(message))["properties"]["delivery_info"]["redelivered"] is True


# ---- foreign messages ---------------------------------------------------------------------------------


@on_one_database
def test_a_consumer_meets_our_messages_alone_and_the_others_are_counted(
    settings: Settings, broker: Broker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a queue with foreign items before, between and after two wake-ups
    monkeypatch.setattr(Transport, "Channel", Transport.Channel)
    monkeypatch.setattr(message_filter, "_dropped", 0)
    filter_messages(rebuild_or_drop)
    app = make_app(settings)
    publisher = Publisher(app)
    foreign = [b"garbage", b"\xff\xfe", b'{"body": "e30="}', OURS.replace(CLASSIFY_TASK, "rm").encode()]
    for number, item in enumerate(foreign):
        broker.client.lpush(KEY_PREFIX + CLASSIFY_QUEUE, item)
        if number in (1, 2):
            assert publisher.wake_up() == 1

    # when a worker consumes
    got: list[Any] = []
    with (
        app.connection_for_read() as connection,
        connection.channel() as channel,
        app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append),
    ):
        while len(got) < 2 or broker.waiting():
            with contextlib.suppress(TimeoutError):
                connection.drain_events(timeout=3)
            for message in got:
                if not message.acknowledged:
                    message.ack()
    publisher.close()
    app.close()

    # then it gets the wake-ups; each foreign item is dropped, and counted in a line that does not quote it
    assert [message.headers["task"] for message in got] == [CLASSIFY_TASK] * 2
    lines = [line for line in caplog.messages if line.startswith("dropped a message that is not ours")]
    assert [line.partition("(")[2] for line in lines] == [
        f"number {number} of this process)" for number in range(1, 5)
    ]
    assert "garbage" not in caplog.text


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=100) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_foreign(item: bytes) -> None:
    with pytest.raises(MessageError):
        rebuild(item)


#: A message as kombu 5.7 and Celery 5.7 write it, without some empty fields.
OURS = json.dumps(
    {
        "body": base64.b64encode(json.dumps([[], {}, {"chain": None}]).encode()).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"task": CLASSIFY_TASK, "id": "6290febd-15a9", "eta": None, "timelimit": [None, None]},
        "properties": {
            "delivery_info": {"exchange": "", "routing_key": "labelmill.classify"},
            "delivery_tag": "2c93617b-f0fb",
            "reply_to": "19fa1017-666d",
        },
    }
)

#: What the filter passes on to Celery.
REBUILT = rebuild(OURS.encode())

PLACES = [
    *(("body",), ("content-type",), ("content-encoding",), ("headers",), ("properties",), ("more",)),
    *(
        ("headers", name)
        for name in ("task", "id", "eta", "timelimit", "stamped_headers", "retries", "group")
    ),
    *(("properties", name) for name in ("delivery_info", "delivery_tag", "priority", "reply_to")),
]


@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_a_message_of_ours_that_was_changed_is_foreign_or_rebuilt_the_same(
    place: tuple[str, ...], value: Any
) -> None:
    message = json.loads(OURS)
    part = message[place[0]] if len(place) == 2 else message
    part[place[-1]] = value
    with contextlib.suppress(MessageError):
        found, expected = json.loads(rebuild(json.dumps(message).encode())), json.loads(REBUILT)
        # Id and tag can be chosen by anybody.
        assert found | {"headers": 0, "properties": 0} == expected | {"headers": 0, "properties": 0}
        assert found["headers"].keys() == expected["headers"].keys()
        assert found["properties"].keys() == expected["properties"].keys()


def test_a_message_in_another_encoding_is_read_as_what_it_says() -> None:
    message = json.loads(OURS)
    body = base64.b64decode(message["body"]).decode()
    message["body"] = base64.b64encode(body.encode("utf-16")).decode()
    assert rebuild(json.dumps(message).encode("utf-32")) == REBUILT


def test_a_message_that_is_too_long_is_not_read() -> None:
    rebuild(OURS.encode().ljust(MAX_MESSAGE_BYTES))
    with pytest.raises(MessageError, match="it has 16,385 bytes"):
        rebuild(OURS.encode().ljust(MAX_MESSAGE_BYTES + 1))
