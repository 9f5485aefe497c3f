"""Training on a backbone: a head on features that are computed once, and kept with the dataset."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.errors import Conflict, NotFound, UserError
from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion
from jobs.ledger.learning.runs import get_run
from jobs.models.dataset import checkpoint_key, features_folder
from jobs.models.model import InputSpec
from jobs.models.training_request import TrainingRequest
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.reporting.model_page import render
from labelmill.reporting.report_data import load_report
from tests import training
from tests.colours import write_pictures

pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a network for pictures of 32x32 pixels, whose random weights tell colours apart."""
    from worker.predicting.tensorflow_runtime import keras

    keras.utils.set_random_seed(1)
    layers = keras.layers
    network = keras.Sequential(
        [
            keras.Input((32, 32, 3), dtype="uint8"),
            layers.Rescaling(1 / 255),
            layers.Conv2D(32, 5, strides=3, activation="relu"),
            layers.GlobalMaxPooling2D(),
            layers.Dense(5, activation="softmax"),
        ]
    )
    path: Path = tmp_path_factory.mktemp("backbone") / "Tiny.keras"
    network.save(path)
    return path


@pytest.fixture
def shapes(client: Client, tmp_path: Path, backbone_file: Path) -> str:
    """Return the name of a dataset of pictures in three colours, where the backbone `tiny` is registered."""
    client.add_backbone(backbone_file, licence="none")
    client.add_dataset("shapes", write_pictures(tmp_path / "one", {"train": 12, "validation": 4, "test": 5}))
    return "shapes"


@pytest.fixture
def train(settings: Settings, client: Client) -> Callable[..., training.Trained]:
    """Return a function that trains on `shapes` with these options."""

    def train(**options: Any) -> training.Trained:
        request = TrainingRequest.of(dataset="shapes", seed=1, **options)
        with client.ledger.reading() as connection:
            recipe = client.check_request(connection, request)
        return training.train(settings, recipe, "shapes")

    return train


def computed(caplog: pytest.LogCaptureFixture) -> int:
    """Return of how many images features were computed since the last call."""
    lines = [each.getMessage() for each in caplog.records if "computed the features" in each.getMessage()]
    caplog.clear()
    return sum(int(line.split()[4]) for line in lines)


