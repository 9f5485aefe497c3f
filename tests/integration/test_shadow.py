"""A challenger in the shadow: what it says is counted exactly, and whatever becomes of it costs nobody."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa
from billiard.exceptions import SoftTimeLimitExceeded
from PIL import Image
from tests.bench_alone import time_out

from jobs.errors import Conflict, ErrorCode, ModelRefused, NotFound
from jobs.ids import new_id
from jobs.ledger import Ledger, shadows
from jobs.ledger.claims import claim_chunk, release_chunk
from jobs.ledger.models import CHAMPION, point_alias
from jobs.ledger.progress import Filter, Prediction, stream_predictions
from jobs.ledger.shadows import KEPT_DISAGREEMENTS, SHADOW, Comparison, Disagreed, first_disagreements
from jobs.ledger.submission import NewChunk, add_chunk, open_job, seal_job
from jobs.model import MNIST_INPUT, InputSpec, Model
from jobs.payloads import pack_payload, payload_digest, payload_key
from jobs.registry import model_key, register_model
from jobs.schema import aliases, chunks, disagreements, jobs, predictions, shadowed_chunks
from jobs.settings import Settings
from jobs.store import Store
from labelmill.client import Client
from labelmill.purging import Purge
from tests.conftest import plans_of
from worker.context import WorkerContext
from worker.predicting.classifier import Classifier
from worker.predicting.pipeline import classify_chunk

DIGITS = tuple("0123456789")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Two models with other weights, so with other answers, one with the second's, and one without any."""
    from worker.learning.training import build, save
    from worker.predicting.tensorflow_runtime import keras

    folder = tmp_path_factory.mktemp("models")
    for name, seed in {"champion": 0, "challenger": 1, "challenger again": 1, "silent": 2}.items():
        keras.utils.set_random_seed(seed)
        model = build("mlp", MNIST_INPUT, len(DIGITS))
        if name == "silent":
            model.set_weights([np.full_like(weights, np.nan) for weights in model.get_weights()])
        save(model, folder / f"{name}.keras")
    return {path.stem: path.read_bytes() for path in folder.glob("*.keras")}


class Mill:
    """A ledger, a store, and a bench whose chunks all go into the shadow."""

    def __init__(self, settings: Settings, ledger: Ledger, store: Store, files: dict[str, bytes]) -> None:
        self.settings = settings
        self.ledger = ledger
        self.store = store
        self.files = files
        self.bench = WorkerContext(settings, processes=1)
        self.champion = self.register("champion")
        self.point(CHAMPION, self.champion)

    def register(self, name: str, *, classes: Sequence[str] = DIGITS, spec: InputSpec = MNIST_INPUT) -> Model:
        return register_model(
            self.ledger,
            self.store,
            self.files[name],
            architecture="mlp",
            classes=tuple(classes),
            input_spec=spec,
            accuracy=None,
            metrics={},
        )

    def point(self, alias: str, model: Model) -> None:
        with self.ledger.transaction() as connection:
            point_alias(connection, alias, model.id)

    def job(self, contents: Sequence[bytes], *, sizes: Sequence[int] | None = None) -> tuple[str, list[str]]:
        """A job with chunks of these sizes; gives back its id and theirs."""
        job_id = new_id()
        chunk_ids: list[str] = []
        first = 0
        with self.ledger.transaction() as connection:
            open_job(connection, job_id, model_id=self.champion.id, key=None)
            for size in sizes or [len(contents)]:
                chunk_id = new_id()
                names = [f"{index}.png" for index in range(first, first + size)]
                pieces = pack_payload(names, contents[first : first + size])
                key = payload_key(job_id, chunk_id)
                self.store.put(key, *pieces)
                add_chunk(connection, job_id, NewChunk(chunk_id, first, size, key, payload_digest(*pieces)))
                chunk_ids.append(chunk_id)
                first += size
            seal_job(connection, job_id, fingerprint=None)
        return job_id, chunk_ids

    def classify(self, contents: Sequence[bytes], *, sizes: Sequence[int] | None = None) -> str:
        """A job that is classified at once."""
        job_id, chunk_ids = self.job(contents, sizes=sizes)
        for chunk_id in chunk_ids:
            assert classify_chunk(chunk_id, self.bench)
        return job_id

    def predictions(self, job_id: str) -> list[Prediction]:
        return list(stream_predictions(self.ledger, job_id, Filter()))

    def rows(self, table: sa.Table) -> list[sa.Row[Any]]:
        with self.ledger.reading() as connection:
            return list(connection.execute(sa.select(table).order_by(*table.primary_key.columns)))

    def chunk(self, chunk_id: str) -> sa.Row[Any]:
        with self.ledger.reading() as connection:
            return connection.execute(sa.select(chunks).where(chunks.c.id == chunk_id)).one()


