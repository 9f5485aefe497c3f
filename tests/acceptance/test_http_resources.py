"""Images, labels, models and training over HTTP, as the commands do the same."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.console import Home, rows
from tests.serving import make_key


@pytest.fixture(scope="module")
def admin(stack: Home, url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {make_key(stack, 'admin')}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def job(stack: Home, few_digits: Path) -> str:
    """Return a finished job that was submitted with the command."""
    return stack.ok("submit", few_digits, "--watch").split()[-1]


def corrected(stack: Home, job: str) -> list[str]:
    """Return the labels of the job's corrections: other tests use the stack, too."""
    return [each["label"] for each in stack.json("correct", "--list") if each["job_id"] == job]


def test_an_image_is_read_and_corrected(admin: httpx.Client, stack: Home, job: str) -> None:
    # When an image is looked at, then it is the file that was submitted
    [result] = admin.get(f"/batches/{job}/results", params={"limit": 1}).json()
    assert admin.get(f"/batches/{job}/images/0").content == Path(result["name"]).read_bytes()
    assert admin.get(f"/batches/{job}/images/50").status_code == 404

    # And its label can be corrected, and the correction undone
    stored = admin.put(f"/batches/{job}/images/0/label", json={"label": "7"}).json()
    assert (stored["label"], stored["predicted"]) == ("7", result["label"])
    assert corrected(stack, job) == ["7"]
    assert admin.put(f"/batches/{job}/images/0/label", json={"label": "cat"}).status_code == 409
    removed = admin.delete(f"/batches/{job}/images/0/label").json()
    assert removed | {"effect": stored["effect"]} == stored
    assert admin.delete(f"/batches/{job}/images/0/label").status_code == 404


def test_thumbnails_are_of_images_with_a_label(admin: httpx.Client, stack: Home, tmp_path: Path) -> None:
    # Given a large picture, one that is broken, and one that was not classified
    Image.linear_gradient("L").resize((600, 300)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:500])
    job = stack.run("submit", tmp_path, "--watch").stdout.split()[-1]

    # When their thumbnails are asked for, then there is one of the first, and the reason for the second
    answer = admin.get(f"/batches/{job}/images/0/thumbnail")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/webp")
    with Image.open(io.BytesIO(answer.content)) as small:
        assert (small.format, small.size) == ("WEBP", (128, 64))
    refused = admin.get(f"/batches/{job}/images/1/thumbnail")
    assert (refused.status_code, refused.json()["code"]) == (404, "corrupt")
    assert admin.get(f"/batches/{job}/images/2/thumbnail").status_code == 404


def test_a_few_images_are_classified_at_once(admin: httpx.Client, stack: Home, few_digits: Path) -> None:
    # Given the labels of some digits
    paths = sorted(few_digits.rglob("*.png"))[::10]
    job = stack.ok("submit", *paths, "--watch").split()[-1]
    expected = [row["label"] for row in rows(stack.ok("predictions", job, "--format", "csv"))]

    # When the same are sent as a form, with one that is no image, then the answer has the same labels
    files = [("file", (path.name, path.read_bytes())) for path in paths]
    answer = admin.post("/classifications", params={"wait": 60}, files=[*files, ("file", ("x.png", b"x"))])
    assert answer.status_code == 200
    *labelled, last = answer.json()["results"]
    assert [each["label"] for each in labelled] == expected
    assert [each["name"] for each in labelled] == [path.name for path in paths]
    assert last["error"]["code"] == "unidentified"

    # And they are in the batch, too, whose events end at once
    batch = admin.get(answer.headers["location"].removeprefix("/v1")).json()
    assert (batch["id"], batch["status"]) == (answer.json()["id"], "completed")
    assert admin.get(f"/batches/{batch['id']}/results").json() == [*labelled, last]
    assert "event: completed\n" in admin.get(f"/batches/{batch['id']}/events").text

    # And one image may be the body
    options = {"content": paths[0].read_bytes(), "headers": {"Content-Type": "image/png"}}
    one = admin.post("/classifications", params={"wait": 60, "top_k": 2}, **options)
    [result] = one.json()["results"]
    assert (result["label"], result["top"][0]["label"], len(result["top"])) == (expected[0], expected[0], 2)


def test_models_runs_datasets_and_workers_are_listed(admin: httpx.Client, stack: Home, job: str) -> None:
    model = admin.get("/models/champion").json()
    assert model in admin.get("/models", params={"dataset": "mnist"}).json()["data"]
    assert (model["id"], model["aliases"]) == (stack.json("status", job)["model"], ["champion"])
    assert admin.get("/models/champion/health").json()["model"] == model["id"]
    assert admin.get("/models/nothing").status_code == 404
    run = admin.get("/runs", params={"limit": 100}).json()["data"][-1]
    assert run["status"] == "done"
    assert admin.get(f"/runs/{run['id']}").json() == run
    datasets = {each["dataset"] for each in stack.json("datasets")}
    assert {each["id"] for each in admin.get("/datasets").json()["data"]} == datasets
    queues = {worker["queue"] for worker in admin.get("/workers").json()["data"]}
    assert queues == {"labelmill.classify", "labelmill.retrain", "labelmill.webhooks", "labelmill.beat"}
    # What the state does not permit is a conflict
    assert admin.post(f"/models/{model['id']}/promote", json={}).status_code == 409
    assert admin.post("/models/rollback", json={"dataset": "no-such"}).status_code in (404, 409)
    assert admin.post(f"/batches/{job}/retry").status_code == 409


@pytest.mark.parametrize(
    ("role", "allowed"),
    [("submit", {"upload"}), ("review", {"upload", "correct"}), ("admin", {"upload", "correct", "train"})],
)
def test_each_role_may_do_what_it_is_for(
    stack: Home, url: str, job: str, role: str, allowed: set[str]
) -> None:
    headers = {"Authorization": f"Bearer {make_key(stack, role)}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers) as client:
        answers = {
            "upload": client.post("/files", data={"purpose": "batch"}, files={"file": b"x"}),
            # Neither of these changes anything, with any role
            "correct": client.delete(f"/batches/{job}/images/9/label"),
            "train": client.post("/runs", json={"dataset": "no such dataset"}),
        }
    assert {name for name, answer in answers.items() if answer.status_code != 403} == allowed
    assert all(answer.status_code in (200, 403, 404) for answer in answers.values())
