"""A model that was trained elsewhere can be registered, evaluated and promoted."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from jobs.ledger import Ledger
from jobs.ledger.learning.models import find_champion, find_evaluation, get_model, list_models
from jobs.models.model import MNIST_INPUT, InputSpec
from jobs.settings import Settings
from labelmill.commands.models import app as models_command
from labelmill.console.terminal import ExitCode
from tests.digits import Digits
from tests.kerasfile import keras_file
from worker.predicting.context import WorkerContext
from worker.predicting.networks.keras_network import load_model
from worker.predicting.tensorflow_runtime import keras

#: On both databases, test_models.py registers models, and test_promotions.py evaluates and promotes them.
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

DIGITS = ",".join("0123456789")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(settings: Settings, tmp_path: Path, little_mnist: Digits, monkeypatch) -> Run:
    """Return a function: `run("register", path)` returns exit code, stdout, stderr; with 300 test images."""
    folder = little_mnist.write(tmp_path / "idx")
    for name, value in settings.model_copy(update={"mnist_dir": folder}).environment().items():
        monkeypatch.setenv(name, value)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        done = CliRunner().invoke(models_command, [str(argument) for argument in arguments])
        return done.exit_code, done.stdout, done.stderr

    return run


@pytest.fixture
def make_file(tmp_path: Path) -> Callable[..., Path]:
    """Return a function: `make_file("one", bias=3)` saves a network that answers "3" for every image."""

    def make_file(name: str, *, bias: int = 0, classes: int = 10, shape: tuple[int, ...] = (28, 28)) -> Path:
        network = keras.Sequential(
            [
                keras.Input(shape, dtype="uint8"),
                keras.layers.Rescaling(1 / 255),
                keras.layers.Flatten(),
                keras.layers.Dense(classes, activation="softmax"),
            ]
        )
        weights = np.zeros((int(np.prod(shape)), classes), np.float32)
        network.set_weights([weights, 5 * np.eye(classes, dtype=np.float32)[bias]])
        path = tmp_path / f"{name}.keras"
        network.save(path)
        return path

    return make_file


def sha256_of(model_id: str, run: Run) -> str:
    return next(each["sha256"] for each in json.loads(run("list", "--json")[1]) if each["id"] == model_id)


def make_without_softmax(path: Path) -> Path:
    """Save a network whose outputs are logits."""
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.Dense(10)]
    keras.Sequential(layers).save(path)
    return path


def make_any_size(path: Path) -> Path:
    """Save a network that takes pictures of any size."""
    layers = [keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()]
    keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")]).save(path)
    return path


def test_a_file_becomes_a_model_is_measured_and_promoted(
    run: Run, make_file: Callable[..., Path], ledger: Ledger, little_mnist: Digits
) -> None:
    # Given a model that was trained elsewhere, when it is registered
    code, printed, said = run("register", make_file("threes", bias=3), "--architecture", "constant")

    # Then it is in the registry, and not the champion
    model_id = printed.strip()
    assert code == 0
    assert f"labelmill models evaluate {model_id}" in said
    with ledger.reading() as connection:
        [model] = list_models(connection)
        assert find_champion(connection) is None
    assert (model.id, model.architecture, model.accuracy) == (model_id, "constant", None)
    assert (model.classes, model.metrics) == (tuple("0123456789"), {"file": "threes.keras"})

    # When it is evaluated, Then the figures are those of a model that answers 3 for everything
    threes = int((little_mnist.test_labels == 3).sum())
    code, printed, _ = run("evaluate", model_id, "--json")
    told = json.loads(printed)
    assert (code, told["model"], told["total"], told["correct"]) == (0, model_id, 300, threes)
    assert told["balanced_accuracy"] == pytest.approx(1 / 10)
    assert told["macro_f1"] == pytest.approx(2 * threes / (300 + threes) / 10)
    assert "png" not in printed
    code, printed, _ = run("evaluate", model_id)
    assert f"right               {threes:,} of 300" in printed
    rows = [line.split() for line in printed.splitlines()]
    place = rows.index(["3", f"{threes / 300:.4f}", "1.0000"])
    assert rows[place + 1] == ["4", "-", "0.0000"]
    with ledger.reading() as connection:
        stored = find_evaluation(connection, model_id)
        [model] = list_models(connection)
    assert stored is not None
    assert (stored.dataset, stored.version) == ("mnist", 1)
    assert model.accuracy == threes / 300

    # And it can be promoted by force only, because it answers the same for everything
    code, _, said = run("promote", model_id)
    assert code == ExitCode.WITH_ERRORS
    assert "of always answering" in said
    assert run("promote", model_id, "--force")[0] == 0


@pytest.mark.usefixtures("birds")
def test_a_model_belongs_to_its_dataset_and_has_its_classes(
    run: Run, make_file: Callable[..., Path], ledger: Ledger
) -> None:
    # Given a dataset of two classes, when a model is registered for it
    file = make_file("finch", classes=2)
    _, printed, said = run("register", file, "--dataset", "birds")
    model_id = printed.strip()

    # Then its classes are those of the dataset, on which it is evaluated; here its images are missing
    assert "could not be measured now: The store cannot be read" in said
    with ledger.reading() as connection:
        model = get_model(connection, model_id)
    assert (model.dataset, model.classes) == ("birds", ("finch", "heron"))
    # And it can be registered for no other one
    code, _, said = run("register", file, "--classes", "finch,heron")
    assert (code, f"as model {model_id} of dataset birds. A model belongs to one dataset" in said) == (
        2,
        True,
    )
    code, _, said = run("register", file, "--dataset", "brids")
    assert (code, "There is no dataset 'brids'" in said) == (2, True)


def test_the_champion_is_measured_as_well_where_it_was_not_yet(
    run: Run, make_file: Callable[..., Path], ledger: Ledger
) -> None:
    # Given a champion that was never evaluated and takes colour pictures of another size, and another model
    large = make_file("large", bias=1, shape=(40, 36, 3))
    champion = run("register", large, "--classes", DIGITS)[1].strip()
    assert run("promote", champion, "--force")[0] == 0
    other = run("register", make_file("two", bias=2))[1].strip()

    # When the other model is evaluated, Then both are, on the same images, each at its own size
    code, _, said = run("evaluate", other)
    assert (code, said.count("evaluating model")) == (0, 2)
    with ledger.reading() as connection:
        for model_id in (champion, other):
            assert find_evaluation(connection, model_id) is not None

    # And a second evaluation is only of the other model
    assert run("evaluate", other)[2].count("evaluating model") == 1


def test_a_champion_whose_file_is_gone_costs_nobody_his_figures(
    run: Run, make_file: Callable[..., Path], settings: Settings
) -> None:
    # Given a champion that was never evaluated, and whose file is gone from the store
    champion = run("register", make_file("one", bias=1))[1].strip()
    assert run("promote", champion, "--force")[0] == 0
    other = run("register", make_file("two", bias=2))[1].strip()
    for path in (settings.home / "store" / "models").iterdir():
        if path.stem == sha256_of(champion, run):
            path.unlink()
    # When another model is evaluated, Then its figures are printed, and a line names the champion
    code, printed, said = run("evaluate", other, "--json")
    assert (code, json.loads(printed)["model"]) == (0, other)
    assert "the champion cannot be evaluated" in said


def test_a_file_of_any_name_is_registered_and_listed(
    run: Run, make_file: Callable[..., Path], tmp_path: Path
) -> None:
    # Given a file whose name is not UTF-8
    odd = tmp_path / os.fsdecode(b"m\xff.keras")
    make_file("one").rename(odd)
    # When it is registered, Then the list can be printed
    assert run("register", odd)[0] == 0
    assert json.loads(run("list", "--json")[1])[0]["metrics"] == {"file": "m\\xff.keras"}


def test_the_same_file_is_the_same_model_and_its_classes_stay(
    run: Run, make_file: Callable[..., Path]
) -> None:
    path = make_file("one")
    first = json.loads(run("register", path, "--json")[1])
    again = json.loads(run("register", path, "--json")[1])
    assert (first["new"], again["new"], again["model"]) == (True, False, first["model"])
    code, printed, said = run("register", path, "--classes", "a,b,c,d,e,f,g,h,i,j")
    assert (code, printed) == (2, "")
    assert "with other classes: 0, 1, 2" in said


def test_what_pictures_it_takes_is_read_from_the_file_and_said(
    run: Run, make_file: Callable[..., Path], ledger: Ledger
) -> None:
    # Given models with MNIST's input, with and without a channel axis, and models with other inputs
    for name, shape, options, expected in (
        ("plain", (28, 28), (), MNIST_INPUT),
        ("channel", (28, 28, 1), (), MNIST_INPUT),
        ("negative", (28, 28, 1), ("--invert", "never"), replace(MNIST_INPUT, invert="never")),
        ("grey", (20, 30), (), InputSpec(width=30, height=20)),
        ("colour", (20, 30, 3), (), InputSpec(width=30, height=20, mode="RGB", reduction=2)),
        (
            "sharp",
            (20, 30, 3),
            ("--resampling", "lanczos", "--invert", "always"),
            InputSpec(width=30, height=20, mode="RGB", resampling="lanczos", invert="always", reduction=2),
        ),
    ):
        # When one is registered, Then its input spec follows from its file and the options
        path = make_file(name, shape=shape, bias=len(name))
        code, printed, _ = run("register", path, "--classes", DIGITS, *options)
        assert code == 0
        with ledger.reading() as connection:
            assert get_model(connection, printed.strip()).input_spec == expected
    # And it cannot be registered again with another input spec
    code, printed, said = run("register", path, "--classes", DIGITS)
    assert (code, printed) == (2, "")
    assert "with another input: RGB bytes, 30 x 20, lanczos, all inverted" in said


def test_a_model_of_other_classes_is_evaluated_on_its_own_data_only(
    run: Run, make_file: Callable[..., Path]
) -> None:
    # Given MNIST, and a model with other classes, when it is registered, then stderr says how to use it,
    # without an evaluation
    run("evaluate", run("register", make_file("one"))[1].strip())
    _, printed, said = run("register", make_file("abc", classes=3), "--classes", "a, b,c")
    model_id = printed.strip()
    assert f"labelmill submit SOURCES --model {model_id}" in said
    assert f"labelmill models promote {model_id} --force" in said
    assert "models evaluate" not in said
    # When it is evaluated, Then the error says the same
    code, _, said = run("evaluate", model_id)
    assert (code, "has other classes (a, b, c) than the data (0, 1" in said) == (2, True)
    assert f"labelmill models promote {model_id} --force" in said
    code, _, said = run("promote", model_id)
    assert (code, f"`labelmill models promote {model_id} --force`" in said) == (2, True)
    # And the forced promotion works
    assert run("promote", model_id, "--force")[0] == 0


@pytest.mark.parametrize(
    ("file", "options", "why"),
    [
        # Classes must be named unless it takes MNIST's images
        ({"shape": (64, 64, 3)}, (), "its 10 classes have no names"),
        ({"shape": (28, 28, 3)}, (), "its 10 classes have no names"),
        ({"shape": (32, 32)}, (), "its 10 classes have no names"),
        ({"classes": 9}, (), "its 9 classes have no names"),
        ({}, ("--classes", "0,1,2"), "the model answers 10 classes, and 3 are named"),
        ({}, ("--classes", "0,1,2,3,4,5,6,7,8,8"), "lists a class twice: 8"),
        ({}, ("--classes", "0,1,2,3,4,5,6,7,8,"), "each class needs its own name"),
        ({}, ("--classes", "0,1,2,3,4,5,6,7,8,\x1b[31m9"), "has a control character"),
        ({}, ("--logits",), "are probabilities already: leave out --logits"),
    ],
)
def test_what_does_not_fit_the_models_answers_is_refused(
    run: Run,
    make_file: Callable[..., Path],
    ledger: Ledger,
    file: dict[str, Any],
    options: tuple[str, ...],
    why: str,
) -> None:
    code, printed, said = run("register", make_file("model", **file), *options)
    assert (code, printed, why in said) == (2, "", True)
    with ledger.reading() as connection:
        assert list_models(connection) == []


def test_class_names_are_read_from_a_file(
    run: Run, make_file: Callable[..., Path], tmp_path: Path, ledger: Ledger
) -> None:
    # Given a list as an editor of Windows writes it
    names = tmp_path / "names.txt"
    names.write_bytes("\ufeffa crow\r\n\r\nmagpie\r\njay, blue\r\n".encode())
    path = make_file("birds", classes=3)
    # When a model is registered with it, Then its classes have these names
    code, printed, said = run("register", path, "--classes-file", names)
    assert code == 0
    assert "a crow, magpie, jay, blue" in said
    with ledger.reading() as connection:
        assert get_model(connection, printed.strip()).classes == ("a crow", "magpie", "jay, blue")
    # And only one list can be given, which must exist and fit
    for arguments, why in (
        (("--classes", "a,b,c", "--classes-file", names), "not both"),
        (("--classes-file", tmp_path / "missing.txt"), "is not a file"),
        (("--classes-file", path), "cannot be read"),
    ):
        code, _, said = run("register", path, *arguments)
        assert (code, why in said) == (2, True)
    names.write_text("crow\nmagpie\n")
    assert "answers 3 classes, and 2 are named" in run("register", path, "--classes-file", names)[2]
    names.write_text("\n")
    assert "names no class" in run("register", path, "--classes-file", names)[2]


def test_a_model_that_answers_logits_is_served_and_evaluated_with_a_softmax(
    run: Run, tmp_path: Path, settings: Settings, ledger: Ledger, little_mnist: Digits
) -> None:
    # Given a network without a softmax, when it is registered with --logits
    path = make_without_softmax(tmp_path / "logits.keras")
    code, printed, _ = run("register", path, "--logits")
    model_id = printed.strip()
    with ledger.reading() as connection:
        assert (code, get_model(connection, model_id).logits) == (0, True)
    # Then a worker answers with the probabilities
    with WorkerContext(settings, processes=1) as context:
        images = little_mnist.test_images[:5]
        answers = context.classifier(model_id).probabilities(images)
    logits = load_model(path)(images).numpy()
    np.testing.assert_allclose(answers, keras.ops.softmax(logits).numpy(), atol=1e-5)
    # and so does its evaluation.
    code, printed, _ = run("evaluate", model_id, "--json")
    assert (code, sum(json.loads(printed)["confidence_histogram"])) == (0, 300)

    # And so does its evaluation on a labelled folder
    (tmp_path / "digits" / "7").mkdir(parents=True)
    Image.fromarray(images[0]).save(tmp_path / "digits" / "7" / "0.png")
    code, printed, _ = run("evaluate", model_id, "--images", tmp_path / "digits", "--json")
    assert (code, json.loads(printed)["errors"]) == (0, 0)

    # And the same file is not registered again as anything else
    code, _, said = run("register", path)
    assert (code, "register it with --logits" in said) == (2, True)


def test_a_file_that_no_worker_can_use_is_refused_and_nothing_is_kept(
    run: Run, make_file: Callable[..., Path], tmp_path: Path, ledger: Ledger, settings: Settings
) -> None:
    # Given models that are no use here: other inputs, any size, no probabilities, no weights; and not a
    # model, not a file
    hollow, text = tmp_path / "hollow.keras", tmp_path / "text.keras"
    hollow.write_bytes(keras_file())
    text.write_text("hello")
    for path, why in (
        (make_file("row", shape=(784,)), "input is (None, 784), not pictures of one size"),
        (make_any_size(tmp_path / "any.keras"), "input is (None, None, None, 3), not pictures of one size"),
        (make_without_softmax(tmp_path / "logits.keras"), "register it with --logits"),
        (hollow, "could not be loaded"),
        (text, "text.keras cannot be used: It is not a .keras file"),
        (tmp_path / "missing.keras", "missing.keras cannot be read (No such file or directory)"),
    ):
        # When it is registered, Then one line gives the reason
        code, printed, said = run("register", path)
        assert (code, printed, "Traceback" in said) == (2, "", False)
        assert why in said
    # And there is no model, no file in the store, and no other copy.
    with ledger.reading() as connection:
        assert list_models(connection) == []
    assert not [path for path in settings.home.rglob("*") if path.suffix == ".keras"]


def test_a_model_that_has_no_answer_to_a_black_picture_has_one_to_others(run: Run, tmp_path: Path) -> None:
    # Given a network that divides by the contrast of the picture
    layers = [keras.Input((28, 28)), keras.layers.Flatten(), keras.layers.LayerNormalization(epsilon=0.0)]
    path = tmp_path / "contrast.keras"
    network = keras.Sequential([*layers, keras.layers.Dense(10, activation="softmax")])
    network.save(path)
    assert np.isnan(network(np.zeros((1, 28, 28)))).all()
    # When it is registered, Then it is accepted
    assert run("register", path)[0] == 0
