"""Training on datasets of one's own: from images to a champion, the cache, fine-tuning and corrections."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from jobs.errors import DataUnavailable, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.learning.corrections import NewCorrection, correction_key, save_corrections
from jobs.ledger.learning.datasets import get_version
from jobs.ledger.learning.models import find_champion, find_evaluation
from jobs.ledger.learning.runs import get_run
from jobs.models.dataset import Split, decoded_folder
from jobs.models.evaluation import Part
from jobs.models.model import InputSpec, Model
from jobs.models.training_request import TrainingRequest
from jobs.schema import RunState, training_runs
from jobs.settings import Settings
from jobs.storage.dataset_list import read_manifest
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.commands.follow_run import request_run
from tests import training
from tests.colours import COLOURS, picture, write_pictures
from tests.conftest import ModelMaker
from worker.learning.corrections import add_corrections
from worker.learning.data import Data
from worker.learning.stored import StoredDataset

#: On both databases, such trainings run in tests/faults/test_training.py.
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

#: The input that is chosen for pictures of 24x24 pixels.
OWN_SIZE = InputSpec(24, 24, "RGB", reduction=2)


@pytest.fixture
def shapes(client: Client, tmp_path: Path) -> str:
    """Return the name of a dataset of 60 pictures in three colours."""
    client.add_dataset(
        "shapes", write_pictures(tmp_path / "shapes", {"train": 12, "validation": 3, "test": 5})
    )
    return "shapes"


@pytest.fixture
def train(settings: Settings, client: Client) -> Callable[..., training.Trained]:
    """Return a function that trains on a dataset, with the options of a request."""

    def train(dataset: str, **options: Any) -> training.Trained:
        request = TrainingRequest.of(dataset=dataset, **({"seed": 1, "max_minutes": 0.04} | options))
        with client.ledger.reading() as connection:
            recipe = client.check_request(connection, request)
        return training.train(settings, recipe, dataset)

    return train


#: Options of a training in a tenth of the time, for a test that is not about the network.
LIGHT: Final = {"architecture": "mlp", "augment": "none"}


@pytest.fixture
def load(settings: Settings, ledger: Ledger, store: Store) -> Callable[..., Data]:
    """Return a function that loads a dataset's latest version for an input."""

    def load(dataset: str, spec: InputSpec = OWN_SIZE) -> Data:
        with ledger.reading() as connection:
            version = get_version(connection, dataset)
        return StoredDataset(settings, store, version).prepared(spec)

    return load


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def champion_of(ledger: Ledger, dataset: str) -> Model | None:
    with ledger.reading() as connection:
        return find_champion(connection, dataset)


@pytest.mark.parametrize(
    ("broker_url", "options", "minutes"),
    [
        (None, {}, 10.0),
        (None, {"max_minutes": 20}, 20.0),
        (None, {"profile": "quick"}, None),
        ("redis://127.0.0.1:1/0", {}, None),
    ],
    ids=["own machine", "told otherwise", "fixed epochs", "deployment"],
)
def test_a_command_on_ones_own_machine_trains_for_at_most_ten_minutes(
    settings: Settings, shapes: str, broker_url: str | None, options: dict[str, Any], minutes: float | None
) -> None:
    with Client(settings.model_copy(update={"broker_url": broker_url})) as client:
        run_id = request_run(client, TrainingRequest(dataset=shapes, **options))
        assert client.run(run_id).recipe["max_minutes"] == minutes


