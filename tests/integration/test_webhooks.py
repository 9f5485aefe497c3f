"""Webhooks: written with the change that they report, signed, and sent until they are received."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from standardwebhooks import Webhook, WebhookVerificationError
from typer.testing import Result

from jobs.errors import AddressForbidden, ErrorCode, UserError
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.batches import add_batch
from jobs.ledger.api.deliveries import (
    SENDERS_PER_HOST,
    SENDERS_PER_PROJECT,
    Delivery,
    claim_delivery,
    count_useful_senders,
    list_deliveries,
    record_answer,
)
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.api.webhooks import (
    MAX_ENDPOINTS,
    add_endpoint,
    list_endpoints,
    remove_endpoint,
    rotate_secret,
    secret_of_batches,
)
from jobs.ledger.jobs.control import end_job
from jobs.ledger.learning import health
from jobs.ledger.learning.health import report_drift
from jobs.ledger.learning.models import lock_champion, move_champion, roll_back
from jobs.ledger.learning.runs import cancel_run, request_run
from jobs.ledger.webhook_outbox import report_ended_jobs, report_test
from jobs.limits import ErrorLimits
from jobs.messages import WEBHOOK_QUEUE
from jobs.models.model import Model
from jobs.network.webhooks import Event, check_receiver, check_secret, new_secret
from jobs.options import DEFAULT_PROJECT
from jobs.queue import Publisher, make_app
from jobs.schema import DeliveryState, JobState, db_now, webhook_deliveries, webhook_endpoints
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client.purging import Purge
from labelmill.commands import webhooks as command
from tests.conftest import Broker, JobMaker, Worker, plans_of
from tests.console import Home, until
from tests.outcomes import Outcome
from tests.receiver import Receiver, receiving
from tests.threads import at_once
from worker.reconciler import Reconciler
from worker.schedule import SlotScheduler
from worker.webhook_sender import deliver_next


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as receiver:
        yield receiver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"private_hosts": ("127.0.0.1",)})


@pytest.fixture
def secret(ledger: Ledger, receiver: Receiver) -> str:
    """Return the secret of the receiver, which wants all events."""
    with ledger.transaction() as connection:
        return add_endpoint(connection, receiver.url)[1]


def sent(ledger: Ledger) -> list[Delivery]:
    """Return all deliveries, oldest first."""
    with ledger.reading() as connection:
        return list_deliveries(connection, limit=1000)[::-1]


def events(ledger: Ledger) -> list[str]:
    return [each.event for each in sent(ledger)]


def make_due(ledger: Ledger) -> None:
    with ledger.transaction() as connection:
        connection.execute(webhook_deliveries.update().values(due_at=db_now()))


def test(ledger: Ledger) -> str:
    """Write a delivery to the first endpoint with a URL; return its id."""
    with ledger.transaction() as connection:
        endpoint = next(each for each in list_endpoints(connection) if each.url)
        return report_test(connection, endpoint.id)


test.__test__ = False  # type: ignore[attr-defined]


def end_batch(ledger: Ledger, make_job: JobMaker, project: str, url: str) -> str:
    """End a batch of a project that names this `webhook_url`; return its id."""
    batch = make_job([1], project=project)
    with ledger.transaction() as connection:
        add_batch(connection, batch.id, request={"webhook_url": url}, file_id=None, state="done")
        end_job(connection, batch.id, JobState.CANCELLED)
    return batch.id


@contextmanager
def tarpits(number: int) -> Iterator[list[str]]:
    """Yield the URLs of servers that accept requests and never answer, each on a port of its own."""
    servers = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    try:
        yield [f"http://127.0.0.1:{server.getsockname()[1]}/" for server in servers]
    finally:
        for server in servers:
            server.close()


@pytest.fixture
def birds(ledger: Ledger) -> str:
    with ledger.transaction() as connection:
        create_project(connection, "birds")
    return "birds"


# ---- what is reported ---------------------------------------------------------------------------------


def test_the_end_of_a_batch_is_sent_and_signed(
    settings: Settings, ledger: Ledger, receiver: Receiver, secret: str, make_job: JobMaker, worker: Worker
) -> None:
    # Given a job of two chunks, of which the first is done: nothing is reported
    job = make_job([1, 2])
    worker.work(job.chunks[0])
    assert not deliver_next(ledger, settings)

    # When the last chunk is done, Then the job is reported once, and the standard's own package verifies it
    worker.work(job.chunks[1])
    assert deliver_next(ledger, settings)
    assert not deliver_next(ledger, settings)
    message = receiver.verified(secret)
    assert message["type"] == "batch.completed"
    assert abs(datetime.now(UTC) - datetime.fromisoformat(message["timestamp"])).total_seconds() < 600
    data = message["data"]
    assert (data["id"], data["object"], data["status"]) == (job.id, "batch", "completed")
    assert data["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    headers, _ = receiver.got[0]
    assert headers["content-type"] == "application/json"
    [delivery] = sent(ledger)
    assert (delivery.id, delivery.state) == (headers["webhook-id"], DeliveryState.DELIVERED)
    assert (delivery.status, delivery.attempts, delivery.due_at) == (204, 1, None)
    with pytest.raises(WebhookVerificationError):
        Webhook(new_secret()).verify(receiver.got[0][1], headers)


@pytest.mark.usefixtures("secret")
def test_each_end_of_a_job_is_an_event_and_a_shadows_is_none(
    ledger: Ledger, make_job: JobMaker, worker: Worker
) -> None:
    # Given a job with one error too many, and one that is cancelled
    too_many = make_job([1], error_limits=ErrorLimits(count=0))
    worker.work(too_many.chunks[0], [Outcome("0.png", None, None, ErrorCode.CORRUPT)])
    cancelled = make_job([1])
    with ledger.transaction() as connection:
        assert end_job(connection, cancelled.id, JobState.CANCELLED)
        assert not end_job(connection, cancelled.id, JobState.CANCELLED)
    bodies = [json.loads(body) for body in _bodies(ledger)]
    assert [body["type"] for body in bodies] == ["batch.failed", "batch.cancelled"]
    assert "more than its limit of 0" in bodies[0]["data"]["errors"]["data"][0]["message"]
    assert bodies[1]["data"]["status"] == "cancelled"

    # When a shadow ends, Then nobody hears of it
    shadow = make_job([1])
    with ledger.transaction() as connection:
        connection.execute(
            sa.text("UPDATE jobs SET shadow_of = :of WHERE id = :id"), {"of": cancelled.id, "id": shadow.id}
        )
        assert end_job(connection, shadow.id, JobState.CANCELLED)
    assert len(sent(ledger)) == 2


def test_a_project_hears_of_its_own_batches_signed_with_its_own_secret(
    settings: Settings, ledger: Ledger, receiver: Receiver, make_job: JobMaker, birds: str
) -> None:
    # Given two projects with a receiver each
    with ledger.transaction() as connection:
        add_endpoint(connection, "https://default.example/")
        add_endpoint(connection, "https://birds.example/", project=birds)
        ours = secret_of_batches(connection, DEFAULT_PROJECT)
        theirs = secret_of_batches(connection, birds)

    # When a batch of one project ends that names an address of the other's, Then the other's receiver hears
    # nothing, and what is sent to the address has no signature that the other trusts
    batch_id = end_batch(ledger, make_job, birds, receiver.url)
    assert {each.url for each in sent(ledger)} == {"https://birds.example/", receiver.url}
    with ledger.transaction() as connection:
        connection.execute(webhook_deliveries.delete().where(webhook_deliveries.c.url != receiver.url))
    assert deliver_next(ledger, settings)
    assert receiver.verified(theirs)["data"]["id"] == batch_id
    with pytest.raises(WebhookVerificationError):
        receiver.verified(ours)

    # And so it is if batches of both end in one transaction
    both = [batch_id, end_batch(ledger, make_job, DEFAULT_PROJECT, receiver.url)]
    with ledger.transaction() as connection:
        connection.execute(webhook_deliveries.delete())
        report_ended_jobs(connection, both)
    found = [
        (each.url, json.loads(body)["data"]["id"])
        for each, body in zip(sent(ledger), _bodies(ledger), strict=True)
    ]
    assert sorted(found) == sorted(
        [
            ("https://birds.example/", both[0]),
            ("https://default.example/", both[1]),
            *((receiver.url, each) for each in both),
        ]
    )

    # And what is shared is told to all
    with ledger.transaction() as connection:
        connection.execute(webhook_deliveries.delete())
        request_run(connection, run_id := new_id(), recipe={})
        cancel_run(connection, run_id)
    assert {each.url for each in sent(ledger)} == {"https://default.example/", "https://birds.example/"}


def _bodies(ledger: Ledger) -> list[str]:
    with ledger.reading() as connection:
        query = sa.select(webhook_deliveries.c.body).order_by(webhook_deliveries.c.id)
        return list(connection.scalars(query))


@pytest.mark.usefixtures("secret")
def test_what_is_rolled_back_is_not_reported(ledger: Ledger, make_job: JobMaker) -> None:
    job = make_job([1])
    with suppress(ZeroDivisionError), ledger.transaction() as connection:
        assert end_job(connection, job.id, JobState.CANCELLED)
        raise ZeroDivisionError
    assert sent(ledger) == []


def test_only_those_who_want_an_event_get_it(ledger: Ledger, make_job: JobMaker, worker: Worker) -> None:
    # Without an endpoint nothing is written
    worker.work(make_job([1]).chunks[0])
    assert sent(ledger) == []
    # Given two endpoints that want different events, and a disabled one
    with ledger.transaction() as connection:
        add_endpoint(connection, "https://a.example/", [Event.BATCH_COMPLETED])
        add_endpoint(connection, "https://b.example/", [Event.BATCH_CANCELLED, Event.RUN_FINISHED])
        disabled, _ = add_endpoint(connection, "https://c.example/")
        connection.execute(
            webhook_endpoints.update()
            .where(webhook_endpoints.c.id == disabled.id)
            .values(disabled_at=db_now())
        )
    # When a job is done, Then only the first one gets a delivery
    worker.work(make_job([1]).chunks[0])
    assert [(each.url, each.event) for each in sent(ledger)] == [("https://a.example/", "batch.completed")]


@pytest.mark.usefixtures("secret")
def test_promotions_and_rollbacks_are_reported(ledger: Ledger, make_model) -> None:
    first, second = make_model(b"1"), make_model(b"2", champion=False)
    with ledger.transaction() as connection:
        move_champion(connection, first.id, previous_id=None, how="promote")
    with ledger.transaction() as connection:
        previous = lock_champion(connection)
        move_champion(connection, second.id, previous_id=previous, how="retrain")
    with ledger.transaction() as connection:
        roll_back(connection, first.id)
    found = [json.loads(body) for body in _bodies(ledger)]
    assert {each["type"] for each in found} == {"model.promoted"}
    assert [(each["data"]["id"], each["data"]["previous"], each["data"]["how"]) for each in found] == [
        (first.id, None, "promote"),
        (second.id, first.id, "retrain"),
        (first.id, second.id, "rollback"),
    ]


@pytest.mark.usefixtures("secret")
def test_the_end_of_a_training_run_is_reported(ledger: Ledger) -> None:
    run_id = new_id()
    with ledger.transaction() as connection:
        request_run(connection, run_id, recipe={})
    assert sent(ledger) == []
    with ledger.transaction() as connection:
        cancel_run(connection, run_id)
    [body] = map(json.loads, _bodies(ledger))
    assert (body["type"], body["data"]["id"], body["data"]["status"]) == (
        "run.finished",
        run_id,
        "cancelled",
    )


def test_drift_is_reported_once_a_week(
    settings: Settings, ledger: Ledger, champion: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ledger.reading() as connection:
        steady = health.model_health(connection, champion.id)
    shift = health.Shift(("0", "1"), (1000, 1000), (2000, 10))
    found = {champion.id: replace(steady, labels=shift, images=2010)}
    monkeypatch.setattr(health, "model_health", lambda _connection, model_id: found[model_id])
    # While nobody wants to know, nothing is computed or written
    report_drift(ledger)
    with ledger.transaction() as connection:
        add_endpoint(connection, "https://a.example/", [Event.DRIFT_DETECTED])
    report_drift(ledger)
    report_drift(ledger)
    [body] = map(json.loads, _bodies(ledger))
    assert (body["type"], body["data"]["model"]) == ("drift.detected", champion.id)
    assert "has drifted" in body["data"]["warnings"][0]
    # And beat is who asks
    with ledger.transaction() as connection:
        connection.execute(sa.text("DELETE FROM locks"))
    app = make_app(settings)
    app.labelmill_settings = settings
    beat = SlotScheduler(app)
    beat.tick()
    beat.tick()
    app.close()
    assert events(ledger) == ["drift.detected"] * 2
    # And no drift is no event
    with ledger.transaction() as connection:
        connection.execute(sa.text("DELETE FROM locks"))
    found[champion.id] = steady
    report_drift(ledger)
    assert len(sent(ledger)) == 2


# ---- how it is sent -----------------------------------------------------------------------------------


def test_a_receiver_that_is_down_gets_it_when_it_is_back(
    settings: Settings, ledger: Ledger, receiver: Receiver
) -> None:
    # Given a receiver that is down, and two messages for it
    with receiving() as down:
        port = int(down.url.rpartition(":")[2].partition("/")[0])
    with ledger.transaction() as connection:
        _, secret = add_endpoint(connection, down.url)
    first, second = test(ledger), test(ledger)
    # When the first one cannot be sent, Then the second one waits, too, and another receiver does not
    assert deliver_next(ledger, settings)
    with ledger.reading() as connection:
        assert count_useful_senders(connection) == 0
    assert [each.attempts for each in sent(ledger)] == [1, 0]
    assert "cannot be reached: Connection refused" in (sent(ledger)[0].error or "")
    with ledger.transaction() as connection:
        other, _ = add_endpoint(connection, receiver.url)
        report_test(connection, other.id)
    assert deliver_next(ledger, settings)
    assert len(receiver.got) == 1
    # And when it is back, it gets both
    with receiving(port) as back:
        make_due(ledger)
        assert deliver_next(ledger, settings)
        assert deliver_next(ledger, settings)
        assert set(back.ids) == {first, second}
        back.verified(secret, 0)


@pytest.mark.usefixtures("secret")
def test_a_failure_is_retried_under_the_same_id_for_a_day(
    settings: Settings, ledger: Ledger, receiver: Receiver
) -> None:
    test(ledger)
    receiver.answers = [503] * 100
    pauses = []
    while (delivery := sent(ledger)[0]).state == DeliveryState.PENDING:
        make_due(ledger)
        assert deliver_next(ledger, settings)
        if (due_at := sent(ledger)[0].due_at) is not None:
            pauses.append((due_at - datetime.now(UTC)).total_seconds())
            # It is not due before its pause is over
            assert not deliver_next(ledger, settings)
    assert (delivery.state, delivery.attempts) == (DeliveryState.FAILED, len(pauses) + 1)
    assert (delivery.status, delivery.error) == (503, "it answered 503")
    assert 0.8 * 80_000 < sum(pauses) < 1.2 * 90_000
    assert max(pauses) < 3 * 3600
    assert 3 < pauses[0] < 8 < pauses[1] < 60 < pauses[2]
    assert set(receiver.ids) == {delivery.id}


@pytest.mark.usefixtures("secret")
def test_410_disables_the_endpoint(settings: Settings, ledger: Ledger, receiver: Receiver) -> None:
    test(ledger), test(ledger)
    receiver.answers = [410]
    assert deliver_next(ledger, settings)
    assert not deliver_next(ledger, settings)
    assert [(each.state, each.error) for each in sent(ledger)] == [
        ("failed", "it answered 410"),
        ("failed", "its endpoint is disabled"),
    ]
    with ledger.reading() as connection:
        assert [each.disabled_at is None for each in list_endpoints(connection)] == [False]


def test_410_for_a_batch_is_about_that_batch_only(
    settings: Settings, ledger: Ledger, receiver: Receiver, make_job: JobMaker
) -> None:
    receiver.answers = [410]
    with ledger.transaction() as connection:
        secret = secret_of_batches(connection, DEFAULT_PROJECT)
    end_batch(ledger, make_job, DEFAULT_PROJECT, receiver.url)
    assert deliver_next(ledger, settings)
    receiver.verified(secret)
    with ledger.reading() as connection:
        assert [each.disabled_at for each in list_endpoints(connection)] == [None]


@pytest.mark.usefixtures("secret")
def test_a_redirect_is_not_followed(settings: Settings, ledger: Ledger, receiver: Receiver) -> None:
    test(ledger)
    with receiving() as inside:
        receiver.answers, receiver.location = [307], inside.url
        assert deliver_next(ledger, settings)
        assert inside.got == []
    assert [(each.state, each.status) for each in sent(ledger)] == [("pending", 307)]


@pytest.mark.usefixtures("secret")
def test_a_private_address_gets_nothing(settings: Settings, ledger: Ledger, receiver: Receiver) -> None:
    test(ledger)
    assert deliver_next(ledger, settings.model_copy(update={"private_hosts": ()}))
    assert receiver.got == []
    assert [(each.status, "not on the public internet" in str(each.error)) for each in sent(ledger)] == [
        (None, True)
    ]


def test_old_and_new_secret_sign_for_a_day(
    settings: Settings, ledger: Ledger, receiver: Receiver, secret: str
) -> None:
    with ledger.transaction() as connection:
        [endpoint] = list_endpoints(connection)
        new = rotate_secret(connection, endpoint.id)
    test(ledger)
    assert deliver_next(ledger, settings)
    assert new != secret
    assert receiver.verified(secret)["type"] == receiver.verified(new)["type"] == "test"
    assert len(receiver.got[0][0]["webhook-signature"].split(" ")) == 2
    with ledger.transaction() as connection:
        connection.execute(webhook_endpoints.update().values(old_until=db_now(-1)))
    test(ledger)
    assert deliver_next(ledger, settings)
    receiver.verified(new)
    with pytest.raises(WebhookVerificationError):
        receiver.verified(secret)


@pytest.mark.usefixtures("secret")
def test_a_lost_claim_is_sent_again_and_cannot_be_recorded(
    settings: Settings, ledger: Ledger, receiver: Receiver
) -> None:
    # Given a sender that has claimed a delivery and stops
    delivery_id = test(ledger)
    with ledger.transaction() as connection:
        lost = claim_delivery(connection)
    assert lost is not None
    # Then nobody else sends it until the lease is over
    assert not deliver_next(ledger, settings)
    make_due(ledger)
    assert deliver_next(ledger, settings)
    assert receiver.ids == [delivery_id]
    # And what the first one records too late changes nothing
    with ledger.transaction() as connection:
        record_answer(connection, lost, 500)
    assert [each.state for each in sent(ledger)] == ["delivered"]


@pytest.mark.usefixtures("secret")
def test_many_senders_send_each_once(settings: Settings, ledger: Ledger, receiver: Receiver) -> None:
    expected = {test(ledger) for _ in range(40)}

    def send(_number: int = 0) -> None:
        while deliver_next(ledger, settings):
            pass

    at_once(send, range(4))
    # A sender that finds none due may have been too early by another's claim
    send()
    assert sorted(receiver.ids) == sorted(expected)


def test_projects_take_turns(ledger: Ledger, birds: str) -> None:
    # Given a project with a backlog, and one with a message that is younger than all of it
    with ledger.transaction() as connection:
        endpoint, _ = add_endpoint(connection, "https://a.example/")
        for _ in range(3):
            report_test(connection, endpoint.id)
    with ledger.transaction() as connection:
        report_test(connection, add_endpoint(connection, "https://b.example/", project=birds)[0].id)
    # When senders claim, Then they claim from both in turn
    with ledger.transaction() as connection:
        claimed = [claim_delivery(connection) for _ in range(4)]
        assert claim_delivery(connection) is None
    projects = [each.project for each in claimed if each is not None]
    assert sorted(projects[:2]) == [birds, DEFAULT_PROJECT]
    assert projects[2:] == [DEFAULT_PROJECT] * 2


@pytest.mark.parametrize("ledger_url", ["postgresql"], indirect=True)
def test_a_backlog_of_one_project_is_not_read_for_each_other_one(ledger: Ledger, birds: str) -> None:
    # Given many due messages of one project, some of another, and statistics that say so
    with ledger.transaction() as connection:
        for project, number in ((DEFAULT_PROJECT, 5_000), (birds, 200)):
            endpoint, _ = add_endpoint(connection, "https://a.example/", project=project)
            report_test(connection, endpoint.id)
            columns = "endpoint_id, project, url, host, event, body, state, created_at, due_at"
            copy = sa.text(
                f"INSERT INTO webhook_deliveries (id, {columns}) SELECT project || n, {columns} "
                "FROM webhook_deliveries, generate_series(1, :number) n WHERE project = :project"
            )
            connection.execute(copy, {"number": number, "project": project})
        connection.exec_driver_sql("ANALYZE")
    # Then neither the claim nor the count reads them all
    for ask in (claim_delivery, count_useful_senders):
        for statement, plan in plans_of(ledger, ask, free=True):
            assert "Seq Scan on webhook_deliveries" not in plan, statement
    with ledger.reading() as connection:
        assert count_useful_senders(connection) == 2 * SENDERS_PER_PROJECT


def test_a_project_and_a_host_keep_no_more_than_their_share_of_the_senders(
    settings: Settings, ledger: Ledger, receiver: Receiver, birds: str
) -> None:
    # Given messages of one project to receivers that do not answer, and a sender for each
    with tarpits(SENDERS_PER_PROJECT) as urls, ThreadPoolExecutor() as senders:
        with ledger.transaction() as connection:
            for url in urls:
                endpoint, _ = add_endpoint(connection, url)
                for _ in range(SENDERS_PER_HOST + 1):
                    report_test(connection, endpoint.id)
        for _ in range(SENDERS_PER_PROJECT):
            senders.submit(deliver_next, ledger, settings)
        until(lambda: sum(each.attempts for each in sent(ledger)) == SENDERS_PER_PROJECT, "all are at work")
        # Then no host has more than its share of them
        at_work = Counter(each.url for each in sent(ledger) if each.attempts)
        assert set(at_work.values()) == {SENDERS_PER_HOST}
        # And the project gets no further sender, but another project does
        assert not deliver_next(ledger, settings)
        with ledger.transaction() as connection:
            report_test(connection, add_endpoint(connection, receiver.url, project=birds)[0].id)
        assert deliver_next(ledger, settings)
        assert len(receiver.got) == 1


@pytest.mark.usefixtures("secret", "receiver")
def test_removing_an_endpoint_removes_its_deliveries(settings: Settings, ledger: Ledger) -> None:
    test(ledger)
    with ledger.transaction() as connection:
        remove_endpoint(connection, list_endpoints(connection)[0].id)
    assert not deliver_next(ledger, settings)
    assert sent(ledger) == []


@pytest.mark.usefixtures("secret")
def test_old_deliveries_are_purged(ledger: Ledger, store: Store) -> None:
    old, young, waiting = test(ledger), test(ledger), test(ledger)
    with ledger.transaction() as connection:
        for each, days in ((old, 31), (young, 29)):
            connection.execute(
                webhook_deliveries.update()
                .where(webhook_deliveries.c.id == each)
                .values(state=DeliveryState.DELIVERED, finished_at=db_now(-days * 86_400))
            )
    for dry_run in (True, False):
        purge = Purge(ledger, store, dry_run=dry_run, on_progress=lambda _purged: None)
        purge.deliveries()
        assert purge.purged.deliveries == 1
        assert len(sent(ledger)) == (3 if dry_run else 2)
    assert {each.id for each in sent(ledger)} == {young, waiting}


# ---- the processes ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("secret")
def test_the_reconciler_sends_a_wake_up_for_each_due_delivery(
    ledger: Ledger, publisher: Publisher, broker: Broker
) -> None:
    reconciler = Reconciler(ledger, publisher, holder="anna")
    test(ledger), test(ledger)
    assert [reconciler.tick(), reconciler.tick()] == [0, 0]
    assert (broker.waiting(WEBHOOK_QUEUE), broker.waiting()) == (2, 0)


@pytest.mark.usefixtures("settings")
def test_the_worker_for_webhooks_sends_what_is_due(
    home: Home, ledger: Ledger, receiver: Receiver, secret: str, tmp_path: Path
) -> None:
    # Given a worker, of which no other process sends wake-ups
    log = tmp_path / "webhooks.log"
    with home.started("worker", "--webhooks", log=log):
        until(lambda: home.run("ready", "webhooks").returncode == 0, "the worker is ready")
        # When something is to be sent, Then it is sent
        test(ledger)
        until(lambda: bool(receiver.got), "it is received", seconds=30)
        until(lambda: sent(ledger)[0].state == DeliveryState.DELIVERED, "that is recorded", seconds=30)
        receiver.verified(secret)
    assert secret not in log.read_text()


@pytest.mark.usefixtures("settings")
def test_receivers_of_one_project_that_do_not_answer_delay_no_others(
    home: Home, ledger: Ledger, receiver: Receiver, birds: str, tmp_path: Path
) -> None:
    # Given 24 messages of one project to receivers that do not answer
    with tarpits(12) as urls, home.started("worker", "--webhooks", log=tmp_path / "webhooks.log"):
        with ledger.transaction() as connection:
            for url in urls:
                endpoint, _ = add_endpoint(connection, url)
                report_test(connection, endpoint.id), report_test(connection, endpoint.id)
        until(
            lambda: sum(each.attempts for each in sent(ledger)) >= SENDERS_PER_PROJECT,
            "senders are at work",
            seconds=60,
        )
        # When another project has a message, Then it is sent soon; with two senders, it took three minutes
        with ledger.transaction() as connection:
            report_test(connection, add_endpoint(connection, receiver.url, project=birds)[0].id)
        until(lambda: bool(receiver.got), "it is received", seconds=30)


# ---- the command --------------------------------------------------------------------------------------


@pytest.fixture
def run(
    run_command: Callable[..., Result], settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    monkeypatch.setenv("LABELMILL_PRIVATE_HOSTS", ",".join(settings.private_hosts))
    return lambda *arguments: run_command(command.app, *arguments)


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_the_command_adds_lists_rotates_and_removes(
    run: Callable[..., Result], settings: Settings, ledger: Ledger, receiver: Receiver, tmp_path: Path
) -> None:
    added = run("add", receiver.url, "--event", "batch.completed", "--event", "run.finished")
    first = added.stdout.strip()
    assert check_secret(first) == first
    [endpoint] = json.loads(run("list", "--json").stdout)
    assert (endpoint["url"], endpoint["events"]) == (receiver.url, ["batch.completed", "run.finished"])
    assert first not in run("list", "--json").stdout
    file = tmp_path / "secret"
    file.write_text(new_secret() + "\n")
    assert run("rotate", endpoint["id"], "--secret-file", file).stdout == file.read_text()
    delivery_id = run("test", endpoint["id"]).stdout.strip()
    assert deliver_next(ledger, settings)
    assert receiver.ids == [delivery_id]
    [attempt] = json.loads(run("attempts", "--json").stdout)
    assert (attempt["id"], attempt["state"], attempt["status"], attempt["attempts"]) == (
        delivery_id,
        "delivered",
        204,
        1,
    )
    assert delivery_id in run("attempts").stdout
    assert run("remove", endpoint["id"]).exit_code == 0
    # And the secret of a project's batches, which the first call makes
    made = run("secret").stdout
    [of_batches] = json.loads(run("--json").stdout)
    assert (of_batches["url"], of_batches["project"]) == (None, DEFAULT_PROJECT)
    rotated = run("rotate", of_batches["id"]).stdout
    assert run("secret").stdout == run("secret").stdout == rotated != made
    assert run("test", of_batches["id"]).exit_code == 2
    assert run("secret", "--project", "nobody").exit_code == 2


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("add", "http://localhost/"), "must begin with https://"),
        (("add", "https://localhost/"), "not on the public internet"),
        (("add", "ftp://example.org/"), "http"),
        (("remove", "06h0w4r0rf0dkckt"), "no webhook"),
        (("rotate", "06h0w4r0rf0dkckt"), "no webhook"),
        (("test", "06h0w4r0rf0dkckt"), "no webhook"),
        (("add", "http://127.0.0.1/", "--secret-file", __file__), "A webhook's secret is whsec_"),
    ],
)
def test_the_command_refuses_what_cannot_work(
    run: Callable[..., Result], arguments: tuple[str, ...], said: str
) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_a_receiver_needs_https_unless_its_host_is_allowed() -> None:
    check_receiver("http://127.0.0.1:80/", ("127.0.0.1:80",))
    check_receiver("http://127.0.0.1/", ("127.0.0.1:80",))
    check_receiver("https://a-host-that-is-down.invalid/", ())
    for url in (
        "http://a-host-that-is-down.invalid/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://x:y@z/",
    ):
        with pytest.raises(AddressForbidden):
            check_receiver(url, ())


@pytest.mark.parametrize(
    "secret", ["", "whsec_", "whsec_!", "x" * 44, "whsec_" + "A" * 28, "whsec_" + "A" * 200]
)
def test_a_malformed_secret_is_refused_and_not_repeated(secret: str) -> None:
    with pytest.raises(UserError) as refused:
        check_secret(secret)
    assert secret in ("", "whsec_") or secret not in str(refused.value)


# ---- over HTTP ----------------------------------------------------------------------------------------


def test_a_projects_webhooks_are_managed_over_http(
    api: httpx.Client, settings: Settings, ledger: Ledger, receiver: Receiver, birds: str
) -> None:
    # Given a webhook that a key has added, and one of another project
    with ledger.transaction() as connection:
        add_endpoint(connection, "https://birds.example/", project=birds)
    added = api.post("/webhooks", json={"url": receiver.url, "events": ["run.finished"]}).json()
    shown = {name: value for name, value in added.items() if name != "secret"}
    assert (shown["url"], shown["events"]) == (receiver.url, ["run.finished"])
    assert api.get("/webhooks").json()["data"] == [shown]

    # When it is tested, Then the message is signed with the secret of the answer, and is listed
    path = f"/webhooks/{added['id']}"
    tested = api.post(f"{path}/test")
    assert tested.status_code == 202
    assert deliver_next(ledger, settings)
    receiver.verified(added["secret"])
    [delivery] = api.get(f"{path}/deliveries").json()["data"]
    assert (delivery["id"], delivery["status"], delivery["answer"]) == (tested.json()["id"], "delivered", 204)

    # And so it is with a new secret
    rotated = api.post(f"{path}/rotate").json()
    assert rotated == shown | {"secret": rotated["secret"]}
    assert api.post(f"{path}/test").status_code == 202
    assert deliver_next(ledger, settings)
    receiver.verified(rotated["secret"])

    # And the secret for batches is the one that the command prints
    with ledger.transaction() as connection:
        of_batches = {"secret": secret_of_batches(connection, DEFAULT_PROJECT)}
    assert api.get("/webhooks/secret").json() == of_batches

    # And what is removed is gone
    assert api.delete(path).json() == {"id": added["id"], "object": "webhook", "deleted": True}
    assert api.delete(path).status_code == 404
    assert [each["url"] for each in api.get("/webhooks").json()["data"]] == [None]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_webhooks_over_http_need_an_admin_and_a_public_address(api: httpx.Client, ledger: Ledger) -> None:
    refused = api.post("/webhooks", json={"url": "https://localhost/"})
    assert (refused.status_code, refused.json()["detail"][:5]) == (403, "url: ")
    for body in ({"url": "https://example.invalid/", "events": ["no.such"]}, {"url": "no address"}, {}):
        assert api.post("/webhooks", json=body).status_code == 422, body
    for _ in range(MAX_ENDPOINTS):
        assert api.post("/webhooks", json={"url": "https://example.invalid/"}).status_code == 200
    too_many = api.post("/webhooks", json={"url": "https://example.invalid/"})
    assert (too_many.status_code, "remove one first" in too_many.json()["detail"]) == (409, True)
    with ledger.transaction() as connection:
        _, key = create_key(connection, "reviewer", Role.REVIEW)
    for path in ("/webhooks", "/webhooks/secret"):
        assert api.get(path, headers={"Authorization": f"Bearer {key}"}).status_code == 403
