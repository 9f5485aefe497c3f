"""What the report about a model shows, read from the ledger by `load_report`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Connection, Row

from jobs.errors import Conflict, NotFound
from jobs.ledger.jobs.shadows import Comparison as Shadowing
from jobs.ledger.jobs.shadows import compare as compare_shadow
from jobs.ledger.learning.corrections import LiveAccuracy, live_accuracy
from jobs.ledger.learning.models import (
    CHAMPION,
    Promotion,
    StoredEvaluation,
    StoredVerdict,
    champion_before,
    champion_history,
    find_champion,
    find_evaluation,
    find_verdict,
    get_model,
)
from jobs.ledger.learning.runs import Run, epochs_of, get_run
from jobs.models.evaluation import Evaluation, Part
from jobs.models.model import Model


@dataclass(frozen=True, slots=True)
class Rival:
    """The model that the reported model is compared with."""

    model: Model
    is_champion: bool  # otherwise it is the previous champion
    stored: StoredEvaluation | None
    same_images: bool  # both were evaluated on the same images, so their figures can be compared
    live_set: StoredEvaluation | None = None  # its evaluation on the reported model's live set

    @property
    def evaluation(self) -> Evaluation | None:
        """The rival's evaluation, or None if it was never evaluated."""
        return self.stored.evaluation if self.stored else None


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that the page shows. The page calls values that are None or empty unknown."""

    model: Model
    stored: StoredEvaluation
    rival: Rival | None
    verdict: StoredVerdict | None
    promotion: Promotion | None  # the latest one that made this model the champion
    run: Run | None
    epochs: Sequence[Row[Any]]
    live: LiveAccuracy
    shadowing: Shadowing
    live_set: StoredEvaluation | None = None  # its latest evaluation on corrected images

    @property
    def evaluation(self) -> Evaluation:
        """The model's evaluation."""
        return self.stored.evaluation

    @property
    def is_champion(self) -> bool:
        """Whether the model is the champion, so that new jobs are pinned to it."""
        return CHAMPION in self.model.aliases


def load_report(connection: Connection, model_id: str) -> Report:
    """Read everything. Raises NotFound if the model does not exist or was never evaluated."""
    model = get_model(connection, model_id)
    stored = find_evaluation(connection, model_id)
    if stored is None:
        raise NotFound(
            f"Model {model_id} has not been evaluated, so there is nothing to report: "
            f"`labelmill models evaluate {model_id}` does it."
        )
    live_set = find_evaluation(connection, model_id, part=Part.LIVE)
    moves = champion_history(connection, model.dataset)
    run_id = model.metrics.get("run")
    return Report(
        model=model,
        stored=stored,
        rival=_rival(connection, model, stored, live_set),
        verdict=find_verdict(connection, model_id),
        promotion=next((move for move in moves if move.model_id == model_id), None),
        run=get_run(connection, run_id) if run_id else None,
        epochs=epochs_of(connection, run_id) if run_id else (),
        live=live_accuracy(connection, model_id),
        shadowing=compare_shadow(connection, model_id),
        live_set=live_set,
    )


def _rival(
    connection: Connection, model: Model, stored: StoredEvaluation, live_set: StoredEvaluation | None
) -> Rival | None:
    """Return the champion, or the previous champion if the model is the champion; None if there is none."""
    champion = find_champion(connection, model.dataset)
    if champion is None:
        return None
    is_champion = champion.id != model.id
    if not is_champion:
        try:
            champion = get_model(connection, champion_before(connection, model.dataset))
        except Conflict:  # the model is the first champion
            return None
    theirs = their_live = None
    # The answers are class indices: with other classes, they mean something else.
    if champion.classes == model.classes:
        theirs = find_evaluation(connection, champion.id, stored.data_fingerprint)
        if live_set is not None:
            live = live_set.data_fingerprint
            their_live = find_evaluation(connection, champion.id, live, part=Part.LIVE)
    return Rival(
        model=champion,
        is_champion=is_champion,
        stored=theirs or find_evaluation(connection, champion.id),
        same_images=theirs is not None,
        live_set=their_live,
    )
