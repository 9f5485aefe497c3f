"""Measure how good models of datasets other than MNIST are, and how long they train.

    python -m benchmarks.datasets fashion /usr/share/datasets/fashion-mnist
    python -m benchmarks.datasets stamps /usr/share/tuxpaint/stamps      # compared with scikit-learn
    python -m benchmarks.datasets finetune                               # 500 rotated digits

The first two are in Debian's packages dataset-fashion-mnist and tuxpaint-stamps-default. Everything is real:
the images are added as PNG files, and `train` reads them from the store.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Any, Final

import numpy as np
import typer
from PIL import Image

from benchmarks.report import write_measured
from benchmarks.setup import RESULTS, drop_developer_settings, short_folder
from jobs.ledger.learning.datasets import get_version
from jobs.models.model import MNIST_INPUT, InputSpec, Model
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.client.migrating import open_ledger
from labelmill.console.terminal import report_errors, say
from labelmill.local.training import train_with_progress
from worker.learning import mnist
from worker.learning.data import Data, Uint8
from worker.learning.networks import build
from worker.learning.recipes import Recipe, TrainingRequest, fitted_to, recipe_for
from worker.learning.stored import StoredDataset
from worker.learning.training import save

#: How the digits of `finetune` are rotated, in degrees.
ROTATION: Final = 35

#: How many rotated digits are learnt, how many of these are for validation, and how many are tested.
LEARNT, VALIDATION, TESTED = 500, 50, 3_000

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)


@app.command()
@report_errors
def fashion(
    folder: Annotated[Path, typer.Argument(help="The four IDX files.")],
    minutes: Annotated[float, typer.Option(help="The longest training.")] = 9.0,
) -> None:
    """Train a `cnn` on Fashion-MNIST, then load the decoded images as a second training would."""
    load_average = os.getloadavg()[0]
    drop_developer_settings()
    data = mnist.read_folder(folder, say)
    with _client() as (client, home):
        say("writing PNG files")
        for split, images, labels in (
            ("train", data.train_images, data.train_labels),
            ("test", data.test_images, data.test_labels),
        ):
            _write(home / "fashion" / split, images, labels)
        began = time.monotonic()
        client.add_dataset("fashion", home / "fashion")
        measured = {"added_s": time.monotonic() - began, **_trained(client, "fashion", minutes=minutes)}
        began = time.monotonic()
        _load(client, "fashion", InputSpec(28, 28, "L"))
        measured["loaded_again_s"] = time.monotonic() - began
    _write_results("datasets-fashion", measured, load_average)


@app.command()
@report_errors
def stamps(
    folder: Annotated[Path, typer.Argument(help="One folder of PNG files for each class.")],
    minutes: Annotated[float, typer.Option(help="The longest training.")] = 40.0,
    divisions: Annotated[
        int, typer.Option(min=1, help="How many random divisions of the images to average.")
    ] = 3,
) -> None:
    """Train a `cnn` on photographs of many sizes; compare it with scikit-learn on 32x32 colour pixels."""
    load_average = os.getloadavg()[0]
    drop_developer_settings()
    rows = []
    for seed in range(divisions):
        with _client() as (client, home):
            client.add_dataset("stamps", _divided(folder, home / "stamps", seed))
            measured = _trained(client, "stamps", minutes=minutes)
            say(str(measured))
            rows.append({"cnn": measured, **_baselines(client, "stamps")})
            say(str(rows[-1]))
    means = {
        name: mean(row[name]["balanced_accuracy"] for row in rows)
        for name in ("cnn", "logistic_regression", "gradient_boosting")
    }
    _write_results("datasets-stamps", {"balanced_accuracy": means, "divisions": rows}, load_average)


@app.command()
@report_errors
def finetune(
    networks: Annotated[
        list[str] | None, typer.Option("--network", help="mlp or cnn; may be given twice. Left out: both.")
    ] = None,
    short: Annotated[int, typer.Option(min=1, help="Epochs of a short training, which is compared too.")] = 6,
) -> None:
    """Fine-tune champions of `mnist` on 500 rotated digits, and compare that with training from scratch.

    Networks are trained from scratch by the same recipe, by the same recipe with few epochs, by the same
    recipe without distortion, and by their own recipe, which is longer.
    """
    load_average = os.getloadavg()[0]
    settings = Settings.load()
    data = mnist.load(settings.mnist_dir, settings.cache_dir, say=say)
    drop_developer_settings()
    measured = {}
    with _client() as (client, home):
        order = np.random.default_rng(1).permutation(len(data.test_labels))
        for split, rows in (
            ("train", order[: LEARNT - VALIDATION]),
            ("validation", order[LEARNT - VALIDATION : LEARNT]),
            ("test", order[LEARNT : LEARNT + TESTED]),
        ):
            rotated = np.stack([_rotated(data.test_images[row]) for row in rows])
            _write(home / "rotated" / split, rotated, data.test_labels[rows])
        client.add_dataset("rotated", home / "rotated")
        for network in networks or ("mlp", "cnn"):
            champion = _run(client, "mnist", recipe_for(network, "quick", seed=1), data).id
            save(build(network, MNIST_INPUT, 10), home / f"{network}.keras")
            untrained = client.register(home / f"{network}.keras", classes=mnist.DIGITS).model.id
            found = {"own_recipe": _trained(client, "rotated", architecture=network)}
            for name, start in (("finetune", champion), ("same_from_scratch", untrained)):
                options: dict[str, Any] = {"architecture": "finetune", "start": start}
                found[name] = _trained(client, "rotated", **options)
                found[f"{name}_short"] = _trained(client, "rotated", epochs=short, **options)
                found[f"{name}_undistorted"] = _trained(client, "rotated", augment="none", **options)
            measured[network] = found
            say(f"{network}: {measured[network]}")
    _write_results("datasets-finetune", measured, load_average)


@contextmanager
def _client() -> Iterator[tuple[Client, Path]]:
    """Yield a client of an empty state folder, and the temporary folder around it."""
    with short_folder() as home:
        settings = Settings.load(home=home / "home", ledger_url=None, store_url=None, broker_url=None)
        open_ledger(settings).close()
        with Client(settings) as client:
            yield client, home


def _trained(
    client: Client,
    dataset: str,
    *,
    minutes: float | None = None,
    epochs: int | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Train on a dataset; return the figures of the model and the seconds that it took.

    `epochs`, for rotated digits only, replaces the number of epochs that the recipe would choose.
    """
    began = time.monotonic()
    request = TrainingRequest(dataset=dataset, seed=1, max_minutes=minutes, **options)
    recipe = client.recipe_of(request)
    if epochs is not None:
        recipe = fitted_to(recipe, LEARNT - VALIDATION, width=28, height=28, grey=True)
        recipe = replace(recipe, epochs=epochs)
    model = _run(client, dataset, recipe)
    seconds = time.monotonic() - began
    found = client.evaluation(model.id)
    if found is None:
        raise RuntimeError("the model was not evaluated")
    return {
        "accuracy": found.evaluation.accuracy,
        "balanced_accuracy": found.evaluation.balanced_accuracy,
        "seconds": seconds,
        "epochs": client.runs(limit=1)[0].epochs_done,
        "input": [model.input_spec.width, model.input_spec.height, model.input_spec.mode],
    }


