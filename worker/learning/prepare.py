"""The first step of a training run: the images with all corrections, the recipe, the model to start from."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import Any

from jobs.errors import DataUnavailable
from jobs.ledger.learning.models import model_to_start_from
from jobs.ledger.learning.runs import describe_data
from jobs.models.model import Model
from jobs.storage.registry import fetch_model
from jobs.storage.store_identity import check_store
from worker.learning.corrections import add_corrections
from worker.learning.data import Data
from worker.learning.networks import Start
from worker.learning.recipes import Recipe, fitted_to
from worker.learning.stored import open_dataset
from worker.learning.trainer import Trainer
from worker.predicting.classifier import load_model

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """All that determines the trained model."""

    data: Data
    recipe: Recipe
    start: Start | None  # the model that a fine-tuning starts from


def prepare(trainer: Trainer) -> Prepared:
    """Load the latest version of the run's dataset, and write into the run's row what is trained on it.

    Raises NotFound if the dataset, or the model to start from, does not exist; DataUnavailable; ModelRefused;
    Unavailable.
    """
    trainer.retry(lambda: check_store(trainer.ledger, trainer.store))
    recipe = Recipe.from_json(trainer.claim.recipe)
    start_model = _start_model(trainer, recipe) if recipe.architecture == "finetune" else None
    data = _load_data(trainer, recipe, start_model)
    spec = data.spec
    recipe = replace(
        fitted_to(recipe, len(data.train), width=spec.width, height=spec.height, grey=spec.mode == "L"),
        start=start_model.id if start_model else None,
    )
    _describe(trainer, data, recipe)
    logger.info("training run %s: begins, on %s images", trainer.claim.run_id, f"{len(data.train):,}")
    return Prepared(data, recipe, _load_start(trainer, start_model) if start_model else None)


def _start_model(trainer: Trainer, recipe: Recipe) -> Model:
    """Return the model that a fine-tuning starts from: the recipe's, else the dataset's champion."""

    def find() -> Model:
        with trainer.ledger.reading() as connection:
            return model_to_start_from(connection, trainer.claim.dataset, recipe.start)

    return trainer.retry(find)


def _load_start(trainer: Trainer, model: Model) -> Start:
    path = trainer.retry(lambda: fetch_model(trainer.store, model, trainer.settings.cache_dir))
    return Start(load_model(path), model.classes, logits=model.logits)


def _load_data(trainer: Trainer, recipe: Recipe, start: Model | None) -> Data:
    """Return the images for the new model, with all corrections among those for training and the live set."""
    images = open_dataset(
        trainer.settings,
        trainer.ledger,
        trainer.store,
        trainer.claim.dataset,
        pauses=trainer.pauses,
        check=trainer.check,
    )
    spec = start.input_spec if start else images.choose_input(recipe.size)
    data = add_corrections(
        trainer.retry(lambda: images.prepared(spec)),
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


def _describe(trainer: Trainer, data: Data, recipe: Recipe) -> None:
    content: dict[str, Any] = {
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
