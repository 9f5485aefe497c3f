"""Jobs that are submitted in a browser: folders, what is left out, refusals, and uploads that break."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import sqlalchemy as sa
import uvicorn

from jobs.ledger import Ledger
from jobs.ledger.api.keys import Role, create_key
from jobs.models.model import Model
from jobs.queue import Publisher
from jobs.schema import chunks
from jobs.settings import Settings
from jobs.storage.payloads import read_payload
from jobs.storage.store import Store
from tests.browser import Browser, Keys, started_browser
from tests.intake import take_in_next
from tests.serving import served_locally

#: The pages do the same on each database.
pytestmark = pytest.mark.parametrize("ledger_url", ["sqlite"], indirect=True)

#: The largest upload of these tests' server.
_MAX_BYTES: Final = 4_000_000

#: Loses the first answer to the request for a job, as a network does, and counts the uploads.
_LOSE_AN_ANSWER: Final = """
const { fetch: real } = window, { send } = XMLHttpRequest.prototype;
let lost = false;
window.uploads = 0;
XMLHttpRequest.prototype.send = function (body) { window.uploads += 1; return send.call(this, body); };
window.fetch = async (...request) => {
  const answer = await real(...request);
  if (lost) return answer;
  lost = true;
  throw new TypeError("Failed to fetch");
};
"""


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@dataclass
class Site:
    """A browser on the page, and what the server has."""

    browser: Browser
    server: uvicorn.Server
    api: httpx.Client
    ledger: Ledger
    store: Store
    publisher: Publisher
    settings: Settings

    def choose(self, field: str, *paths: Path) -> str:
        """Choose files or a folder. Return what the page says about them."""
        self.browser.driver.find_element("id", field).send_keys("\n".join(map(str, paths)))
        self.browser.until(lambda: self.browser.find("#chosen").text, "the choice is shown")
        return self.browser.find("#chosen").text

    def drop(self, path: Path) -> str:
        """Drop a file or folder on the page. Return what the page says about it."""
        place = self.browser.find("#drop").location
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            event = {"type": kind, "x": place["x"] + 20, "y": place["y"] + 20, "data": data}
            self.browser.driver.execute_cdp_cmd("Input.dispatchDragEvent", event)
        self.browser.find("#chosen", ".")
        return self.browser.find("#chosen").text

    def job(self) -> dict[str, Any]:
        """Return the job whose page the browser shows next, with its images taken in."""
        self.browser.until(lambda: self.browser.path.startswith("/jobs/"), "the job is shown")
        take_in_next(self.ledger, self.store, self.publisher, self.settings, owner="test")
        found: dict[str, Any] = self.api.get(self.browser.path.replace("/jobs/", "/batches/")).json()
        return found

    def images(self, job: dict[str, Any]) -> dict[str, object]:
        """Return the content of each image of a job, by name."""
        with self.ledger.reading() as connection:
            rows = connection.execute(sa.select(chunks).where(chunks.c.job_id == job["id"])).all()
        payloads = [read_payload(self.store, row.payload, row.payload_digest) for row in rows]
        return {
            name: content
            for each in payloads
            for name, content in zip(each.names, each.contents, strict=True)
        }

    def slow_down(self, bytes_per_second: int) -> None:
        """Limit the speed of uploads; -1 means no limit."""
        conditions = {"offline": False, "latency": 0, "downloadThroughput": -1}
        command = "Network.emulateNetworkConditions"
        self.browser.driver.execute_cdp_cmd(command, conditions | {"uploadThroughput": bytes_per_second})

    def cut_connections(self) -> None:
        """Break all connections to the server off, as a network does."""
        loop = self.server.servers[0].get_loop()
        for connection in list(self.server.server_state.connections):
            loop.call_soon_threadsafe(connection.transport.abort)  # type: ignore[union-attr]

    def count(self, kind: str) -> int:
        """Return how many batches or files there are."""
        return len(self.api.get(f"/{kind}").json()["data"])


@pytest.fixture
def site(
    started: Browser, settings: Settings, ledger: Ledger, store: Store, publisher: Publisher, champion: Model
) -> Iterator[Site]:
    assert champion.dataset == "mnist"
    settings = settings.model_copy(update={"max_job_bytes": _MAX_BYTES})
    with ledger.transaction() as connection:
        _, key = create_key(connection, "person", Role.SUBMIT)
    with (
        served_locally(settings) as (server, url),
        httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"}) as api,
        started.test() as browser,
    ):
        browser.sign_in(url, key)
        browser.open("/new")
        browser.driver.execute_cdp_cmd("Network.enable", {})
        site = Site(browser, server, api, ledger, store, publisher, settings)
        yield site
        site.slow_down(-1)
        browser.driver.get("about:blank")  # the server waits for open connections


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of images by class, with other files."""
    images, hidden = ("7/a.png", "7/größe 1.PNG", "1/deep/b"), ("1/.DS_Store", "__MACOSX/a.png")
    for name in (*images, *hidden, "notes.txt", "x.csv"):
        path = tmp_path / "digits" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"pixels of {name}")
    return tmp_path / "digits"


