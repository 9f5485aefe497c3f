"""A training run from data to verdict: its rows, the champion, and what a failure leaves behind."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.errors import Unavailable
from jobs.ledger import Ledger
from jobs.ledger.models import find_champion, list_models
from jobs.ledger.runs import epochs_of
from jobs.registry import fetch_model
from jobs.schema import RunState, training_runs
from jobs.settings import Settings
from jobs.store import Store
from tests.conftest import ModelMaker
from worker.learning import mnist
from worker.learning.promotion import ACCURACY_FLOOR, judge
from worker.learning.retrain import retrain
from worker.learning.training import Recipe
from worker.predicting.classifier import Classifier

QUICK = Recipe(epochs=2, batch_size=32, seed=3)


def test_the_first_model_becomes_the_champion_and_its_run_is_recorded(
    settings: Settings, ledger: Ledger, store: Store, little_mnist: mnist.Mnist, tmp_path: Path
) -> None:
    # given no model, when one is trained
    done = retrain(settings, little_mnist, recipe=QUICK, replace=False)

    # then it is the champion, with what was measured
    with ledger.reading() as connection:
        champion = find_champion(connection)
        epochs = epochs_of(connection, done.run_id)
        run = connection.execute(sa.select(training_runs)).one()
    assert champion is not None
    assert champion.id == done.model.id
    assert champion.accuracy == done.model.metrics["evaluation"]["accuracy"] > 0.7
    assert (run.state, run.model_id, run.data_fingerprint) == (
        RunState.DONE,
        champion.id,
        little_mnist.fingerprint,
    )
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert all(0 < epoch.accuracy <= 1 and epoch.loss > 0 and epoch.seconds > 0 for epoch in epochs)

    # and its file is in the store under its SHA-256 and can be used
    path = fetch_model(store, champion, tmp_path)
    assert Classifier.load(path, champion.classes, champion.input_spec).classes == tuple("0123456789")


def test_a_champion_stays_where_it_is_not_to_be_replaced_or_not_beaten(
    settings: Settings, ledger: Ledger, little_mnist: mnist.Mnist
) -> None:
    # given a champion
    first = retrain(settings, little_mnist, recipe=QUICK)

    # when another model is trained without `replace`, and the same one once more with it
    other = retrain(settings, little_mnist, recipe=Recipe(epochs=1, batch_size=32, seed=4), replace=False)
    again = retrain(settings, little_mnist, recipe=QUICK, replace=True)

    # then the champion is still the first, and the verdicts say why
    with ledger.reading() as connection:
        champion = find_champion(connection)
        assert champion is not None
        assert champion.id == first.model.id
    assert (other.verdict.promote, again.verdict.promote) == (False, False)
    assert "kept beside" in other.verdict.reason


def test_a_training_that_fails_changes_nothing_and_says_why(
    settings: Settings, ledger: Ledger, little_mnist: mnist.Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a champion, and a store that breaks at the moment the new model is to be kept
    first = retrain(settings, little_mnist, recipe=QUICK)

    def broken(*_: object) -> None:
        raise Unavailable("The store cannot be written: no space left on device")

    monkeypatch.setattr(Store, "put", broken)

    # when a model is trained
    with pytest.raises(Unavailable):
        retrain(settings, little_mnist, recipe=Recipe(epochs=1, batch_size=32, seed=5))

    # then the champion is as it was, and the run has the reason
    with ledger.reading() as connection:
        champion = find_champion(connection)
        assert champion is not None
        assert champion.id == first.model.id
        assert len(list_models(connection)) == 1
        latest = sa.select(training_runs).order_by(training_runs.c.started_at.desc()).limit(1)
        run = connection.execute(latest).one()
    assert (run.state, run.model_id) == (RunState.FAILED, None)
    assert "no space left" in run.error


@pytest.mark.parametrize(
    ("accuracy", "before", "promoted"),
    [
        (0.980, 0.975, True),
        (0.975, 0.975, False),
        (0.970, 0.975, False),
        (ACCURACY_FLOOR - 0.001, 0.5, False),
    ],
)
def test_only_what_is_better_and_over_the_floor_is_promoted(
    make_model: ModelMaker, accuracy: float, before: float, promoted: bool
) -> None:
    champion = dataclasses.replace(make_model(), accuracy=before)

    assert judge(accuracy, champion, replace=True).promote is promoted
    assert judge(accuracy, champion, replace=False).promote is False
