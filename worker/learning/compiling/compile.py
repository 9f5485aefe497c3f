"""Compile a model: export it for runtimes other than Keras, compare and measure each, and record it.

The steps run in child processes (`worker.learning.compiling.steps`), because exporters and runtimes can crash
or hang. Whatever fails is a result with its reason.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from billiard.exceptions import SoftTimeLimitExceeded

from jobs.cores import threads_per_process
from jobs.errors import DataUnavailable, LabelmillError, NotFound
from jobs.files import temporary_folder
from jobs.ledger import Ledger
from jobs.ledger.learning.gate import limits_of
from jobs.ledger.learning.runtimes import list_runtimes, save_runtimes
from jobs.models.model import InputSpec, Model
from jobs.models.runtime import EXACT_RUNTIMES, MIN_IMAGE_MICROSECONDS, ModelRuntime, Runtime, RuntimeState
from jobs.settings import Settings
from jobs.storage.artefacts import put_artefact, remove_artefacts
from jobs.storage.keras_files import cache_errors
from jobs.storage.registry import fetch_model
from jobs.storage.store import Store
from worker.learning.compiling.precision import judge
from worker.learning.compiling.steps import STEP_SECONDS
from worker.learning.data import Labelled, Uint8, no_images
from worker.learning.stored import open_dataset

logger = logging.getLogger(__name__)

#: How many images the runtimes are compared on: images of the dataset, and made-up ones.
_REAL_IMAGES: Final = 64
_MADE_UP_IMAGES: Final = 32

#: How many images of the dataset a lower precision is judged on, and from how many training images int8 takes
#: the range of each layer's values.
_JUDGED_IMAGES: Final = 2000
_CALIBRATION_IMAGES: Final = 128

#: The rows and columns of a made-up picture's rectangles.
_RECTANGLES: Final = (2, 3, 5, 8)

#: Maximum length of a recorded reason, in characters.
_REASON_LENGTH: Final = 300


def compile_if_slow(
    ledger: Ledger,
    store: Store,
    settings: Settings,
    model: Model,
    image_microseconds: float,
    runtimes: Collection[Runtime] = (),
    on_begin: Callable[[], None] = lambda: None,
) -> None:
    """Compile a model unless it is compiled, or so quick with Keras that no other runtime would pay.

    With `runtimes`, compile it for these in any case. A failure is logged: Keras can serve every model.
    """
    try:
        if not runtimes:
            if image_microseconds < MIN_IMAGE_MICROSECONDS:
                return
            with ledger.reading() as connection:
                if list_runtimes(connection, model.id):
                    return
        on_begin()
        compile_model(ledger, store, settings, model, runtimes)
    except (LabelmillError, SoftTimeLimitExceeded) as error:
        logger.warning("model %s was not compiled, so Keras serves it: %s", model.id, error)


def compile_model(
    ledger: Ledger, store: Store, settings: Settings, model: Model, runtimes: Collection[Runtime] = ()
) -> list[ModelRuntime]:
    """Try each runtime, or Keras and the named ones, for a model, and record what was found.

    Return it, the quickest that passed first.

    Raises ModelRefused if the model's file is gone, NotFound if the model was removed, Unavailable.
    """
    runtimes = runtimes or EXACT_RUNTIMES
    to_judge = not all(each.is_exact for each in runtimes)
    test, train = _dataset_images(ledger, store, settings, model, to_judge=to_judge)
    pixels = np.concatenate([test.take(slice(None)), make_pictures(model.input_spec)])
    with ledger.reading() as connection:
        limits = limits_of(connection, model.dataset)
    path = fetch_model(store, model, settings.cache_dir)
    threads = threads_per_process(settings.processes)
    with cache_errors(settings.cache_dir), temporary_folder(settings.cache_dir, "compiling-") as folder:
        shutil.copyfile(path, folder / "model.keras")
        np.save(folder / "pixels.npy", pixels)
        np.save(folder / "calibration.npy", train)
        options = {"classes": model.classes, "input_spec": asdict(model.input_spec), "logits": model.logits}
        (folder / "model.json").write_text(json.dumps(options | {"threads": threads}))
        failed = _run_step(folder, "measure", Runtime.KERAS)
        found = [_read_result(folder, Runtime.KERAS, threads, failed)]
        exported: dict[str, str | None] = {}  # why each format could not be exported
        for runtime in [each for each in runtimes if each is not Runtime.KERAS]:
            if runtime.suffix not in exported:
                missing = _missing("tf2onnx") if runtime.suffix.endswith("onnx") else None
                exported[runtime.suffix] = failed or missing or _run_step(folder, "export", runtime)
            reason = exported[runtime.suffix] or _missing(runtime.package)
            reason = reason or _run_step(folder, "measure", runtime)
            result = _read_result(folder, runtime, threads, reason)
            if not runtime.is_exact and reason is None:
                exact, found_by_it = (np.load(folder / f"{each}.npy") for each in (Runtime.KERAS, runtime))
                result = judge(
                    result, limits, test, model.classes, exact[: len(test)], found_by_it[: len(test)]
                )
            found.append(result)
        for each in found:
            if each.state is RuntimeState.PASSED and each.sha256:
                put_artefact(store, each, (folder / f"model.{each.runtime.suffix}").read_bytes())
    with ledger.transaction() as connection:
        before = list_runtimes(connection, model.id)
        save_runtimes(connection, model.id, found)
        recorded = list_runtimes(connection, model.id)
    remove_artefacts(ledger, store, before)  # an export need not be the same bytes as the last one
    return recorded


def _dataset_images(
    ledger: Ledger, store: Store, settings: Settings, model: Model, *, to_judge: bool
) -> tuple[Labelled, Uint8]:
    """Return test images of the model's dataset, spread over all of them, and training images for int8.

    There are none if they cannot be read, or if their labels are needed and are of other classes.
    """
    nothing = no_images(model.input_spec)
    try:
        dataset = open_dataset(settings, ledger, store, model.dataset)
        data = dataset.prepared(model.input_spec, for_training=to_judge, on_demand=True)
        if to_judge and data.classes != model.classes:
            return nothing, nothing.take(slice(None))
        test = _spread(data.test, _JUDGED_IMAGES if to_judge else _REAL_IMAGES)
        return test, _spread(data.train, _CALIBRATION_IMAGES).take(slice(None))
    except (NotFound, DataUnavailable):
        return nothing, nothing.take(slice(None))


def _spread(labelled: Labelled, images: int) -> Labelled:
    """Return so many images, spread over all of them."""
    rows = np.arange(0, len(labelled), max(1, len(labelled) // images))[:images]
    pictures = tuple(labelled.pictures[row] for row in rows)
    return Labelled(labelled.take(rows), labelled.labels[rows], pictures)


def make_pictures(spec: InputSpec) -> Uint8:
    """Return made-up pictures, uint8 (n, *spec.shape): black, white, noise, and coloured rectangles."""
    random = np.random.default_rng(1)
    found = random.integers(0, 256, (_MADE_UP_IMAGES, *spec.shape), np.uint8)
    found[0], found[1] = 0, 255
    for place in range(2, _MADE_UP_IMAGES * 3 // 4):
        count = _RECTANGLES[place % len(_RECTANGLES)]
        colours = random.integers(0, 256, (count, count, *spec.shape[2:]), np.uint8)
        rows, columns = (np.arange(side) * count // side for side in spec.shape[:2])
        found[place] = colours[rows][:, columns]
    return found


def _missing(package: str) -> str | None:
    return f"{package} is not installed" if find_spec(package) is None else None


def _run_step(folder: Path, *step: str) -> str | None:
    """Run a step in a child process. Return None, or why it failed."""
    command = [sys.executable, "-m", "worker.learning.compiling.steps", str(folder), *step]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)  # noqa: S603
    if done.returncode == 0:
        return None
    if done.returncode == -signal.SIGALRM:
        return f"it took longer than {STEP_SECONDS} s"
    if done.returncode < 0:
        return f"its process died of {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.decode(errors="replace").splitlines()]
    return next(filter(None, reversed(lines)), "unknown")[:_REASON_LENGTH]


def _read_result(folder: Path, runtime: Runtime, threads: int, failed: str | None) -> ModelRuntime:
    """Return what the step `measure` wrote about a runtime, or that it failed."""
    if failed is not None:
        return ModelRuntime(runtime, RuntimeState.FAILED, threads, images=0, reason=failed)
    result = json.loads((folder / f"{runtime}.json").read_text())
    return ModelRuntime(runtime, RuntimeState(result.pop("state")), threads, **result)
