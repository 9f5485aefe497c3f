"""Test a training run from data to verdict: its rows, the champion, and what a failure leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded
from PIL import Image
from sqlalchemy.engine import Connection

from jobs.errors import Unavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning import runs
from jobs.ledger.learning.corrections import NewCorrection, correction_key, save_corrections
from jobs.ledger.learning.datasets import get_version
from jobs.ledger.learning.models import champion_history, find_champion, find_evaluation, list_models
from jobs.ledger.learning.runs import (
    RUN_LEASE_SECONDS,
    Run,
    RunClaim,
    RunLost,
    cancel_run,
    claim_run,
    epochs_of,
    get_run,
    latest_runs,
    verdict_on,
)
from jobs.messages import RETRAIN_TASK
from jobs.models.dataset import MNIST, checkpoint_key
from jobs.queue import make_app
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import Settings
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.commands.follow_run import data_line
from tests import training
from tests.conftest import ModelMaker
from tests.console import until
from tests.digits import Digits
from tests.ledger_probes import champion_of
from tests.training import Trained
from worker.learning import fit, heartbeat, prepare, record, trainer
from worker.learning.checkpoint import Checkpoint, save_checkpoint
from worker.learning.heartbeat import Heartbeat
from worker.learning.recipes import Recipe
from worker.learning.task import execute_run
from worker.learning.trainer import Trainer
from worker.predicting.classifier import Classifier
from worker.tasks import register_tasks

QUICK = Recipe(epochs=2, batch_size=32, seed=3)


def train(settings: Settings, data: Digits, recipe: Recipe = QUICK, **more: Any) -> Trained:
    """Add the data, unless they are added already, and train in this process."""
    add(settings, data)
    return training.train(settings, recipe, **more)


def add(settings: Settings, data: Digits) -> None:
    with Client(settings) as client:
        data.add_to(client, settings.home / "idx")


def begin(settings: Settings, ledger: Ledger) -> RunClaim:
    """Request a run, and claim it."""
    run_id = training.request(settings, QUICK)
    with ledger.transaction() as connection:
        claim = claim_run(connection, run_id, owner="a test")
    assert claim is not None
    return claim


def cut(data: Digits, *, test: int) -> Digits:
    """Return the same data with only the first test images."""
    return dataclasses.replace(data, test_images=data.test_images[:test], test_labels=data.test_labels[:test])


def latest_fingerprint(ledger: Ledger) -> str:
    """Return the fingerprint of the test set of the latest run."""
    data = latest(ledger).data
    assert data is not None
    return str(data["evaluation_fingerprint"])


def latest(ledger: Ledger) -> Run:
    with ledger.reading() as connection:
        return latest_runs(connection, limit=1)[0]


# ---- results ------------------------------------------------------------------------------------------


def test_the_first_model_becomes_the_champion_and_its_run_is_recorded(
    settings: Settings, ledger: Ledger, store: Store, little_mnist: Digits, tmp_path: Path
) -> None:
    # given no model, when one is trained
    done = train(settings, little_mnist, keep_champion=True)

    # then it is the champion, with its measured figures
    with ledger.reading() as connection:
        champion = find_champion(connection)
        epochs = epochs_of(connection, done.run_id)
        verdict = verdict_on(connection, done.run_id)
        assert champion is not None
        evaluation = find_evaluation(connection, champion.id, latest_fingerprint(ledger))
        version = get_version(connection, MNIST)
        [move] = champion_history(connection)
    assert champion.id == done.model.id
    assert champion.aliases == ("champion",)
    facts = {"data": "mnist, version 1", "run": done.run_id, "precision": "float32"}
    assert facts.items() <= champion.metrics.items()
    assert champion.metrics.keys() - facts.keys() == {"temperature", "uncalibrated_error"}
    assert evaluation is not None
    assert champion.accuracy == evaluation.evaluation.accuracy > 0.7
    assert evaluation.evaluation.total == 300
    assert verdict is not None
    assert (verdict.promote, verdict.forced, verdict.model_id) == (True, False, champion.id)
    assert (move.model_id, move.how, move.verdict_id) == (champion.id, "retrain", verdict.id)

    # and its run records the data and the epochs
    run = latest(ledger)
    assert (run.id, run.state, run.model_id) == (done.run_id, RunState.DONE, champion.id)
    assert run.verdict == done.reason
    assert Recipe.from_json(run.recipe) == dataclasses.replace(QUICK, keep_champion=True)
    assert (run.data_source, run.data_fingerprint) == ("mnist, version 1", version.fingerprint)
    splits = version.summary["splits"]
    assert splits["train"] + splits["validation"] == 800
    assert run.data == {
        "train_images": splits["train"],
        "validation_images": splits["validation"],
        "evaluation_images": 300,
        "corrections": 0,
        "live_images": 0,
        "left_out": 0,
        "classes": list("0123456789"),
        "evaluation_fingerprint": latest_fingerprint(ledger),
        "input": {"width": 28, "height": 28, "mode": "L"},
    }
    assert [epoch.epoch for epoch in epochs] == [1, 2]
    assert all(0 < epoch.accuracy <= 1 and epoch.loss > 0 and epoch.seconds > 0 for epoch in epochs)

    # and its file is in the store under its SHA-256, and can be loaded
    path = fetch_model(store, champion, tmp_path)
    assert Classifier.load(path, champion.classes, champion.input_spec).classes == tuple("0123456789")


def test_a_champion_is_evaluated_on_the_same_images_and_stays_if_it_is_not_to_be_replaced(
    settings: Settings, ledger: Ledger, little_mnist: Digits
) -> None:
    # given a champion whose evaluation was made on other images
    fewer = cut(little_mnist, test=200)
    first = train(settings, fewer)

    # when another model is trained, then both are compared on the same images
    other = Recipe(epochs=1, batch_size=32, seed=4)
    second = train(settings, little_mnist, other, keep_champion=True)
    with ledger.reading() as connection:
        assert find_evaluation(connection, first.model.id, latest_fingerprint(ledger)) is not None
        verdict = verdict_on(connection, second.run_id)
    assert verdict is not None
    assert "test set" in {check["name"] for check in verdict.checks}

    # and the champion stays
    assert second.reason == f"not promoted: {first.model.id} stays the champion"
    assert champion_of(ledger) == first.model.id


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("error", ["InvalidArgumentError", "InternalError", "ResourceExhaustedError"])
def test_a_champion_that_does_not_run_costs_no_new_model(
    settings: Settings,
    ledger: Ledger,
    little_mnist: Digits,
    monkeypatch: pytest.MonkeyPatch,
    error: str,
) -> None:
    # given a champion evaluated on other images, which fails in TensorFlow on these
    from worker.predicting.tensorflow_runtime import tf

    fewer = cut(little_mnist, test=200)
    first = train(settings, fewer)
    real, evaluated = Classifier.probabilities, set()

    def choosy(classifier: Classifier, pixels: Any) -> Any:
        evaluated.add(classifier)
        if len(evaluated) > 1:  # the new model is evaluated first
            raise getattr(tf.errors, error)(None, None, "op failed")
        return real(classifier, pixels)

    monkeypatch.setattr(Classifier, "probabilities", choosy)
    monkeypatch.setattr(trainer, "RETRY_PAUSES", (0.0,))

    # when another model is trained, then the run is done, and the verdict says that they were not compared
    second = train(settings, little_mnist, Recipe(epochs=1, batch_size=32, seed=4))
    assert "not evaluated on the same images" in second.reason
    assert (latest(ledger).state, latest(ledger).model_id) == (RunState.DONE, second.model.id)
    assert champion_of(ledger) == first.model.id


def end_lease(ledger: Ledger) -> None:
    """Let the run's lease expire, as if its trainer had sent no heartbeat for that long."""
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().values(lease_until=db_now(-1)))


