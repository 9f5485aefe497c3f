"""Models: rows, aliases, evaluations, verdicts and promotions. `jobs.storage.registry` has the files."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final, Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, NotFound
from jobs.ids import new_id
from jobs.ledger.database import insert_into
from jobs.ledger.learning.datasets import get_version
from jobs.ledger.webhook_outbox import report
from jobs.models.dataset import MNIST, dataset_option
from jobs.models.evaluation import ANSWER_BYTES, Evaluation, Part
from jobs.models.model import InputSpec, Model
from jobs.network.webhooks import Event
from jobs.schema import aliases, db_now, evaluations, jobs, models, promotions, verdicts

# ---- models and aliases ---------------------------------------------------------------------------

#: The alias of the model that new jobs are pinned to.
CHAMPION: Final = "champion"

#: The alias of the challenger (`jobs.ledger.jobs.shadows`).
SHADOW: Final = "shadow"

#: The number of latest jobs from which `champions` determines which datasets are in use.
_RECENT_JOBS: Final = 100

#: The models, each with the version of its dataset that its accuracy was measured on.
_MODELS: Final = sa.select(
    models,
    sa.select(evaluations.c.dataset_version)
    .where(evaluations.c.model_id == models.c.id, evaluations.c.part == Part.TEST)
    .order_by(evaluations.c.created_at.desc(), evaluations.c.data_fingerprint)
    .limit(1)
    .scalar_subquery()
    .label("accuracy_version"),
)


def add_model(
    connection: Connection,
    *,
    model_id: str,
    architecture: str,
    sha256: str,
    size_bytes: int,
    classes: tuple[str, ...],
    input_spec: InputSpec,
    accuracy: float | None,
    metrics: dict[str, Any],
    dataset: str = MNIST,
    logits: bool = False,
) -> str:
    """Add a model's row and return its id. A file that is registered already keeps its id and its dataset."""
    found: str = connection.execute(
        insert_into(connection, models)
        .values(
            id=model_id,
            dataset=dataset,
            architecture=architecture,
            sha256=sha256,
            size_bytes=size_bytes,
            classes=list(classes),
            input_spec=asdict(input_spec),
            accuracy=accuracy,
            metrics=metrics,
            logits=logits,
            created_at=db_now(),
        )
        # Not `do_nothing`: this locks the row, so that nobody removes it before this transaction ends.
        .on_conflict_do_update(index_elements=[models.c.sha256], set_={"sha256": sha256})
        .returning(models.c.id)
    ).scalar_one()
    return found


def point_alias(connection: Connection, name: str, model_id: str) -> None:
    """Move the alias, in the model's dataset, to the model, not pinned.

    `move_champion` also records the move.
    """
    dataset = sa.select(models.c.dataset).where(models.c.id == model_id).scalar_subquery()
    connection.execute(
        insert_into(connection, aliases)
        .values(dataset=dataset, name=name, model_id=model_id, moved_at=db_now())
        .on_conflict_do_update(
            index_elements=[aliases.c.dataset, aliases.c.name],
            set_={"model_id": model_id, "moved_at": db_now(), "pinned_at": None},
        )
    )


def find_alias(connection: Connection, name: str, dataset: str = MNIST) -> str | None:
    """Return the id of the dataset's model that has this alias, or None."""
    query = sa.select(aliases.c.model_id).where(aliases.c.dataset == dataset, aliases.c.name == name)
    found: str | None = connection.scalar(query)
    return found


def get_model(connection: Connection, model_id: str) -> Model:
    """Return the model with this id. Raises NotFound."""
    row = connection.execute(_MODELS.where(models.c.id == model_id)).one_or_none()
    if row is None:
        raise NotFound(f"There is no model {model_id!r}: `labelmill models list` shows them.")
    return _to_model(row, _aliases(connection))


def datasets_of(connection: Connection, model_ids: Collection[str]) -> dict[str, str]:
    """Return the datasets of these models, by their ids."""
    query = sa.select(models.c.id, models.c.dataset).where(models.c.id.in_(model_ids))
    return {row.id: row.dataset for row in connection.execute(query)}


def has_file(connection: Connection, sha256: str) -> bool:
    """Return whether a model has the file with this SHA-256."""
    return connection.scalar(sa.select(models.c.id).where(models.c.sha256 == sha256)) is not None


def find_champion(connection: Connection, dataset: str = MNIST) -> Model | None:
    """Return the dataset's champion, which its new jobs are pinned to, or None."""
    model_id = find_alias(connection, CHAMPION, dataset)
    return None if model_id is None else get_model(connection, model_id)


