"""The sender of webhooks is killed at every step: each message arrives, under one id."""

from __future__ import annotations

from itertools import count

from jobs.ledger import Ledger
from jobs.ledger.api.deliveries import list_deliveries
from jobs.ledger.api.webhooks import add_endpoint
from jobs.ledger.webhook_outbox import report_test
from jobs.schema import DeliveryState, db_now, webhook_deliveries
from jobs.settings import Settings
from tests.faults.steps import killed_at_each_step
from tests.receiver import receiving
from worker.webhook_sender import deliver_next

#: For each line on stdin: send the next delivery in a process that kills itself at a step.
KILLS_ITSELF = """
from jobs.ledger import Ledger
from jobs.network import outbound
from jobs.settings import Settings
from tests.faults.steps import begin_steps, serve
from worker import webhook_sender

def send(_line):
    settings = Settings.load()
    ledger = Ledger(settings.ledger)
    begin_steps((outbound, "request"))
    webhook_sender.deliver_next(ledger, settings)

serve(send)
"""


def test_what_a_killed_sender_had_is_sent_again_under_the_same_id(settings: Settings, ledger: Ledger) -> None:
    settings = settings.model_copy(update={"private_hosts": ("127.0.0.1",)})
    killed, sent_twice = 0, 0
    with killed_at_each_step(KILLS_ITSELF, settings=settings) as send, receiving() as receiver:
        with ledger.transaction() as connection:
            endpoint, secret = add_endpoint(connection, receiver.url)
        for _ in count():
            # Given a message, and a sender that is killed at the next step
            with ledger.transaction() as connection:
                delivery_id = report_test(connection, endpoint.id)
            was_killed = send("next")

            # When its lease is over, Then another one sends the message unless that is recorded already
            with ledger.transaction() as connection:
                connection.execute(webhook_deliveries.update().values(due_at=db_now()))
            while deliver_next(ledger, settings):
                pass
            assert set(receiver.ids) == {delivery_id}
            receiver.verified(secret)
            sent_twice += len(receiver.ids) - 1
            receiver.got.clear()
            with ledger.reading() as connection:
                assert list_deliveries(connection, limit=1)[0].state == DeliveryState.DELIVERED
            if not was_killed:
                break
            killed += 1
    # Two transactions of three steps, and the request's two
    assert killed == 8
    assert sent_twice == 3  # killed between the answer and the COMMIT