def test_a_dataset_of_ones_own_gets_a_champion_of_its_own(
    shapes: str, train: Callable[..., training.Trained], ledger: Ledger, load: Callable[..., Data]
) -> None:
    # Given colour pictures of 24x24 pixels, when a model is trained on them for too short a time
    done = train(shapes, force=True)
    # Then it is the dataset's champion, and takes such pictures
    champion = champion_of(ledger, shapes)
    assert champion is not None
    assert (champion.id, champion.dataset, champion.classes) == (
        done.model.id,
        shapes,
        tuple(sorted(COLOURS)),
    )
    assert champion.input_spec == InputSpec(24, 24, "RGB", reduction=2)
    assert champion_of(ledger, "mnist") is None
    # and its run says what was chosen from the data
    with ledger.reading() as connection:
        run = get_run(connection, done.run_id)
        evaluation = find_evaluation(connection, champion.id, load(shapes).evaluation_fingerprint)
    assert (run.state, run.dataset, run.dataset_version) == (RunState.DONE, shapes, 1)
    assert run.data is not None
    assert [run.data[f"{part}_images"] for part in ("train", "validation", "evaluation")] == [36, 9, 15]
    assert run.data["input"] == {"width": 24, "height": 24, "mode": "RGB"}
    assert (run.recipe["augment"], run.recipe["augmentation"]["mirror"]) == ("photos", True)
    assert run.recipe["epochs"] > 0
    # and its evaluation is of the test split.
    assert evaluation is not None
    assert (evaluation.dataset, evaluation.version, evaluation.evaluation.total) == (shapes, 1, 15)


def test_a_model_of_another_size_is_compared_with_the_champion(
    shapes: str, train: Callable[..., training.Trained]
) -> None:
    # Given a champion for small images, when a model is trained for larger ones
    train(shapes, size=16, force=True, **LIGHT)
    second = train(shapes, size=32, augment="digits", architecture="mlp")
    # Then both are evaluated on the same images, each at its own size.
    assert second.model.input_spec == InputSpec(32, 32, "RGB", reduction=2)
    assert "not evaluated" not in second.reason
    assert "other classes" not in second.reason


def test_an_evaluation_decodes_the_test_set_only(
    shapes: str, train: Callable[..., training.Trained], client: Client, settings: Settings
) -> None:
    # Given a model whose training left nothing in the cache
    done = train(shapes, **LIGHT)
    shutil.rmtree(decoded_folder(settings.cache_dir, shapes))
    # When it is evaluated, then its figures are the same
    evaluation = client.evaluate(done.model.id)
    stored = client.evaluation(done.model.id)
    assert stored is not None
    assert (evaluation.total, evaluation.confusion) == (15, stored.evaluation.confusion)
    assert [path.name for path in settings.cache_dir.rglob("*.pixels")] == ["test.pixels"]


def test_ten_images_are_enough(
    client: Client, train: Callable[..., training.Trained], tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "few", {"train": 3, "val": 1, "test": 1}, ("red", "blue"))
    client.add_dataset("few", folder)
    assert train("few", **LIGHT).model.dataset == "few"


def test_decoded_images_are_kept_for_the_next_training(
    shapes: str, load: Callable[..., Data], ledger: Ledger, store: Store
) -> None:
    # Given a dataset that was loaded once
    first = load(shapes)
    # When its payloads are gone
    with ledger.reading() as connection:
        for payload in read_manifest(store, get_version(connection, shapes)).payloads:
            store.remove(payload.key)
    # Then it can be loaded again, at once and with the same images
    again = load(shapes)
    for one, other in ((first.train, again.train), (first.test, again.test)):
        assert (one.take(slice(None)) == other.take(slice(None))).all()
        assert (one.labels == other.labels).all()
    # and for another input it cannot.
    with pytest.raises(DataUnavailable, match="Dataset shapes, version 1, cannot be loaded"):
        load(shapes, InputSpec(16, 16, "RGB"))


def test_images_are_in_the_manifests_order_at_every_size(
    shapes: str, load: Callable[..., Data], ledger: Ledger, store: Store
) -> None:
    small = load(shapes, InputSpec(8, 8, "RGB"))
    data = load(shapes)
    with ledger.reading() as connection:
        manifest = read_manifest(store, get_version(connection, shapes))
    tested = [image for image in manifest.images if image.split == Split.TEST]
    assert data.test.labels.tolist() == small.test.labels.tolist() == [image.label for image in tested]
    assert data.part(Part.TEST, InputSpec(8, 8, "RGB")).take([3]).tolist() == small.test.take([3]).tolist()
    assert data.evaluation_fingerprints == small.evaluation_fingerprints


