"""What is chosen from the data, from the settings, and by the person who asks for a training."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.errors import UserError
from jobs.models.dataset import Split
from jobs.models.model import InputSpec
from jobs.settings import Settings
from jobs.storage.dataset_list import DatasetImage
from worker.learning.recipes import Recipe, TrainingRequest, fitted_to, recipe_for
from worker.learning.stored import choose_input


def image(width: int, height: int, mode: str = "RGB") -> DatasetImage:
    return DatasetImage("a.png", Split.TRAIN, 0, 0, 0, "0" * 64, "0" * 64, width, height, mode)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([image(28, 28, "L"), image(28, 28, "1"), image(28, 28, "I;16")], InputSpec(28, 28, "L")),
        ([image(28, 28, "L"), image(28, 28, "P")], InputSpec(28, 28, "RGB")),
        ([image(20, 64)], InputSpec(20, 64, "RGB")),
        ([image(20, 65)], InputSpec(32, 32, "RGB")),
        ([image(4, 9)], InputSpec(32, 32, "RGB")),
        ([image(500, 400), image(90, 45), image(45, 46)], InputSpec(48, 48, "RGB")),
        ([image(500, 400), image(300, 200)], InputSpec(64, 64, "RGB")),
        ([image(9, 9, "LA"), image(11, 11, "LA")], InputSpec(32, 32, "L")),
    ],
)
def test_the_input_follows_from_the_images(images: list[DatasetImage], expected: InputSpec) -> None:
    assert choose_input(images) == expected
    assert choose_input(images, 100) == InputSpec(100, 100, expected.mode)


def test_few_images_are_learnt_more_often_in_smaller_batches_and_varied_more() -> None:
    recipe = TrainingRequest(dataset="birds", seed=1).recipe(Settings())
    few, many = (fitted_to(recipe, images, width=64, height=64, grey=False) for images in (500, 200_000))
    assert few.epochs > many.epochs > 0
    assert few.batch_size < many.batch_size
    assert few.averaging < many.averaging
    assert few.augmentation is not None
    assert many.augmentation is not None
    assert few.augmentation.rotation > many.augmentation.rotation
    # A recipe that is complete stays as it is, and goes through the ledger.
    assert fitted_to(many, 500, width=64, height=64, grey=False) == many
    assert Recipe.from_json(many.to_json()) == many


def test_photographs_are_mirrored_and_digits_are_not() -> None:
    def mirrors(grey: bool, augment: Any = None) -> bool | None:
        recipe = TrainingRequest(dataset="birds", augment=augment).recipe(Settings())
        found = fitted_to(recipe, 1000, width=32, height=32, grey=grey).augmentation
        return None if found is None else found.mirror

    assert mirrors(grey=False) is True
    assert mirrors(grey=True) is False
    assert mirrors(grey=True, augment="photos") is True
    assert mirrors(grey=False, augment="digits") is False
    assert mirrors(grey=False, augment="none") is None


def test_mnist_is_trained_by_its_recipes() -> None:
    settings = Settings(retrain_architecture="cnn", retrain_profile="long")
    assert TrainingRequest(seed=7).recipe(settings) == recipe_for("cnn", "long", seed=7)
    assert TrainingRequest(seed=7, architecture="mlp", profile="quick").recipe(settings) == recipe_for(
        "mlp", "quick", seed=7
    )
    assert TrainingRequest().recipe(settings).seed != TrainingRequest().recipe(settings).seed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 64}, "28x28"),
        ({"augment": "photos"}, "own augmentation"),
        ({"dataset": "birds", "profile": "long"}, "--max-minutes"),
        ({"dataset": "birds", "start": "x"}, "--architecture finetune"),
        ({"dataset": "birds", "architecture": "finetune", "size": 64}, "leave out --size"),
        ({"dataset": "birds", "size": 4}, "from 8 to 512 pixels, got 4"),
        ({"dataset": "birds", "max_minutes": 0}, "more than 0, got 0"),
        ({"dataset": "birds", "max_minutes": float("nan")}, "more than 0, got nan"),
        ({"dataset": "birds", "architecture": "vit"}, "mlp, cnn and finetune"),
    ],
)
def test_options_that_do_not_fit_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainingRequest(**options).recipe(Settings())