# ---- failures -----------------------------------------------------------------------------------------


def test_ctrl_c_interrupts_the_run(
    settings: Settings, ledger: Ledger, little_mnist: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def press_it(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "train", press_it)
    with pytest.raises(KeyboardInterrupt):
        train(settings, little_mnist)
    run = latest(ledger)
    assert (run.state, run.error) == (RunState.INTERRUPTED, "its trainer was stopped")
    assert champion_of(ledger) is None


def test_the_next_run_resumes_an_interrupted_one(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    little_mnist: Digits,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def until_epoch(number: int, recipe: Recipe) -> Run:
        """Train until Ctrl-C is pressed after this epoch."""

        def save(trainer: Trainer, checkpoint: Checkpoint) -> None:
            save_checkpoint(trainer, checkpoint)
            if len(checkpoint.epochs) == number:
                raise KeyboardInterrupt

        monkeypatch.setattr(fit, "save_checkpoint", save)
        monkeypatch.setattr(fit, "CHECKPOINT_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            train(settings, little_mnist, recipe)
        monkeypatch.undo()
        return latest(ledger)

    # given a run of four epochs that is interrupted after the second, and nobody asked for its seed
    unasked = training.recipe(architecture="mlp", profile="quick")
    before = until_epoch(2, unasked)

    # when a run with another recipe is interrupted, then it had started over
    asked = until_epoch(1, dataclasses.replace(unasked, seed=7, is_seed_random=False))
    assert asked.recipe["seed"] == 7
    assert asked.data is not None
    assert asked.data.get("resumed_epochs") is None

    # when the same recipe is trained again, then only the last run can be resumed
    again = until_epoch(3, training.recipe(architecture="mlp", profile="quick"))
    assert again.data is not None
    assert again.data["resumed_epochs"] == 1
    assert again.recipe["seed"] == 7 != before.recipe["seed"]

    # and then it goes on after its third epoch, with the same seed, and says so
    with Client(settings) as client:
        done = client.run(train(settings, little_mnist, unasked).run_id)
        epochs = client.epochs(done.id)
        assert "; resumes an interrupted run after epoch 3" in data_line(done)
    assert done.recipe["seed"] == 7
    assert [epoch.epoch for epoch in epochs] == [1, 2, 3, 4]
    # and nothing of it is left for the next one.
    assert not store.exists(checkpoint_key(MNIST))

    # given a damaged checkpoint, then the next run starts over
    until_epoch(2, unasked)
    key = checkpoint_key(MNIST)
    store.put(key, store.get(key)[:-1000])
    train(settings, little_mnist, unasked)
    done = latest(ledger)
    assert done.data is not None
    assert done.data.get("resumed_epochs") is None
    assert "the checkpoint of dataset mnist is damaged, so the training starts over" in caplog.text


def test_a_trainer_that_died_is_in_nobodys_way(
    settings: Settings, ledger: Ledger, little_mnist: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run whose trainer died, and no reconciler
    add(settings, little_mnist)
    monkeypatch.setattr(runs, "RUN_GRACE_SECONDS", 0.1)
    dead = begin(settings, ledger)
    end_lease(ledger)

    # when another run is requested, then the caller is told of the dead one, and gets a new run
    waited: list[Run] = []
    with Client(settings) as client:
        client.retrain(on_wait=waited.append)
    assert [run.id for run in waited] == [dead.run_id]
    with ledger.reading() as connection:
        assert get_run(connection, dead.run_id).state == RunState.INTERRUPTED
    assert latest(ledger).id != dead.run_id


def test_a_run_that_was_cancelled_ends_at_the_next_batch_and_changes_nothing(
    settings: Settings, ledger: Ledger, little_mnist: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run that is cancelled during its first batch, and a heartbeat that notices
    add(settings, little_mnist)
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    run_id = training.request(settings, QUICK)
    batches = []
    real = fit.train

    def cancel_in(*args: Any, on_batch: Callable[[], None], **more: Any) -> Any:
        def cancel() -> None:
            batches.append(True)
            with ledger.transaction() as connection:
                cancel_run(connection, run_id)
            until(
                lambda: not any(thread.name == "heartbeat" for thread in threading.enumerate()),
                "the heart stands still",
            )
            on_batch()

        return real(*args, on_batch=cancel, **more)

    monkeypatch.setattr(fit, "train", cancel_in)

    # when the training goes on, then it ends before the next batch, and there is no model
    with pytest.raises(RunLost, match="is cancelled"):
        execute_run(run_id, settings)
    assert len(batches) == 1
    run = latest(ledger)
    assert (run.state, run.error, run.epochs_done) == (RunState.CANCELLED, None, 0)
    with ledger.reading() as connection:
        assert list_models(connection) == []


def test_a_run_that_is_lost_at_its_last_step_promotes_nothing(
    settings: Settings, ledger: Ledger, little_mnist: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a run that is cancelled just before its model is judged
    add(settings, little_mnist)
    register = record.register_model
    run_id = training.request(settings, QUICK)

    def register_and_cancel(*args: Any, **kwargs: Any) -> Any:
        with ledger.transaction() as connection:
            cancel_run(connection, run_id)
        return register(*args, **kwargs)

    monkeypatch.setattr(record, "register_model", register_and_cancel)

    # when the run finishes, then the promotion is rolled back with it
    with pytest.raises(RunLost):
        execute_run(run_id, settings)
    assert champion_of(ledger) is None
    with ledger.reading() as connection:
        assert champion_history(connection) == []
        assert verdict_on(connection, run_id) is None


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return a dict: `away["add"] = 3` makes the ledger unavailable for three calls of that function.

    `away["after add"] = 1` breaks its connection after the COMMIT took effect, once.
    """
    away: dict[str, int] = {}
    real = Ledger.transaction

    def fail(step: str) -> None:
        if away.get(step):
            away[step] -= 1
            raise Unavailable("The ledger cannot be reached")

    @contextlib.contextmanager
    def breaking(one: Ledger, **named: bool) -> Iterator[Any]:
        step = sys._getframe(2).f_code.co_name
        fail(step)
        with real(one, **named) as connection:
            yield connection
        fail(f"after {step}")

    monkeypatch.setattr(Ledger, "transaction", breaking)
    return away


def correct(ledger: Ledger, store: Store, model_id: str, *, images: int) -> None:
    """Store that many corrections, each of a different grey image."""
    for index in range(images):
        file = io.BytesIO()
        Image.new("L", (28, 28), 10 + index).save(file, "PNG")
        sha256 = hashlib.sha256(file.getvalue()).hexdigest()
        store.put(correction_key(sha256), file.getvalue())
        row = NewCorrection(new_id(), index, f"{index}.png", "1", "7", 0.5, model_id, sha256)
        with ledger.transaction() as connection:
            save_corrections(connection, [row])


def test_a_ledger_and_a_store_that_are_away_for_a_moment_cost_no_training(
    settings: Settings,
    ledger: Ledger,
    store: Store,
    little_mnist: Digits,
    make_model: ModelMaker,
    away: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given three corrections, a ledger whose connection breaks at each step of a run, and a store that fails
    # once for the model and for each correction
    correct(ledger, store, make_model(champion=False).id, images=3)
    away |= {f"after {step}": 1 for step in ("describe", "add", "register_model", "_conclude")}
    failed: set[str] = set()

    def fail_once(real: Callable[..., Any]) -> Callable[..., Any]:
        def once(store: Store, key: str, *arguments: Any, **named: Any) -> Any:
            if key.startswith(("models/", "corrections/")) and key not in failed:
                failed.add(key)
                raise Unavailable("the store is away")
            return real(store, key, *arguments, **named)

        return once

    monkeypatch.setattr(Store, "get", fail_once(Store.get))
    monkeypatch.setattr(Store, "put", fail_once(Store.put))
    monkeypatch.setattr(trainer, "RETRY_PAUSES", (0.0, 0.0))

    # when a model is trained for two epochs, then it is promoted once, and each epoch is recorded once
    done = train(settings, little_mnist)
    assert not any(away.values())
    assert len(failed) == 4
    assert champion_of(ledger) == done.model.id
    assert done.reason == latest(ledger).verdict
    with ledger.reading() as connection:
        assert [epoch.epoch for epoch in epochs_of(connection, done.run_id)] == [1, 2]
        assert len(champion_history(connection)) == 1

    # and it has learned from all three corrections
    data = latest(ledger).data
    assert data is not None
    assert (data["corrections"] + data["live_images"], data["left_out"]) == (3, 0)


def test_a_ledger_that_stays_away_costs_no_training(
    settings: Settings,
    ledger: Ledger,
    little_mnist: Digits,
    away: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a ledger that is unavailable at each epoch, and at the end for longer than a lease
    pauses = [*trainer.RETRY_PAUSES, *trainer.RETRY_PAUSES[-1:] * trainer.EXTRA_RETRIES]
    assert sum(pauses) > RUN_LEASE_SECONDS
    monkeypatch.setattr(trainer, "RETRY_PAUSES", (0.0,) * len(trainer.RETRY_PAUSES))
    away |= {"add": 10**9, "register_model": len(pauses), "_conclude": len(pauses)}

    # when a model is trained, then it is promoted, and its epochs are recorded with the model
    done = train(settings, little_mnist)
    assert (away["register_model"], away["_conclude"]) == (0, 0)
    assert champion_of(ledger) == done.model.id
    with ledger.reading() as connection:
        assert [epoch.epoch for epoch in epochs_of(connection, done.run_id)] == [1, 2]


def test_a_time_limit_that_strikes_while_the_ledger_is_away_is_not_waited_for(
    settings: Settings, ledger: Ledger, little_mnist: Digits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: object, **__: object) -> None:
        raise Unavailable("the connection broke") from SoftTimeLimitExceeded()

    monkeypatch.setattr(prepare, "describe_data", hangs)
    monkeypatch.setattr(trainer, "RETRY_PAUSES", (100.0,))
    with pytest.raises(Unavailable):
        train(settings, little_mnist)
    assert latest(ledger).error == "it exceeded the time limit for a training run"


# ---- the heartbeat ------------------------------------------------------------------------------------


def test_a_ledger_that_is_away_for_some_beats_stops_no_training(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # given a lease that has just expired, and a ledger that is unavailable for three heartbeats
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.02)
    claim = begin(settings, ledger)
    end_lease(ledger)
    beats: list[RunClaim] = []
    real = heartbeat.renew_run

    def away_at_first(connection: Connection, claim: RunClaim) -> None:
        beats.append(claim)
        if len(beats) <= 3:
            raise Unavailable("The ledger cannot be reached")
        real(connection, claim)

    monkeypatch.setattr(heartbeat, "renew_run", away_at_first)

    # when the heartbeat goes on, then the lease is renewed, and the run is not lost
    with Heartbeat(settings, claim) as heart:
        until(lambda: _lasts(ledger), "the lease is renewed")
        heart.check()
    assert len(beats) > 3
    said = f"the heartbeat of training run {claim.run_id} failed: The ledger cannot be reached"
    assert [record.getMessage() for record in caplog.records].count(said) == 3


def _lasts(ledger: Ledger) -> bool:
    with ledger.reading() as connection:
        return (
            connection.scalar(training_runs.select().where(training_runs.c.lease_until > db_now()))
            is not None
        )


# ---- the task -----------------------------------------------------------------------------------------


@pytest.fixture
def task(settings: Settings) -> Iterator[Any]:
    """Return the trainer's task, to be called as in a child process."""
    app = make_app(settings)
    register_tasks(app, settings)
    yield app.tasks[RETRAIN_TASK]
    app.close()


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_message_that_names_no_run_of_ours_is_dropped(task: Any, caplog: pytest.LogCaptureFixture) -> None:
    task.run()
    assert "it names no training run" in caplog.text
    task.run("0" * 16)
    assert "it names no training run of this ledger" in caplog.text


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_second_message_for_a_run_does_nothing(task: Any, settings: Settings, ledger: Ledger) -> None:
    claim = begin(settings, ledger)
    before = latest(ledger)
    task.run(claim.run_id)
    assert latest(ledger) == before
