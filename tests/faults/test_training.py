"""kill -9 in training and in promotion: the champion stays one, whole and loadable; the next run works.

The runs are those of a dataset of colour pictures, which decode them and fine-tune its champion.
"""

from __future__ import annotations

import functools
import hashlib
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

from jobs.ids import new_id
from jobs.ledger.learning.runs import Run, get_run, request_run
from jobs.ledger.sqlite import driver
from jobs.messages import RETRAIN_QUEUE
from jobs.models.dataset import MNIST, decoded_folder
from jobs.models.model import MNIST_INPUT, InputSpec
from jobs.queue import Publisher
from jobs.schema import RunState
from labelmill.datasets.adding import add_dataset
from tests import training
from tests.colours import COLOURS, write_pictures
from tests.console import folder_for_sockets, until
from tests.digits import Digits
from tests.faults.harness import HEALED_SECONDS, Harness
from tests.faults.plan import Rule
from tests.faults.servers import FaultyPostgresql
from tests.faults.trials import Matrix
from worker.learning.recipes import Recipe

#: The steps of a run, in order. Only after the last one is the model the champion.
CACHE_SEAMS = ("decoding", "decoded", "cached")
SEAMS = ("run claimed", *CACHE_SEAMS, "epoch", "saved", "storing", "stored", "promoting", "promoted")

#: The dataset of colour pictures.
COLOURED = "coloured"

#: What models of each dataset are: their classes and their input.
KINDS = {
    MNIST: (tuple("0123456789"), MNIST_INPUT),
    COLOURED: (tuple(sorted(COLOURS)), InputSpec(24, 24, "RGB")),
}


@pytest.fixture(scope="module")
def trainers(
    faulty_postgresql: FaultyPostgresql, little_mnist: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Harness]]:
    """A harness on each database, with a trainer and no workers, 800 digits and 60 coloured pictures.

    Both datasets have a champion.
    """
    idx = little_mnist.write(tmp_path_factory.mktemp("idx"))
    pictures = write_pictures(tmp_path_factory.mktemp("pictures"), {"train": 12, "validation": 3, "test": 5})
    settings = {"keras": True, "workers": 0}
    with ExitStack() as stack:
        harnesses = []
        for url in (None, faulty_postgresql.create(f"training_{new_id()}")):
            folder = stack.enter_context(folder_for_sockets())
            harness = stack.enter_context(Harness(folder / "home", ledger_url=url, **settings))
            for dataset, source in ((COLOURED, pictures), (MNIST, idx)):
                add_dataset(harness.ledger, harness.store, harness.settings, dataset, [str(source)])
            harness.add_worker("trainer", processes=1, queue=RETRAIN_QUEUE)
            harnesses.append(harness)
        runs = [(harness, ask(harness, 0, dataset, first=True)) for harness in harnesses for dataset in KINDS]
        for harness, run_id in runs:
            assert end_of(harness, run_id) == RunState.DONE
        yield harnesses


def ask(harness: Harness, seed: int, dataset: str = COLOURED, *, first: bool = False) -> str:
    """A training of a second or two, whose model is promoted whatever it is.

    On the colour pictures, it fine-tunes the champion, unless it is the first.
    """
    run_id = new_id()
    recipe = Recipe(epochs=1, seed=seed, force=True)
    if dataset == COLOURED:
        recipe = training.recipe(
            architecture="mlp" if first else "finetune", seed=seed, force=True, max_minutes=0.02
        )
    with harness.ledger.transaction() as connection:
        request_run(connection, run_id, recipe=recipe.to_json(), dataset=dataset)
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


@functools.cache  # a file's name is the hash of its content, which is checked each time
def check_it_runs(file: Path, dataset: str) -> None:
    """A model of this dataset can be loaded, and classifies."""
    from worker.predicting.classifier import Classifier

    Classifier.load(file, *KINDS[dataset]).warm_up()


def champions(harness: Harness) -> dict[str, str]:
    """The id of each dataset's champion, after looking at all that is promised of it."""
    # no file in the store has a model's name and is not that model
    folder = harness.settings.home / "store" / "models"
    for file in folder.glob("[!.]*"):
        assert hashlib.sha256(file.read_bytes()).hexdigest() == file.stem
    found: dict[str, str] = {}
    for dataset in KINDS:
        aliases = select(
            harness, f"SELECT model_id FROM aliases WHERE name = 'champion' AND dataset = '{dataset}'"
        )
        moves = select(
            harness,
            "SELECT model_id, previous_id FROM promotions JOIN models ON models.id = model_id "
            f"WHERE dataset = '{dataset}' ORDER BY promotions.id",
        )
        # the champion is the last of an unbroken chain, which models of no other dataset are in
        assert [previous for _, previous in moves] == [None, *(model for model, _ in moves)][: len(moves)]
        assert aliases == [(moves[-1][0],)]
        found[dataset] = aliases[0][0]
        # its file is there, and runs
        [(sha256,)] = select(harness, f"SELECT sha256 FROM models WHERE id = '{found[dataset]}'")
        check_it_runs(folder / f"{sha256}.keras", dataset)
    return found


