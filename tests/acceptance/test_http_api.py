"""OpenAI's own client works with the HTTP API: only its address and its key are other than usual."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import openai
import pytest
from openai import OpenAI
from openai.types import Batch

from tests.console import COMMAND_SECONDS, Home, until
from tests.serving import lines_of, make_key, openai_client


@pytest.fixture(scope="module")
def client(stack: Home, url: str) -> Iterator[OpenAI]:
    with openai_client(url, make_key(stack)) as client:
        yield client


def create(client: OpenAI, file_id: str, **options: Any) -> Batch:
    return client.batches.create(
        input_file_id=file_id, endpoint="/v1/responses", completion_window="24h", **options
    )


def finished(client: OpenAI, batch: Batch) -> Batch:
    def has_ended() -> bool:
        return client.batches.retrieve(batch.id).status not in ("validating", "in_progress")

    until(has_ended, "the batch has ended")
    return client.batches.retrieve(batch.id)


def test_an_archive_of_digits(client: OpenAI, stack: Home, few_digits: Path, tmp_path: Path) -> None:
    # Given an archive that was uploaded
    archive = Path(shutil.make_archive(str(tmp_path / "digits"), "zip", few_digits))
    uploaded = client.files.create(file=archive, purpose="batch")
    assert (uploaded.bytes, uploaded.filename) == (archive.stat().st_size, "digits.zip")
    assert client.files.content(uploaded.id).read() == archive.read_bytes()

    # When it is submitted as a batch
    batch = create(client, uploaded.id, metadata={"who": "test"})
    assert batch.metadata == {"who": "test"}
    batch = finished(client, batch)

    # Then each name is in the output once, with its label
    assert (batch.status, batch.errors, batch.error_file_id) == ("completed", None, None)
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (50, 50, 0)
    assert batch.output_file_id is not None
    lines = lines_of(client.files.content(batch.output_file_id).text)
    names = [str(path.relative_to(few_digits)) for path in few_digits.rglob("*.png")]
    assert sorted(line["custom_id"] for line in lines) == sorted(names)
    right = sum(line["custom_id"].split("/")[0] == line["response"]["body"]["label"] for line in lines)
    assert right >= 45
    assert client.files.retrieve(batch.output_file_id).purpose == "batch_output"

    # And it is a job like any other
    assert stack.json("status", batch.id)["state"] == "done"
    assert next(iter(client.batches.list(limit=1))).id == batch.id
    assert uploaded.id in [each.id for each in client.files.list(limit=1)]


def test_what_cannot_be_classified_is_in_the_error_file(client: OpenAI) -> None:
    uploaded = client.files.create(file=("letter.png", b"Dear Sir or Madam"), purpose="batch")
    batch = create(client, uploaded.id)
    batch = finished(client, batch)
    assert batch.status == "completed"
    assert batch.error_file_id is not None
    [line] = lines_of(client.files.content(batch.error_file_id).text)
    assert (line["custom_id"], line["response"]) == ("letter.png", None)
    assert line["error"]["code"] == "unidentified"


def test_a_file_that_is_no_archive_of_images_fails_the_batch(client: OpenAI) -> None:
    uploaded = client.files.create(file=("broken.zip", b"PK\x03\x04 and nothing else"), purpose="batch")
    batch = create(client, uploaded.id)
    batch = finished(client, batch)
    assert batch.status == "failed"
    assert batch.errors is not None
    [error] = batch.errors.data
    # The message names the file as its owner does, and not where it is here
    assert error.message.startswith("broken.zip ")
    assert (batch.output_file_id, batch.error_file_id) == (None, None)
    client.files.delete(uploaded.id)
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(uploaded.id)


#: Besides what schemathesis expects: whether a range can be satisfied depends on the file's length.
_EXPECTED: Final = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "416", "429", "5xx"]
"""


def test_odd_requests_get_the_answers_that_are_described(
    client: OpenAI, stack: Home, url: str, tmp_path: Path
) -> None:
    # Given files and batches of one project
    create(client, client.files.create(file=("letter.png", b"Dear Sir or Madam"), purpose="batch").id)
    before = everything(client)
    (tmp_path / "schemathesis.toml").write_text(_EXPECTED)
    # When a key of another project sends odd requests
    stack.ok("projects", "create", "odd")
    key = make_key(stack, "admin", "--project", "odd")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json"),
            *("--header", f"Authorization: Bearer {key}"),
            *("--checks", "all", "--max-examples", "30", "--seed", "1"),
            *("--request-timeout", "60", "--no-color"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=5 * COMMAND_SECONDS,
        check=False,
    )
    # Then each gets an answer that is described
    assert done.returncode == 0, done.stdout
    found = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
    assert found is not None, done.stdout
    assert int(found[1]) == int(found[2]) >= 2_000
    # and nothing of the first project has changed
    assert everything(client) == before


def everything(client: OpenAI) -> tuple[set[tuple[str, str]], set[str]]:
    """Return the batches with their states, and the files of the client's project."""
    batches = {(each.id, finished(client, each).status) for each in client.batches.list(limit=100)}
    return batches, {each.id for each in client.files.list(limit=100)}
