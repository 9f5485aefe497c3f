"""A challenger in the shadow is compared exactly, and does not delay, fail or change any job.

`tests.faults.light` returns class indices, so a challenger with reordered classes differs in known labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.errors import Conflict, ModelRefused, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.jobs.control import end_job
from jobs.ledger.jobs.shadows import Comparison, compare, is_shadowed
from jobs.ledger.learning.models import CHAMPION, SHADOW, point_alias
from jobs.limits import MAX_PRIORITY
from jobs.models.model import MNIST_INPUT, InputSpec, Model
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.schema import SHADOWS, ChunkState, JobState, aliases, chunks, jobs, predictions
from jobs.storage.registry import model_key
from labelmill.client import Client
from labelmill.client.purging import Purge
from producer.resubmit import retry
from producer.sources import SourceImage
from producer.submit import Submitter, submit
from tests.faults import light
from tests.harness import Harness, digits
from tests.kerasfile import keras_file
from tests.ledger_probes import count_rows
from tests.registering import register_digits

DIGITS = tuple("0123456789")

#: Swaps the labels 8 and 9, and agrees on all others.
SWAPPED = tuple("0123456798")

Submit = Callable[..., str]


@pytest.fixture
def register(harness: Harness) -> Callable[..., Model]:
    """Return a function: `register(b"...")` registers a model, a different one for each marker."""

    def register(marker: bytes, *, classes: Sequence[str] = SWAPPED, spec: InputSpec = MNIST_INPUT) -> Model:
        return register_digits(
            harness.ledger, harness.store, keras_file(marker), classes=classes, input_spec=spec
        )

    return register


@pytest.fixture
def challenger(harness: Harness, register: Callable[..., Model]) -> Model:
    """Return a registered challenger that is in the shadow."""
    model = register(b"challenger")
    point(harness.ledger, SHADOW, model)
    return model


@pytest.fixture
def submit_images(harness: Harness, publisher: Publisher) -> Submit:
    """Return a function: `submit_images(digits(9), share=1.0, chunk_images=4)` submits as a producer does."""

    def submit_images(
        contents: Sequence[bytes], *, share: float = 1.0, chunk_images: int = 8_192, **options: Any
    ) -> str:
        submitter = Submitter(harness.ledger, harness.store, publisher, chunk_images, share)
        images = (SourceImage(f"{number}.png", data, None) for number, data in enumerate(contents))
        return submit(submitter, images, JobOptions(**options)).job_id

    return submit_images


def point(ledger: Ledger, alias: str, model: Model) -> None:
    with ledger.transaction() as connection:
        point_alias(connection, alias, model.id)


def shadow_of(ledger: Ledger, job_id: str) -> sa.Row[Any] | None:
    """Return the row of a job's shadow, if it has one."""
    with ledger.reading() as connection:
        return connection.execute(sa.select(jobs).where(jobs.c.shadow_of == job_id)).one_or_none()


# ---- the shadow job -----------------------------------------------------------------------------------


def test_a_shadow_is_a_job_of_the_challenger_over_the_same_payloads(
    harness: Harness, challenger: Model, submit_images: Submit, client: Client
) -> None:
    # when a job is submitted while a model is in the shadow
    job_id = submit_images(digits(9), chunk_images=4, top_k=3)

    # then it has a shadow job, pinned to the challenger, in the project that comes last, without alternatives
    shadow = shadow_of(harness.ledger, job_id)
    assert shadow is not None
    assert (shadow.model_id, shadow.state, shadow.total) == (challenger.id, JobState.RUNNING, 9)
    assert (harness.status(job_id).top_k, shadow.top_k) == (3, None)
    assert harness.status(job_id).model == harness.model.id
    own, copied = harness.chunks(job_id), harness.chunks(shadow.id)
    assert [(row.project, row.state) for row in copied] == [(SHADOWS, ChunkState.PENDING)] * 3

    # and its chunks refer to the job's images and payloads
    assert [
        (row.first_index, row.images, row.payload, row.payload_digest, row.payload_offset) for row in copied
    ] == [(row.first_index, row.images, row.payload, row.payload_digest, row.payload_offset) for row in own]

    # and lists of jobs do not show it
    assert [job.id for job in client.jobs()] == [job_id]


