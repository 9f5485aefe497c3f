"""kill -9 in training and in promotion: the champion stays one, whole and loadable; the next run works.

The runs are those of a dataset of colour pictures, and fine-tune its champion. In tests/integration,
`test_dataset_training` and `test_dataset_damage` have what happens while images are decoded into the cache.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from jobs.ids import new_id
from jobs.ledger.learning.runs import request_run
from jobs.messages import RETRAIN_QUEUE
from jobs.models.model import InputSpec
from jobs.queue import Publisher
from jobs.schema import RunState
from labelmill.datasets.adding import add_dataset
from tests import training
from tests.colours import COLOURS, write_pictures
from tests.console import folder_for_sockets, until
from tests.faults.checker import selecting
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.plan import Rule
from tests.faults.servers import FaultyPostgresql
from tests.faults.trials import Matrix
from tests.ledger_probes import run_of

#: The steps of a run, in order. Only after the last one is the model the champion.
SEAMS = ("run claimed", "epoch", "saved", "storing", "stored", "promoting", "promoted")

#: The dataset of colour pictures, whose models have this input.
COLOURED = "coloured"
INPUT = InputSpec(24, 24, "RGB", reduction=2)


@pytest.fixture(scope="module")
def trainers(
    faulty_postgresql: FaultyPostgresql, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Harness]]:
    """A harness on each database, with a trainer and no workers, 60 coloured pictures and a champion."""
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"), {"train": 12, "validation": 3, "test": 5})
    settings = {"keras": True, "workers": 0}
    with ExitStack() as stack:
        harnesses = []
        for url in (None, faulty_postgresql.create(f"training_{new_id()}")):
            folder = stack.enter_context(folder_for_sockets())
            harness = stack.enter_context(Harness(folder / "home", ledger_url=url, **settings))
            add_dataset(harness.ledger, harness.store, harness.settings, COLOURED, [str(pictures)])
            harness.add_worker("trainer", processes=1, queue=RETRAIN_QUEUE)
            harnesses.append(harness)
        runs = [(harness, ask(harness, 0, architecture="mlp")) for harness in harnesses]
        for harness, run_id in runs:
            assert end_of(harness, run_id) == RunState.DONE
        yield harnesses


def ask(harness: Harness, seed: int, architecture: str = "finetune") -> str:
    """A training of a second or two, whose model is promoted whatever it is. It fine-tunes the champion."""
    run_id = new_id()
    recipe = training.recipe(architecture=architecture, seed=seed, force=True, max_minutes=0.02)
    with harness.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json(), dataset=COLOURED)
    with closing(Publisher(harness.app)) as publisher:
        publisher.request_run(run_id)
    return run_id


def end_of(harness: Harness, run_id: str, *, seconds: float = HEALED_SECONDS) -> RunState:
    """Waits for the run's end."""
    until(
        lambda: run_of(harness.ledger, run_id).finished,
        f"run {run_id} has ended: {harness.faults}",
        seconds=seconds,
    )
    return run_of(harness.ledger, run_id).state


def select(harness: Harness, statement: str) -> list[tuple[Any, ...]]:
    """Rows by the database's own driver: what writes a ledger must not say that it is right."""
    with selecting(harness.url) as rows:
        return rows(statement)


def model_files(harness: Harness) -> set[Path]:
    """All that lies among the models in the store, begun and whole."""
    return set((harness.settings.home / "store" / "models").glob("*"))


@functools.cache  # a file's name is the hash of its content, which is checked each time
def check_it_runs(file: Path) -> None:
    """A model can be loaded, and classifies."""
    from worker.predicting.classifier import Classifier

    Classifier.load(file, tuple(sorted(COLOURS)), INPUT).warm_up()


def champion(harness: Harness) -> str:
    """The champion's id, after looking at all that is promised of it."""
    # no file in the store has a model's name and is not that model
    folder = harness.settings.home / "store" / "models"
    for file in folder.glob("[!.]*"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    # the champion is the last of an unbroken chain
    [(found,)] = select(harness, "SELECT model_id FROM aliases WHERE name = 'champion'")
    moves = select(harness, "SELECT model_id, previous_id FROM promotions ORDER BY id")
    assert [previous for _, previous in moves] == [None, *(model for model, _ in moves)][: len(moves)]
    assert found == moves[-1][0]
    # its file is there, and runs
    [(sha256,)] = select(harness, f"SELECT sha256 FROM models WHERE id = '{found}'")
    check_it_runs(folder / f"{sha256}.keras")
    return str(found)


def test_dying_at_any_step_of_a_training_changes_nothing(trainers: list[Harness], matrix: Matrix) -> None:
    # given a champion, on each database
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
                    assert committed or "its process died" in (run_of(harness.ledger, run_id).error or "")
                    assert (champion(harness) != before[harness]) == committed
                    trials.ran(1)

    # and the next run works
    check_it_goes_on(trainers, seed=1)


def check_it_goes_on(trainers: list[Harness], *, seed: int) -> None:
    """The next run ends well, and its model is the champion."""
    before = {harness: champion(harness) for harness in trainers}
    for harness in trainers:
        harness.plan.clear()
    for harness, run_id in [(harness, ask(harness, seed)) for harness in trainers]:
        assert end_of(harness, run_id) == RunState.DONE
        assert champion(harness) != before[harness]


def test_a_store_without_room_changes_nothing(trainers: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("disk full in a training, to be stored", "I6", short=2, long=20) as trials:
        for time in range(trials.wanted // len(trainers)):
            # given a store without room, when a model is to be stored
            before = {harness: (champion(harness), model_files(harness)) for harness in trainers}
            for harness in trainers:
                harness.plan.set(Rule("to be stored", "limit files", times=10**9, every=1))
            runs = {harness: ask(harness, 200 + time) for harness in trainers}

            # then its run has failed, after it was tried again, and says why; nothing is left of it
            for harness, run_id in runs.items():
                assert end_of(harness, run_id, seconds=2 * HEALED_SECONDS) == RunState.FAILED
                assert len(harness.plan.events("limit files")) >= 2
                error = run_of(harness.ledger, run_id).error or ""
                assert "The store cannot be written: File too large" in error
                assert (champion(harness), model_files(harness)) == before[harness]
                assert not list(harness.settings.cache_dir.glob("training-*"))
                trials.ran(1)

            # and with room again the next run works
            check_it_goes_on(trainers, seed=300 + time)
