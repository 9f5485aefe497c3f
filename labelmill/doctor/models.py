"""The models: whether there is a champion, and the files are those that were registered."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Iterator
from typing import Final

from jobs.errors import SettingsError, Unavailable
from jobs.ledger import diagnosis
from jobs.ledger.models import CHAMPION, list_models
from jobs.model import Model
from jobs.registry import model_key
from jobs.settings import Settings
from jobs.store import Store
from labelmill.doctor.findings import Area, Finding
from labelmill.doctor.ledger import SEE_LEDGER, NotLookedAt, look_into_ledger
from labelmill.looking import NoLedgerYet, words_of

_area = Area("models")

#: Of models that nothing needs now, so much is read, the newest first: seconds, even over a network.
_SPARE_BYTES: Final = 256 * 1024**2


def check_models(settings: Settings) -> Iterator[Finding]:
    """The champion, and the SHA-256 of model files in the store: all that are needed, others while it is
    cheap.
    """
    try:
        with look_into_ledger(settings) as connection:
            models, needed = list_models(connection), diagnosis.models_needed(connection)
    except NoLedgerYet:
        models, needed = [], set()
    except NotLookedAt as error:
        yield _area.warning(str(error), fix=SEE_LEDGER)
        return
    champion = next((model for model in models if CHAMPION in model.aliases), None)
    if champion is None and models:
        # No problem: who has only models of their own may name one with every job.
        force = " --force" if models[0].accuracy is None else ""
        yield _area.warning(
            "no model is the champion, so only what names its model (submit --model) can be submitted",
            fix=f"labelmill models promote {models[0].id}{force}",
        )
    elif champion is None:
        yield _area.problem("there is no champion, so nothing can be submitted", fix="labelmill train")
    else:
        yield _area.ok(f"champion is {champion.id}")
    if not models:
        return
    try:
        yield from _files(models, needed, Store(settings.store), settings)
    except (SettingsError, Unavailable) as error:
        yield _area.warning(
            f"files not looked at: {words_of(error, settings)}", fix="what is said of the store"
        )


def _files(models: list[Model], needed: set[str], store: Store, settings: Settings) -> Iterator[Finding]:
    spare, looked_at, bad = _SPARE_BYTES, 0, 0
    for model in models:
        if model.id not in needed:
            if model.size_bytes > spare:
                continue
            spare -= model.size_bytes
        looked_at += 1
        wrong = _what_is_wrong(model, store)
        if wrong and model.id in needed:
            bad += 1
            yield _area.problem(f"the file of model {model.id} {wrong}", fix=_fix(model, store, settings))
        elif wrong:
            bad += 1
            yield _area.warning(
                f"the file of model {model.id}, which nothing needs now, {wrong}",
                fix=_fix(model, store, settings),
            )
    if not bad:
        rest = f"; {len(models) - looked_at} others not looked at" if looked_at < len(models) else ""
        yield _area.ok(f"{looked_at} of {len(models)} files have the SHA-256 that was registered{rest}")


def _what_is_wrong(model: Model, store: Store) -> str | None:
    """Raises Unavailable."""
    try:
        data = store.get(model_key(model.sha256))
    except FileNotFoundError:
        return "is gone from the store"
    if hashlib.sha256(data).hexdigest() != model.sha256:
        return "is not the one that was registered: its SHA-256 differs"
    return None


def _fix(model: Model, store: Store, settings: Settings) -> str:
    key = model_key(model.sha256)
    if store.folder is None:
        return f"put it back from a backup of the store: {key}"
    target = shlex.quote(str(store.folder / key))
    cached = settings.cache_dir / "models" / f"{model.sha256}.keras"
    if cached.is_file() and hashlib.sha256(cached.read_bytes()).hexdigest() == model.sha256:
        return f"cp {shlex.quote(str(cached))} {target}"
    return f"put it back from a backup of the store: {target}"