def model_or_champion(connection: Connection, model_id: str | None, dataset: str = MNIST) -> Model:
    """Return the model with this id, or the dataset's champion if the id is None. Raises NotFound."""
    model = find_champion(connection, dataset) if model_id is None else get_model(connection, model_id)
    if model is None:
        raise NotFound(_why_no_champion(connection, dataset))
    return model


def model_to_start_from(connection: Connection, dataset: str, model_id: str | None) -> Model:
    """Return the model that a fine-tuning starts from: this one, or the dataset's champion if it is None.

    Raises NotFound.
    """
    model = find_champion(connection, dataset) if model_id is None else get_model(connection, model_id)
    if model is None:
        raise NotFound(
            f"Dataset {dataset} has no champion to start from: name a model with --from (`labelmill models` "
            "lists them), or train from scratch with --architecture cnn."
        )
    return model


def _why_no_champion(connection: Connection, dataset: str) -> str:
    """Return the message if a champion is needed and the dataset has none."""
    check_dataset(connection, dataset)
    option = dataset_option(dataset)
    if _has_model(connection, dataset):
        return (
            f"Dataset {dataset} has no champion. Name a model, as in `labelmill submit SOURCES --model "
            "MODEL`, or promote one: `labelmill models promote MODEL`, with --force if it was not evaluated. "
            f"`labelmill models list{option}` shows its models."
        )
    other = connection.scalar(sa.select(aliases.c.dataset).where(aliases.c.name == CHAMPION).limit(1))
    hint = f", or name another dataset, as in `--dataset {other}`" if other else ""
    return f"Dataset {dataset} has no model yet: run `labelmill train{option}`{hint}."


def check_dataset(connection: Connection, dataset: str) -> None:
    """Raise NotFound if the dataset has neither versions nor models."""
    # The models of a removed dataset stay, and `train` adds the default dataset when it is needed.
    if dataset != MNIST and not _has_model(connection, dataset):
        get_version(connection, dataset)


def _has_model(connection: Connection, dataset: str) -> bool:
    return connection.scalar(sa.select(models.c.id).where(models.c.dataset == dataset).limit(1)) is not None


def champions(connection: Connection) -> list[Model]:
    """Return the champions of all datasets, those of the latest jobs first."""
    latest = (
        sa.select(models.c.dataset, jobs.c.created_at)
        .join(models, models.c.id == jobs.c.model_id)
        .order_by(jobs.c.created_at.desc())
        .limit(_RECENT_JOBS)
        .subquery()
    )
    used_at = sa.func.max(latest.c.created_at)
    query = (
        sa.select(aliases.c.model_id)
        .outerjoin(latest, latest.c.dataset == aliases.c.dataset)
        .where(aliases.c.name == CHAMPION)
        .group_by(aliases.c.dataset, aliases.c.model_id)
        .order_by(used_at.desc().nulls_last(), aliases.c.dataset)
    )
    return [get_model(connection, each) for each in connection.scalars(query).all()]


def list_models(connection: Connection, dataset: str | None = None) -> list[Model]:
    """Return the models of the dataset, or of all datasets, newest first."""
    names = _aliases(connection)
    query = _MODELS.order_by(models.c.created_at.desc(), models.c.id.desc())
    if dataset is not None:
        query = query.where(models.c.dataset == dataset)
    return [_to_model(row, names) for row in connection.execute(query)]


def _aliases(connection: Connection) -> dict[str, list[Row[Any]]]:
    found: dict[str, list[Row[Any]]] = {}
    for row in connection.execute(sa.select(aliases).order_by(aliases.c.name)):
        found.setdefault(row.model_id, []).append(row)
    return found


def _to_model(row: Row[Any], all_aliases: dict[str, list[Row[Any]]]) -> Model:
    own = all_aliases.get(row.id, [])
    return Model(
        **{**row._mapping, "classes": tuple(row.classes), "input_spec": InputSpec(**row.input_spec)},
        aliases=tuple(alias.name for alias in own),
        pinned_at=next((alias.pinned_at for alias in own if alias.pinned_at is not None), None),
    )


# ---- evaluations ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StoredEvaluation:
    """An evaluation, and the data it was made on."""

    data_fingerprint: str
    evaluation: Evaluation
    answers: bytes  # as `jobs.models.evaluation.pack_answers` returns them
    created_at: datetime
    dataset: str = MNIST
    version: int | None = None  # of the dataset