@pytest.fixture
def mill(settings: Settings, ledger: Ledger, store: Store, files: dict[str, bytes]) -> Iterator[Mill]:
    mill = Mill(settings.model_copy(update={"shadow_share": 1.0}), ledger, store, files)
    yield mill
    mill.bench.close()


@pytest.fixture
def challenger(mill: Mill) -> Model:
    """The challenger, in the shadow."""
    model = mill.register("challenger")
    mill.point(SHADOW, model)
    return model


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings) as client:
        yield client


def picture(number: int) -> bytes:
    """Each number another one."""
    file = io.BytesIO()
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 4:24] = np.random.default_rng(number).integers(0, 256, (20, 20))
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def labels_of(mill: Mill, model: Model, contents: Sequence[bytes], path: Path) -> list[str]:
    """What the model says of these images all by itself, by Keras."""
    from worker.predicting.decode import decode
    from worker.predicting.tensorflow_runtime import keras

    path.write_bytes(mill.store.get(model_key(model.sha256)))
    pixels = np.stack([decode(content, MNIST_INPUT) for content in contents])
    return [
        DIGITS[place] for place in keras.saving.load_model(path).predict(pixels, verbose=0).argmax(axis=1)
    ]


# ---- what is counted ----------------------------------------------------------------------------------


def test_disagreements_are_exactly_those_of_the_two_models(
    mill: Mill, challenger: Model, client: Client, tmp_path: Path
) -> None:
    # given a job of more images than a batch holds, in two chunks, some of them broken
    contents = [picture(number) for number in range(900)]
    contents[0] = contents[600] = b"no picture"
    good = [index for index in range(900) if index not in (0, 600)]

    # when it is classified
    job_id = mill.classify(contents, sizes=[700, 200])

    # then each image has the label of the job's model
    ours, theirs = (
        dict(
            zip(
                good,
                labels_of(mill, model, [contents[index] for index in good], tmp_path / name),
                strict=True,
            )
        )
        for model, name in [(mill.champion, "ours.keras"), (challenger, "theirs.keras")]
    )
    found = mill.predictions(job_id)
    assert {each.index: each.label for each in found if each.label} == ours
    assert [each.index for each in found if each.error] == [0, 600]

    # and all images on which the challenger disagrees are counted, chunk by chunk
    expected = [index for index in good if ours[index] != theirs[index]]
    assert len(expected) > 3 * KEPT_DISAGREEMENTS  # or this would be no test of what is kept
    rows = sorted(mill.rows(shadowed_chunks), key=lambda row: row.images, reverse=True)
    assert [(row.images, row.disagreements) for row in rows] == [
        (698, sum(index < 700 for index in expected)),
        (200, sum(index >= 700 for index in expected)),
    ]
    assert {(row.model_id, row.job_id, row.job_model_id) for row in rows} == {
        (challenger.id, job_id, mill.champion.id)
    }

    # and the first ones of each chunk are kept
    kept = [i for i in expected if i < 700][:KEPT_DISAGREEMENTS] + [i for i in expected if i >= 700][
        :KEPT_DISAGREEMENTS
    ]
    assert [(row.index, row.label) for row in mill.rows(disagreements)] == [(i, theirs[i]) for i in kept]

    # and people see it
    comparison, first = client.shadow(limit=3)
    assert comparison == Comparison(challenger.id, 2, 898, len(expected), beside=mill.champion.id)
    assert comparison.share == len(expected) / 898
    assert [(each.job, each.index, each.name, each.label, each.challenger_label) for each in first] == [
        (job_id, i, f"{i}.png", ours[i], theirs[i]) for i in expected[:3]
    ]
    assert all(0 < each.challenger_confidence <= 1 for each in first)


