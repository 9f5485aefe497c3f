"""Training runs that bring their images: an uploaded archive becomes a dataset, and then a model."""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import pytest

from jobs.errors import DataUnavailable
from jobs.ids import new_id
from jobs.ledger import Ledger
from jobs.ledger.api.files import file_key
from jobs.ledger.api.keys import Role, create_key
from jobs.ledger.api.projects import create_project
from jobs.ledger.learning.runs import RunClaim, RunLost
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from labelmill.reporting.run_lines import added_line
from tests.labelled import write_classes
from worker.learning import prepare
from worker.learning.add_images import add_images
from worker.learning.task import execute_run
from worker.learning.trainer import Trainer

LIGHT = {"architecture": "mlp", "augment": "none", "max_minutes": 0.04, "seed": 1}


def archive_of(folder: Path) -> bytes:
    """Return a ZIP archive of a folder, which it contains under the folder's name."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder.parent))
    return out.getvalue()


@pytest.fixture
def archive(tmp_path: Path) -> bytes:
    return archive_of(write_classes(tmp_path / "pets"))


def upload(api: httpx.Client, name: str, content: bytes, **options: Any) -> str:
    """Return the id of an uploaded file."""
    answer = api.post("/files", data={"purpose": "batch"}, files={"file": (name, content)}, **options)
    assert answer.status_code == HTTPStatus.OK, answer.text
    return str(answer.json()["id"])


def request(api: httpx.Client, file_id: str, *, status: int = HTTPStatus.ACCEPTED, **more: Any) -> Any:
    """Request a run with a file, and return the answer."""
    options = {"headers": more.pop("headers", None)}
    answer = api.post("/runs", json={"dataset": "pets", "input_file_id": file_id, **more}, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


def headers_of(ledger: Ledger, role: Role, project: str = "default") -> dict[str, str]:
    with ledger.transaction() as connection:
        return {"Authorization": f"Bearer {create_key(connection, 'other', role, project=project)[1]}"}


def ended(api: httpx.Client, settings: Settings, run_id: str) -> Any:
    """Execute a run that fails, and return it."""
    with pytest.raises(DataUnavailable):
        execute_run(run_id, settings)
    return api.get(f"/runs/{run_id}").json()


def test_who_may_add_which_files(
    api: httpx.Client, ledger: Ledger, settings: Settings, client: Client, archive: bytes
) -> None:
    file_id = upload(api, "pets.zip", archive)

    # A submitter's key cannot add, and nobody can use a file of another project, or one that is no archive
    request(api, file_id, headers=headers_of(ledger, Role.SUBMIT), status=HTTPStatus.FORBIDDEN)
    with ledger.transaction() as connection:
        create_project(connection, "others")
    strange = headers_of(ledger, Role.ADMIN, "others")
    missing = request(api, file_id, headers=strange, status=HTTPStatus.NOT_FOUND)
    assert "`GET /v1/files` lists them" in missing["detail"]
    request(api, "file-nothing", status=HTTPStatus.NOT_FOUND)
    rows = upload(api, "pets.csv", b"url,label\nfile:///etc/passwd,cat\n")
    refused = request(api, rows, status=HTTPStatus.UNPROCESSABLE_ENTITY)
    assert refused["detail"].startswith("input_file_id: pets.csv is not an archive")
    request(api, file_id, dataset="../pets", status=HTTPStatus.CONFLICT)
    assert api.post("/runs", json={"dataset": "pets"}).status_code == HTTPStatus.NOT_FOUND
    assert api.get("/runs").json()["data"] == []

    # An admin's run waits for a trainer. If the file is deleted before, it fails and says so
    run = request(api, file_id)
    assert (run["status"], run["dataset"]) == ("pending", "pets")
    assert api.delete(f"/files/{file_id}").status_code == HTTPStatus.OK
    run = ended(api, settings, run["id"])
    assert (run["status"], run["model"]) == ("failed", None)
    assert "was deleted before its images were added" in run["error"]
    assert client.datasets() == []


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_an_archive_becomes_a_dataset_and_a_champion(
    api: httpx.Client,
    settings: Settings,
    client: Client,
    archive: bytes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Given an archive whose name is hostile, and images of noise, of which nothing can be learnt
    file_id = upload(api, "../$(reboot) pets.ZIP", archive)
    run_id = request(api, file_id, force=True, **LIGHT)["id"]
    execute_run(run_id, settings)

    # Then its images are a dataset, on which the champion was trained
    version = client.dataset("pets")
    assert (version.version, version.classes, version.summary["images"]) == (1, ("cat", "dog"), 80)
    run = api.get(f"/runs/{run_id}").json()
    assert run["status"] == "done"
    assert client.model("champion", dataset="pets").id == run["model"]

    # And its page says so
    with httpx.Client(base_url=api.base_url.join("/"), headers={"Accept": "text/html"}) as browser:
        browser.post("/sign-in", data={"key": api.headers["Authorization"].removeprefix("Bearer ")})
        assert (
            "<p>80 images added: the dataset is now pets version 1.</p>"
            in browser.get(f"/runs/{run_id}").text
        )
    again = replace(client.run(run_id), data={"added_images": 0})
    assert added_line(again) == "no image was new: pets version 1 has all of them"

    # And the same archive adds nothing new, even if the training fails afterwards
    def fail(_trainer: object, added: int) -> None:
        raise DataUnavailable(f"No training today, with {added} new images.")

    monkeypatch.setattr(prepare, "prepare", fail)
    run = ended(api, settings, request(api, file_id, delete_input=True)["id"])
    assert (run["status"], run["error"]) == ("failed", "No training today, with 0 new images.")
    assert api.get("/files").json()["data"] == []
    assert client.dataset("pets").version == 1


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_run_whose_images_cannot_be_added_says_why(
    api: httpx.Client, settings: Settings, store: Store, client: Client, tmp_path: Path
) -> None:
    one_class = archive_of(write_classes(tmp_path / "pets", classes=("cat",)))
    file_id = upload(api, "pets.zip", one_class)
    said = ended(api, settings, request(api, file_id, delete_input=True)["id"])["error"]
    assert "at least two" in said
    # And the file is deleted only if that was requested
    assert api.get(f"/files/{file_id}").status_code == HTTPStatus.NOT_FOUND
    assert not store.exists(file_key(file_id.removeprefix("file-")))
    said = ended(api, settings, request(api, upload(api, "pets.tar.gz", b"no archive"))["id"])["error"]
    assert said.startswith("images.tar ")
    assert len(api.get("/files").json()["data"]) == 1
    assert client.datasets() == []
    assert client.models() == []


@pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)
def test_a_lost_run_ends_the_command(
    api: httpx.Client, settings: Settings, ledger: Ledger, store: Store, client: Client, archive: bytes
) -> None:
    file_id = upload(api, "pets.zip", archive).removeprefix("file-")

    def lost() -> None:
        raise RunLost("It was cancelled.")

    claim = RunClaim(new_id(), new_id(), {}, "pets", file_id)
    with pytest.raises(RunLost):
        add_images(Trainer(settings, ledger, store, claim, lost))
    # Left alone, it would have ended by now: the run waits for the process
    assert client.datasets() == []