def _run(client: Client, dataset: str, recipe: Recipe, data: mnist.Mnist | None = None) -> Model:
    return train_with_progress(client.settings, recipe, data, dataset=dataset, replace=True).model


def _load(client: Client, dataset: str, spec: InputSpec) -> Data:
    settings = client.settings
    with client.ledger.reading() as connection:
        version = get_version(connection, dataset)
    return StoredDataset(settings, Store(settings.store), version).prepared(spec)


def _baselines(client: Client, dataset: str) -> dict[str, dict[str, float]]:
    """Train scikit-learn's models on the same images, at 32x32 colour pixels."""
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    data = _load(client, dataset, InputSpec(32, 32, "RGB"))
    parts = [(each.take(slice(None)), each.labels) for each in (data.train, data.validation, data.test)]
    flat = [images.reshape(len(images), -1) / 255 for images, _ in parts]
    pixels, labels = np.concatenate(flat[:2]), np.concatenate([parts[0][1], parts[1][1]])
    found = {}
    for name, model in (
        ("logistic_regression", make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2_000))),
        ("gradient_boosting", HistGradientBoostingClassifier(class_weight="balanced", random_state=1)),
    ):
        began = time.monotonic()
        predicted = model.fit(pixels, labels).predict(flat[2])
        found[name] = {
            "accuracy": float((predicted == data.test.labels).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(data.test.labels, predicted)),
            "seconds": time.monotonic() - began,
        }
    return found


def _divided(source: Path, target: Path, seed: int) -> Path:
    """Copy the images of each class into the folders of three splits: 80 %, 10 % and 10 %."""
    dice = np.random.default_rng(seed)
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(folder.rglob("*.png"))
        if len(files) < 3:
            continue
        cuts = [max(1, round(len(files) / 10)), 2 * max(1, round(len(files) / 10))]
        order = dice.permutation(len(files))
        for split, places in zip(("test", "validation", "train"), np.split(order, cuts), strict=True):
            below = target / split / folder.name
            below.mkdir(parents=True)
            for place in places:
                shutil.copyfile(files[place], below / f"{place}.png")
    return target


def _write(folder: Path, images: Uint8, labels: Uint8) -> None:
    """Write images as PNG files, in one folder for each class."""
    for label in np.unique(labels):
        (folder / str(label)).mkdir(parents=True)
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(pixels).save(folder / str(label) / f"{number:05}.png")


def _rotated(pixels: Uint8) -> Uint8:
    return np.asarray(Image.fromarray(pixels).rotate(ROTATION, Image.Resampling.BILINEAR))


def _write_results(name: str, measured: dict[str, Any], load_average: float) -> None:
    say(str(measured))
    say(f"written to {write_measured(name, measured, RESULTS, load_average)}")


if __name__ == "__main__":
    app()
