"""The health of a model since its evaluation: accuracy on known labels, and drift of the images.

Only recent jobs count, and of a large job a sample spread over the whole job, because images come in the
order of their folders. Each job costs one statement, over ranges of the predictions' primary key. The jobs
are found through the index on their creation time, so a champion's health costs the same however large the
ledger is, and another model's at most a scan of the jobs of `RECENT_DAYS` days.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from jobs.ids import new_id
from jobs.ledger.database import Ledger
from jobs.ledger.learning.corrections import LiveAccuracy, live_accuracy
from jobs.ledger.learning.known_labels import KnownAccuracy, count_known
from jobs.ledger.learning.models import champions, find_evaluation, model_or_champion
from jobs.ledger.locks import take_lock
from jobs.ledger.webhook_outbox import is_wanted, report
from jobs.models.dataset import MNIST
from jobs.models.drift import MIN_IMAGES, Drift, Shift
from jobs.models.evaluation import CONFIDENCE_EDGES, Evaluation, Part
from jobs.network.webhooks import Event
from jobs.schema import FINISHED, db_now, jobs, predictions

#: Recent jobs: the last RECENT_JOBS finished ones that were created within RECENT_DAYS days.
RECENT_JOBS: Final = 20
RECENT_DAYS: Final = 30

#: How many images of one job are counted. From a larger job, _SLICES slices of equal size are taken, evenly
#: spread.
SAMPLE_IMAGES: Final = 50_000
_SLICES: Final = 50

#: How many of them are compared with the folders that they are in: their names are read one by one.
_COMPARED_IMAGES: Final = 5_000

_DAY_SECONDS: Final = 86_400.0

#: Days after which drift of the same model is reported again.
REPORT_DAYS: Final = 7


class Mix(NamedTuple):
    """How often each label and each confidence occurs in a job: of at most SAMPLE_IMAGES images."""

    labels: Counter[str]
    confidences: Counter[int]  # by the place of the bin in CONFIDENCE_EDGES


@dataclass(frozen=True, slots=True)
class Health:
    """What is known about a model in use."""

    model: str
    dataset: str
    dataset_version: int | None  # that the accuracy is about; None without one
    accuracy: float | None  # by its evaluation, 0 to 1
    accuracy_low: float | None  # of its 95 % interval; None without an evaluation
    live: LiveAccuracy
    live_set: KnownAccuracy | None  # on corrections that training leaves out; None if it was not measured
    known: KnownAccuracy | None  # on recent images whose manifest or folder names a class; None without any
    jobs: int  # recent jobs
    images: int  # of these jobs, with a label, as far as counted
    #: None if the model was never evaluated: there is nothing to compare with.
    labels: Shift | None
    confidences: Shift | None

    @property
    def warnings(self) -> list[str]:
        """Return the warnings about accuracy and drift, one sentence each."""
        fallen = [] if self.fallen is None else [self.fallen]
        return fallen + self.drift_warnings

    @property
    def fallen(self) -> str | None:
        """Return a warning if the accuracy on recent images is clearly below that of the evaluation.

        People correct what looks wrong, so corrections alone would make every model look worse: only images
        whose manifest or folder names a class count.
        """
        if self.known is None or self.accuracy_low is None or self.known.interval[1] >= self.accuracy_low:
            return None
        return (
            f"The accuracy has fallen from {self.accuracy:.4f} in the evaluation to "
            f"{self.known.accuracy:.4f} on {self.known.images:,} recent images whose true labels are known."
        )

    @property
    def drift_warnings(self) -> list[str]:
        """Return the warnings about drift, one sentence each."""
        return [
            _WARNINGS[shift.drift].format(what=what, index=shift.index)
            for what, shift in (("labels", self.labels), ("confidences", self.confidences))
            if shift is not None and shift.drift in _WARNINGS
        ]

    @property
    def has_drifted(self) -> bool:
        """Return whether the recent images differ clearly from those of the evaluation."""
        return any(shift and shift.drift is Drift.DRIFTED for shift in (self.labels, self.confidences))

    @property
    def unknown(self) -> str | None:
        """Return why drift cannot be determined, or None if it can."""
        if self.labels is None:
            return f"Model {self.model} was never evaluated, so there is nothing to compare its jobs with."
        if Drift.UNKNOWN in (self.labels.drift, self.confidences and self.confidences.drift):
            evaluated = sum(self.labels.expected)
            return (
                f"{self.images:,} images in the jobs of the last {RECENT_DAYS} days, {evaluated:,} in the "
                f"evaluation: detecting drift takes at least {MIN_IMAGES} of each."
            )
        return None


_WARNINGS: Final = {
    Drift.MOVED: "The mix of {what} has moved (index {index:.2f}): recent images differ "
    "slightly from those that the model was evaluated on.",
    Drift.DRIFTED: "The mix of {what} has drifted (index {index:.2f}): recent images differ from "
    "those that the model was evaluated on, so its accuracy may differ too.",
}


def model_health(connection: Connection, model_id: str | None = None, dataset: str = MNIST) -> Health:
    """Return the health of the model; without an id, of the dataset's champion. Raises NotFound."""
    model = model_or_champion(connection, model_id, dataset)
    stored = find_evaluation(connection, model.id)
    recent = _recent_jobs(connection, model.id)
    live_set = find_evaluation(connection, model.id, part=Part.LIVE)
    labels: Counter[str] = Counter()
    confidences: Counter[int] = Counter()
    known: Counter[bool] = Counter()
    for job_id, total in recent:
        mix = mix_of_job(connection, job_id, total)
        labels.update(mix.labels)
        confidences.update(mix.confidences)
        known += count_known(connection, job_id, _sampled(total, _COMPARED_IMAGES), model.classes)
    return Health(
        model=model.id,
        dataset=model.dataset,
        dataset_version=stored.version if stored else None,
        accuracy=stored.evaluation.accuracy if stored else model.accuracy,
        accuracy_low=stored.evaluation.accuracy_low if stored else None,
        live=live_accuracy(connection, model.id),
        live_set=KnownAccuracy(live_set.evaluation.correct, live_set.evaluation.total) if live_set else None,
        known=KnownAccuracy(known[True], known.total()) if known else None,
        jobs=len(recent),
        images=labels.total(),
        labels=_label_shift(stored.evaluation, labels) if stored else None,
        confidences=_confidence_shift(stored.evaluation, confidences) if stored else None,
    )


