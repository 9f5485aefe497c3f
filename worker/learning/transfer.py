"""Put a new head on a trained network: all of a transfer, and the beginning of a fine-tuning."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from jobs.models.backbone import Backbone
from jobs.models.model import Model
from jobs.storage.backbones import fetch_backbone
from jobs.storage.registry import fetch_model
from worker.learning.bodies import body_of, resized, with_head
from worker.learning.epochs import EpochResult, EpochWriter, Fitted
from worker.learning.features import Features, Float32, key_of
from worker.learning.head import Head, fit_head
from worker.learning.prepare import Prepared
from worker.learning.temperature import fit_temperature
from worker.learning.trainer import Trainer
from worker.predicting.networks.keras_network import load_model
from worker.predicting.tensorflow_runtime import keras


def fit_transfer(trainer: Trainer, prepared: Prepared, backbone: Backbone, epochs: EpochWriter) -> Fitted:
    """Train a head on the backbone's features of the training images, and put it on the backbone.

    All of this is one epoch. Raises ModelRefused if the backbone cannot be used, DataUnavailable,
    Unavailable, RunLost.
    """
    data = prepared.data
    path = trainer.retry(lambda: fetch_backbone(trainer.store, backbone, trainer.settings.cache_dir))
    body = resized(body_of(load_model(path)), data.spec)
    features = Features(trainer, body, data.spec, key=key_of(backbone.sha256, data.spec))
    learnt, held_out = features.of(data.train), features.of(data.validation)
    started = time.monotonic()
    head = _fit(prepared, learnt, held_out)
    loss, accuracy = head.measure(learnt, data.train.labels)
    val_loss, val_accuracy = head.measure(held_out, data.validation.labels)
    epochs.add(EpochResult(1, loss, accuracy, val_loss, val_accuracy, time.monotonic() - started))
    temperature = fit_temperature(head.probabilities(held_out), data.validation.labels)
    calibrated = replace(head, weights=head.weights / temperature, bias=head.bias / temperature)
    return Fitted(
        with_head(body, calibrated.weights, calibrated.bias),
        epochs,
        answers=lambda labelled: calibrated.probabilities(features.of(labelled)),
        temperature=temperature,
    )


def with_new_head(trainer: Trainer, prepared: Prepared, model: Model) -> keras.Model:
    """Return a model's network with a head for the classes of the data, fitted to its features of them.

    A head with random weights would spoil the other layers when they are trained. Raises ModelRefused if the
    network has no head that can be replaced, DataUnavailable, Unavailable, RunLost.
    """
    data = prepared.data
    path = trainer.retry(lambda: fetch_model(trainer.store, model, trainer.settings.cache_dir))
    body = body_of(load_model(path))
    features = Features(trainer, body, data.spec, key=None)
    head = _fit(prepared, features.of(data.train), features.of(data.validation))
    return with_head(body, head.weights, head.bias)


def _fit(prepared: Prepared, learnt: Float32, held_out: Float32) -> Head:
    """Fit a head to the features of the images to learn and of those that are held out."""
    data = prepared.data
    repeats = np.ones(len(learnt), np.float32)
    repeats[data.before_corrections :] = prepared.recipe.repeats_of(data.corrections, data.before_corrections)
    return fit_head(learnt, data.train.labels, repeats, held_out, data.validation.labels, len(data.classes))