def test_classes_in_another_order_are_compared_by_name(mill: Mill, client: Client) -> None:
    # given a challenger that says the same, with its classes named in reverse, and no other one
    mill.files["reversed"] = mill.files["challenger"]
    challenger = mill.register("reversed", classes=DIGITS[::-1])
    client.begin_shadow(challenger.id)
    contents = [picture(number) for number in range(50)]

    # when a job is classified
    job_id = mill.classify(contents)

    # then what it says is counted by its own names
    classifier = mill.bench.classifier(challenger.id)
    assert classifier.classes == DIGITS[::-1]
    _, first = client.shadow(limit=50)
    differing = {each.index: each.challenger_label for each in first}
    for prediction, place in zip(mill.predictions(job_id), _places(classifier, contents), strict=True):
        assert differing.get(prediction.index, prediction.label) == DIGITS[::-1][place]


def _places(classifier: Classifier, contents: Sequence[bytes]) -> list[int]:
    from worker.predicting.decode import decode

    return classifier.predict(np.stack([decode(each, MNIST_INPUT) for each in contents])).class_index.tolist()


@pytest.mark.parametrize(("share", "seen"), [(0.0, 0), (1.0, 3)])
@pytest.mark.usefixtures("challenger")
def test_the_share_says_how_many_chunks(mill: Mill, share: float, seen: int) -> None:
    mill.bench.settings = mill.settings.model_copy(update={"shadow_share": share})

    mill.classify([picture(number) for number in range(6)], sizes=[2, 2, 2])

    assert len(mill.rows(shadowed_chunks)) == seen


def test_a_share_is_drawn_evenly_and_for_each_chunk_once() -> None:
    ids = [new_id() for _ in range(4000)]
    drawn = [each for each in ids if shadows.is_shadowed(0.25, each)]
    assert 0.2 < len(drawn) / len(ids) < 0.3
    assert drawn == [each for each in ids if shadows.is_shadowed(0.25, each)]
    assert set(drawn) <= {each for each in ids if shadows.is_shadowed(0.5, each)}


# ---- which chunks -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("challenger")
def test_what_is_delivered_again_counts_once(mill: Mill) -> None:
    # given a chunk that was classified, when its message comes again
    _, [chunk_id] = mill.job([picture(1), picture(2)])
    assert classify_chunk(chunk_id, mill.bench) == 2
    assert classify_chunk(chunk_id, mill.bench) == 0

    # then it was counted once
    [row] = mill.rows(shadowed_chunks)
    assert (row.chunk_id, row.images) == (chunk_id, 2)


@pytest.mark.usefixtures("challenger")
def test_who_lost_the_chunk_counts_nothing(mill: Mill, monkeypatch: pytest.MonkeyPatch) -> None:
    # given a worker that is taken for dead while it works, so that another one has the chunk
    job_id, [chunk_id] = mill.job([picture(1)])
    original = Classifier.predict

    def taken_over(classifier: Classifier, pixels: Any) -> Any:
        with mill.ledger.transaction() as connection:
            connection.execute(chunks.update().values(token=new_id()))
        return original(classifier, pixels)

    mill.bench.classifier(mill.champion.id)
    monkeypatch.setattr(Classifier, "predict", taken_over)

    # when it is done, then neither its outcomes nor the challenger's are recorded
    assert classify_chunk(chunk_id, mill.bench) == 0
    assert mill.predictions(job_id) == []
    assert mill.rows(shadowed_chunks) == mill.rows(disagreements) == []


@pytest.mark.parametrize("how", ["given back", "crashed"])
@pytest.mark.usefixtures("challenger")
def test_only_a_first_attempt_is_shown(mill: Mill, how: str) -> None:
    # given a chunk that somebody had before
    job_id, [chunk_id] = mill.job([picture(1)])
    with mill.ledger.transaction() as connection:
        claim = claim_chunk(connection, chunk_id, lease_seconds=-1 if how == "crashed" else 60, owner="x")
        assert claim is not None
        if how == "given back":
            release_chunk(connection, claim, error="the store was away")

    # when it is classified, then by the job's model alone
    assert classify_chunk(chunk_id, mill.bench) == 1
    assert len(mill.predictions(job_id)) == 1
    assert mill.rows(shadowed_chunks) == []


def test_a_challengers_own_job_is_not_shown_to_it(mill: Mill) -> None:
    mill.point(SHADOW, mill.champion)

    mill.classify([picture(1)])

    assert mill.rows(shadowed_chunks) == []


