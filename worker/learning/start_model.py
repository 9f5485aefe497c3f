"""Find the model that a fine-tuning starts from. Imports no TensorFlow, so that a request can fail early."""

from __future__ import annotations

from sqlalchemy.engine import Connection

from jobs.errors import NotFound
from jobs.ledger.learning.models import find_champion, get_model
from jobs.models.dataset import MNIST
from jobs.models.model import MNIST_INPUT, Model


def model_to_start_from(connection: Connection, dataset: str, model_id: str | None) -> Model:
    """Return the model with this id, or the dataset's champion if the id is None.

    Raises NotFound if there is none, or if the dataset's images cannot be prepared for it.
    """
    model = find_champion(connection, dataset) if model_id is None else get_model(connection, model_id)
    if model is None:
        raise NotFound(
            f"Dataset {dataset} has no champion to start from: name a model with --from (`labelmill models` "
            "lists them), or train from scratch with --architecture cnn."
        )
    if dataset == MNIST and model.input_spec.shape != MNIST_INPUT.shape:
        raise NotFound(
            f"Model {model.id} does not take grey images of 28x28 pixels, as those of {MNIST} are: start "
            "from another model."
        )
    return model
