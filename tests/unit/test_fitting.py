"""What is chosen from the data, from the settings, and by the person who asks for a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from jobs.errors import UserError
from jobs.models.dataset import Split
from jobs.models.model import MNIST_INPUT, InputSpec
from jobs.models.training_request import TrainingRequest
from jobs.storage.dataset_list import DatasetImage
from worker.learning.recipes import Recipe, fitted_to, recipe_for, recipe_of
from worker.learning.stored import choose_input


def image(width: int, height: int, mode: str = "RGB") -> DatasetImage:
    return DatasetImage("a.png", Split.TRAIN, 0, 0, 0, "0" * 64, "0" * 64, width, height, mode)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        ([image(28, 28, "L"), image(28, 28, "1"), image(28, 28, "I;16")], MNIST_INPUT),
        ([image(28, 28, "L"), image(28, 28, "P")], InputSpec(28, 28, "RGB", reduction=2)),
        ([image(20, 64)], InputSpec(20, 64, "RGB", reduction=2)),
        ([image(20, 65)], InputSpec(32, 32, "RGB", reduction=2)),
        ([image(4, 9)], InputSpec(32, 32, "RGB", reduction=2)),
        ([image(500, 400), image(90, 45), image(45, 46)], InputSpec(48, 48, "RGB", reduction=2)),
        ([image(500, 400), image(300, 200)], InputSpec(64, 64, "RGB", reduction=2)),
        ([image(9, 9, "LA"), image(11, 11, "LA")], InputSpec(32, 32, "L")),
    ],
)
def test_the_input_follows_from_the_images(images: list[DatasetImage], expected: InputSpec) -> None:
    assert choose_input(images) == expected
    assert choose_input(images, 100) == InputSpec(100, 100, expected.mode, reduction=expected.reduction)


def test_few_images_are_learnt_more_often_in_smaller_batches_and_varied_more() -> None:
    recipe = recipe_of(TrainingRequest(seed=1))
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
        recipe = recipe_of(TrainingRequest(augment=augment))
        found = fitted_to(recipe, 1000, width=32, height=32, grey=grey).augmentation
        return None if found is None else found.mirror

    assert mirrors(grey=False) is True
    assert mirrors(grey=True) is False
    assert mirrors(grey=True, augment="photos") is True
    assert mirrors(grey=False, augment="digits") is False
    assert mirrors(grey=False, augment="none") is None


def test_a_profile_is_a_fixed_recipe() -> None:
    assert recipe_of(TrainingRequest(seed=7, profile="quick")) == recipe_for("mlp", "quick", seed=7)
    long = TrainingRequest(seed=7, architecture="cnn", profile="long", force=True)
    assert recipe_of(long) == replace(recipe_for("cnn", "long", seed=7), force=True)
    assert recipe_of(TrainingRequest()).seed != recipe_of(TrainingRequest()).seed


def test_a_whole_number_may_be_written_as_json_writes_it() -> None:
    assert TrainingRequest.of(size=64.0, seed=7.0) == TrainingRequest(size=64, seed=7)


def test_what_a_request_leaves_out_is_that_of_the_schedule() -> None:
    digits = {"architecture": "mlp", "profile": "quick"}
    assert TrainingRequest(max_minutes=2).with_defaults(digits).how == {**digits, "max_minutes": 2}
    assert TrainingRequest(architecture="cnn").with_defaults(digits).how == {**digits, "architecture": "cnn"}
    # but a fine-tuning has other options than a training from scratch
    tuning = TrainingRequest(architecture="finetune")
    assert tuning.with_defaults(digits) == tuning
    scratch = TrainingRequest(architecture="cnn")
    assert scratch.with_defaults({"architecture": "finetune", "start": "x"}) == scratch


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"augment": "photos", "profile": "quick"}, "own augmentation"),
        ({"architecture": "finetune", "profile": "long"}, "--max-minutes"),
        ({"start": "x"}, "--architecture finetune"),
        ({"architecture": "finetune", "size": 64}, "leave out --size"),
        ({"size": 4}, "size: .* 8, got 4"),
        ({"size": True}, "size: .* integer, got True"),
        ({"max_minutes": 0}, "max minutes: .* 0, got 0"),
        ({"max_minutes": float("nan")}, "max minutes: .* got nan"),
        ({"architecture": "vit"}, "architecture: .* 'mlp', 'cnn', 'transfer' or 'finetune', got 'vit'"),
        ({"archtecture": "cnn"}, "archtecture: Unexpected"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        recipe_of(TrainingRequest.of(**options))