@pytest.mark.parametrize(("share", "reads"), [(0.0, 0), (1.0, 1)])
def test_without_a_challenger_a_chunk_costs_one_row_by_its_key(mill: Mill, share: float, reads: int) -> None:
    # given no challenger
    mill.bench.settings = mill.settings.model_copy(update={"shadow_share": share})
    _, [chunk_id] = mill.job([picture(1)])
    mill.bench.warm_up()
    statements: list[str] = []
    sa.event.listen(
        mill.bench.ledger.engine,
        "before_cursor_execute",
        lambda _connection, _cursor, statement, *_: statements.append(statement),
    )

    # when a chunk is classified
    assert classify_chunk(chunk_id, mill.bench) == 1

    # then the alias is asked for by its primary key, or not at all
    about = [statement for statement in statements if "aliases" in statement]
    assert len(about) == reads
    for statement in about:
        assert re.fullmatch(
            r"SELECT aliases.model_id\s+FROM aliases\s+WHERE aliases.name = \S+", statement.strip()
        )


# ---- whatever becomes of the challenger ---------------------------------------------------------------


def _gone(mill: Mill, challenger: Model, _patch: pytest.MonkeyPatch) -> None:
    mill.store.remove(model_key(challenger.sha256))


def _exchanged(mill: Mill, challenger: Model, _patch: pytest.MonkeyPatch) -> None:
    mill.store.put(model_key(challenger.sha256), mill.files["silent"])


def _failing(error: BaseException) -> Callable[[Mill, Model, pytest.MonkeyPatch], None]:
    def fail(mill: Mill, challenger: Model, patch: pytest.MonkeyPatch) -> None:
        classifier = mill.bench.classifier(challenger.id)

        def predict(_pixels: object) -> object:
            raise error

        patch.setattr(classifier, "predict", predict)

    return fail


def _too_slow(_mill: Mill, _challenger: Model, patch: pytest.MonkeyPatch) -> None:
    patch.setattr("worker.predicting.pipeline.TIME_SHARE", 0.0)


@pytest.mark.parametrize(
    ("breaks", "words"),
    [
        (_gone, "is gone from the store"),
        (_exchanged, "its SHA-256 differs"),
        (_failing(RuntimeError("no such kernel")), "no such kernel"),
        (_failing(MemoryError()), "MemoryError"),
        (_too_slow, "it is too slow"),
    ],
    ids=["gone", "exchanged", "error", "memory", "slow"],
)
def test_a_broken_challenger_costs_nothing(
    mill: Mill,
    challenger: Model,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    breaks: Callable[[Mill, Model, pytest.MonkeyPatch], None],
    words: str,
) -> None:
    # given a challenger that cannot be used
    breaks(mill, challenger, monkeypatch)

    # when a job is classified, of more than a batch
    _, [chunk_id] = job = mill.job([picture(number % 7) for number in range(600)])
    assert classify_chunk(chunk_id, mill.bench) == 600

    # then each image has its label, in one attempt, and one line says what became of the challenger
    assert all(each.label for each in mill.predictions(job[0]))
    assert (mill.chunk(chunk_id).attempts, mill.chunk(chunk_id).crashes) == (1, 0)
    assert mill.rows(shadowed_chunks) == mill.rows(disagreements) == []
    [line] = [record.getMessage() for record in caplog.records if "challenger" in record.getMessage()]
    assert challenger.id in line
    assert words in line


def test_a_challenger_that_is_refused_is_not_loaded_again_and_again(
    mill: Mill, challenger: Model, caplog: pytest.LogCaptureFixture
) -> None:
    # given a challenger whose file is another one, and chunks that would be shown to it
    mill.store.put(model_key(challenger.sha256), mill.files["silent"])

    mill.classify([picture(number) for number in range(3)], sizes=[1, 1, 1])

    # then it was tried once, and is told once
    assert sum("cannot be used" in message for message in caplog.messages) == 1


def test_a_challenger_without_an_answer_is_not_counted(mill: Mill, caplog: pytest.LogCaptureFixture) -> None:
    # given a challenger that answers no probabilities
    silent = mill.register("silent")
    mill.point(SHADOW, silent)

    # when a job is classified
    job_id = mill.classify([picture(1), picture(2)])

    # then no image was compared, and one line says so
    assert all(each.label for each in mill.predictions(job_id))
    [row] = mill.rows(shadowed_chunks)
    assert (row.images, row.disagreements) == (0, 0)
    assert f"challenger {silent.id} had no answer for 2 images" in caplog.messages


