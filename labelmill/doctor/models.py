"""The models: whether there is a champion, and whether the files in use are the registered ones."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator

from sqlalchemy.engine import Connection

from jobs.errors import SettingsError, Unavailable
from jobs.ledger import metrics
from jobs.ledger.models import CHAMPION, list_models
from jobs.model import Model
from jobs.registry import model_key
from jobs.settings import Settings
from jobs.store import Store
from labelmill.console import pluralize
from labelmill.doctor.findings import Area, Finding
from labelmill.doctor.ledger import check_in_ledger
from labelmill.probes import redacted_message

_area = Area("models")
_NO_MODEL = _area.problem("there is no model, so nothing can be submitted", fix="labelmill train")


def check_models(settings: Settings) -> Iterator[Finding]:
    """Check the champion, and the files of the models that an alias or an unfinished job needs."""
    needed: list[Model] = []

    def check(connection: Connection) -> Iterator[Finding]:
        models, ids = list_models(connection), metrics.models_needed(connection)
        needed.extend(model for model in models if model.id in ids)
        yield _champion(models)

    yield from check_in_ledger(_area, settings, check, if_none=_NO_MODEL)
    if needed:  # outside the transaction: files can be large
        yield from _files(needed, settings)


def _files(models: list[Model], settings: Settings) -> Iterator[Finding]:
    try:
        store = Store(settings.store)
        wrong = [(model, _file_problem(model, store)) for model in models]
    except (SettingsError, Unavailable) as error:
        yield _area.warning(f"files not checked: {redacted_message(error, settings)}", fix="see store")
        return
    for model, reason in wrong:
        if reason is not None:
            yield _area.problem(f"the file of model {model.id} {reason}", fix=_fix(model, store, settings))
    if not any(reason for _, reason in wrong):
        yield _area.ok(f"{pluralize(len(models), 'file')} in use, with the registered SHA-256")


def _champion(models: list[Model]) -> Finding:
    champion = next((model for model in models if CHAMPION in model.aliases), None)
    if champion is not None:
        return _area.ok(f"the champion is {champion.id}")
    if not models:
        return _NO_MODEL
    return _area.warning(
        "there is no champion, so each job must name its model (submit --model)",
        fix=f"labelmill models promote {models[0].id}" + (" --force" if models[0].accuracy is None else ""),
    )


def _file_problem(model: Model, store: Store) -> str | None:
    """Return what is wrong with the model's file in the store, or None. Raises Unavailable."""
    try:
        data = store.get(model_key(model.sha256))
    except FileNotFoundError:
        return "is not in the store"
    return None if hashlib.sha256(data).hexdigest() == model.sha256 else "has another SHA-256 than registered"


def _fix(model: Model, store: Store, settings: Settings) -> str:
    key = model_key(model.sha256)
    if store.folder is None:
        return f"restore it from a backup of the store: {key}"
    file = shlex.quote(str(store.folder / key))
    cached = settings.cache_dir / "models" / f"{model.sha256}.keras"
    if cached.is_file() and hashlib.sha256(cached.read_bytes()).hexdigest() == model.sha256:
        return f"cp {shlex.quote(str(cached))} {file}"
    return f"restore it from a backup of the store: {file}"
