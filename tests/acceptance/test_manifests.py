"""Manifests, from the command line and over HTTP: the user's own ids are in all results."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from tests.console import Home, rows, until
from tests.serving import lines_of, make_key, openai_client, served


@pytest.fixture(scope="module")
def images(few_digits: Path) -> dict[str, Path]:
    """Return images by ids, which say what they show."""
    return {f"{path.parent.name}-{path.stem}": path for path in sorted(few_digits.rglob("*.png"))}


def test_a_manifest_is_submitted_with_the_users_own_ids(
    stack: Home, images: dict[str, Path], tmp_path: Path
) -> None:
    # Given a manifest with its images beside it, one of them twice, and one that is not there
    lines = ["custom_id,path,label"]
    for custom_id, path in images.items():
        (tmp_path / path.name).write_bytes(path.read_bytes())
        lines.append(f"{custom_id},{path.name},{path.parent.name}")
    lines += [f"again,{path.name},", "missing,none.png,"]
    (tmp_path / "digits.csv").write_text("\n".join(lines))

    # When it is only tried, then it is counted, and nothing is stored
    before = stack.ok("jobs")
    found = stack.json("submit", tmp_path / "digits.csv", "--dry-run")
    assert (found["images"], found["duplicates"], found["unreadable"], found["chunks"]) == (52, 1, 1, 1)
    assert stack.ok("jobs") == before
    assert "duplicates  1\n" in stack.ok("submit", tmp_path / "digits.csv", "--dry-run")

    # When it is submitted, then the ids are the names
    done = stack.run("submit", tmp_path / "digits.csv", "--watch")
    assert done.returncode == 3, done.stderr
    predictions = rows(stack.ok("predictions", done.stdout.strip(), "--format", "csv"))
    assert [row["name"] for row in predictions] == [*images, "again", "missing"]
    assert [row["name"] for row in predictions if row["error"]] == ["missing"]

    # And from now on the time can be estimated
    assert stack.json("submit", tmp_path / "digits.csv", "--dry-run")["estimated_seconds"] > 0

    # And an id that is there twice is refused
    with (tmp_path / "digits.csv").open("a") as file:
        file.write(f"\nagain,{path.name},\n")
    refused = stack.run("submit", tmp_path / "digits.csv")
    assert refused.returncode == 2
    assert "line 54: its custom_id 'again' is that of line 52, too" in refused.stderr


def test_request_lines_of_openai_are_classified(stack: Home, images: dict[str, Path], tmp_path: Path) -> None:
    # Given a file as OpenAI's Batch API takes it, with an image that only the server could reach
    lines = []
    for custom_id, path in images.items():
        link = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        lines.append(
            {"custom_id": custom_id, "url": "/v1/responses", "method": "POST", "body": {"input": link}}
        )
    lines[7]["body"] = {"input": "http://127.0.0.1:6379/"}
    (tmp_path / "batch.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    # When OpenAI's client submits it
    with (
        served(stack, tmp_path / "serve.log") as url,
        openai_client(url, make_key(stack)) as client,
        (tmp_path / "batch.jsonl").open("rb") as file,
    ):
        uploaded = client.files.create(file=file, purpose="batch")
        batch = client.batches.create(
            input_file_id=uploaded.id, endpoint="/v1/responses", completion_window="24h"
        )
        until(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch is done")
        batch = client.batches.retrieve(batch.id)
        output = lines_of(client.files.content(batch.output_file_id or "").text)
        errors = lines_of(client.files.content(batch.error_file_id or "").text)

    # Then each line is answered under its id, as the command classifies the same images
    job = stack.ok("submit", *images.values(), "--watch").strip()
    expected = {row["name"]: row["label"] for row in rows(stack.ok("predictions", job, "--format", "csv"))}
    forbidden = list(images)[7]
    assert [line["custom_id"] for line in errors] == [forbidden]
    assert errors[0]["error"]["code"] == "source_forbidden"  # type: ignore[index]
    labels = {line["custom_id"]: line["response"]["body"]["label"] for line in output}  # type: ignore[index]
    assert labels == {
        custom_id: expected[str(path)] for custom_id, path in images.items() if custom_id != forbidden
    }
