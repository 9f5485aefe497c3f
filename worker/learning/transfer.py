"""Train a head on a frozen backbone: a good classifier of few photographs, in seconds."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from jobs.models.backbone import Backbone
from jobs.storage.backbones import fetch_backbone
from worker.learning.bodies import body_of, resized, with_head
from worker.learning.epochs import EpochResult, EpochWriter, Fitted
from worker.learning.features import Features, key_of
from worker.learning.head import fit_head
from worker.learning.prepare import Prepared
from worker.learning.temperature import fit_temperature
from worker.learning.trainer import Trainer
from worker.predicting.classifier import load_model


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
    repeats = np.ones(len(learnt), np.float32)
    corrections = data.corrections
    repeats[data.before_corrections :] = prepared.recipe.repeats_of(corrections, data.before_corrections)
    labels = data.train.labels
    head = fit_head(learnt, labels, repeats, held_out, data.validation.labels, len(data.classes))
    loss, accuracy = head.measure(learnt, labels)
    val_loss, val_accuracy = head.measure(held_out, data.validation.labels)
    seconds = time.monotonic() - started
    epochs.add(EpochResult(1, loss, accuracy, val_loss, val_accuracy, seconds))
    temperature = fit_temperature(head.probabilities(held_out), data.validation.labels)
    calibrated = replace(head, weights=head.weights / temperature, bias=head.bias / temperature)
    return Fitted(
        with_head(body, calibrated.weights, calibrated.bias),
        epochs,
        answers=lambda labelled: calibrated.probabilities(features.of(labelled)),
        temperature=temperature,
    )