def test_only_the_latest_inputs_are_kept(
    shapes: str, load: Callable[..., Data], settings: Settings, client: Client
) -> None:
    for side in (8, 9, 10, 11, 12):
        load(shapes, InputSpec(side, side, "RGB"))
    kept = {path.name.split("-")[1] for path in (settings.cache_dir / "datasets" / shapes).iterdir()}
    assert kept == {"10x10", "11x11", "12x12"}
    # and none of a dataset that is removed.
    client.remove_dataset(shapes)
    assert not list(settings.cache_dir.rglob("*.pixels"))


def test_a_trainer_that_is_killed_while_it_decodes_leaves_no_file_to_be_used(
    shapes: str, settings: Settings, ledger: Ledger, store: Store
) -> None:
    # Given a process that is killed while images are decoded
    with ledger.reading() as connection:
        version = get_version(connection, shapes)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    dying = StoredDataset(settings, store, version, check=die)
    pid = os.fork()
    if not pid:
        try:
            dying.prepared(OWN_SIZE)
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    # Then the next training does not use what it left, and has the images of an undisturbed one.
    [left] = settings.cache_dir.rglob("*.pixels")
    assert left.parent.name.startswith(".decoding-")
    data = StoredDataset(settings, store, version).prepared(OWN_SIZE)
    shutil.rmtree(settings.cache_dir)
    undisturbed = StoredDataset(settings, store, version).prepared(OWN_SIZE)
    assert (data.train.take(slice(None)) == undisturbed.train.take(slice(None))).all()


# ---- fine-tuning --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fine_tuning_continues_the_champion_or_gives_it_a_new_head(
    shapes: str, client: Client, train: Callable[..., training.Trained], ledger: Ledger, tmp_path: Path
) -> None:
    # Given a champion of three classes, and a dataset of two of them
    first = train(shapes, size=16, force=True, **LIGHT)
    client.add_dataset(
        "pair",
        write_pictures(tmp_path / "pair", {"train": 6, "validation": 2, "test": 2}, ("red", "blue")),
    )
    # When it is fine-tuned, on the same data and on the other
    same = train(shapes, architecture="finetune")
    other = train("pair", architecture="finetune", start=first.model.id)
    # Then both models take the champion's input, have the classes of their data, and say where they started.
    for done, classes in ((same, ("blue", "green", "red")), (other, ("blue", "red"))):
        assert done.model.input_spec == first.model.input_spec
        assert done.model.classes == classes
        with ledger.reading() as connection:
            assert get_run(connection, done.run_id).recipe["start"] == first.model.id
    assert other.model.dataset == "pair"