def test_images_without_an_answer_of_the_jobs_model_are_not_counted(mill: Mill) -> None:
    mill.champion = mill.register("silent")
    mill.point(SHADOW, mill.register("challenger"))

    job_id = mill.classify([picture(1), picture(2)])

    assert [each.error for each in mill.predictions(job_id)] == [ErrorCode.MODEL_ERROR] * 2
    [row] = mill.rows(shadowed_chunks)
    assert (row.images, row.disagreements) == (0, 0)


def _time_out_in_other_words(*arguments: object, **named: object) -> None:
    """As Keras may tell of the time limit."""
    try:
        time_out()(*arguments, **named)
    except SoftTimeLimitExceeded:
        raise TypeError("could not deserialize the class") from None


@pytest.mark.parametrize("hang", [time_out(), _time_out_in_other_words], ids=["plain", "in other words"])
@pytest.mark.parametrize(
    "hangs", ["worker.context.fetch_model", "worker.predicting.tensorflow_runtime.keras.saving.load_model"]
)
def test_a_challenger_that_is_not_loaded_within_the_time_limit_is_to_blame_and_not_refused(
    mill: Mill,
    challenger: Model,
    monkeypatch: pytest.MonkeyPatch,
    hangs: str,
    hang: Callable[..., None],
) -> None:
    # given a model that is warm in every part, and a challenger whose loading takes all the time
    mill.point(SHADOW, mill.champion)
    mill.classify([picture(1)])
    mill.point(SHADOW, challenger)
    job_id, [chunk_id] = mill.job([picture(1)])
    with monkeypatch.context() as patch:
        patch.setattr(hangs, hang)

        # when the chunk is tried, then it is given back, and told who kept it waiting
        assert classify_chunk(chunk_id, mill.bench) == 0
    chunk = mill.chunk(chunk_id)
    assert (chunk.releases, chunk.crashes, mill.predictions(job_id)) == (1, 0, [])
    assert chunk.error == "the model in the shadow took up the time limit"

    # and the challenger may load yet: it sees the next one
    mill.classify([picture(2)])
    assert [row.images for row in mill.rows(shadowed_chunks)] == [1]


@pytest.mark.parametrize("other_words", [False, True])
def test_a_challenger_that_takes_all_the_time_costs_one_attempt(
    mill: Mill, challenger: Model, monkeypatch: pytest.MonkeyPatch, other_words: bool
) -> None:
    # given a challenger in whose computing the chunk's time limit strikes, whatever becomes of it there
    error: Exception = SoftTimeLimitExceeded()
    if other_words:
        error, error.__context__ = RuntimeError("it was interrupted"), error
    _failing(error)(mill, challenger, monkeypatch)
    job_id, [chunk_id] = mill.job([picture(1)])

    # when the chunk is tried, then it is given back, and that is none of its images' fault
    assert classify_chunk(chunk_id, mill.bench) == 0
    chunk = mill.chunk(chunk_id)
    assert (chunk.releases, chunk.crashes, mill.predictions(job_id)) == (1, 0, [])

    # and the next time it is the job's model's alone
    assert classify_chunk(chunk_id, mill.bench) == 1
    assert len(mill.predictions(job_id)) == 1


@pytest.mark.parametrize(
    "other",
    [{"classes": tuple("abcdefghij")}, {"spec": InputSpec(28, 28, invert="never")}],
    ids=["classes", "input"],
)
def test_models_that_answer_something_else_are_not_compared(
    mill: Mill, client: Client, caplog: pytest.LogCaptureFixture, other: dict[str, Any]
) -> None:
    # given a challenger with other classes, or another input
    challenger = mill.register("challenger", **other)

    # then it cannot be put into the shadow
    with pytest.raises(Conflict, match="has other classes or another input than the champion"):
        client.begin_shadow(challenger.id)

    # and where it is there all the same, because the champion has changed since, it is left out
    mill.point(SHADOW, challenger)
    job_id = mill.classify([picture(1)])
    assert len(mill.predictions(job_id)) == 1
    assert mill.rows(shadowed_chunks) == []
    assert sum("other classes or another input" in message for message in caplog.messages) == 1


# ---- in and out ---------------------------------------------------------------------------------------


