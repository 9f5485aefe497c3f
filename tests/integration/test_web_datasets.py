"""The pages on datasets: what they show, that names stay text, and the pictures of their classes."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.settings import Settings
from labelmill.client import Client
from labelmill.server import datasets as server
from tests.labelled import picture, write_classes
from tests.serving import served_locally
from tests.unit.test_reporting import Page
from worker.learning.stored import open_dataset

HOSTILE = "<img src=x onerror='alert(1)'>"


@pytest.fixture
def browser(settings: Settings, ledger: Ledger) -> Iterator[httpx.Client]:
    """Return a client that asks for pages, with a key that may only submit."""
    with ledger.transaction() as connection:
        _, key = create_key(connection, "test", Role.SUBMIT)
    headers = {"Accept": "text/html"}
    with (
        served_locally(settings) as (_, url),
        httpx.Client(base_url=url, headers=headers, timeout=60, follow_redirects=True) as client,
    ):
        assert client.post("/sign-in", data={"key": key}).status_code == 200
        yield client


def read(browser: httpx.Client, path: str) -> Page:
    """Return a page, which must be whole and safe under the server's policy."""
    answer = browser.get(path)
    assert answer.status_code == 200, answer.text
    assert "style-src 'self'" in answer.headers["Content-Security-Policy"]
    page = Page(answer.text)
    assert not any(name == "style" or name.startswith("on") for _, all_ in page.elements for name in all_)
    return page


def test_without_datasets_the_page_says_what_to_type(browser: httpx.Client) -> None:
    told = read(browser, "/datasets").text
    assert "labelmill datasets add NAME FOLDER" in told
    assert "Add and train" not in told  # only an administrator can
    assert browser.get("/datasets/pets").status_code == 404


def test_a_dataset_is_shown_with_what_changed_in_each_version(
    browser: httpx.Client, client: Client, tmp_path: Path
) -> None:
    # Given a dataset of two versions: the second adds a class with a hostile name, and leaves out two images
    client.add_dataset("pets", write_classes(tmp_path / "first"))
    more = write_classes(tmp_path / "second", classes=("cat", HOSTILE.replace("/", "")), each=20, first=500)
    (more / "cat" / "<script>.png").write_bytes(b"bad")
    (more / "cat" / "same.png").write_bytes((more / "cat" / "0500.png").read_bytes())
    client.add_dataset("pets", more)

    # Then the list has its latest version
    listed = read(browser, "/datasets")
    assert {"href": "/datasets/pets"} in listed.all("a")
    assert "pets 120 3 2" in listed.text

    # And its page says what each version added and left out, and shows the first one, too
    page = read(browser, "/datasets/pets")
    assert "40 images added" in page.text
    assert f"new class: {HOSTILE}" in page.text
    assert "left out: 1 duplicate, 1 unreadable image" in page.text
    assert "<script>.png" in page.text
    assert "version 1 is" not in page.text
    first = read(browser, "/datasets/pets?version=1")
    assert "This is not the latest version" in first.text
    assert "80 images added" in first.text
    assert browser.get("/datasets/pets?version=3").status_code == 404


def test_a_contact_sheet_shows_images_of_each_class(
    browser: httpx.Client, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given a class of tiny images, and one of larger images with a hostile name
    folder = write_classes(tmp_path / "pets", classes=("cat",))
    (folder / HOSTILE).mkdir()
    for number in range(5):
        data = picture(number, side=200, mode="RGB")
        (folder / HOSTILE / f'{number}"><b>.png').write_bytes(data)
    client.add_dataset("pets", folder)
    manifests = []
    read_manifest = server.read_manifest
    monkeypatch.setattr(server, "read_manifest", lambda *which: manifests.append(1) or read_manifest(*which))

    # When the sheet is shown, then each class has one picture, which names its images
    sheet = read(browser, "/datasets/pets/sheet")
    large, tiny = [each for each in sheet.all("img") if "/sheet" in each["src"]]
    assert large["alt"].startswith(f"{HOSTILE}: ")
    assert '0"><b>.png' in large["title"]
    assert large["title"].count(", ") == 4
    assert (tiny["class"], tiny["width"], tiny["height"]) == ("tiny", "384", "192")

    # And they are small copies that a browser may only show
    for each, size in ((large, (600, 300)), (tiny, (32, 16))):
        answer = browser.get(each["src"])
        assert answer.headers["Content-Type"] == "image/webp"
        assert answer.headers["Cache-Control"].startswith("private")
        assert "sandbox" in answer.headers["Content-Security-Policy"]
        with Image.open(io.BytesIO(answer.content)) as drawn:
            assert drawn.size == size

    # And the list of the version's images was read once for all of them
    assert manifests == [1]
    assert browser.get("/v1/datasets/pets/versions/1/classes/2/sheet").status_code == 404
    assert browser.get("/v1/datasets/pets/versions/2/classes/0/sheet").status_code == 404


def test_an_image_of_the_test_set_is_found_by_its_place(
    browser: httpx.Client, client: Client, tmp_path: Path
) -> None:
    # Given a dataset, and the pixels of its test set in the order in which models are evaluated
    client.add_dataset("pets", write_classes(tmp_path / "pets"))
    dataset = open_dataset(client.settings, client.ledger, client.store, "pets")
    images = dataset.prepared(dataset.choose_input()).test.images.astype(int)
    assert len(images) > 3

    # When each is asked for by its place, then that is the image which it resembles most
    for place in range(len(images)):
        answer = browser.get(f"/v1/datasets/pets/versions/1/test/{place}")
        assert answer.headers["Content-Type"] == "image/webp"
        with Image.open(io.BytesIO(answer.content)) as drawn:
            shown = np.asarray(drawn.convert("L"), int)
        assert np.abs(images - shown).mean(axis=(1, 2)).argmin() == place
    # And nothing is there beyond its end
    assert browser.get(f"/v1/datasets/pets/versions/1/test/{len(images)}").status_code == 404
    assert browser.get("/v1/datasets/pets/versions/2/test/0").status_code == 404


def test_the_pictures_need_a_key(browser: httpx.Client, client: Client, tmp_path: Path) -> None:
    client.add_dataset("pets", write_classes(tmp_path / "pets"))
    browser.cookies.clear()
    for picture_of in ("classes/0/sheet", "test/0"):
        assert browser.get(f"/v1/datasets/pets/versions/1/{picture_of}").status_code == 401
    assert "/sign-in?next=%2Fdatasets%2Fpets" in str(browser.get("/datasets/pets").url)
