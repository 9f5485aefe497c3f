"""The gate before the workers: all that we send passes, and nothing that is put on the queue breaks it."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st

from jobs.ids import new_id
from jobs.messages import CLASSIFY_TASK, RETRAIN_QUEUE, RETRAIN_TASK, MessageError
from jobs.queue import Publisher
from tests.conftest import Broker
from worker.message_filter import MAX_MESSAGE_BYTES, admit

on_one_database = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@on_one_database
def test_what_a_producer_rings_passes(publisher: Publisher, broker: Broker) -> None:
    chunk_id = new_id()
    publisher.ring([chunk_id])
    [message] = broker.messages()
    assert task_of(admit(message)) == (CLASSIFY_TASK, [[chunk_id], {}, {}])
    assert len(message) < MAX_MESSAGE_BYTES / 8


@on_one_database
def test_what_rings_for_a_training_run_passes(publisher: Publisher, broker: Broker) -> None:
    run_id = new_id()
    publisher.request_run(run_id)
    [message] = broker.messages(RETRAIN_QUEUE)
    assert task_of(admit(message)) == (RETRAIN_TASK, [[run_id], {}, {}])


@on_one_database
def test_what_the_beat_of_an_older_version_sent_is_dropped(app: Celery, broker: Broker) -> None:
    app.send_task(RETRAIN_TASK)
    [message] = broker.messages(RETRAIN_QUEUE)
    with pytest.raises(MessageError, match="it does not name one thing of ours"):
        admit(message)


@on_one_database
def test_what_comes_back_from_a_lost_worker_passes(app: Celery, publisher: Publisher, broker: Broker) -> None:
    # given a message that was taken and put back
    publisher.ring([new_id()])
    with app.connection_for_read() as connection:
        channel = connection.channel()
        got: list[Any] = []
        with app.amqp.TaskConsumer(channel, accept=["json"], on_message=got.append):
            connection.drain_events(timeout=60)
            got.pop().reject(requeue=True)

    # then it is marked as such, and passes
    [message] = broker.messages()
    assert json.loads(message)["headers"]["redelivered"] is True
    assert admit(message) == admit(admit(message))
    assert json.loads(admit(message))["properties"]["delivery_info"]["redelivered"] is True


def task_of(item: bytes) -> tuple[str, Any]:
    """A message's task, and its arguments with what follows them."""
    message = json.loads(item)
    return message["headers"]["task"], json.loads(base64.b64decode(message["body"]))


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.binary(max_size=100) | ANYTHING.map(lambda value: json.dumps(value).encode()))
def test_anything_at_all_is_foreign(item: bytes) -> None:
    with pytest.raises(MessageError):
        admit(item)


#: As kombu 5.7 and Celery 5.7 write it, with some that they leave empty.
OURS = json.dumps(
    {
        "body": base64.b64encode(json.dumps([["06h0xnaxb4fyjyv3"], {}, {"chain": None}]).encode()).decode(),
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

#: All that reaches Celery of it.
ADMITTED = admit(OURS.encode())

PLACES = [
    *(("body",), ("content-type",), ("content-encoding",), ("headers",), ("properties",), ("more",)),
    *(
        ("headers", name)
        for name in ("task", "id", "eta", "timelimit", "stamped_headers", "retries", "group")
    ),
    *(("properties", name) for name in ("delivery_info", "delivery_tag", "priority", "reply_to")),
]


@given(place=st.sampled_from(PLACES), value=ANYTHING)
def test_a_message_of_ours_that_was_changed_is_foreign_or_the_same(
    place: tuple[str, ...], value: Any
) -> None:
    message = json.loads(OURS)
    part = message[place[0]] if len(place) == 2 else message
    part[place[-1]] = value
    with contextlib.suppress(MessageError):
        admitted = json.loads(admit(json.dumps(message).encode()))
        # Its id and its tag are anybody's to choose.
        assert admitted | {"headers": 0, "properties": 0} == json.loads(ADMITTED) | {
            "headers": 0,
            "properties": 0,
        }
        assert admitted["headers"].keys() == json.loads(ADMITTED)["headers"].keys()
        assert admitted["properties"].keys() == json.loads(ADMITTED)["properties"].keys()


def test_a_message_in_another_encoding_is_read_as_what_it_says() -> None:
    message = json.loads(OURS)
    body = base64.b64decode(message["body"]).decode()
    message["body"] = base64.b64encode(body.encode("utf-16")).decode()
    assert admit(json.dumps(message).encode("utf-32")) == ADMITTED


def test_a_message_that_is_too_long_is_not_read() -> None:
    admit(OURS.encode().ljust(MAX_MESSAGE_BYTES))
    with pytest.raises(MessageError, match="it has 16,385 bytes"):
        admit(OURS.encode().ljust(MAX_MESSAGE_BYTES + 1))
