"""What a training says and leaves if its dataset, its cache or its images are damaged or change meanwhile."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import DataUnavailable, LabelmillError, Unavailable
from jobs.ledger import Ledger
from jobs.models.dataset import DatasetVersion, decoded_folder
from jobs.models.model import InputSpec
from jobs.schema import RunState, evaluations
from jobs.settings import Settings
from jobs.storage.dataset_list import read_manifest
from jobs.storage.store import Store
from labelmill.client import Client
from tests import training
from tests.colours import write_pictures
from tests.ledger_probes import run_of
from worker.learning import fit
from worker.learning.data import Data
from worker.learning.stored import StoredDataset
from worker.learning.task import execute_run

#: The database makes no difference here.
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

SHAPES = "shapes"

SPEC = InputSpec(24, 24, "RGB", reduction=2)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "pictures", {"train": 12, "validation": 3, "test": 5})


@pytest.fixture
def client(settings: Settings, pictures: Path) -> Iterator[Client]:
    """A client, and a dataset of 60 pictures in three colours."""
    with closing(Client(settings)) as client:
        client.add_dataset(SHAPES, pictures)
        yield client


@pytest.fixture
def begin(client: Client) -> Callable[[], str]:
    """Return a function that requests a training of seconds, and returns the run's id."""

    def begin() -> str:
        return client.retrain(dataset=SHAPES, architecture="mlp", seed=1, max_minutes=0.02)

    return begin


@pytest.fixture
def version(client: Client) -> DatasetVersion:
    return client.dataset(SHAPES)


def check_it_fails(
    settings: Settings, ledger: Ledger, run_id: str, error: type[LabelmillError], message: str
) -> None:
    """The run ends with this error, and its row says the same."""
    with pytest.raises(error, match=message) as raised:
        execute_run(run_id, settings)
    run = run_of(ledger, run_id)
    assert (run.state, run.error) == (RunState.FAILED, str(raised.value))


def decoded(settings: Settings) -> list[Path]:
    """All files in the cache of the dataset."""
    return [path for path in decoded_folder(settings.cache_dir, SHAPES).rglob("*") if path.is_file()]


def same_pixels(one: Data, other: Data) -> bool:
    pairs = ((one.train, other.train), (one.validation, other.validation), (one.test, other.test))
    return all((first.take(slice(None)) == second.take(slice(None))).all() for first, second in pairs)


# ---- the dataset changes ------------------------------------------------------------------------------


