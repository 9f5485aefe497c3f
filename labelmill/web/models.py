"""`/models`: the models of each dataset, the report on each, and two of them compared."""

from __future__ import annotations

from itertools import combinations, groupby
from typing import Annotated, Any, Final, Literal, NamedTuple
from urllib.parse import quote

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy.engine import Connection

from jobs.errors import Conflict, NotFound
from jobs.ledger.jobs.queries import model_named
from jobs.ledger.learning.corrections import LiveAccuracy, live_accuracy
from jobs.ledger.learning.models import (
    CHAMPION,
    StoredEvaluation,
    champion_before,
    find_evaluation,
    list_models,
)
from jobs.models.evaluation import NO_ANSWER, Evaluation, unpack_answers
from jobs.models.model import Model
from jobs.models.promotion import compare_answers
from labelmill.reporting import report_rows as tables
from labelmill.reporting.model_page import report_values
from labelmill.reporting.report_data import load_report
from labelmill.server.access import SubmitSession
from labelmill.server.schemas import NO_NUL
from labelmill.web.rendering import page

router = APIRouter(prefix="/models")

#: Models of one dataset that are listed, newest first.
_MODELS: Final = 30

#: Images with another label that are listed, and the order of those that only one model has right.
_FLIPS: Final = 500
_ORDER: Final = {"first": 0, "second": 1, "neither": 2}

ModelName = Annotated[str, Query(max_length=64, pattern=NO_NUL)]


class Listed(NamedTuple):
    """A model of the list, with its latest evaluation."""

    model: Model
    evaluation: Evaluation | None
    live: LiveAccuracy
    data: str | None  # the fingerprint of the images that it was evaluated on


class Group(NamedTuple):
    """The models of a dataset."""

    models: list[Listed]
    pair: tuple[str, ...]  # the latest two that can be compared, or none
    previous: str | None  # the champion before the present one, which a rollback brings back


class Flip(NamedTuple):
    """An image of the test set to which two models give different labels."""

    place: int  # in the test set, from 0
    url: str | None  # of its picture
    truth: str
    first: str | None
    second: str | None

    def whose(self) -> Literal["first", "second", "neither"]:
        """Return which of the models is right."""
        return "first" if self.first == self.truth else "second" if self.second == self.truth else "neither"


@router.get("")
def show_models(request: Request, session: SubmitSession) -> Response:
    """Show the models, by dataset."""
    found: dict[str, list[Model]] = {}
    for model in session.client.models():
        found.setdefault(model.dataset, []).append(model)
    with session.client.ledger.reading() as connection:
        datasets = {
            dataset: _group(connection, dataset, models[:_MODELS]) for dataset, models in found.items()
        }
    return page(request, "models.html", datasets=datasets, champion=CHAMPION)


@router.get("/compare")
def compare_models(
    request: Request, session: SubmitSession, first: ModelName = "", second: ModelName = ""
) -> Response:
    """Show two models next to each other, and the images that they label differently."""
    with session.client.ledger.reading() as connection:
        one, other = (model_named(connection, each or None) for each in (first, second))
        stored = find_evaluation(connection, one.id)
        theirs = stored and find_evaluation(connection, other.id, stored.data_fingerprint)
    if one.classes != other.classes:
        raise Conflict(f"Models {one.id} and {other.id} have different classes: compare two with the same.")
    if stored is None or theirs is None:
        raise Conflict(
            f"Models {one.id} and {other.id} were not evaluated on the same images: "
            "go back and choose two others, or evaluate each of them on the latest test set with "
            "`labelmill models evaluate MODEL`."
        )
    return page(request, "compare.html", one=one, other=other, **_comparison(stored, theirs))


@router.get("/{model_id}")
def show_model(model_id: str, request: Request, session: SubmitSession) -> Response:
    """Show the report on a model; its facts alone if it was never evaluated."""
    with session.client.ledger.reading() as connection:
        model = model_named(connection, model_id)
        try:
            report = load_report(connection, model.id)
        except NotFound:  # never evaluated
            report = None
        others = [] if report is None else _comparable_with(connection, model, report.stored)
    values = {} if report is None else report_values(report)
    return page(request, "model_page.html", model=model, report=report, others=others, **values)


def _group(connection: Connection, dataset: str, models: list[Model]) -> Group:
    try:
        previous = champion_before(connection, dataset)
    except Conflict:
        previous = None
    listed = [_listed(connection, each) for each in models]
    pairs = (
        (one.model.id, other.model.id)
        for one, other in combinations(listed, 2)
        if one.data is not None and one.data == other.data and one.model.classes == other.model.classes
    )
    return Group(listed, next(pairs, ()), previous)


def _listed(connection: Connection, model: Model) -> Listed:
    stored = find_evaluation(connection, model.id)
    live = live_accuracy(connection, model.id)
    if stored is None:
        return Listed(model, None, live, None)
    return Listed(model, stored.evaluation, live, stored.data_fingerprint)


def _comparable_with(connection: Connection, model: Model, stored: StoredEvaluation) -> list[Model]:
    """Return the latest models that were evaluated on the same images."""
    others = list_models(connection, dataset=model.dataset)[: _MODELS + 1]
    return [
        each
        for each in others
        if each.id != model.id
        and each.classes == model.classes
        and find_evaluation(connection, each.id, stored.data_fingerprint)
    ]


def _comparison(stored: StoredEvaluation, theirs: StoredEvaluation) -> dict[str, Any]:
    """Return what the template needs of two evaluations on the same images."""
    flips = _flips(stored, theirs)
    has_matrix = len(stored.evaluation.classes) <= tables.MAX_CLASSES
    return {
        "pair": compare_answers(stored.answers, theirs.answers),
        "sides": [
            {
                "evaluation": each.evaluation,
                "matrix": tables.confusion_matrix(each.evaluation) if has_matrix else None,
                "confused": tables.most_confused(each.evaluation),
            }
            for each in (stored, theirs)
        ],
        "flips": {whose: list(found) for whose, found in groupby(flips[:_FLIPS], Flip.whose)},
        "shown_flips": min(_FLIPS, len(flips)),
        "all_flips": len(flips),
    }


def _flips(stored: StoredEvaluation, theirs: StoredEvaluation) -> list[Flip]:
    """Return the images with different labels, the same kind next to each other."""
    names = stored.evaluation.classes
    (ours, truth), (others, _) = unpack_answers(stored.answers), unpack_answers(theirs.answers)

    def name(answer: int) -> str | None:
        return None if answer == NO_ANSWER else names[answer]

    version = f"/v1/datasets/{quote(stored.dataset)}/versions/{stored.version}" if stored.version else None
    found = [
        Flip(place, version and f"{version}/test/{place}", names[true], name(first), name(second))
        for place, (first, second, true) in enumerate(zip(ours, others, truth, strict=True))
        if first != second
    ]
    return sorted(
        found,
        key=lambda each: (_ORDER[each.whose()], each.truth, each.first or "", each.second or ""),
    )
