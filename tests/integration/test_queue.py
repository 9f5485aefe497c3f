"""The number of messages is bounded, and a broker that cannot be reached raises nothing."""

from __future__ import annotations

import pytest

from jobs import queue
from jobs.ids import new_id
from jobs.messages import CLASSIFY_QUEUE, RETRAIN_QUEUE
from jobs.queue import KEY_PREFIX, Publisher, make_app
from jobs.settings import Settings
from tests.conftest import Broker

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


def test_no_more_wake_ups_wait_than_may(
    publisher: Publisher, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 3)
    assert publisher.waiting() == 0

    # when more are requested, then only as many are sent as there is room for
    assert [publisher.wake_up(2), publisher.wake_up(2), publisher.wake_up()] == [2, 1, 0]
    assert broker.waiting() == 3

    # and when a worker has taken one, there is room for one more
    broker.client.rpop(KEY_PREFIX + CLASSIFY_QUEUE)
    assert publisher.wake_up(9) == 1
    assert not publisher.unavailable


def test_foreign_items_on_the_queue_keep_no_wake_up_away(publisher: Publisher, broker: Broker) -> None:
    for foreign in (b"garbage", b"null", b"[]", b'{"properties": []}', b"\xff\xfe"):
        broker.client.lpush(KEY_PREFIX + CLASSIFY_QUEUE, foreign)
    assert publisher.wake_up() == 1
    assert broker.waiting() == 6


def test_an_unavailable_broker_raises_nothing_and_is_tried_again_after_a_reset(
    settings: Settings, broker: Broker
) -> None:
    # given a broker that cannot be reached
    gone = settings.model_copy(update={"broker_url": f"redis+socket://{settings.home}/nobody.sock"})
    publisher = Publisher(make_app(gone))

    # when messages are sent, then the failure is noted with its reason, and later calls do not try again
    assert publisher.wake_up() == 0
    assert publisher.unavailable
    assert "nobody.sock" in publisher.reason or "No such file" in publisher.reason
    publisher.request_run(new_id())

    # and after a reset, the broker is tried again
    assert not publisher.reset().unavailable
    publisher.request_run(new_id())
    assert publisher.unavailable
    assert broker.waiting() == broker.waiting(RETRAIN_QUEUE) == 0