def test_colour_pictures_are_learnt_on_the_backbone_and_each_is_looked_at_once(
    shapes: str,
    train: Callable[..., training.Trained],
    client: Client,
    ledger: Ledger,
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    # Given a backbone, when a dataset of pictures in colour is trained on without another word
    done = train()
    # Then its champion is a network on the backbone, with the backbone's input
    with ledger.reading() as connection:
        champion = find_champion(connection, shapes)
        run = get_run(connection, done.run_id)
    assert champion is not None
    assert (champion.architecture, champion.input_spec) == ("tiny", InputSpec(32, 32, "RGB", reduction=2))
    assert (run.recipe["architecture"], run.recipe["backbone"]) == ("transfer", "tiny")
    assert champion.accuracy is not None
    assert champion.accuracy > 0.9
    assert computed(caplog) == 63
    # and its report says what a network without the backbone would cost
    with ledger.reading() as connection:
        page = render(load_report(connection, champion.id))
    assert (
        f"without a backbone would take about {champion.metrics['cnn_microseconds']:.1f} µs per image" in page
    )
    # and what it answers as it is served is what its evaluation says
    assert client.evaluate(champion.id).accuracy == champion.accuracy

    # When it is trained again, then the backbone looks at no image
    train()
    assert computed(caplog) == 0
    # and with new images only at those, nor is a network without the backbone measured again
    client.add_dataset(shapes, write_pictures(tmp_path / "two", {"train": 13}))
    another = train().model
    assert computed(caplog) == 6
    assert another.id != champion.id
    assert another.metrics["cnn_microseconds"] == champion.metrics["cnn_microseconds"]

    # When a file of features is damaged, then only its images are computed again
    folder = features_folder(shapes)
    [key] = store.folders(folder)
    sizes = {name: len(store.get(f"{folder}/{key}/{name}")) for name in store.files(f"{folder}/{key}")}
    smallest = min(sizes, key=lambda name: sizes[name])
    store.put(f"{folder}/{key}/{smallest}", b"broken")
    train()
    assert computed(caplog) == 1

    # When the backbone is removed, then its features go, the champion stays, and trainings need another way
    client.remove_backbone("tiny")
    assert store.folders(folder) == []
    assert client.evaluate(champion.id).accuracy == champion.accuracy
    with pytest.raises(NotFound, match="backbones add"):
        train(architecture="transfer")


def test_another_size_has_features_of_its_own_and_all_goes_with_the_dataset(
    shapes: str, train: Callable[..., training.Trained], client: Client, store: Store
) -> None:
    done = train(backbone="tiny", size=24)
    assert done.model.input_spec == InputSpec(24, 24, "RGB", reduction=2)
    [key] = store.folders(features_folder(shapes))
    assert "24x24" in key
    with client.ledger.transaction() as connection:
        connection.exec_driver_sql("DELETE FROM aliases")
    store.put(checkpoint_key(shapes), b"of an interrupted training")
    client.remove_dataset(shapes)
    assert store.folders(features_folder(shapes)) == []
    assert not store.exists(checkpoint_key(shapes))


@pytest.mark.usefixtures("shapes")
def test_a_person_chooses_how_own_images_are_learnt(train: Callable[..., training.Trained]) -> None:
    # Another architecture, and another augmentation, are a training from nothing
    assert train(architecture="mlp", max_minutes=0.02).model.architecture == "mlp"
    # Options that do not fit together are refused, and so is an unknown backbone
    for options in ({"architecture": "cnn"}, {"augment": "photos"}, {"profile": "quick"}):
        with pytest.raises(UserError, match="leave out"):
            train(backbone="tiny", **options)
    with pytest.raises(NotFound, match="no backbone 'other'"):
        train(backbone="other")
    # A schedule's options for another kind of network are dropped
    how = {"architecture": "cnn", "augment": "photos"}
    assert TrainingRequest.of(dataset="shapes", backbone="tiny").with_defaults(how).architecture is None


def test_a_backbone_keeps_its_name_for_one_file(client: Client, backbone_file: Path, tmp_path: Path) -> None:
    added = client.add_backbone(backbone_file)
    assert (added.name, added.features, added.input_spec) == (
        "tiny",
        32,
        InputSpec(32, 32, "RGB", reduction=2),
    )
    assert client.add_backbone(backbone_file) == added
    from worker.predicting.tensorflow_runtime import keras

    other = keras.models.load_model(backbone_file)
    other.layers[1].set_weights([weight * 0 for weight in other.layers[1].get_weights()])
    other.save(tmp_path / "tiny.keras")
    # A network that answers the same whatever it sees has lost its weights
    with pytest.raises(UserError, match="the same for every image"):
        client.add_backbone(tmp_path / "tiny.keras")
    # and another file needs another name
    keras.models.load_model(backbone_file).save(tmp_path / "tiny.keras")
    with pytest.raises(Conflict, match="another name"):
        client.add_backbone(tmp_path / "tiny.keras")


def test_a_network_of_keras_is_added_by_name_with_the_weights_that_keras_has(
    client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from worker.learning.applications import save_application
    from worker.predicting.tensorflow_runtime import keras

    # Given a machine without a network, then the error says so, and what to do
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        UserError, match=r"weights of mobilenet could not be downloaded .*add the \.keras file"
    ):
        client.add_backbone("mobilenet")
    with pytest.raises(
        UserError, match=r"neither a .keras file nor a network of keras.applications: .*xception"
    ):
        client.add_backbone("mobilenet5")
    # Saved elsewhere, it takes bytes, scales them itself, and is registered like any file
    save_application("mobilenet", tmp_path / "mobilenet.keras", weights=None)
    added = client.add_backbone(tmp_path / "mobilenet.keras", name="mobilenet")
    assert (added.features, added.input_spec) == (1024, InputSpec(224, 224, "RGB", reduction=2))
    network = keras.models.load_model(tmp_path / "mobilenet.keras")
    assert network.inputs[0].dtype == "uint8"
    assert not any(isinstance(layer, keras.Model) for layer in network.layers)
