"""A challenger that is worse does not get past the gate, on the whole evaluation set."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.settings import Settings
from tests.console import Home
from worker.learning import mnist
from worker.learning.recipes import recipe_for
from worker.learning.retrain import begin_run, retrain

QUICK = recipe_for("mlp", "quick", seed=1)


def with_shuffled_labels(data: mnist.Mnist) -> mnist.Mnist:
    """The first 6,000 images, and what each shows is left to chance."""
    images, labels = data.train_images[:6_000], data.train_labels[:6_000]
    return replace(data, train_images=images, train_labels=np.random.default_rng(1).permutation(labels))


def of_a_thousand_images(data: mnist.Mnist) -> mnist.Mnist:
    """The first 1,000 images."""
    return replace(data, train_images=data.train_images[:1_000], train_labels=data.train_labels[:1_000])


@pytest.mark.parametrize(
    ("spoil", "epochs"),
    [
        pytest.param(with_shuffled_labels, QUICK.epochs, id="shuffled-labels"),
        pytest.param(of_a_thousand_images, 1, id="one-epoch-of-1000-images"),
    ],
)
def test_a_worse_challenger_is_refused_with_its_reasons(
    new_home: Home, mnist_dir: Path, spoil: Callable[[mnist.Mnist], mnist.Mnist], epochs: int
) -> None:
    # Given a champion
    [champion] = new_home.json("models", "list")
    assert champion["aliases"] == ["champion"]

    # When a model is trained on what teaches it too little
    whole = mnist.read_folder(mnist_dir, lambda _line: None)
    settings = Settings.load(home=new_home.path)
    challenger = retrain(settings, begin_run(settings, replace(QUICK, epochs=epochs)), spoil(whole))

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
