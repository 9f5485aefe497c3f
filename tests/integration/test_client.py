"""`labelmill.Client` accepts what programs pass, and returns what the commands print."""

from __future__ import annotations

import numpy as np
import pytest
import sqlalchemy as sa

from jobs.errors import ErrorCode, ImageError, SourceError
from jobs.ledger.learning.models import point_alias
from jobs.limits import ErrorLimits
from jobs.schema import jobs
from jobs.storage.payloads import read_payload
from labelmill.client import Client
from tests.ledger_probes import chunks_of
from tests.outcomes import Outcome


@pytest.fixture
def payload_of(ledger, store):
    """Return a function: `payload_of(job_id)` returns names and contents of a job with one chunk."""

    def payload_of(job_id):
        [chunk] = chunks_of(ledger, job_id)
        payload = read_payload(store, chunk.payload, chunk.payload_digest)
        return payload.names, payload.contents

    return payload_of


# ---- NumPy's numbers ----------------------------------------------------------------------------------


def indices(predictions):
    return [prediction.index for prediction in predictions]


@pytest.mark.usefixtures("champion", "mnist")
def test_numbers_of_numpy_are_numbers(client, ledger, worker):
    # Given a job with limits, and another one; image n has the confidence n / 10
    limits = ErrorLimits(count=np.int64(2), rate=np.float32(0.5), sample=np.int64(10))
    job_id = client.submit(*[b"an image"] * 5, error_limits=limits)
    [chunk] = chunks_of(ledger, job_id)
    worker.work(chunk, [Outcome(f"{n}.png", "7", n / 10) for n in range(5)])
    client.submit(b"another")
    with ledger.reading() as connection:
        row = connection.execute(sa.select(jobs).where(jobs.c.id == job_id)).one()
    assert (row.error_limit, row.error_rate_limit, row.error_rate_sample) == (2, 0.5, 10)

    # Then they choose results and jobs, name images, and are seeds
    assert indices(client.predictions(job_id, after=np.uint8(2))) == [3, 4]
    assert indices(client.predictions(job_id, limit=np.int32(2))) == [0, 1]
    assert indices(client.predictions(job_id, below=np.float32(0.15))) == [0, 1]
    assert len(client.jobs(limit=np.int64(1))) == 1
    assert client.correct(job_id, np.int64(1), "3").index == 1
    assert client.undo_correction(job_id, np.int64(1)).label == "3"
    assert client.run(client.retrain(seed=np.int64(5))).recipe["seed"] == 5


# ---- what can be submitted ----------------------------------------------------------------------------


@pytest.mark.usefixtures("champion")
def test_bytes_are_one_image_named_by_their_place(client, payload_of, tmp_path):
    # Given a file, and the bytes of two images
    (tmp_path / "a.png").write_bytes(b"a file")

    # When they are submitted together, Then each is an image, in the order of the arguments
    job_id = client.submit(b"first", tmp_path, b"third")
    names, contents = payload_of(job_id)
    assert names == ["image-0", f"{tmp_path}/a.png", "image-2"]
    assert contents == [b"first", b"a file", b"third"]


@pytest.mark.usefixtures("champion")
def test_bytes_that_are_too_many_for_an_image_are_its_error(settings, payload_of):
    settings = settings.model_copy(update={"max_image_bytes": 10})
    with Client(settings) as client:
        _, [content] = payload_of(client.submit(b"more than ten bytes"))
    assert isinstance(content, ImageError)
    assert content.code == ErrorCode.TOO_LARGE


@pytest.mark.usefixtures("champion")
def test_bytes_cannot_be_submitted_by_reference(client):
    with pytest.raises(SourceError, match="Bytes cannot be submitted by reference: pass the image's path or"):
        client.submit(b"an image", by_reference=True)


@pytest.mark.parametrize("source", [np.zeros((28, 28), np.uint8), ["a.png"], 7, None], ids=type)
@pytest.mark.usefixtures("champion")
def test_what_is_no_source_says_what_to_pass(client, source):
    with pytest.raises(
        SourceError, match=f"Cannot submit a {type(source).__name__}: pass paths, URLs, or the"
    ):
        client.submit(source)


# ---- which model --------------------------------------------------------------------------------------


def test_a_model_is_named_by_its_alias_or_the_beginning_of_its_id(client, make_model):
    # Given a champion, and another model with an alias
    champion, other = make_model(b"champion"), make_model(b"other", champion=False)
    with client.ledger.transaction() as connection:
        point_alias(connection, "spare", other.id)

    # When a job names one in any way, Then the job is pinned to that model
    for name, meant in [
        (None, champion),
        ("champion", champion),
        ("spare", other),
        (other.id, other),
        (other.id[:-1], other),
    ]:
        assert client.status(client.submit(b"an image", model=name)).model == meant.id