@pytest.mark.usefixtures("challenger")
def test_the_share_says_which_chunks_are_in_the_shadow(harness: Harness, submit_images: Submit) -> None:
    # given a share of 0, one that draws no chunk, and shares of 1 and of 0.33
    assert shadow_of(harness.ledger, submit_images(digits(5), share=0.0)) is None
    assert shadow_of(harness.ledger, submit_images(digits(5), share=1e-18)) is None
    whole = shadow_of(harness.ledger, submit_images(digits(5), share=1.0))
    assert whole is not None
    assert whole.total == 5
    job_id = submit_images(digits(60), share=0.33, chunk_images=1)

    # then the shadow has the chunks whose ids are drawn
    drawn = [row.first_index for row in harness.chunks(job_id) if is_shadowed(0.33, row.id)]
    shadow = shadow_of(harness.ledger, job_id)
    assert shadow is not None
    assert [row.first_index for row in harness.chunks(shadow.id)] == drawn
    assert shadow.total == len(drawn)


def test_a_share_is_drawn_evenly_and_each_id_always_gets_one_answer() -> None:
    ids = [new_id() for _ in range(4000)]
    drawn = [each for each in ids if is_shadowed(0.25, each)]
    assert 0.2 < len(drawn) / len(ids) < 0.3
    assert drawn == [each for each in ids if is_shadowed(0.25, each)]
    assert set(drawn) <= {each for each in ids if is_shadowed(0.5, each)}
    assert not any(is_shadowed(0.0, each) for each in ids)
    assert all(is_shadowed(1.0, each) for each in ids)


def test_a_job_has_no_shadow_if_there_is_nothing_to_compare(
    harness: Harness, register: Callable[..., Model], submit_images: Submit
) -> None:
    # given no challenger, the job's own model, and models with other classes or another input
    def has_shadow() -> bool:
        return shadow_of(harness.ledger, submit_images(digits(3))) is not None

    assert not has_shadow()
    for model in (
        harness.model,
        register(b"letters", classes=tuple("abcdefghij")),
        register(b"other input", spec=InputSpec(28, 28, invert="never")),
    ):
        point(harness.ledger, SHADOW, model)
        assert not has_shadow()
    # and a model that can be compared
    point(harness.ledger, SHADOW, register(b"challenger"))
    assert has_shadow()


@pytest.mark.usefixtures("challenger")
def test_a_retry_has_a_shadow_too(harness: Harness, publisher: Publisher, submit_images: Submit) -> None:
    job_id = submit_images([b"no picture"], share=0.0)
    assert harness.classify() == 1
    submitter = Submitter(harness.ledger, harness.store, publisher, 10, shadow_share=1.0)
    retried = retry(submitter, harness.context.settings, job_id, failed_only=True)
    assert retried is not None
    assert shadow_of(harness.ledger, retried.job_id) is not None


# ---- it disturbs no job -------------------------------------------------------------------------------


@pytest.mark.usefixtures("challenger")
def test_a_shadow_runs_after_every_job_whatever_its_priority(harness: Harness, submit_images: Submit) -> None:
    # given a job with a shadow, and a later job of the lowest priority that a person can set
    first = submit_images(digits(100))
    shadow = shadow_of(harness.ledger, first)
    last = submit_images(digits(100), share=0.0, priority=-MAX_PRIORITY)
    assert shadow is not None

    # when a worker claims until nothing is due, then the shadow comes last
    finished = []
    for _ in range(3):
        assert harness.classify() == 100
        finished.append([harness.status(job_id).state for job_id in (first, last, shadow.id)])
    assert finished == [
        ["done", "running", "running"],
        ["done", "done", "running"],
        ["done", "done", "done"],
    ]
    assert harness.classify() == 0


