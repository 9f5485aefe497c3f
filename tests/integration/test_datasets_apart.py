"""Each dataset has its own champion, challenger, history, gate and training run; none touches another's."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.shadows import shadow_job
from jobs.ledger.learning.models import (
    CHAMPION,
    SHADOW,
    champions,
    describe_pin,
    point_alias,
    save_evaluation,
)
from jobs.ledger.learning.runs import (
    RUN_GRACE_SECONDS,
    SLOT_PATIENCE_SECONDS,
    FailureDetector,
    active_runs,
    claim_run,
    clear_expired_run,
    end_lost_runs,
    fail_run,
    find_active_run,
    interrupt_runs_of,
    request_run,
)
from jobs.messages import RETRAIN_QUEUE
from jobs.models.evaluation import Part
from jobs.models.model import Model
from jobs.queue import Publisher
from jobs.schema import RunState, aliases, db_now, jobs
from jobs.storage.store import Store
from labelmill.client import Client
from tests.conftest import Broker, JobMaker, ModelMaker
from tests.evaluations import made_evaluation
from tests.ledger_probes import change_run, run_of
from worker.reconciler import Reconciler

MNIST, BIRDS = "mnist", "birds"
SLOT = datetime(2026, 11, 22, 3, 0, tzinfo=UTC)
HOUR_AGO = -SLOT_PATIENCE_SECONDS - 1


@pytest.fixture
def finch(champion: Model, make_model: ModelMaker) -> Model:
    """Return the champion of the dataset `birds`, beside that of `mnist`."""
    assert champion.dataset == MNIST
    return make_model(b"finch", dataset=BIRDS)


def ask(ledger: Ledger, dataset: str, *, slot: datetime | None = None, minutes_ago: float = 0) -> str:
    """Request a run, and return its id."""
    run_id = new_id()
    with ledger.transaction() as connection:
        assert request_run(connection, run_id, recipe={}, dataset=dataset, slot=slot) == RunState.PENDING
    change_run(ledger, run_id, requested_at=db_now(-60 * minutes_ago))
    return run_id


def shadows_of(ledger: Ledger, job_id: str) -> list[str]:
    """Return the models of the job's shadows, after it is given one if it can have one."""
    with ledger.transaction() as connection:
        shadow_job(connection, job_id, share=1.0)
        return list(connection.scalars(sa.select(jobs.c.model_id).where(jobs.c.shadow_of == job_id)))


# ---- champions ----------------------------------------------------------------------------------------


def test_a_promotion_and_a_rollback_move_the_champion_of_one_dataset(
    client: Client, store: Store, champion: Model, finch: Model, make_model: ModelMaker
) -> None:
    # when two more models of the second dataset are promoted, and the last one is rolled back
    second = make_model(b"second", dataset=BIRDS, champion=False, store=store)
    third = make_model(b"third", dataset=BIRDS, champion=False, store=store)
    for model in (second, third):
        client.promote(model.id, force=True)
    assert client.rollback(dataset=BIRDS).model_id == second.id

    # then the history is that of the dataset, and the other champion has not moved
    assert [move.model_id for move in client.promotions(dataset=BIRDS)] == [second.id, third.id, second.id]
    assert client.promotions() == []
    assert client.model(dataset=BIRDS).id == second.id
    assert client.model().id == champion.id
    with pytest.raises(Conflict, match=f"There was no champion before {champion.id}"):
        client.rollback()
    # and each model is listed with its dataset
    assert {model.dataset for model in client.models(dataset=BIRDS)} == {BIRDS}
    assert [model.aliases for model in client.models() if model.aliases] == [(CHAMPION,), (CHAMPION,)]
    assert finch.id in [model.id for model in client.models()]


@pytest.mark.usefixtures("champion", "finch")
def test_the_advice_to_release_a_champion_names_its_dataset(client: Client) -> None:
    assert "(labelmill models pin --off --dataset birds releases it)" in describe_pin(
        client.pin(dataset=BIRDS)
    )
    assert "(labelmill models pin --off releases it)" in describe_pin(client.pin())