def cached_files(harness: Harness) -> dict[str, str]:
    """The SHA-256 of all decoded images in the cache, by their path; what has no name yet counts too."""
    folder = decoded_folder(harness.settings.cache_dir, COLOURED)
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def forget_decoded(harness: Harness) -> None:
    """The next training has to decode its images."""
    shutil.rmtree(decoded_folder(harness.settings.cache_dir, COLOURED))


def test_dying_at_any_step_of_a_training_changes_nothing(trainers: list[Harness], matrix: Matrix) -> None:
    # given a champion of each dataset, on each database
    decoded = {harness: cached_files(harness) for harness in trainers}
    for seam in SEAMS:
        with matrix.trials(f"SIGKILL of a training, {seam}", "I6", short=1, long=5) as trials:
            for time in range(trials.wanted):
                # when the process that trains is killed at this step
                before = {harness: champions(harness) for harness in trainers}
                for harness in trainers:
                    if seam in CACHE_SEAMS:
                        forget_decoded(harness)
                    # in the middle of the images, if it is one of them
                    harness.plan.set(Rule(seam, "kill", times=1, every=20 if seam == "decoding" else 1))
                runs = {harness: ask(harness, 100 + time) for harness in trainers}

                # then the run says how it ended, and the champion is the one before, or the new one
                for harness, run_id in runs.items():
                    state = end_of(harness, run_id)
                    assert len(harness.plan.events("kill")) == 1
                    committed = seam == "promoted"
                    assert state == (RunState.DONE if committed else RunState.INTERRUPTED)
                    # told by the parent that buried it, not by a lease that ran out
                    assert committed or "its process died" in (run_of(harness, run_id).error or "")
                    after = champions(harness)
                    changed = {each for each in KINDS if after[each] != before[harness][each]}
                    assert changed == ({COLOURED} if committed else set())
                    # and what the cache has under its name is whole
                    named = {path: sha for path, sha in cached_files(harness).items() if path[0] != "."}
                    assert named.items() <= decoded[harness].items()
                    trials.ran(1)

                # and after a death in the cache, the next run decodes the rest, and removes what was left
                if seam in CACHE_SEAMS:
                    check_it_goes_on(trainers, seed=150 + time)
                    assert {harness: cached_files(harness) for harness in trainers} == decoded

    # and the next run works
    check_it_goes_on(trainers, seed=1)


def check_it_goes_on(trainers: list[Harness], *, seed: int) -> None:
    """The next run ends well, and its model is the champion."""
    before = {harness: champions(harness) for harness in trainers}
    for harness in trainers:
        harness.plan.clear()
    for harness, run_id in [(harness, ask(harness, seed)) for harness in trainers]:
        assert end_of(harness, run_id) == RunState.DONE
        after = champions(harness)
        assert {each for each in KINDS if after[each] != before[harness][each]} == {COLOURED}


def test_a_run_that_waits_behind_one_that_dies_is_trained(trainers: list[Harness], matrix: Matrix) -> None:
    with matrix.trials("SIGKILL of a training, another waits", "I6", short=2, long=20) as trials:
        for time in range(trials.wanted // len(trainers)):
            # given runs of both datasets for one trainer
            before = {harness: champions(harness) for harness in trainers}
            for harness in trainers:
                harness.plan.set(Rule("epoch", "kill", times=1, every=1))
            runs = {
                harness: [ask(harness, 400 + time, dataset) for dataset in (COLOURED, MNIST)]
                for harness in trainers
            }
            for harness, (first, second) in runs.items():
                # when the first one dies, then the second one is trained
                assert end_of(harness, first) == RunState.INTERRUPTED
                assert end_of(harness, second) == RunState.DONE
                after = champions(harness)
                assert after[COLOURED] == before[harness][COLOURED]
                assert after[MNIST] != before[harness][MNIST]
                trials.ran(1)


@pytest.mark.parametrize(
    ("seam", "tries", "message"),
    [
        ("to be stored", 2, "The store cannot be written: File too large"),
        ("to be cached", 1, "The decoded images cannot be kept in"),
        ("to be saved", 1, "No model can be stored in"),
    ],
)
def test_what_there_is_no_room_for_changes_nothing(
    trainers: list[Harness], matrix: Matrix, seam: str, tries: int, message: str
) -> None:
    with matrix.trials(f"disk full in a training, {seam}", "I6", short=2, long=20) as trials:
        for time in range(trials.wanted // len(trainers)):
            # given a disk without room, when the images are decoded, or a model is to be stored
            before = {harness: (champions(harness), model_files(harness)) for harness in trainers}
            for harness in trainers:
                if seam == "to be cached":
                    forget_decoded(harness)
                harness.plan.set(Rule(seam, "limit files", times=10**9, every=1))
            runs = {harness: ask(harness, 200 + time) for harness in trainers}

            # then its run has failed, a store's after trying again, and says why; nothing is left of it
            for harness, run_id in runs.items():
                assert end_of(harness, run_id, seconds=2 * HEALED_SECONDS) == RunState.FAILED
                assert len(harness.plan.events("limit files")) >= tries
                assert message in (run_of(harness, run_id).error or "")
                assert "File too large" in (run_of(harness, run_id).error or "")
                assert (champions(harness), model_files(harness)) == before[harness]
                assert not list(harness.settings.cache_dir.glob("training-*"))
                assert seam != "to be cached" or cached_files(harness) == {}
                trials.ran(1)

            # and with room again the next run works
            check_it_goes_on(trainers, seed=300 + time)
