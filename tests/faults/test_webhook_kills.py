"""kill -9 of the senders of webhooks at a random instant: each event arrives, under its one id."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import defaultdict
from contextlib import ExitStack, suppress

from jobs.ledger.api.webhooks import add_endpoint, remove_endpoint
from jobs.messages import WEBHOOK_QUEUE
from jobs.network.webhooks import Event
from jobs.schema import DeliveryState, webhook_deliveries
from tests.console import until
from tests.faults.checker import Verdict
from tests.faults.harness import HEALED_SECONDS, Harness, Process
from tests.faults.pictures import pictures
from tests.faults.trials import Matrix
from tests.receiver import receiving

#: Jobs that end while the senders of these events are killed.
_JOBS = 60

#: So many kills before the next database has its turn.
_AT_A_TIME = 3

#: One kill in so many takes the whole worker's parent, the others a child.
_PARENTS = 3


def test_killing_senders_at_random_instants_loses_no_event(harnesses: list[Harness], matrix: Matrix) -> None:
    with (
        matrix.trials("SIGKILL while webhooks are sent", "I1-I3", short=6, long=50) as trials,
        ExitStack() as stack,
    ):
        senders = []
        for harness in harnesses:
            sender = harness.add_worker("webhooks", queue=WEBHOOK_QUEUE, LABELMILL_PRIVATE_HOSTS="127.0.0.1")
            stack.callback(harness.remove_worker, sender)
            senders.append((harness, sender))
        killed = 0
        while killed < trials.wanted:
            for harness, sender in senders:
                times, verdict = _deliver(harness, sender, min(_AT_A_TIME, trials.wanted - killed))
                trials.ran(times, verdict)
                killed += times


def _deliver(harness: Harness, sender: Process, most: int) -> tuple[int, Verdict]:
    """Kill the sender's processes while it reports the ends of jobs to a receiver."""
    with receiving() as receiver:
        # given a receiver of the ends of jobs, and jobs
        with harness.ledger.transaction() as connection:
            endpoint, secret = add_endpoint(connection, receiver.url, [Event.BATCH_COMPLETED])
        jobs = [harness.submit(pictures(1), chunk_images=1) for _ in range(_JOBS)]

        # when processes are killed at any moment, but each time only after another message has arrived
        killed, seen = 0, -1
        while killed < most and len(set(receiver.ids)) < _JOBS:
            until(
                lambda seen=seen: len(receiver.ids) > seen or len(set(receiver.ids)) == _JOBS,
                "a message arrives",
                seconds=HEALED_SECONDS,
            )
            time.sleep(random.uniform(0, 0.2))
            seen = len(receiver.ids)
            children = sender.children()
            is_parent = not children or random.randrange(_PARENTS) == 0
            with suppress(ProcessLookupError):
                os.kill(sender.pid if is_parent else random.choice(children), signal.SIGKILL)
                killed += 1

        # then all are delivered
        until(lambda: _delivered(harness, endpoint.id) == _JOBS, "all are delivered", seconds=HEALED_SECONDS)
        ids = defaultdict(set)
        for number, (headers, _) in enumerate(receiver.got):
            ids[receiver.verified(secret, number)["data"]["id"]].add(headers["webhook-id"])
        with harness.ledger.transaction() as connection:
            remove_endpoint(connection, endpoint.id)

    # and each event has arrived, under one id
    verdict = Verdict(images=_JOBS)
    verdict.lost = len(set(jobs) - set(ids))
    verdict.doubled = sum(len(each) - 1 for each in ids.values())
    verdict.wrong = len(set(ids) - set(jobs))
    return killed, verdict


def _delivered(harness: Harness, endpoint_id: str) -> int:
    """Return how many messages the ledger has as delivered."""
    table = webhook_deliveries
    query = table.select().where(table.c.endpoint_id == endpoint_id, table.c.state == DeliveryState.DELIVERED)
    with harness.ledger.reading() as connection:
        return len(connection.execute(query).all())
