"""A model's health since its evaluation: the drift index, which images count, and the warnings."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping

import pytest

from jobs.errors import ErrorCode
from jobs.ledger import Ledger
from jobs.ledger.jobs.control import end_job
from jobs.ledger.learning import health
from jobs.ledger.learning.corrections import NewCorrection, save_corrections
from jobs.ledger.learning.health import RECENT_DAYS, RECENT_JOBS, Health, model_health
from jobs.ledger.learning.known_labels import KnownAccuracy
from jobs.ledger.learning.models import save_evaluation
from jobs.models.drift import Drift, Shift, population_stability
from jobs.models.evaluation import CONFIDENCE_EDGES, Part
from jobs.models.model import Model
from jobs.schema import JobState, db_now, jobs
from labelmill.commands.models.health import app as health_command
from tests.conftest import JobMaker, Worker, plans_of
from tests.evaluations import made_evaluation
from tests.outcomes import Outcome

DAY = 24 * 3600

#: The number of a job's images by label.
Mix = Mapping[str, int]
Classified = Callable[..., str]

EVEN: Mix = {str(digit): 100 for digit in range(10)}

#: The evaluation set: a hundred images of each digit, all classified correctly with this confidence.
TRUTH = [number % 10 for number in range(1000)]
SURE = [0.995] * len(TRUTH)


# ---- the index ----------------------------------------------------------------------------------------


def test_the_index_is_what_it_says() -> None:
    # by hand: (0.5 - 0.25) ln 2 + (0.5 - 0.75) ln (2/3)
    assert population_stability([25, 75], [500, 500]) == pytest.approx(
        0.25 * math.log(2) - 0.25 * math.log(2 / 3)
    )
    # equal shares are no change, whatever the totals, and the index is symmetric
    assert population_stability([1, 2, 3], [100, 200, 300]) == 0
    assert population_stability([25, 75], [60, 40]) == pytest.approx(population_stability([60, 40], [25, 75]))


def test_an_empty_group_counts_as_half_an_image() -> None:
    assert population_stability([100, 0], [1000, 0]) == 0
    assert population_stability([50, 50], [100, 0]) == pytest.approx(
        0.5 * math.log(2) + (0.005 - 0.5) * math.log(0.01)
    )
    assert population_stability([100, 0], [50, 50]) == pytest.approx(population_stability([50, 50], [100, 0]))


@pytest.mark.parametrize(("then", "now"), [([], []), ([1], [0]), ([0], [1]), ([1, 2], [1])])
def test_nothing_is_compared_with_nothing(then: list[int], now: list[int]) -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        population_stability(then, now)


def test_what_the_index_means() -> None:
    def drift(*now: int) -> Drift:
        return Shift(("a", "b"), (500, 500), now).drift

    assert drift(100, 100) == Drift.STEADY
    assert drift(100, 99) == Drift.UNKNOWN  # under 200 images
    assert drift(649, 351) == Drift.STEADY  # 0.092
    assert drift(660, 340) == Drift.MOVED  # 0.106
    assert drift(735, 265) == Drift.MOVED  # 0.240
    assert drift(745, 255) == Drift.DRIFTED  # 0.263
    assert Shift(("a", "b"), (199, 0), (500, 500)).drift == Drift.UNKNOWN


# ---- what is counted ----------------------------------------------------------------------------------


@pytest.fixture
def evaluated(ledger: Ledger, champion: Model) -> Model:
    """Return the champion, with its evaluation."""
    with ledger.transaction() as connection:
        save_evaluation(connection, champion.id, "f" * 64, *made_evaluation(TRUTH, TRUTH, confidences=SURE))
    return champion


@pytest.fixture
def classified(make_job: JobMaker, worker: Worker) -> Classified:
    """Return a function: `classified({"7": 200})` makes a finished job with 200 sevens and returns its id."""

    def classified(mix: Mix, *, confidence: float = 0.995, errors: int = 0) -> str:
        outcomes = [Outcome("", label, confidence) for label, images in mix.items() for _ in range(images)]
        outcomes += [Outcome("", None, None, ErrorCode.CORRUPT)] * errors
        job = make_job([len(outcomes)])
        worker.work(job.chunks[0], outcomes)
        return job.id

    return classified


def health_of(ledger: Ledger, model_id: str | None = None) -> Health:
    with ledger.reading() as connection:
        return model_health(connection, model_id)


def from_days_ago(ledger: Ledger, job_id: str, days: float) -> None:
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == job_id).values(created_at=db_now(-days * DAY)))


def test_images_of_the_same_kind_are_steady(ledger, evaluated, classified) -> None:
    # given three jobs with the same mix as the evaluation set, and some errors
    for _ in range(3):
        classified(EVEN, errors=7)

    # when the health is read, then all is steady
    found = health_of(ledger)
    assert (found.model, found.accuracy, found.jobs, found.images) == (evaluated.id, 1.0, 3, 3000)
    assert (found.labels.index, found.labels.drift) == (0, Drift.STEADY)
    assert (found.confidences.index, found.confidences.drift) == (0, Drift.STEADY)
    assert (found.warnings, found.unknown) == ([], None)
    assert health_of(ledger, evaluated.id) == found


@pytest.mark.parametrize(
    ("mix", "confidence", "words"),
    [
        ({str(digit): 100 for digit in range(5)}, 0.995, "The mix of labels has drifted (index "),
        ({**EVEN, "7": 300}, 0.995, "The mix of labels has moved (index 0.1"),
        (EVEN, 0.55, "The mix of confidences has drifted"),
    ],
    ids=["labels have drifted", "labels have moved", "confidences have drifted"],
)
@pytest.mark.usefixtures("evaluated")
def test_a_drift_is_a_warning(ledger, classified, mix: Mix, confidence: float, words: str) -> None:
    classified(mix, confidence=confidence)

    found = health_of(ledger)

    assert found.labels.actual == tuple(mix.get(str(digit), 0) for digit in range(10))
    [warning] = found.warnings
    assert warning.startswith(words)


def test_a_fall_of_accuracy_is_a_warning(ledger, champion, make_job, worker, run_command) -> None:
    # given a model that was right on 728 of 1,000 test images, and on 42 of 65 corrections
    def save(right: int, of: int, fingerprint: str, part: Part) -> None:
        answers = [0] * right + [1] * (of - right)
        with ledger.transaction() as connection:
            save_evaluation(
                connection, champion.id, fingerprint, *made_evaluation([0] * of, answers), part=part
            )

    save(728, 1_000, "f" * 64, Part.TEST)
    save(42, 65, "e" * 64, Part.LIVE)

    def classify(right: int, of: int) -> str:
        """Classify images of the folder 0 alike, and as many in a folder that is no class."""
        outcomes = [Outcome(f"a/0/{n}.png", "0" if n < right else "1", 0.9) for n in range(of)]
        outcomes += [Outcome(f"a/other/{n}.png", "0", 0.9) for n in range(of)]
        job = make_job([len(outcomes)])
        worker.work(job.chunks[0], outcomes)
        return job.id

    # when 73 of 100 recent images are right, then all is well, and the figures are shown
    first = classify(73, 100)
    found = health_of(ledger)
    assert (found.known, found.fallen) == (KnownAccuracy(73, 100), None)
    said = run_command(health_command).stdout
    assert re.search(r"live set +0\.6462 \(0\.5\d+ to 0\.7\d+\), 42 right of 65 images", said)
    assert re.search(r"known labels +0\.7300 .*, 73 right of 100 images", said)

    # when 608 of 1,000 are, one of them by its correction, then there is a warning
    from_days_ago(ledger, first, RECENT_DAYS + 1)
    job_id = classify(607, 1_000)
    corrected = NewCorrection(job_id, 999, "a/0/999.png", "1", "1", 0.9, champion.id, "c" * 64)
    with ledger.transaction() as connection:
        save_corrections(connection, [corrected])
    warning = "The accuracy has fallen from 0.7280 in the evaluation to 0.6080 on 1,000 recent images"
    assert (health_of(ledger).fallen or "").startswith(warning)
    done = json.loads(run_command(health_command, "--json").stdout)
    assert any(each.startswith(warning) for each in done["warnings"])
    assert (done["known"]["right"], done["live_set"]["images"]) == (608, 65)
    assert "like the evaluation images" not in run_command(health_command).stdout


@pytest.mark.usefixtures("evaluated")
def test_each_confidence_is_in_its_bin(ledger, classified) -> None:
    # given confidences at the lower edge of each bin, and a confidence of 1
    for place, edge in enumerate(CONFIDENCE_EDGES):
        classified({"1": place + 1}, confidence=edge)

    # then each is in the bin that begins there, and 1 is in the last bin
    assert health_of(ledger).confidences.actual == (1, 2, 3, 4, 5, 6, 7, 8, 9 + 10)


@pytest.mark.usefixtures("evaluated")
def test_of_too_few_images_nothing_is_said(ledger, classified) -> None:
    classified({"7": 199})

    found = health_of(ledger)

    assert (found.labels.index, found.labels.drift, found.warnings) == (None, Drift.UNKNOWN, [])
    assert found.unknown.startswith("199 images in the jobs of the last 30 days")
    classified({"7": 1})
    assert health_of(ledger).unknown is None


def test_without_an_evaluation_there_is_nothing_to_compare_with(ledger, champion, classified) -> None:
    classified(EVEN)

    found = health_of(ledger)

    assert (found.labels, found.confidences, found.warnings) == (None, None, [])
    assert f"Model {champion.id} was never evaluated" in found.unknown
    assert found.accuracy == champion.accuracy


@pytest.mark.usefixtures("evaluated")
def test_only_the_latest_jobs_count(ledger, classified) -> None:
    # given as many jobs as are read, a job before them, and one that is too old
    for _ in range(RECENT_JOBS):
        classified({"1": 10})
    from_days_ago(ledger, classified({"2": 10}), 1)
    from_days_ago(ledger, classified({"3": 10}), RECENT_DAYS + 1)

    # then neither of the last two counts
    found = health_of(ledger)
    assert (found.jobs, found.images, found.labels.actual[1]) == (RECENT_JOBS, 200, 200)


@pytest.mark.usefixtures("evaluated")
def test_what_is_old_does_not_count(ledger, classified) -> None:
    from_days_ago(ledger, classified(EVEN), RECENT_DAYS - 0.1)
    from_days_ago(ledger, classified(EVEN), RECENT_DAYS + 0.1)

    assert health_of(ledger).jobs == 1


@pytest.mark.usefixtures("evaluated")
def test_only_finished_jobs_of_the_model_count(ledger, classified, make_job, worker, make_model) -> None:
    # given a finished job, a running one, a cancelled one, and a finished job of another model
    classified(EVEN)
    worker.work(make_job([10, 10]).chunks[0])
    stopped = make_job([10, 10])
    worker.work(stopped.chunks[0])
    with ledger.transaction() as connection:
        end_job(connection, stopped.id, JobState.CANCELLED)
    others, other = classified(EVEN), make_model(b"other", champion=False)
    with ledger.transaction() as connection:
        connection.execute(jobs.update().where(jobs.c.id == others).values(model_id=other.id))

    # then all images of the finished job count, and the recorded ones of the cancelled job
    assert health_of(ledger).images == 1000 + 10
    assert health_of(ledger, other.id).images == 1000


@pytest.mark.usefixtures("evaluated")
def test_of_a_large_job_a_part_of_everything_is_counted(ledger, classified, monkeypatch) -> None:
    # given a job larger than the sample, sorted by label, as folders are
    monkeypatch.setattr(health, "SAMPLE_IMAGES", 500)
    classified(EVEN)

    # then the sample has as many images of each label
    found = health_of(ledger)
    assert found.images == 500
    assert found.labels.actual == (50,) * 10

    # and a job of exactly the sample's size is counted whole
    monkeypatch.setattr(health, "SAMPLE_IMAGES", 1000)
    assert health_of(ledger).images == 1000


@pytest.mark.fast
@pytest.mark.parametrize("sample", [health.SAMPLE_IMAGES, 500])
@pytest.mark.usefixtures("evaluated")
def test_recent_jobs_and_their_predictions_are_found_by_indexes(
    ledger, classified, monkeypatch, sample: int
) -> None:
    # given a job that is counted as a whole or in part; a real ledger may hold millions
    monkeypatch.setattr(health, "SAMPLE_IMAGES", sample)
    classified(EVEN)

    # when the plans for its model's health are read
    asked = plans_of(ledger, model_health)

    # then they use the index on creation times, and only read recent jobs
    [plan] = [plan for text, plan in asked if "FROM jobs" in text]
    found = r"ix_jobs_created_at \(created_at>\?\)" if ledger.is_sqlite else r"Index Cond: \(created_at > "
    assert "ix_jobs_created_at" in plan
    assert re.search(found, plan), plan

    # and the primary key of the predictions
    plans = [plan for text, plan in asked if "FROM predictions" in text]
    assert len(plans) >= 2
    for plan in plans:
        tables = [line for line in plan.splitlines() if re.search("(?i)(scan|search).* predictions", line)]
        assert tables, plan
        words = "USING PRIMARY KEY" if ledger.is_sqlite else "_pkey on predictions_"
        assert all(words in line for line in tables), plan