def test_a_start_that_may_have_learnt_the_test_images_is_said(
    shapes: str, client: Client, champion: Model, ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    # When a training starts from a model that no training run has made, Then that is said
    request = TrainingRequest.of(dataset=shapes, architecture="finetune", start=champion.id)
    run_id = request_run(client, request)
    assert f"model {champion.id} was not trained on {shapes}: if it has learnt" in capsys.readouterr().err

    # But not if one has made it
    with ledger.transaction() as connection:
        connection.execute(training_runs.update().values(model_id=champion.id, active=None, state="done"))
    assert request_run(client, request) != run_id
    assert capsys.readouterr().err == ""


def test_what_cannot_be_trained_is_refused_with_advice(
    shapes: str, train: Callable[..., training.Trained]
) -> None:
    with pytest.raises(NotFound, match="no champion to start from: name a model with --from"):
        train(shapes, architecture="finetune")
    with pytest.raises(NotFound, match="There is no dataset 'shape'"):
        train("shape")
    with pytest.raises(NotFound, match="There is no model"):
        train(shapes, architecture="finetune", start=new_id())
    with pytest.raises(NotFound, match="Dataset mnist has not been added yet: `labelmill train` adds it"):
        train("mnist")


# ---- corrections --------------------------------------------------------------------------------------


def test_corrections_of_a_dataset_are_learnt_by_its_models_only(
    shapes: str, load: Callable[..., Data], ledger: Ledger, store: Store, make_model: ModelMaker
) -> None:
    # Given a model, corrections of new pictures, a training, a validation and a test image, and a correction
    # of another dataset's model
    model, other = make_model(b"ours", dataset=shapes), make_model(b"another", dataset="birds")
    data = load(shapes)
    pictures = [picture("red", number) for number in (1001, 1002)]
    pictures += [each.take([0])[0] for each in (data.train, data.validation, data.test)]
    pictures.append(picture("green", 1003))
    labels = ["blue", "green", "red", "red", "red", "red"]
    models = [model] * 5 + [other]
    for index, (pixels, label) in enumerate(zip(pictures, labels, strict=True)):
        _correct(ledger, store, models[index], index, png(pixels), label)
    # When the data of the next training are built
    found = add_corrections(data, ledger, store, Settings().image_limits)
    # Then the test image is left out, and the others are learnt once, with their new labels
    assert (found.corrections, found.left_out, len(found.train), len(found.validation)) == (4, 1, 39, 8)
    learnt = found.train.take(slice(None))
    for pixels, label in list(zip(pictures, labels, strict=True))[:4]:
        [row] = np.flatnonzero((learnt == pixels).all(axis=(1, 2, 3)))
        assert found.classes[found.train.labels[row]] == label
    assert not (found.validation.take(slice(None)) == pictures[3]).all(axis=(1, 2, 3)).any()
    assert found.fingerprint != data.fingerprint
    # and in the live set, they have the same fingerprint and order at every size.
    live = add_corrections(data, ledger, store, Settings().image_limits, live_share=1.0)
    small = add_corrections(
        load(shapes, InputSpec(8, 8, "RGB")), ledger, store, Settings().image_limits, live_share=1.0
    )
    assert (live.corrections, len(live.live), len(live.train)) == (0, 4, 35)
    assert live.evaluation_fingerprints == small.evaluation_fingerprints
    assert live.part(Part.LIVE, small.spec).images[:].tolist() == small.live.images[:].tolist()


def test_the_latest_usable_correction_of_a_picture_counts(
    shapes: str,
    train: Callable[..., training.Trained],
    load: Callable[..., Data],
    ledger: Ledger,
    store: Store,
) -> None:
    # Given a picture in two files: one was corrected to red, and last to what is no class; between the two,
    # the other was corrected to green
    model = train(shapes, **LIGHT).model
    pixels = picture("red", 1001)
    for index, (content, label) in enumerate(
        [(png(pixels), "red"), (png(pixels) + b"\0", "green"), (png(pixels), "purple")]
    ):
        _correct(ledger, store, model, index, content, label)
    # When the data of the next training are built
    found = add_corrections(load(shapes), ledger, store, Settings().image_limits)
    # Then the picture is learnt once, as green
    learnt = found.train.take(slice(None))
    rows = np.flatnonzero((learnt == pixels).all(axis=(1, 2, 3)))
    assert [found.classes[found.train.labels[row]] for row in rows] == ["green"]


def _correct(ledger: Ledger, store: Store, model: Model, index: int, content: bytes, label: str) -> None:
    """Store the correction of an image of one job."""
    sha256 = hashlib.sha256(content).hexdigest()
    store.put(correction_key(sha256), content)
    new = NewCorrection("job", index, f"{index}.png", label, "red", 0.9, model.id, sha256)
    with ledger.transaction() as connection:
        save_corrections(connection, [new])
