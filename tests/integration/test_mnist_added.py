"""MNIST is a dataset like any other, which is added when a training needs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import DataUnavailable
from jobs.ledger import Ledger
from jobs.models.dataset import MNIST
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.datasets.mnist import CRON, GATE, REQUEST, add_mnist_if_missing
from tests.digits import Digits


@pytest.fixture
def settings(settings: Settings, little_mnist: Digits, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"mnist_dir": little_mnist.write(tmp_path / "idx")})


def test_it_comes_with_limits_and_a_weekly_training_unless_somebody_has_set_others(
    settings: Settings, ledger: Ledger, store: Store, client: Client
) -> None:
    # Given a new ledger, which has no schedule, and a limit that was set, when a training needs MNIST, twice
    assert client.schedules() == []
    client.set_gate(MNIST, margin=0.02)
    for _ in range(2):
        add_mnist_if_missing(ledger, store, settings)
    # Then it has one version, whose test images are those of the file t10k
    version = client.dataset(MNIST)
    assert (version.version, version.classes) == (1, tuple("0123456789"))
    assert version.summary["splits"]["test"] == 300
    # and a weekly schedule, which says what is trained if nobody says otherwise
    [status] = client.schedules()
    assert (status.schedule.cron, status.schedule.request) == (CRON, REQUEST)
    recipe = client.run(client.retrain(max_minutes=1)).recipe
    assert (recipe["architecture"], recipe["profile"], recipe["max_minutes"]) == ("mlp", "quick", 1)
    # and the limits that were set
    assert (client.gate(MNIST).margin, client.gate(MNIST).min_accuracy) == (0.02, None)
    # and if it is removed and added again, its own.
    client.cancel_run(client.runs()[0].id)
    client.remove_dataset(MNIST)
    add_mnist_if_missing(ledger, store, settings)
    assert client.gate(MNIST).min_accuracy == GATE["min_accuracy"]


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_folder_without_images_is_named_and_adds_nothing(
    settings: Settings, ledger: Ledger, store: Store, client: Client, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    empty = settings.model_copy(update={"mnist_dir": tmp_path / "empty"})
    with pytest.raises(DataUnavailable, match="empty has no IDX files of images"):
        add_mnist_if_missing(ledger, store, empty)
    assert client.datasets() == []
    assert client.schedules() == []


def test_class_names_beside_idx_files_are_taken(client: Client, little_mnist: Digits, tmp_path: Path) -> None:
    folder = little_mnist.write(tmp_path / "named")
    (folder / "classes.txt").write_text("\n".join("abcdefghij"))
    assert client.add_dataset("letters", folder).version.classes == tuple("abcdefghij")