def test_a_dataset_cannot_have_two_champions(ledger: Ledger, finch: Model, make_model: ModelMaker) -> None:
    other = make_model(b"other", dataset=BIRDS, champion=False)
    with pytest.raises(sa.exc.IntegrityError), ledger.transaction() as connection:
        connection.execute(
            aliases.insert().values(dataset=BIRDS, name=CHAMPION, model_id=other.id, moved_at=db_now())
        )
    with ledger.reading() as connection:
        assert {model.id for model in champions(connection)} >= {finch.id}


def test_champions_come_in_the_order_of_the_latest_jobs(
    ledger: Ledger, champion: Model, finch: Model, make_model: ModelMaker, make_job: JobMaker
) -> None:
    # given a third dataset that no job has used, and jobs of the others
    heron = make_model(b"heron", dataset="a-third")
    make_job(model=champion)
    earlier = make_model(b"earlier", dataset=BIRDS, champion=False)  # not the champion, but of its dataset
    make_job(model=earlier)
    with ledger.reading() as connection:
        assert [each.id for each in champions(connection)] == [finch.id, champion.id, heron.id]

    # and a further job of the first one brings it to the front
    make_job(model=champion)
    with ledger.reading() as connection:
        assert [each.id for each in champions(connection)] == [champion.id, finch.id, heron.id]


def test_an_accuracy_names_the_version_that_it_is_about(client: Client, finch: Model) -> None:
    truth = [0, 1, 2]
    for version, answers in ((1, [0, 1, 2]), (2, [0, 1, 3])):
        with client.ledger.transaction() as connection:
            save_evaluation(
                connection,
                finch.id,
                f"{version}" * 64,
                *made_evaluation(truth, answers),
                dataset=BIRDS,
                version=version,
            )
    # later evaluations of other images do not count
    with client.ledger.transaction() as connection:
        live = made_evaluation(truth, truth)
        save_evaluation(connection, finch.id, "3" * 64, *live, part=Part.LIVE, dataset=BIRDS, version=3)
    model, stored = client.model(finch.id), client.evaluation(finch.id)
    assert (model.accuracy, model.accuracy_version) == (2 / 3, 2)
    assert stored is not None
    assert (stored.dataset, stored.version) == (BIRDS, 2)


# ---- jobs and shadows ---------------------------------------------------------------------------------


def test_a_job_is_pinned_to_the_champion_of_its_dataset(
    client: Client, champion: Model, finch: Model
) -> None:
    assert client.status(client.submit(b"an image")).model == champion.id
    assert client.status(client.submit(b"an image", dataset=BIRDS)).model == finch.id
    assert client.status(client.submit(b"an image", model=finch.id)).model == finch.id
    assert client.status(client.submit(b"an image", model="champion", dataset=BIRDS)).model == finch.id
    with pytest.raises(Conflict, match=f"Model {finch.id} belongs to dataset birds, not to mnist"):
        client.submit(b"an image", model=finch.id, dataset=MNIST)


@pytest.mark.usefixtures("birds")
def test_a_dataset_without_a_champion_says_what_to_do(client: Client, make_model: ModelMaker) -> None:
    with pytest.raises(NotFound, match=r"There is no dataset 'brids'.*labelmill datasets"):
        client.submit(b"an image", dataset="brids")
    with pytest.raises(NotFound, match="has no model yet: run `labelmill train --dataset birds`"):
        client.submit(b"an image", dataset=BIRDS)
    make_model(b"finch", dataset=BIRDS)
    with pytest.raises(NotFound, match=r"mnist has no model yet.*another dataset, as in `--dataset birds`"):
        client.submit(b"an image")
    with client.ledger.transaction() as connection:
        connection.execute(aliases.delete())
    with pytest.raises(NotFound, match=r"birds has no champion.*`labelmill models list --dataset birds`"):
        client.submit(b"an image", dataset=BIRDS)


@pytest.mark.usefixtures("champion", "finch")
def test_a_key_belongs_to_the_dataset_it_was_used_for(client: Client) -> None:
    job_id = client.submit(b"an image", key="june", dataset=BIRDS)
    assert client.submit(b"an image", key="june", dataset=BIRDS) == job_id
    with pytest.raises(Conflict, match=f"belongs to job {job_id}, which was submitted for dataset birds"):
        client.submit(b"an image", key="june")