def save_evaluation(
    connection: Connection,
    model_id: str,
    data_fingerprint: str,
    evaluation: Evaluation,
    answers: bytes,
    *,
    part: Part = Part.TEST,
    dataset: str = MNIST,
    version: int | None = None,
) -> None:
    """Store an evaluation, replacing an earlier one of the same model on the same data.

    The model's accuracy becomes that of this evaluation if it was made on a test set. Raises ValueError
    unless `answers` has ANSWER_BYTES bytes per image.
    """
    if len(answers) != ANSWER_BYTES * evaluation.total:
        raise ValueError(f"{len(answers)} bytes are not the answers to {evaluation.total} images")
    row = {
        "part": part,
        "dataset": dataset,
        "dataset_version": version,
        "measures": asdict(evaluation),
        "answers": answers,
        "created_at": db_now(),
    }
    connection.execute(
        insert_into(connection, evaluations)
        .values(model_id=model_id, data_fingerprint=data_fingerprint, **row)
        .on_conflict_do_update(
            index_elements=[evaluations.c.model_id, evaluations.c.data_fingerprint], set_=row
        )
    )
    if part is Part.TEST:
        accuracy = models.update().where(models.c.id == model_id).values(accuracy=evaluation.accuracy)
        connection.execute(accuracy)


def find_evaluation(
    connection: Connection, model_id: str, data_fingerprint: str | None = None, *, part: Part = Part.TEST
) -> StoredEvaluation | None:
    """Return the model's evaluation on this data, or its latest on any data; None if there is none."""
    query = sa.select(evaluations).where(evaluations.c.model_id == model_id, evaluations.c.part == part)
    if data_fingerprint is not None:
        query = query.where(evaluations.c.data_fingerprint == data_fingerprint)
    latest = query.order_by(evaluations.c.created_at.desc(), evaluations.c.data_fingerprint).limit(1)
    row = connection.execute(latest).one_or_none()
    if row is None:
        return None
    return StoredEvaluation(
        data_fingerprint=row.data_fingerprint,
        evaluation=Evaluation.from_json(row.measures),
        answers=bytes(row.answers),
        created_at=row.created_at,
        dataset=row.dataset,
        version=row.dataset_version,
    )


# ---- promotions -----------------------------------------------------------------------------------

How = Literal["retrain", "promote", "rollback"]

ROLLBACK: Final = "rollback"

_MOVES: Final = (
    sa.select(promotions, sa.func.coalesce(verdicts.c.forced, sa.false()).label("forced"))
    .join(models, models.c.id == promotions.c.model_id)
    .outerjoin(verdicts, verdicts.c.id == promotions.c.verdict_id)
    .order_by(promotions.c.id.desc())
)


@dataclass(frozen=True, slots=True)
class Promotion:
    """One move of the champion alias."""

    id: str
    model_id: str
    previous_id: str | None  # the champion before
    how: str  # retrain, promote or rollback
    forced: bool  # the gate was overruled
    verdict_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """The gate's decision about a model, as stored."""

    id: str
    run_id: str | None  # the training run that asked
    model_id: str
    champion_id: str | None  # the champion it was compared with
    promote: bool
    forced: bool
    checks: list[dict[str, Any]]  # name, passed, text
    created_at: datetime


def lock_champion(connection: Connection, dataset: str = MNIST) -> str | None:
    """Return the id of the dataset's champion, or None, and lock it until this transaction ends.

    Nobody else can move any champion in the meantime. Readers do not wait.
    """
    if connection.dialect.name == "postgresql":
        # The table, because before the first promotion there is no row to lock. On SQLite, the transaction
        # itself is the lock.
        connection.execute(sa.text("LOCK TABLE promotions IN SHARE ROW EXCLUSIVE MODE"))
    return find_alias(connection, CHAMPION, dataset)


def move_champion(
    connection: Connection, model_id: str, *, previous_id: str | None, how: How, verdict_id: str | None = None
) -> None:
    """Make the model its dataset's champion, and record and report the move. It stops being a challenger.

    `previous_id` is what `lock_champion` returned in this transaction.
    """
    latest = connection.scalar(sa.select(sa.func.max(promotions.c.id)))
    point_alias(connection, CHAMPION, model_id)
    connection.execute(aliases.delete().where(aliases.c.name == SHADOW, aliases.c.model_id == model_id))
    connection.execute(
        promotions.insert().values(
            # Ids give the order even if the clocks of two machines differ.
            id=new_id(after=latest),
            model_id=model_id,
            previous_id=previous_id,
            how=how,
            verdict_id=verdict_id,
            created_at=db_now(),
        )
    )
    report(
        connection,
        Event.MODEL_PROMOTED,
        lambda: {
            "id": model_id,
            "object": "model",
            "dataset": get_model(connection, model_id).dataset,
            "previous": previous_id,
            "how": how,
        },
    )