@pytest.mark.parametrize("breaks", ["its file is another one", "it crashes", "its payload is lost"])
def test_a_broken_challenger_costs_the_job_nothing(
    harness: Harness,
    challenger: Model,
    submit_images: Submit,
    monkeypatch: pytest.MonkeyPatch,
    breaks: str,
) -> None:
    # given a job with a shadow, and a challenger that fails
    job_id = submit_images(digits(10), chunk_images=5)
    shadow = shadow_of(harness.ledger, job_id)
    assert shadow is not None
    assert harness.classify() == 10
    before = harness.labels(job_id), [tuple(row) for row in harness.chunks(job_id)]
    if breaks == "its file is another one":
        harness.store.put(model_key(challenger.sha256), keras_file(b"exchanged"))
    elif breaks == "it crashes":
        real = light.Classifier.predict

        def predict(classifier: light.Classifier, pixels: Any, *top_k: Any) -> Any:
            if classifier.classes == SWAPPED:
                raise MemoryError
            return real(classifier, pixels, *top_k)

        monkeypatch.setattr(light.Classifier, "predict", predict)
    else:
        for row in harness.chunks(job_id):
            harness.store.remove(row.payload)
        harness.context._last_payload = None

    # when everything that is due is tried
    harness.classify_all()

    # then the shadow has ended, and the job is unchanged
    assert harness.status(shadow.id).state == ("done" if breaks == "it crashes" else "failed")
    assert (harness.labels(job_id), [tuple(row) for row in harness.chunks(job_id)]) == before
    assert harness.labels(job_id) == list(DIGITS)
    assert harness.status(job_id).state == "done"
    with harness.ledger.reading() as connection:
        assert compare(connection, challenger.id).images == 0


@pytest.mark.usefixtures("challenger")
@pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
def test_a_job_that_is_stopped_stops_its_shadow(
    harness: Harness, submit_images: Submit, state: JobState
) -> None:
    # given two jobs with shadows
    job_id, other = submit_images(digits(5)), submit_images(digits(5))
    shadow, other_shadow = (shadow_of(harness.ledger, each) for each in (job_id, other))
    assert shadow is not None
    assert other_shadow is not None

    # when the first is stopped
    with harness.ledger.transaction() as connection:
        assert end_job(connection, job_id, state)

    # then its shadow is cancelled too, and the other job and its shadow finish
    assert harness.status(shadow.id).state == JobState.CANCELLED
    assert harness.chunk(shadow.id).state == ChunkState.DROPPED
    harness.classify_all()
    assert [harness.status(each).state for each in (other, other_shadow.id)] == ["done", "done"]


# ---- what is compared ---------------------------------------------------------------------------------


def test_disagreements_are_exactly_those_of_the_two_models(
    harness: Harness, challenger: Model, submit_images: Submit, client: Client
) -> None:
    # given a job of two chunks with some broken images, and a later job
    contents = digits(100)
    contents[9] = contents[70] = b"no picture"
    job_id = submit_images(contents, chunk_images=80)
    later = submit_images(digits(10))

    # when only the jobs are done, then nothing is compared yet
    while harness.status(job_id).state != "done" or harness.status(later).state != "done":
        assert harness.classify()
    assert client.shadow() == (Comparison(challenger.id, 0, 0, 0, beside=harness.model.id), [])
    assert client.shadow()[0].share is None

    # when their shadows are done too
    harness.classify_all()

    # then all images with two labels are compared by class name
    differing = [
        index for index, data in enumerate(contents) if index % 10 in (8, 9) and data != b"no picture"
    ]
    comparison, first = client.shadow(limit=50)
    assert comparison == Comparison(challenger.id, 3, 98 + 10, len(differing) + 2, beside=harness.model.id)
    assert comparison.share == (len(differing) + 2) / 108

    # and the disagreements are listed by job, the latest first, and then by index
    assert [(each.job, each.index, each.name) for each in first] == [
        *((later, index, f"{index}.png") for index in (8, 9)),
        *((job_id, index, f"{index}.png") for index in differing),
    ]
    assert {(each.label, each.challenger_label) for each in first} == {("8", "9"), ("9", "8")}
    assert all(0 < each.challenger_confidence <= 1 for each in first)
    assert client.shadow(limit=3)[1] == first[:3]