def test_only_jobs_of_its_dataset_have_a_challenger(
    client: Client, champion: Model, finch: Model, make_model: ModelMaker, make_job: JobMaker
) -> None:
    # given a challenger of the second dataset
    challenger = make_model(b"challenger", dataset=BIRDS, champion=False)
    with client.ledger.transaction() as connection:
        point_alias(connection, SHADOW, challenger.id)

    # then jobs of the first one have no shadow, and it has none to show
    assert shadows_of(client.ledger, make_job(model=champion).id) == []
    assert shadows_of(client.ledger, make_job(model=finch).id) == [challenger.id]
    with pytest.raises(Conflict, match="Dataset mnist has no challenger"):
        client.shadow()
    assert client.shadow(dataset=BIRDS)[0].beside == finch.id

    # and both datasets can have one, until one of them ends
    other = make_model(b"other", champion=False)
    with client.ledger.transaction() as connection:
        point_alias(connection, SHADOW, other.id)
    client.end_shadow(dataset=BIRDS)
    assert client.shadow()[0].model == other.id


# ---- training runs ------------------------------------------------------------------------------------


def test_each_dataset_has_one_run_at_a_time(ledger: Ledger) -> None:
    # given an active run of each
    digits, photos = ask(ledger, MNIST), ask(ledger, BIRDS)

    # then a second one of the same dataset is refused, and a slot of it is skipped
    with pytest.raises(Conflict, match=f"{photos} is already pending, on dataset birds"):
        ask(ledger, BIRDS)
    for dataset, other in ((MNIST, digits), (BIRDS, photos)):
        skipped = new_id()
        with ledger.transaction() as connection:
            asked = request_run(connection, skipped, recipe={}, dataset=dataset, slot=SLOT)
        assert asked == RunState.SKIPPED  # the other dataset's run of this slot does not count
        assert run_of(ledger, skipped).error == f"training run {other} was active"

    # and the end of one frees its dataset only
    with ledger.transaction() as connection:
        claim = claim_run(connection, photos, owner="host/1")
        assert claim is not None
        assert claim.dataset == BIRDS
        fail_run(connection, claim, "no data")
        assert find_active_run(connection, BIRDS) is None
        assert [run.id for run in active_runs(connection)] == [digits]


def test_corrections_trigger_one_run(ledger: Ledger) -> None:
    def trigger(newest: datetime, dataset: str = BIRDS) -> RunState | None:
        with ledger.transaction() as connection:
            return request_run(connection, new_id(), recipe={}, dataset=dataset, corrections_seen=newest)

    # while another run is active, nothing is stored, so the next look finds them again
    other = ask(ledger, BIRDS)
    assert trigger(SLOT) is None
    with ledger.transaction() as connection:
        claim = claim_run(connection, other, owner="host/1")
        assert claim is not None
        fail_run(connection, claim, "no data")
    # of two beats that see the same corrections, one starts a run
    assert [trigger(SLOT), trigger(SLOT), trigger(SLOT, MNIST)] == [RunState.PENDING, None, RunState.PENDING]


def test_lost_runs_of_several_datasets_are_ended_each_in_its_time(ledger: Ledger) -> None:
    # given two trainers, of which one stopped sending heartbeats some seconds before the other
    claims = []
    for dataset in (MNIST, BIRDS):
        run_id = ask(ledger, dataset)
        with ledger.transaction() as connection:
            claims.append(claim_run(connection, run_id, owner=f"host/{dataset}"))
    digits, photos = (claim.run_id for claim in claims if claim is not None)
    clock = iter(range(0, 10_000, 2))
    detector = FailureDetector(lambda: float(next(clock)))

    def looks() -> list[str]:
        with ledger.transaction() as connection:
            return [run.id for run in end_lost_runs(connection, detector)]

    change_run(ledger, digits, lease_until=db_now(-1))
    assert [looks(), looks()] == [[], []]
    change_run(ledger, photos, lease_until=db_now(-1))
    found = [looks() for _ in range(int(RUN_GRACE_SECONDS))]

    # then each is interrupted once, after its own grace period
    ended = [run_id for each in found for run_id in each]
    assert ended == [digits, photos]
    assert found.index([photos]) - found.index([digits]) == 2


