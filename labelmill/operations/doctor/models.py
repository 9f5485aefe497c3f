"""The models: whether there is a champion, and whether the files in use are the registered ones."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator, Mapping

from sqlalchemy.engine import Connection

from jobs.errors import SettingsError, Unavailable
from jobs.ledger import metrics
from jobs.ledger.learning.datasets import list_datasets
from jobs.ledger.learning.models import CHAMPION, find_evaluation, list_models
from jobs.ledger.learning.runtimes import list_runtimes
from jobs.models.model import Model
from jobs.models.runtime import MIN_IMAGE_MICROSECONDS
from jobs.settings import Settings
from jobs.storage.registry import model_key
from jobs.storage.store import Store
from labelmill.console.terminal import pluralize
from labelmill.operations.doctor.commands import commands_of
from labelmill.operations.doctor.findings import Finding, ok, problem, warning
from labelmill.operations.doctor.ledger import in_ledger
from labelmill.operations.probes import redacted_message


def check_models(settings: Settings) -> Iterator[Finding]:
    """Check the champion, and the files of the models that an alias or an unfinished job needs."""
    needed: list[Model] = []

    @in_ledger(if_none=_no_model(settings))
    def check(settings: Settings, connection: Connection) -> Iterator[Finding]:
        models, ids = list_models(connection), metrics.models_needed(connection)
        needed.extend(model for model in models if model.id in ids)
        classes = {each.dataset: each.classes for each in list_datasets(connection)}
        yield from _champions(models, classes, settings)
        for model in models:
            if CHAMPION in model.aliases:
                yield from _check_speed(connection, model, settings)

    yield from check(settings)
    if not needed:
        return
    try:  # outside the transaction: files can be large
        store = Store(settings.store)
        problems = [finding for model in needed for finding in _check_file(model, store, settings)]
    except (SettingsError, Unavailable) as error:
        problems = [warning(f"files not checked: {redacted_message(error, settings)}", fix="see store")]
    files = pluralize(len(needed), "file")
    yield from problems or [ok(f"{files} in use, with the registered SHA-256")]


def _no_model(settings: Settings) -> Finding:
    fix = f"{commands_of(settings).run_with_tensorflow} train"
    return problem("there is no model, so nothing can be submitted", fix=fix)


def _champions(
    models: list[Model], classes: Mapping[str, tuple[str, ...]], settings: Settings
) -> Iterator[Finding]:
    """Yield a finding about each dataset that has models: whether one of them is the champion.

    `classes` are those of each dataset's latest version.
    """
    if not models:
        yield _no_model(settings)
    for dataset in sorted({model.dataset for model in models}):
        theirs = [model for model in models if model.dataset == dataset]
        champion = next((model for model in theirs if CHAMPION in model.aliases), None)
        if champion is not None:
            pin = "" if champion.pinned_at is None else ", pinned: no training run replaces it"
            yield ok(f"the champion of {dataset} is {champion.id}{pin}")
        else:
            run = commands_of(settings).run
            wanted = classes.get(dataset)
            latest = next(
                (each for each in theirs if wanted is None or set(wanted) == set(each.classes)), None
            )
            if latest is None:
                fix = f"{run} retrain --dataset {dataset}"
            else:
                force = " --force" if latest.accuracy is None else ""
                fix = f"{run} models promote {latest.id}{force}"
            yield warning(
                f"{dataset} has no champion, so each of its jobs must name a model (submit --model)", fix=fix
            )


def _check_speed(connection: Connection, model: Model, settings: Settings) -> Iterator[Finding]:
    """Yield a warning if the model is slow and was never compiled."""
    measured = find_evaluation(connection, model.id)
    if measured is None or list_runtimes(connection, model.id):
        return
    microseconds = measured.evaluation.image_microseconds
    if microseconds >= MIN_IMAGE_MICROSECONDS:
        yield warning(
            f"model {model.id} takes {microseconds / 1000:.1f} ms per image, and was not compiled",
            fix=f"{commands_of(settings).run_with_tensorflow} models compile {model.id}",
        )


def _check_file(model: Model, store: Store, settings: Settings) -> Iterator[Finding]:
    """Yield a problem if the model's file is missing from the store or was changed. Raises Unavailable."""
    key = model_key(model.sha256)
    try:
        if _sha256(store.get(key)) == model.sha256:
            return
        what = "has another SHA-256 than registered"
    except FileNotFoundError:
        what = "is not in the store"
    file = key if store.folder is None else shlex.quote(str(store.folder / key))
    cached = settings.cache_dir / "models" / f"{model.sha256}.keras"
    if store.folder is not None and cached.is_file() and _sha256(cached.read_bytes()) == model.sha256:
        fix = f"cp {shlex.quote(str(cached))} {file}"
    else:
        fix = f"restore it from a backup of the store: {file}"
    yield problem(f"the file of model {model.id} {what}", fix=fix)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