def test_an_image_without_an_answer_of_either_model_is_not_compared(
    harness: Harness,
    challenger: Model,
    submit_images: Submit,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a champion without an answer for the first image, and a challenger without one for the last
    real = light.Classifier.predict

    def predict(classifier: light.Classifier, pixels: Any, *top_k: Any) -> Any:
        found = real(classifier, pixels, *top_k)
        found.class_index[-1 if classifier.classes == SWAPPED else 0] = -1
        return found

    monkeypatch.setattr(light.Classifier, "predict", predict)
    submit_images(digits(10))
    harness.classify_all()

    # then only the other images are compared
    assert client.shadow()[0] == Comparison(challenger.id, 1, 8, 1, beside=harness.model.id)


def test_a_challenger_is_compared_with_the_champion_of_today(
    harness: Harness,
    challenger: Model,
    register: Callable[..., Model],
    submit_images: Submit,
    client: Client,
) -> None:
    # given a challenger that was compared with one champion
    submit_images(digits(40))
    harness.classify_all()
    assert (client.shadow()[0].images, client.shadow()[0].disagreements) == (40, 8)

    # when a model becomes champion that agrees with the challenger
    same = register(b"the same answers")
    point(harness.ledger, CHAMPION, same)

    # then only comparisons with the new champion count
    assert client.shadow() == (Comparison(challenger.id, 0, 0, 0, beside=same.id), [])
    submit_images(digits(30))
    harness.classify_all()
    assert client.shadow() == (Comparison(challenger.id, 1, 30, 0, beside=same.id), [])

    # and the challenger's report still has the comparisons with all champions
    with harness.ledger.reading() as connection:
        both = compare(connection, challenger.id)
    assert (both.chunks, both.images, both.disagreements) == (2, 70, 8)


# ---- beginning and ending a shadow --------------------------------------------------------------------


def test_the_challenger_comes_and_goes(
    harness: Harness, register: Callable[..., Model], submit_images: Submit, client: Client
) -> None:
    # given no challenger
    for ask in (client.shadow, client.end_shadow):
        with pytest.raises(Conflict, match="Dataset mnist has no challenger"):
            ask()

    # when a model is put in the shadow, then the champion stays
    challenger = register(b"challenger")
    assert client.begin_shadow(challenger.id).id == challenger.id
    assert {model.id: model.aliases for model in client.models()} == {
        challenger.id: (SHADOW,),
        harness.model.id: (CHAMPION,),
    }

    # when it is taken out, then new jobs have no shadow, and earlier comparisons stay
    job_id = submit_images(digits(3))
    harness.classify_all()
    client.end_shadow()
    assert shadow_of(harness.ledger, submit_images(digits(3))) is None
    assert shadow_of(harness.ledger, job_id) is not None
    client.begin_shadow(challenger.id)
    assert client.shadow()[0].images == 3


def test_a_challenger_that_becomes_the_champion_is_in_no_shadow(
    challenger: Model, register: Callable[..., Model], client: Client
) -> None:
    # when another model is promoted, then the challenger stays in the shadow
    other = register(b"other")
    client.promote(other.id, force=True)
    assert client.shadow()[0].beside == other.id

    # and when the challenger is promoted, then no model is in the shadow
    client.promote(challenger.id, force=True)
    with pytest.raises(Conflict, match="Dataset mnist has no challenger"):
        client.shadow()


def test_some_models_cannot_be_the_challenger(
    harness: Harness, register: Callable[..., Model], client: Client
) -> None:
    with pytest.raises(NotFound, match="There is no model 'x'"):
        client.begin_shadow("x")
    with pytest.raises(Conflict, match="is the champion, and would be compared with itself"):
        client.begin_shadow(harness.model.id)
    for model in (
        register(b"letters", classes=tuple("abcdefghij")),
        register(b"other input", spec=InputSpec(28, 28, invert="never")),
    ):
        with pytest.raises(Conflict, match="have different classes or inputs"):
            client.begin_shadow(model.id)
    gone = register(b"gone")
    harness.store.remove(model_key(gone.sha256))
    with pytest.raises(ModelRefused, match=f"The file of model {gone.id} is gone from the store"):
        client.begin_shadow(gone.id)
    assert count_rows(harness.ledger, aliases) == 1

    with harness.ledger.transaction() as connection:
        connection.execute(aliases.delete())
    with pytest.raises(Conflict, match="Dataset mnist has no champion to compare it with"):
        client.begin_shadow(register(b"challenger").id)


@pytest.mark.usefixtures("challenger")
def test_a_shadow_goes_with_its_job(harness: Harness, submit_images: Submit, client: Client) -> None:
    # given a job whose shadow is done, and a job whose shadow is running
    submit_images(digits(20))
    harness.classify_all()
    submit_images(digits(20))
    assert harness.classify() == 20
    assert count_rows(harness.ledger, predictions) == 60

    # when the jobs are purged
    run = Purge(harness.ledger, harness.store, dry_run=False, on_progress=lambda _purged: None)
    run.whole_jobs(days=-1)

    # then nothing of them or their shadows is left, and nothing is due
    assert [count_rows(harness.ledger, table) for table in (jobs, chunks, predictions)] == [0, 0, 0]
    assert client.shadow()[0].images == 0
    assert harness.classify() == 0