@pytest.mark.parametrize("is_dropped", [False, True], ids=["chosen", "dropped"])
def test_a_folder_becomes_a_job_with_the_names_that_submit_gives(
    site: Site, folder: Path, *, is_dropped: bool
) -> None:
    said = site.drop(folder) if is_dropped else site.choose("folder", folder)
    assert said.startswith("3 images, ")
    assert "2 hidden files" in said
    assert "2 files, not images by their names" in said

    # When a person asks for three classes per image, and notes whose job it is
    browser = site.browser
    browser.click("summary", "More options")
    browser.find("#top_k").send_keys("3")
    browser.find("#metadata").send_keys("customer=acme\nequation=a=b")
    browser.click("button", "Classify")

    # Then the job has all images, and what was asked for
    job = site.job()
    assert site.images(job) == {
        f"digits/{name}": f"pixels of {name}".encode() for name in ("7/a.png", "7/größe 1.PNG", "1/deep/b")
    }
    assert job["metadata"] == {"name": "digits", "customer": "acme", "equation": "a=b"}
    assert job["job"]["top_k"] == 3


def test_a_file_alone_is_sent_as_it_is(site: Site, folder: Path) -> None:
    assert site.choose("files", folder / "notes.txt").startswith("notes.txt, ")
    site.browser.click("button", "Classify")
    assert site.images(site.job()) == {"notes.txt": b"pixels of notes.txt"}


def test_an_upload_that_breaks_is_tried_again_under_the_same_key(site: Site, tmp_path: Path) -> None:
    browser = site.browser
    image = tmp_path / "large.png"
    image.write_bytes(b"pixels" * 500_000)

    # Given an upload that breaks off
    site.slow_down(200_000)
    site.choose("files", image)
    browser.click("button", "Classify")
    browser.until(lambda: browser.find("#progress").text.startswith(("1", "2")), "some of it is sent")
    browser.expect_error("/v1/files")

    def breaks() -> bool:
        site.cut_connections()  # browsers try again by themselves
        return bool(browser.find_all("#problem", "The upload broke off"))

    browser.until(breaks, "the page says so")
    site.slow_down(-1)

    # When it is tried again, and the answer with the job is lost, and it is tried once more
    browser.script(_LOSE_AN_ANSWER)
    browser.click("button", "Try again")
    browser.find("#problem", "The server cannot be reached")
    assert (site.count("batches"), browser.script("return window.uploads")) == (1, 1)
    browser.click("button", "Try again")

    # Then there is one job, of one file that was sent once
    assert site.images(site.job()) == {"large.png": image.read_bytes()}
    assert site.count("batches") == 1


def test_an_upload_can_be_stopped(site: Site, tmp_path: Path) -> None:
    browser = site.browser
    (tmp_path / "large.png").write_bytes(b"pixels" * 500_000)
    site.slow_down(100_000)
    site.choose("files", tmp_path / "large.png")
    browser.click("button", "Classify")
    browser.click("button", "Stop the upload")
    browser.find("#problem", "Stopped: nothing was submitted.")
    assert (site.count("batches"), site.count("files")) == (0, 0)


def test_the_page_shows_why_the_server_refuses(site: Site, tmp_path: Path) -> None:
    browser = site.browser
    browser.expect_error("/v1/")
    browser.click("button", "Classify")
    browser.find("#problem", "Choose images first")

    (tmp_path / "large.zip").write_bytes(bytes(_MAX_BYTES + 100_000))
    site.choose("files", tmp_path / "large.zip")
    browser.click("button", "Classify")
    browser.find("#problem", "The file is larger than a job may be")

    browser.open("/new")
    browser.click("summary", "Images at URLs")
    browser.find("#urls").send_keys("bucket/photos/")
    browser.click("button", "Classify")
    browser.find("#problem", "bucket/photos/ is not an address")
    browser.find("#urls").send_keys(Keys.HOME, "s3://")
    browser.click("button", "Classify")
    browser.find("#problem", "source_url: ")
    assert site.count("batches") == 0


def test_ten_drawn_digits_are_submitted_by_keyboard(site: Site) -> None:
    browser = site.browser
    for _ in range(20):
        browser.press(Keys.TAB)
        if browser.script("return document.activeElement.id") == "sample":
            break
    browser.press(Keys.ENTER)
    browser.find("#chosen", "10 images")
    browser.find("#model").send_keys(Keys.TAB, Keys.ENTER)
    found = site.images(site.job())
    assert sorted(found) == [f"{digit}/drawn.png" for digit in range(10)]
    assert len(set(found.values())) == 10


def test_everybody_can_use_the_page(site: Site, folder: Path) -> None:
    browser = site.browser
    site.choose("folder", folder)
    for summary in browser.find_all("summary"):
        summary.click()
    for scheme in ("light", "dark"):
        browser.show_colours(scheme)
        assert browser.violations() == []
    browser.resize(360)
    assert browser.overflow() == 0
