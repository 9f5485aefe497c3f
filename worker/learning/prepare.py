"""The first step of a training run: the images with all corrections, the recipe, the model to start from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import DataUnavailable, NotFound
from jobs.ledger.learning.backbones import get_backbone, list_backbones
from jobs.ledger.learning.models import model_to_start_from
from jobs.ledger.learning.runs import describe_data
from jobs.models.backbone import ADD_BACKBONE, Backbone
from jobs.models.model import InputSpec, Model
from jobs.storage.store_identity import check_store
from worker.learning.checkpoint import Checkpoint, find_checkpoint
from worker.learning.corrections import add_corrections
from worker.learning.data import Data
from worker.learning.recipes import Recipe, fitted_to
from worker.learning.stored import MAX_CHOSEN_SIDE, StoredDataset, open_dataset
from worker.learning.trainer import Trainer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """All that determines the trained model."""

    data: Data
    recipe: Recipe
    start: Model | None  # what a fine-tuning starts from
    backbone: Backbone | None  # what a transfer builds on
    checkpoint: Checkpoint | None  # of the interrupted run that this one resumes


def prepare(trainer: Trainer, added: int | None) -> Prepared:
    """Load the latest version of the run's dataset, and write into the run's row what is trained on it.

    `added` is how many images the run has added to it, or None if it brought none.

    Raises NotFound if the dataset, or the model to start from, does not exist; DataUnavailable; ModelRefused;
    Unavailable.
    """
    trainer.retry(lambda: check_store(trainer.ledger, trainer.store))
    recipe = Recipe.from_json(trainer.claim.recipe)
    images = open_dataset(
        trainer.settings,
        trainer.ledger,
        trainer.store,
        trainer.claim.dataset,
        pauses=trainer.pauses,
        check=trainer.check,
    )
    backbone = trainer.retry(lambda: _backbone(trainer, recipe, images))
    if recipe.architecture is None:
        recipe = replace(recipe, architecture="transfer" if backbone else "cnn")
    start_model = _start_model(trainer, recipe) if recipe.architecture == "finetune" else None
    data = _load_data(trainer, images, _input(recipe, images, start_model, backbone), backbone)
    spec = data.spec
    recipe = replace(
        fitted_to(recipe, len(data.train), width=spec.width, height=spec.height, grey=spec.mode == "L"),
        start=start_model.id if start_model else None,
        backbone=backbone.name if backbone else None,
    )
    checkpoint = None
    if backbone is None:  # a transfer has no epochs to resume
        recipe, checkpoint = trainer.retry(lambda: find_checkpoint(trainer, recipe, data.fingerprint))
    recipe = replace(recipe, is_seed_random=False)  # it is chosen now
    _describe(trainer, data, recipe, added, checkpoint)
    logger.info("training run %s: begins, on %s images", trainer.claim.run_id, f"{len(data.train):,}")
    return Prepared(data, recipe, start_model, backbone, checkpoint)


def _backbone(trainer: Trainer, recipe: Recipe, images: StoredDataset) -> Backbone | None:
    """Return the backbone that the training builds on, or None.

    Raises NotFound if there is none and the recipe asks for one.
    """
    if recipe.architecture not in (None, "transfer"):
        return None
    if recipe.architecture is None and (recipe.augment is not None or not _has_pictures(images)):
        return None
    with trainer.ledger.reading() as connection:
        if recipe.backbone is not None:
            return get_backbone(connection, recipe.backbone)
        latest = next(iter(list_backbones(connection)), None)
    if latest is None and recipe.architecture == "transfer":
        raise NotFound(f"There is no backbone to build on: {ADD_BACKBONE}.")
    return latest


def _has_pictures(images: StoredDataset) -> bool:
    """Return whether the images are such as backbones have learnt, rather than small grey drawings."""
    spec = images.choose_input()
    return spec.mode != "L" or images.median_side > MAX_CHOSEN_SIDE


def _input(
    recipe: Recipe, images: StoredDataset, start: Model | None, backbone: Backbone | None
) -> InputSpec:
    """Return the input of the new model."""
    if start is not None:
        return start.input_spec
    if backbone is None:
        return images.choose_input(recipe.size)
    spec = backbone.input_spec
    return spec if recipe.size is None else replace(spec, width=recipe.size, height=recipe.size)


def _start_model(trainer: Trainer, recipe: Recipe) -> Model:
    """Return the model that a fine-tuning starts from: the recipe's, else the dataset's champion."""

    def find() -> Model:
        with trainer.ledger.reading() as connection:
            return model_to_start_from(connection, trainer.claim.dataset, recipe.start)

    return trainer.retry(find)


def _load_data(trainer: Trainer, images: StoredDataset, spec: InputSpec, backbone: Backbone | None) -> Data:
    """Return the images for the new model, with all corrections among those for training and the live set."""
    data = add_corrections(
        trainer.retry(lambda: images.prepared(spec, on_demand=backbone is not None)),
        trainer.ledger,
        trainer.store,
        trainer.settings.image_limits,
        live_share=trainer.settings.live_share,
        pauses=trainer.pauses,
        check=trainer.check,
    )
    if not data.before_corrections:
        raise DataUnavailable(
            f"All training images of dataset {data.dataset} are corrected, and training needs others too: "
            f"add more with `labelmill datasets add {data.dataset} FOLDER`."
        )
    return data


def _describe(
    trainer: Trainer, data: Data, recipe: Recipe, added: int | None, checkpoint: Checkpoint | None
) -> None:
    content: dict[str, Any] = {} if added is None else {"added_images": added}
    if checkpoint is not None:
        content["resumed_epochs"] = len(checkpoint.epochs)
    content |= {
        "train_images": len(data.train),
        "validation_images": len(data.validation),
        "evaluation_images": len(data.test),
        "corrections": data.corrections,
        "live_images": len(data.live),
        "left_out": data.left_out,
        "classes": list(data.classes),
        "evaluation_fingerprint": data.evaluation_fingerprint,
        "input": {"width": data.spec.width, "height": data.spec.height, "mode": data.spec.mode},
    }

    def describe() -> None:
        with trainer.ledger.transaction() as connection:
            describe_data(
                connection,
                trainer.claim,
                source=data.source,
                fingerprint=data.fingerprint,
                data=content,
                version=data.version,
                recipe=recipe.to_json(),
            )

    trainer.retry(describe)