def pin_champion(connection: Connection, dataset: str = MNIST, *, pinned: bool) -> Model:
    """Pin the dataset's champion, so that no training run replaces it, or release it. Return it.

    A champion that is pinned already keeps the time of its pin. Raises NotFound.
    """
    lock_champion(connection, dataset)
    champion = model_or_champion(connection, None, dataset)
    if pinned != (champion.pinned_at is not None):
        moved = aliases.update().where(aliases.c.dataset == dataset, aliases.c.name == CHAMPION)
        connection.execute(moved.values(pinned_at=db_now() if pinned else None))
    return get_model(connection, champion.id)


def describe_pin(champion: Model) -> str:
    """Return that this champion is pinned, and how to release it."""
    command = f"labelmill models pin --off{dataset_option(champion.dataset)}"
    return f"the champion {champion.id} is pinned ({command} releases it)"


def add_verdict(
    connection: Connection,
    *,
    run_id: str | None,
    model_id: str,
    champion_id: str | None,
    promote: bool,
    forced: bool,
    checks: list[dict[str, Any]],
) -> str:
    """Store a verdict and return its id."""
    latest = connection.scalar(sa.select(sa.func.max(verdicts.c.id)).where(verdicts.c.model_id == model_id))
    verdict_id = new_id(after=latest)
    connection.execute(
        verdicts.insert().values(
            id=verdict_id,
            run_id=run_id,
            model_id=model_id,
            champion_id=champion_id,
            promote=promote,
            forced=forced,
            checks=checks,
            created_at=db_now(),
        )
    )
    return verdict_id


def find_verdict(connection: Connection, model_id: str) -> StoredVerdict | None:
    """Return the latest verdict on the model, or None."""
    query = sa.select(verdicts).where(verdicts.c.model_id == model_id)
    row = connection.execute(query.order_by(verdicts.c.id.desc()).limit(1)).one_or_none()
    return None if row is None else StoredVerdict(**row._mapping)


def champion_history(
    connection: Connection, dataset: str = MNIST, *, limit: int | None = None
) -> list[Promotion]:
    """Return the moves of the dataset's champion alias, latest first."""
    moves = _MOVES.where(models.c.dataset == dataset).limit(limit)
    return [Promotion(**row._mapping) for row in connection.execute(moves)]


def champion_before(connection: Connection, dataset: str = MNIST) -> str:
    """Return the id of the dataset's champion before the present one, ignoring moves that were rolled back.

    Rolling back twice therefore goes two steps back, not back and forth. Raises Conflict if there is none.
    """
    champion_id = find_alias(connection, CHAMPION, dataset)
    if champion_id is None:
        raise Conflict(
            f"Dataset {dataset} has no champion to roll back: promote a model with `labelmill models promote "
            "MODEL`."
        )
    steps: list[str] = []
    for move in reversed(champion_history(connection, dataset)):
        if move.how == ROLLBACK:
            del steps[-1:]
            continue
        if move.previous_id is not None and steps[-1:] != [move.previous_id]:
            steps.append(move.previous_id)  # a champion that is older than the history
        steps.append(move.model_id)
    if len(steps) < 2 or steps[-1] != champion_id:
        raise Conflict(
            f"There was no champion before {champion_id}: "
            f"`labelmill models history{dataset_option(dataset)}` shows them."
        )
    return steps[-2]


def roll_back(connection: Connection, model_id: str) -> Promotion:
    """Make the model that `champion_before` returned the champion again, and return the move.

    Raises Conflict if the champion is pinned, or if another process has moved it meanwhile.
    """
    dataset = get_model(connection, model_id).dataset
    champion_id = lock_champion(connection, dataset)
    champion = None if champion_id is None else get_model(connection, champion_id)
    if champion is not None and champion.pinned_at is not None:
        raise Conflict(f"Not rolled back: {describe_pin(champion)}.")
    if champion_before(connection, dataset) != model_id:
        raise Conflict(
            "Another process moved the champion at the same time: "
            f"`labelmill models history{dataset_option(dataset)}` shows it."
        )
    move_champion(connection, model_id, previous_id=champion_id, how=ROLLBACK)
    return champion_history(connection, dataset, limit=1)[0]
