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
from jobs.schema import RunState, db_now, training_runs
from jobs.settings import ENV_PREFIX
from jobs.sqlite import driver
from tests.console import until
from tests.faults.conftest import short_folder
from tests.faults.mill import HEALED_SECONDS, Mill
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
) -> Iterator[list[Mill]]:
    """A mill on each database, with a trainer and no workers, and 800 digits to train with."""
    idx = tmp_path_factory.mktemp("idx")
    mnist.write_folder(little_mnist, idx)
    settings = {"keras": True, "workers": 0, ENV_PREFIX + "MNIST_DIR": str(idx)}
    with ExitStack() as stack:
        mills = []
        for url in (None, faulty_postgresql.create("training")):
            folder = stack.enter_context(short_folder())
            mill = stack.enter_context(Mill(folder / "home", ledger_url=url, **settings))
            mill.add_worker("trainer", processes=1, queue=RETRAIN_QUEUE)
            mills.append(mill)
        yield mills


def ask(mill: Mill, seed: int) -> str:
    """A training of a second, whose model is promoted whatever it is."""
    run_id = new_id()
    recipe = Recipe(epochs=1, seed=seed, force=True)
    with mill.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json())
    with closing(Publisher(mill.app)) as publisher:
        publisher.request_run(run_id)
    return run_id


def run_of(mill: Mill, run_id: str) -> Run:
    with mill.ledger.reading() as connection:
        return get_run(connection, run_id)


def end_of(mill: Mill, run_id: str, *, seconds: float = HEALED_SECONDS) -> RunState:
    """Waits for the run's end."""
    until(
        lambda: run_of(mill, run_id).finished,
        f"run {run_id} has ended: {mill.faults}",
        seconds=seconds,
    )
    return run_of(mill, run_id).state


def select(mill: Mill, statement: str) -> list[tuple[Any, ...]]:
    """Rows by the database's own driver: what writes a ledger must not say that it is right."""
    if mill.url.startswith("sqlite"):
        with closing(driver().connect(mill.url.removeprefix("sqlite:///"))) as connection:
            return connection.execute(statement).fetchall()
    url = urlunsplit(urlsplit(mill.url)._replace(scheme="postgresql"))
    with psycopg.connect(url) as server:
        return server.execute(statement.encode()).fetchall()


def model_files(mill: Mill) -> set[Path]:
    """All that lies among the models in the store, begun and whole."""
    return set((mill.settings.home / "store" / "models").glob("*"))


def champion(mill: Mill) -> str | None:
    """The champion's id, after looking at all that is promised of it; None before the first promotion."""
    aliases = select(mill, "SELECT model_id FROM aliases WHERE name = 'champion'")
    moves = select(mill, "SELECT model_id, previous_id FROM promotions ORDER BY id")
    assert len(aliases) == min(1, len(moves))
    assert [previous for _, previous in moves] == [None, *(model for model, _ in moves)][: len(moves)]

    # no file in the store has a model's name and is not that model
    folder = mill.settings.home / "store" / "models"
    for file in folder.glob("[!.]*") if folder.exists() else []:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    if not aliases:
        return None

    # and the champion's is there, and runs
    assert aliases[0][0] == moves[-1][0]
    [(sha256,)] = select(mill, f"SELECT sha256 FROM models WHERE id = '{aliases[0][0]}'")
    from worker.predicting.classifier import Classifier

    Classifier.load(folder / f"{sha256}.keras", tuple("0123456789"), MNIST_INPUT).warm_up()
    found: str = aliases[0][0]
    return found


def test_dying_at_any_step_of_a_training_changes_nothing(trainers: list[Mill], matrix: Matrix) -> None:
    # given a champion on each database
    for mill, run_id in [(mill, ask(mill, 0)) for mill in trainers]:
        assert end_of(mill, run_id) == RunState.DONE
    for seam in SEAMS:
        with matrix.trials(f"SIGKILL of a training, {seam}", "I6", short=1, long=5) as trials:
            for time in range(trials.wanted):
                # when the process that trains is killed at this step
                before = {mill: champion(mill) for mill in trainers}
                for mill in trainers:
                    mill.plan.set(Rule(seam, "kill", times=1, every=1))
                runs = {mill: ask(mill, 100 + time) for mill in trainers}

                # then the run says how it ended, and the champion is the one before, or the new one
                for mill, run_id in runs.items():
                    state = end_of(mill, run_id)
                    assert len(mill.plan.events("kill")) == 1
                    committed = seam == "promoted"
                    assert state == (RunState.DONE if committed else RunState.INTERRUPTED)
                    # told by the parent that buried it, not by a lease that ran out
                    assert committed or "its process died" in (run_of(mill, run_id).error or "")
                    assert (champion(mill) != before[mill]) == committed
                    trials.ran(1)

    # and the next run works
    last = {mill: champion(mill) for mill in trainers}
    for mill in trainers:
        mill.plan.clear()
    for mill, run_id in [(mill, ask(mill, 1)) for mill in trainers]:
        assert end_of(mill, run_id) == RunState.DONE
        assert champion(mill) != last[mill]


def test_a_trainer_that_dies_as_a_whole_is_told_of_by_its_lease(trainers: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL of a whole trainer", "I6", short=1, long=5) as trials:
        for time in range(trials.wanted):
            # given a training whose trainer, parent and child, dies in the promotion
            before = {mill: champion(mill) for mill in trainers}
            runs = {}
            for mill in trainers:
                mill.plan.set(Rule("promoting", "kill both", times=1, every=1))
                runs[mill] = ask(mill, time)
            for mill, run_id in runs.items():
                until(lambda mill=mill: bool(mill.plan.events("kill both")), "it is dead")
                mill.plan.clear()

                # when its lease runs out
                with mill.ledger.transaction() as connection:
                    assert get_run(connection, run_id).state == RunState.RUNNING
                    connection.execute(
                        training_runs.update()
                        .where(training_runs.c.id == run_id)
                        .values(lease_until=db_now(-1))
                    )

                # then whoever reconciles interrupts it, nothing was promoted, and the next run works
                assert end_of(mill, run_id) == RunState.INTERRUPTED
                assert champion(mill) == before[mill]
                trials.ran(1)
    for mill, run_id in [(mill, ask(mill, 2)) for mill in trainers]:
        assert end_of(mill, run_id) == RunState.DONE
        assert champion(mill) not in (None, before[mill])


def test_a_model_for_which_there_is_no_room_changes_nothing(trainers: list[Mill], matrix: Matrix) -> None:
    with matrix.trials("disk full while a model is stored", "I6", short=2, long=20) as trials:
        for time in range(trials.wanted // len(trainers)):
            # given a store without room, when a model is to be stored
            before = {mill: (champion(mill), model_files(mill)) for mill in trainers}
            for mill in trainers:
                mill.plan.set(Rule("to be stored", "limit files", times=10**9, every=1))
            runs = {mill: ask(mill, 200 + time) for mill in trainers}

            # then its run has failed, after trying again, and says why; nothing is left of it
            for mill, run_id in runs.items():
                assert end_of(mill, run_id, seconds=2 * HEALED_SECONDS) == RunState.FAILED
                assert len(mill.plan.events("limit files")) > 1
                assert "The store cannot be written: File too large" in (run_of(mill, run_id).error or "")
                assert (champion(mill), model_files(mill)) == before[mill]
                mill.plan.clear()
                trials.ran(1)

            # and with room again the next run works
            for mill, run_id in [(mill, ask(mill, 300 + time)) for mill in trainers]:
                assert end_of(mill, run_id) == RunState.DONE
                assert champion(mill) not in (None, before[mill][0])
