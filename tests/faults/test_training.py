"""kill -9 in training and in promotion: the champion stays one, whole and loadable; the next run works."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from jobs.ids import new_id
from jobs.ledger.runs import Run, get_run, request_run
from jobs.messages import RETRAIN_QUEUE
from jobs.model import MNIST_INPUT
from jobs.queue import Publisher
from jobs.schema import RunState
from jobs.settings import ENV_PREFIX
from jobs.sqlite import driver
from tests.console import folder_for_sockets, until
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.plan import Rule
from tests.faults.servers import FaultyPostgresql
from tests.faults.trials import Matrix
from worker.learning import mnist
from worker.learning.recipes import Recipe

#: In the order in which a run passes them. Only after the last one is the model the champion.
SEAMS = ("run claimed", "epoch", "saved", "storing", "stored", "promoting", "promoted")


@pytest.fixture(scope="module")
def trainers(
    faulty_postgresql: FaultyPostgresql, little_mnist: mnist.Mnist, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Harness]]:
    """A harness on each database, with a trainer and no workers, and 800 digits to train with."""
    idx = tmp_path_factory.mktemp("idx")
    mnist.write_folder(little_mnist, idx)
    settings = {"keras": True, "workers": 0, ENV_PREFIX + "MNIST_DIR": str(idx)}
    with ExitStack() as stack:
        harnesses = []
        for url in (None, faulty_postgresql.create("training")):
            folder = stack.enter_context(folder_for_sockets())
            harness = stack.enter_context(Harness(folder / "home", ledger_url=url, **settings))
            harness.add_worker("trainer", processes=1, queue=RETRAIN_QUEUE)
            harnesses.append(harness)
        yield harnesses


def ask(harness: Harness, seed: int) -> str:
    """A training of a second, whose model is promoted whatever it is."""
    run_id = new_id()
    recipe = Recipe(epochs=1, seed=seed, force=True)
    with harness.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json())
    with closing(Publisher(harness.app)) as publisher:
        publisher.request_run(run_id)
    return run_id


def run_of(harness: Harness, run_id: str) -> Run:
    with harness.ledger.reading() as connection:
        return get_run(connection, run_id)


def end_of(harness: Harness, run_id: str, *, seconds: float = HEALED_SECONDS) -> RunState:
    """Waits for the run's end."""
    until(
        lambda: run_of(harness, run_id).finished,
        f"run {run_id} has ended: {harness.faults}",
        seconds=seconds,
    )
    return run_of(harness, run_id).state


def select(harness: Harness, statement: str) -> list[tuple[Any, ...]]:
    """Rows by the database's own driver: what writes a ledger must not say that it is right."""
    if harness.url.startswith("sqlite"):
        with closing(driver().connect(harness.url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(statement).fetchall()
    url = urlunsplit(urlsplit(harness.url)._replace(scheme="postgresql"))
    with psycopg.connect(url) as server:
        return server.execute(statement.encode()).fetchall()


def model_files(harness: Harness) -> set[Path]:
    """All that lies among the models in the store, begun and whole."""
    return set((harness.settings.home / "store" / "models").glob("*"))


def champion(harness: Harness) -> str | None:
    """The champion's id, after looking at all that is promised of it; None before the first promotion."""
    aliases = select(harness, "SELECT model_id FROM aliases WHERE name = 'champion'")
    moves = select(harness, "SELECT model_id, previous_id FROM promotions ORDER BY id")
    assert len(aliases) == min(1, len(moves))
    assert [previous for _, previous in moves] == [None, *(model for model, _ in moves)][: len(moves)]

    # no file in the store has a model's name and is not that model
    folder = harness.settings.home / "store" / "models"
    for file in folder.glob("[!.]*") if folder.exists() else []:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    if not aliases:
        return None

    # and the champion's is there, and runs
    assert aliases[0][0] == moves[-1][0]
    [(sha256,)] = select(harness, f"SELECT sha256 FROM models WHERE id = '{aliases[0][0]}'")
    from worker.predicting.classifier import Classifier

    Classifier.load(folder / f"{sha256}.keras", tuple("0123456789"), MNIST_INPUT).warm_up()
    found: str = aliases[0][0]
    return found


def test_dying_at_any_step_of_a_training_changes_nothing(trainers: list[Harness], matrix: Matrix) -> None:
    # given a champion on each database
    for harness, run_id in [(harness, ask(harness, 0)) for harness in trainers]:
        assert end_of(harness, run_id) == RunState.DONE
    for seam in SEAMS:
        with matrix.trials(f"SIGKILL of a training, {seam}", "I6", short=1, long=5) as trials:
            for time in range(trials.wanted):
                # when the process that trains is killed at this step
                before = {harness: champion(harness) for harness in trainers}
                for harness in trainers:
                    harness.plan.set(Rule(seam, "kill", times=1, every=1))
                runs = {harness: ask(harness, 100 + time) for harness in trainers}

                # then the run says how it ended, and the champion is the one before, or the new one
                for harness, run_id in runs.items():
                    state = end_of(harness, run_id)
                    assert len(harness.plan.events("kill")) == 1
                    committed = seam == "promoted"
                    assert state == (RunState.DONE if committed else RunState.INTERRUPTED)
                    # told by the parent that buried it, not by a lease that ran out
                    assert committed or "its process died" in (run_of(harness, run_id).error or "")
                    assert (champion(harness) != before[harness]) == committed
                    trials.ran(1)

    # and the next run works
    last = {harness: champion(harness) for harness in trainers}
    for harness in trainers:
        harness.plan.clear()
    for harness, run_id in [(harness, ask(harness, 1)) for harness in trainers]:
        assert end_of(harness, run_id) == RunState.DONE
        assert champion(harness) != last[harness]


def test_a_model_for_which_there_is_no_room_changes_nothing(trainers: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("disk full while a model is stored", "I6", short=2, long=20) as trials:
        for time in range(trials.wanted // len(trainers)):
            # given a store without room, when a model is to be stored
            before = {harness: (champion(harness), model_files(harness)) for harness in trainers}
            for harness in trainers:
                harness.plan.set(Rule("to be stored", "limit files", times=10**9, every=1))
            runs = {harness: ask(harness, 200 + time) for harness in trainers}

            # then its run has failed, after trying again, and says why; nothing is left of it
            for harness, run_id in runs.items():
                assert end_of(harness, run_id, seconds=2 * HEALED_SECONDS) == RunState.FAILED
                assert len(harness.plan.events("limit files")) > 1
                assert "The store cannot be written: File too large" in (run_of(harness, run_id).error or "")
                assert (champion(harness), model_files(harness)) == before[harness]
                harness.plan.clear()
                trials.ran(1)

            # and with room again the next run works
            for harness, run_id in [(harness, ask(harness, 300 + time)) for harness in trainers]:
                assert end_of(harness, run_id) == RunState.DONE
                assert champion(harness) not in (None, before[harness][0])