def mix_of_job(connection: Connection, job_id: str, total: int) -> Mix:
    """Return how often each label and each confidence occurs in a job of this size, or in a sample of it."""
    mix = Mix(Counter(), Counter())
    for label, place, count in connection.execute(_mix_of(job_id, total)):
        mix.labels[label] += count
        mix.confidences[place] += count
    return mix


def report_drift(ledger: Ledger) -> None:
    """Report the champions whose recent images have drifted, if a webhook wants that. Raises Unavailable.

    A lock in the ledger makes sure that each is reported once, however many processes call this.
    """
    with ledger.reading() as connection:
        if not is_wanted(connection, Event.DRIFT_DETECTED):
            return
        found = [model_health(connection, champion.id) for champion in champions(connection)]
    for health in found:
        if health.has_drifted:
            with ledger.transaction() as connection:
                _report(connection, health)


def _report(connection: Connection, health: Health) -> None:
    # The holder is new, so not even this process can take the lock again before it expires.
    if not take_lock(connection, f"drift {health.model}", new_id(), seconds=REPORT_DAYS * _DAY_SECONDS):
        return
    report(
        connection,
        Event.DRIFT_DETECTED,
        lambda: {
            "model": health.model,
            "dataset": health.dataset,
            "jobs": health.jobs,
            "images": health.images,
            "warnings": health.warnings,
        },
    )


def _recent_jobs(connection: Connection, model_id: str) -> list[tuple[str, int]]:
    """Return the ids of the model's recent finished jobs, with their numbers of images."""
    # As a subquery it is evaluated once. The clock may change from row to row, so no index could be searched
    # by it.
    oldest = sa.select(db_now(-RECENT_DAYS * _DAY_SECONDS)).scalar_subquery()
    query = (
        sa.select(jobs.c.id, jobs.c.total)
        .where(
            jobs.c.model_id == model_id,
            jobs.c.shadow_of.is_(None),
            jobs.c.state.in_(FINISHED),
            jobs.c.created_at > oldest,
        )
        .order_by(jobs.c.created_at.desc(), jobs.c.id.desc())
        .limit(RECENT_JOBS)
    )
    return [(job_id, total) for job_id, total in connection.execute(query)]


def _mix_of(job_id: str, total: int) -> sa.Select[Any]:
    """Return the query that counts the job's sampled images by label and by confidence bin."""
    columns = predictions.c
    slices = [
        sa.select(columns.label, columns.confidence).where(
            columns.job_id == job_id,
            columns.index >= each.start,
            columns.index < each.stop,
            columns.label.is_not(None),
        )
        for each in _sampled(total, SAMPLE_IMAGES)
    ]
    sample = sa.union_all(*slices).subquery()
    bins = [
        (sample.c.confidence < sa.cast(edge, sa.REAL), place)
        for place, edge in enumerate(CONFIDENCE_EDGES[1:-1])
    ]
    place = sa.case(*bins, else_=len(CONFIDENCE_EDGES) - 2).label("place")
    return sa.select(sample.c.label, place, sa.func.count()).group_by(sample.c.label, place)


def _sampled(total: int, most: int) -> list[range]:
    """Return the ranges of indices that are counted in a job of this size, `most` in all."""
    if total <= most:
        return [range(total)]
    size = most // _SLICES
    starts = [number * (total - size) // (_SLICES - 1) for number in range(_SLICES)]
    return [range(start, start + size) for start in starts]


def _label_shift(evaluation: Evaluation, labels: Counter[str]) -> Shift:
    classes = evaluation.classes
    return Shift(classes, evaluation.label_histogram, tuple(labels[each] for each in classes))


def _confidence_shift(evaluation: Evaluation, confidences: Counter[int]) -> Shift:
    bins = [f"{low:g} to {high:g}" for low, high in pairwise(CONFIDENCE_EDGES)]
    now = tuple(confidences[place] for place in range(len(bins)))
    return Shift(tuple(bins), evaluation.confidence_histogram, now)
