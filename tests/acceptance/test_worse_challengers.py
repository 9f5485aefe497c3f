"""A challenger that is worse does not get past the gate, on the whole evaluation set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from jobs.models.model import InputSpec
from jobs.settings import Settings
from tests.console import Home
from tests.training import train
from worker.learning.data import Data, Labelled
from worker.learning.recipes import recipe_for
from worker.learning.stored import StoredDataset

QUICK = recipe_for("mlp", "quick", seed=1)


def with_shuffled_labels(images: Labelled) -> Labelled:
    """The first 6,000 images, and what each shows is left to chance."""
    some = first(images, 6_000)
    return replace(some, labels=np.random.default_rng(1).permutation(some.labels))


def of_a_thousand_images(images: Labelled) -> Labelled:
    """The first 1,000 images."""
    return first(images, 1_000)


def first(images: Labelled, count: int) -> Labelled:
    return Labelled(images.take(slice(count)), images.labels[:count], images.pictures[:count])


@pytest.mark.parametrize(
    ("spoil", "epochs"),
    [
        pytest.param(with_shuffled_labels, QUICK.epochs, id="shuffled-labels"),
        pytest.param(of_a_thousand_images, 1, id="one-epoch-of-1000-images"),
    ],
)
def test_a_worse_challenger_is_refused_with_its_reasons(
    new_home: Home,
    spoil: Callable[[Labelled], Labelled],
    epochs: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given a champion
    [champion] = new_home.json("models", "list")
    assert champion["aliases"] == ["champion"]

    # When a model is trained on what teaches it too little
    prepared = StoredDataset.prepared

    def spoilt(dataset: StoredDataset, spec: InputSpec) -> Data:
        data = prepared(dataset, spec)
        return replace(data, train=spoil(data.train))

    monkeypatch.setattr(StoredDataset, "prepared", spoilt)
    challenger = train(Settings.load(home=new_home.path), replace(QUICK, epochs=epochs))

    # Then it is refused, and each reason is there to be read
    assert challenger.reason.startswith("refused: ")
    shown = json.loads(new_home.ok("models", "show", challenger.model.id))
    assert shown["aliases"] == []
    assert shown["verdict"]["promote"] is False
    assert {"accuracy", "class recall", "test set"} <= {
        check["name"] for check in shown["verdict"]["checks"] if not check["passed"]
    }

    # and the champion is who it was
    assert [move["model_id"] for move in new_home.json("models", "history")] == [champion["id"]]
    assert "champion" in new_home.ok("models", "show", champion["id"])