def test_a_request_waits_for_a_lost_run_of_its_dataset_only(ledger: Ledger) -> None:
    run_id = ask(ledger, BIRDS)
    with ledger.transaction() as connection:
        assert claim_run(connection, run_id, owner="host/1") is not None
    change_run(ledger, run_id, lease_until=db_now(-1))
    clear_expired_run(ledger, on_wait=lambda run: pytest.fail(f"waits for {run}"))
    waited: list[str] = []
    clear_expired_run(ledger, BIRDS, on_wait=lambda run: waited.append(run.id))
    assert waited == [run_id]
    assert run_of(ledger, run_id).state == RunState.INTERRUPTED


def test_trainers_that_stop_interrupt_all_their_runs_and_no_others(ledger: Ledger) -> None:
    runs = {ask(ledger, dataset): dataset for dataset in (MNIST, BIRDS, "a-third")}
    with ledger.transaction() as connection:
        for run_id, owner in zip(runs, ("host/17", "host/18", "other/17"), strict=True):
            claim_run(connection, run_id, owner=owner)
        assert interrupt_runs_of(connection, ["host/1", "host/170", "other/1"], error="stopped") == []
        ended = interrupt_runs_of(connection, ["host/1", "host/17", "host/18"], error="stopped")
    assert {runs[run.id] for run in ended} == {MNIST, BIRDS}
    assert {(run.state, run.error) for run in ended} == {(RunState.INTERRUPTED, "stopped")}
    assert all(run == run_of(ledger, run.id) for run in ended)


def test_a_scheduled_run_waits_while_the_trainer_is_busy(ledger: Ledger) -> None:
    # given a slot's run that has waited for hours, while a trainer executes another dataset's run
    busy = ask(ledger, BIRDS)
    waiting = ask(ledger, MNIST, slot=SLOT, minutes_ago=300)
    with ledger.transaction() as connection:
        claim = claim_run(connection, busy, owner="host/1")
        assert claim is not None
        assert end_lost_runs(connection, FailureDetector()) == []

    # when that run ends, then the waiting one can be claimed for another hour
    with ledger.transaction() as connection:
        fail_run(connection, claim, "no data")
    with ledger.transaction() as connection:
        assert end_lost_runs(connection, FailureDetector()) == []
    change_run(ledger, busy, finished_at=db_now(HOUR_AGO))
    with ledger.transaction() as connection:
        assert claim_run(connection, waiting, owner="host/1") is None
        [skipped] = end_lost_runs(connection, FailureDetector())
    assert (skipped.id, skipped.state) == (waiting, RunState.SKIPPED)
    assert skipped.error == "no trainer claimed it within an hour"


def test_a_broker_that_lost_the_messages_loses_no_run_of_any_dataset(
    ledger: Ledger, publisher: Publisher, broker: Broker
) -> None:
    # given pending runs of two datasets whose messages the broker loses
    reconciler = Reconciler(ledger, publisher, holder="anna")
    run_ids = [ask(ledger, MNIST), ask(ledger, BIRDS)]
    for run_id in run_ids:
        publisher.request_run(run_id)
    assert broker.waiting(RETRAIN_QUEUE) == 2
    broker.client.flushall()

    # when the reconciler ticks repeatedly, then one message for each waits, as long as no trainer claims it
    for _ in range(3):
        reconciler.tick()
        messages = broker.messages(RETRAIN_QUEUE)
        assert len(messages) == len(run_ids)
        assert all(b"labelmill.retrain" in message for message in messages)

    # and none for a run that a trainer has claimed
    with ledger.transaction() as connection:
        claim_run(connection, run_ids[0], owner="host/1")
    broker.client.flushall()
    reconciler.tick()
    assert broker.waiting(RETRAIN_QUEUE) == 1