def test_the_challenger_comes_and_goes(mill: Mill, client: Client) -> None:
    # given no challenger
    for ask in (client.shadow, client.end_shadow):
        with pytest.raises(Conflict, match="No model is in the shadow"):
            ask()

    # when one is put there, then it is, and the champion stays what it is
    challenger = mill.register("challenger")
    assert client.begin_shadow(challenger.id).id == challenger.id
    assert client.shadow() == (Comparison(challenger.id, 0, 0, 0, beside=mill.champion.id), [])
    assert client.shadow()[0].share is None
    assert {model.id: model.aliases for model in client.models()} == {
        challenger.id: (SHADOW,),
        mill.champion.id: (CHAMPION,),
    }

    # when it is let go, then it sees nothing more, and what it saw is still known
    mill.classify([picture(1)])
    client.end_shadow()
    mill.classify([picture(2)])
    assert [row.name for row in mill.rows(aliases)] == [CHAMPION]
    client.begin_shadow(challenger.id)
    assert client.shadow()[0].images == 1


def test_a_challenger_is_compared_with_the_champion_of_today(
    mill: Mill, challenger: Model, client: Client
) -> None:
    # given what came of a challenger beside one champion
    contents = [picture(number) for number in range(40)]
    before = mill.classify(contents)
    first, listed = client.shadow()
    assert (first.images, bool(listed)) == (40, True)

    # when another model becomes the champion, one that says what the challenger says, and a job has it
    same = mill.register("challenger again")
    mill.point(CHAMPION, same)
    mill.champion = same

    # then nothing of before is told as if it were beside this one
    assert client.shadow() == (Comparison(challenger.id, 0, 0, 0, beside=same.id), [])
    mill.classify(contents[:30])
    assert client.shadow() == (Comparison(challenger.id, 1, 30, 0, beside=same.id), [])

    # and what came of it beside whatever model a job had is still known, for its report
    with mill.ledger.reading() as connection:
        both = shadows.compare(connection, challenger.id)
    assert (both.images, both.disagreements) == (70, first.disagreements)
    assert {each.job for each in listed} == {before}


def test_a_challenger_that_becomes_the_champion_is_in_no_shadow(
    mill: Mill, challenger: Model, client: Client
) -> None:
    # when another model is promoted, the challenger stays one
    other = mill.register("challenger again")
    client.promote(other.id, force=True)
    assert client.shadow()[0].beside == other.id

    # and when it is promoted itself, it is none any more
    client.promote(challenger.id, force=True)
    with pytest.raises(Conflict, match="No model is in the shadow"):
        client.shadow()


def test_who_cannot_be_the_challenger(mill: Mill, client: Client) -> None:
    with pytest.raises(NotFound, match="There is no model 'x'"):
        client.begin_shadow("x")
    with pytest.raises(Conflict, match="is the champion: it would be compared with itself"):
        client.begin_shadow(mill.champion.id)
    with mill.ledger.transaction() as connection:
        connection.execute(aliases.delete())
    with pytest.raises(Conflict, match="There is no champion to compare it with"):
        client.begin_shadow(mill.register("challenger").id)


def test_a_challenger_whose_file_is_gone_is_none(mill: Mill, client: Client) -> None:
    challenger = mill.register("challenger")
    mill.store.remove(model_key(challenger.sha256))
    with pytest.raises(ModelRefused, match=f"The file of model {challenger.id} is gone from the store"):
        client.begin_shadow(challenger.id)
    assert [row.name for row in mill.rows(aliases)] == [CHAMPION]


def test_the_latest_disagreements_are_read_from_the_end_of_their_index(ledger: Ledger) -> None:
    # when a ledger, which may hold millions of them, is asked how it would find a challenger's
    [(_, plan)] = plans_of(
        ledger, lambda connection: first_disagreements(connection, new_id(), beside=new_id(), limit=5)
    )

    # then job by job, the latest first, as long as there are too few
    assert "ix_disagreements_model_id_job_id_index" in plan, plan
    assert ("LAST TERM" if ledger.is_sqlite else "Incremental Sort") in plan, plan


@pytest.mark.usefixtures("challenger")
def test_what_was_compared_goes_with_its_job(mill: Mill, client: Client) -> None:
    # given a job that was shown to the challenger
    mill.classify([picture(number) for number in range(20)])
    assert mill.rows(disagreements)

    # when it is purged as a whole
    run = Purge(mill.ledger, mill.store, dry_run=False, on_progress=lambda _purged: None)
    run.whole_jobs(days=-1)
    assert mill.rows(jobs) == []

    # then nothing of it is left
    assert mill.rows(shadowed_chunks) == mill.rows(disagreements) == []
    assert client.shadow()[1] == list[Disagreed]()
    assert mill.rows(predictions) == []
