"""`python -m benchmarks.transfer BACKBONE.keras FOLDER`: what a backbone makes of labelled images.

It is a ten-fold cross-validation: of ten parts, with each class in all of them, eight are learnt, one is held
out and one is tested. The figures are the balanced accuracy, and the calibration error of all tested images,
before and after temperature scaling. With a second folder, each division is tested on that instead.
"""

from __future__ import annotations

import resource
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final

import numpy as np
import typer

from benchmarks.harness.report import RESULTS, write_result
from benchmarks.harness.setup import Json, run
from jobs.ledger.learning.runs import RunClaim
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.console.progress import ProgressLine
from labelmill.console.terminal import say
from worker.learning.bodies import body_of, resized
from worker.learning.evaluation import calibration_error, calibration_of
from worker.learning.features import Features, Float32, key_of
from worker.learning.head import Head, Labels, fit_head
from worker.learning.stored import open_dataset
from worker.learning.temperature import fit_temperature, scale
from worker.learning.trainer import Trainer
from worker.predicting.networks.keras_network import load_model

_SIZES: Final = (224, 160, 128)


def main(
    backbone: Annotated[Path, typer.Argument(metavar="BACKBONE.keras", help="The backbone.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images in a subfolder per class.")],
    test: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Images to test on instead.")] = None,
    json: Json = RESULTS,
) -> None:
    """Measure heads on a backbone at several sizes."""
    found: dict[str, Any] = {}
    with TemporaryDirectory() as home, Client(Settings(home=Path(home))) as client:
        with ProgressLine("adding") as progress:
            for name, each in (("pictures", folder), ("others", test)):
                if each is not None:
                    client.add_dataset(name, each, on_progress=progress.update)
        added = client.add_backbone(backbone)
        for size in _SIZES:
            started, cpu = time.monotonic(), time.process_time()
            learnt = _features(client, "pictures", backbone, size)
            others = None if test is None else _features(client, "others", backbone, size)
            figures = {"features_s": time.monotonic() - started, "features_cpu_s": time.process_time() - cpu}
            figures |= _measure(*learnt, others)
            found[str(size)] = {key: round(value, 4) for key, value in figures.items()}
            say(f"{added.name} at {size}: {found[str(size)]}")
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    say(f"memory: {memory:,} MiB")
    facts = {"images": len(learnt[1]), "folder": folder.name, "memory_mib": memory}
    write_result(f"transfer-{folder.name}", facts | {"sizes": found}, json)


def _features(client: Client, dataset: str, backbone: Path, size: int) -> tuple[Float32, Labels]:
    """Return the features and labels of all images of a dataset, computed now."""
    [registered] = client.backbones()
    spec = replace(registered.input_spec, width=size, height=size)
    claim = RunClaim("benchmark", "", {}, dataset)
    trainer = Trainer(client.settings, client.ledger, client.store, claim, lambda: None)
    images = open_dataset(client.settings, client.ledger, client.store, dataset)
    data = images.prepared(spec, on_demand=True)
    body = resized(body_of(load_model(backbone)), spec)
    features = Features(trainer, body, spec, key=key_of(registered.sha256, spec))
    parts = (data.train, data.validation, data.test)
    return np.concatenate([features.of(part) for part in parts]), np.concatenate(
        [part.labels for part in parts]
    )


def _measure(features: Float32, labels: Labels, others: tuple[Float32, Labels] | None) -> dict[str, float]:
    """Return the figures over all divisions."""
    classes = int(labels.max()) + 1
    balanced, head_s, truths = [], [], []
    before, after = [], []
    tenths = _tenths(labels)
    for turn in range(10):
        part = (tenths + turn) % 10
        rows, held_out = np.flatnonzero(part < 8), np.flatnonzero(part == 8)
        tested = (features[part == 9], labels[part == 9]) if others is None else others
        started = time.process_time()
        ones = np.ones(len(rows), np.float32)
        head = fit_head(features[rows], labels[rows], ones, features[held_out], labels[held_out], classes)
        head_s.append(time.process_time() - started)
        temperature = fit_temperature(head.probabilities(features[held_out]), labels[held_out])
        before.append(head.probabilities(tested[0]))
        after.append(scale(before[-1], temperature))
        truths.append(tested[1])
        balanced.append(_balanced(head, *tested))
    truth = np.concatenate(truths)
    return {
        "balanced_accuracy": float(np.mean(balanced)),
        "lowest": min(balanced),
        "highest": max(balanced),
        "head_cpu_s": float(np.median(head_s)),
        "calibration_before": _error(np.concatenate(before), truth),
        "calibration_after": _error(np.concatenate(after), truth),
        "one_division_after": float(np.mean([_error(*each) for each in zip(after, truths, strict=True)])),
    }


def _tenths(labels: Labels) -> Labels:
    """Return a number from 0 to 9 for each image, as evenly as possible within each class."""
    rng = np.random.default_rng(1)
    part = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        part[rows] = (np.arange(len(rows)) + rng.integers(10)) % 10
    return part


def _balanced(head: Head, features: Float32, labels: Labels) -> float:
    right = head.probabilities(features).argmax(axis=1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _error(probabilities: Float32, labels: Labels) -> float:
    confidence = probabilities.max(axis=1).astype(np.float64)
    return calibration_error(calibration_of(confidence, probabilities.argmax(axis=1) == labels))


if __name__ == "__main__":
    run(main)