def test_a_version_that_is_added_during_a_training_is_for_the_next_one(
    begin: Callable[[], str],
    client: Client,
    ledger: Ledger,
    settings: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a run that has loaded its data
    run_id = begin()

    # When a version is added, in which half of the test images are new
    def add() -> None:
        more = write_pictures(tmp_path / "more", {"train": 90, "test": 5})
        assert client.add_dataset(SHAPES, more).version.version == 2

    fitting = fit.train

    def add_and_fit(*args: Any, **more: Any) -> Any:
        add()
        return fitting(*args, **more)

    monkeypatch.setattr(fit, "train", add_and_fit)
    execute_run(run_id, settings)
    monkeypatch.undo()
    # Then the run has trained and evaluated on the one that it began with
    run = run_of(ledger, run_id)
    assert (run.dataset_version, run.data_source) == (1, "shapes, version 1")
    assert run.data is not None
    assert (run.data["train_images"], run.data["evaluation_images"]) == (36, 15)
    with ledger.reading() as connection:
        [row] = connection.execute(evaluations.select().where(evaluations.c.model_id == run.model_id))
    assert (row.dataset_version, len(row.answers)) == (1, 15 * 4)
    # and the next one takes the new one.
    second = begin()
    execute_run(second, settings)
    assert run_of(ledger, second).dataset_version == 2


# ---- the store ----------------------------------------------------------------------------------------


def test_a_damaged_payload_or_list_of_images_is_named(
    begin: Callable[[], str], ledger: Ledger, settings: Settings, store: Store, version: DatasetVersion
) -> None:
    assert store.folder is not None
    remedy = "restore it.*[Oo]r add the images as a dataset with another name"
    [payload] = read_manifest(store, version).payloads
    for key, missing, changed in (
        (payload.key, "is gone from the store", "is not what was stored"),
        (version.manifest, "is missing from the store", "cannot be read"),
    ):
        path = store.folder / key
        content = path.read_bytes()
        # a flipped bit in the middle
        path.write_bytes(content[:300] + bytes([content[300] ^ 1]) + content[301:])
        check_it_fails(settings, ledger, begin(), DataUnavailable, f"{changed}.*{remedy}")
        path.unlink()
        check_it_fails(settings, ledger, begin(), DataUnavailable, f"{missing}.*{remedy}")
        assert decoded(settings) == []
        path.write_bytes(content)
    execute_run(begin(), settings)


def test_a_store_that_cannot_be_reached_for_a_moment_costs_no_training(
    settings: Settings, store: Store, version: DatasetVersion
) -> None:
    # Given images that were listed, and a store that is away when they are decoded
    assert store.folder is not None
    dataset = StoredDataset(settings, store, version, pauses=[0.1] * 100)
    away = store.folder.rename(store.folder.with_name("away"))
    with pytest.raises(Unavailable):
        StoredDataset(settings, store, version)
    # When it comes back, then nobody has noticed.
    coming_back = threading.Timer(0.5, away.rename, [store.folder])
    coming_back.start()
    assert len(dataset.prepared(SPEC).train) == 36


def test_an_image_by_reference_that_has_changed_is_named(
    settings: Settings, ledger: Ledger, pictures: Path
) -> None:
    # Given a dataset whose images stay where they are
    settings = settings.model_copy(update={"reference_roots": (str(pictures),)})
    with closing(Client(settings)) as client:
        client.add_dataset("referred", pictures, by_reference=True)
    recipe = training.recipe(architecture="mlp", max_minutes=0.02)
    file = next((pictures / "train" / "red").iterdir())
    content = file.read_bytes()
    remedy = "Put it back as it was, or add the images as a dataset with another name"
    # When one of them has changed, or is gone
    file.write_bytes(content[:-1] + b"?")
    run_id = training.request(settings, recipe, "referred")
    check_it_fails(settings, ledger, run_id, DataUnavailable, f"{file.name} cannot be read .*{remedy}")
    file.unlink()
    run_id = training.request(settings, recipe, "referred")
    check_it_fails(settings, ledger, run_id, DataUnavailable, f"{file.name} cannot be read .*{remedy}")
    # Then the message names it, and with the old one the next training works.
    file.write_bytes(content)
    training.train(settings, recipe, "referred")


# ---- the cache ----------------------------------------------------------------------------------------


def test_a_cache_that_cannot_be_written_is_named(
    begin: Callable[[], str], ledger: Ledger, settings: Settings
) -> None:
    # A file in the folder's place, because the tests may run as root, who can write anywhere.
    settings.cache_dir.mkdir(parents=True, exist_ok=True)
    blocked = settings.cache_dir / "datasets"
    blocked.write_bytes(b"")
    message = (
        r"cannot be kept in .*cache \(Not a directory\): it must be writable and have 1 MB of free space"
    )
    check_it_fails(settings, ledger, begin(), DataUnavailable, message)
    blocked.unlink()
    execute_run(begin(), settings)


def test_a_trained_model_that_cannot_be_kept_is_named(
    begin: Callable[[], str], ledger: Ledger, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    adding = fit.EpochWriter.add

    def fill(*args: Any) -> None:
        adding(*args)
        if settings.cache_dir.is_dir():
            shutil.rmtree(settings.cache_dir)
            settings.cache_dir.write_bytes(b"")

    run_id = begin()
    monkeypatch.setattr(fit.EpochWriter, "add", fill)
    with pytest.raises(Unavailable, match=r"No model can be stored in .*cache"):
        execute_run(run_id, settings)
    run = run_of(ledger, run_id)
    assert run.state == RunState.FAILED
    assert "is its disk full, or is it another user's?" in (run.error or "")


def test_a_file_of_a_wrong_size_is_made_again(
    settings: Settings, store: Store, version: DatasetVersion
) -> None:
    dataset = StoredDataset(settings, store, version)
    before = dataset.prepared(SPEC)
    expected = before.train.take(slice(None))
    [path] = [path for path in decoded(settings) if path.name == "train.pixels"]
    path.unlink()
    path.write_bytes(b"half")
    assert (dataset.prepared(SPEC).train.take(slice(None)) == expected).all()


def test_writing_a_part_of_an_image_is_continued(
    settings: Settings, store: Store, version: DatasetVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given the right pixels, and a disk that takes few bytes at a time
    right = StoredDataset(settings, store, version).prepared(SPEC)
    write = os.pwrite

    def write_a_part(descriptor: int, data: Any, offset: int) -> int:
        return write(descriptor, bytes(data)[:100], offset)

    monkeypatch.setattr(os, "pwrite", write_a_part)
    # When they are decoded again, then they are the same
    other = settings.model_copy(update={"home": settings.home / "other"})
    assert same_pixels(StoredDataset(other, store, version).prepared(SPEC), right)


def test_two_trainers_may_decode_the_same_images(
    settings: Settings, store: Store, version: DatasetVersion
) -> None:
    # Given a trainer in the middle of decoding
    others: list[Data] = []

    def in_the_middle() -> None:
        if not others:
            others.append(StoredDataset(settings, store, version).prepared(SPEC))

    # When another one decodes the same images
    data = StoredDataset(settings, store, version, check=in_the_middle).prepared(SPEC)
    # Then both have them all, and there is nothing else in the cache.
    assert same_pixels(data, others[0])
    assert sorted(path.name for path in decoded(settings)) == [
        "test.pixels",
        "train.pixels",
        "validation.pixels",
    ]
