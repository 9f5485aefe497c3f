"""Pages in a browser: find a job, watch and control it, see each mistake, correct an image; for everybody."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.browser import Browser, Keys, printed_pages, started_browser
from tests.conftest import Worker
from tests.console import Home, copy_home, folder_for_sockets
from tests.labelled import write_classes
from tests.serving import make_key, page_paths, served


@pytest.fixture(scope="module")
def started() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def up(trained: Home, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, str]]:
    """Start a stack of these tests' own; return its home, and the URL of its pages."""
    log = tmp_path_factory.mktemp("up") / "up.log"
    with folder_for_sockets() as folder:
        home = Home(folder / "home")
        copy_home(trained.path, home.path)
        with home.started("up", log=log):
            yield home, printed_pages(log)[0]


@pytest.fixture(scope="module")
def job(up: tuple[Home, str], digits: Path) -> str:
    """Return the id of a finished job of 10,000 digits in folders named after their classes."""
    return up[0].ok("submit", digits, "--key", "digits of May", "--top", "3", "--watch").split()[-1]


@pytest.fixture
def browser(started: Browser, up: tuple[Home, str]) -> Iterator[Browser]:
    """Return a browser that is signed in."""
    home, url = up
    with started.test():
        started.sign_in(url, (home.path / "api-key").read_text().strip())
        yield started


def shown(browser: Browser) -> list[str]:
    """Return the text of each image in the gallery."""
    browser.find("#images li")
    return [each.text for each in browser.find_all("#images li[data-index]")]


def test_a_job_is_controlled_and_watched_to_its_end(
    started: Browser, new_home: Home, digits: Path, tmp_path: Path
) -> None:
    # Given two jobs, and no worker
    jobs = [new_home.ok("submit", digits, "--key", key).strip() for key in ("one", "two")]
    with started.test() as browser, served(new_home, tmp_path / "serve.log") as url:
        browser.sign_in(url, make_key(new_home))
        assert "No worker runs" in browser.text

        # When a person pauses and resumes the first, then the page says so without being loaded again
        browser.open(f"/jobs/{jobs[0]}")
        browser.script("window.isSamePage = true")
        browser.find("#state .running")
        browser.click("button", "Pause")
        browser.find("#state .paused")
        browser.click("button", "Resume")
        browser.find("#state .running")

        # When they cancel, and think again, then it runs on; when they mean it, it is cancelled
        browser.click("button", "Cancel")
        browser.answer("0 of 10,000 images have an outcome", yes=False)
        assert new_home.json("status", jobs[0])["state"] == "running"
        assert browser.script("return window.isSamePage")
        browser.click("button", "Cancel")
        browser.answer("Cancel this job?")
        browser.find("#state .cancelled")
        assert new_home.json("status", jobs[0])["state"] == "cancelled"

        # When 500 images of the second are done, then its page says so; when all are, it shows the end
        browser.open(f"/jobs/{jobs[1]}")
        assert browser.find("#done").text == "0"
        browser.script("window.isSamePage = true")
        worker = Worker(f"sqlite:///{new_home.path}/ledger.sqlite3", "by hand")
        with contextlib.closing(worker.ledger):
            [claim] = worker.claim_next(images=500)
            worker.finish(claim)
        browser.find("#done", "500")
        browser.find("#state .running")
        assert browser.script("return window.isSamePage")
        with new_home.started("up", log=tmp_path / "up.log"):
            browser.until(lambda: browser.find_all("#state .done"), "the end is shown", seconds=120)
        assert browser.find("#done").text == "10,000"
        browser.find("a.button", "All images")


def test_the_list_finds_a_job_by_id_key_and_metadata(
    browser: Browser, up: tuple[Home, str], job: str, few_digits: Path
) -> None:
    home, url = up
    headers = {"Authorization": f"Bearer {make_key(home)}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=60) as client:
        picture = next((few_digits / "7").iterdir()).read_bytes()
        form = {"data": {"purpose": "batch"}, "files": {"file": ("7.png", picture)}}
        file_id = client.post("/files", **form).json()["id"]  # type: ignore[arg-type]
        wanted = {"input_file_id": file_id, "metadata": {"customer": "acme"}}
        batch = client.post("/batches", json=wanted).json()["id"]

    def search(words: str) -> None:
        browser.open("/jobs")
        browser.press("/")  # it needs no mouse
        browser.press(words, "\n")
        browser.until(lambda: browser.path != "/jobs", "the search is sent")

    for words in (job, job[:10], "digits of May"):
        search(words)
        assert browser.path == f"/jobs/{job}"
    search("customer=acme")
    assert [each.text for each in browser.find_all("#list tbody th code")] == [batch]
    search("customer=nobody")
    assert "No job matches." in browser.text
    browser.driver.back()  # every state is a URL
    browser.driver.back()
    assert parse_qs(urlsplit(browser.path).query) == {"q": ["customer=acme"]}


def test_every_mistake_is_one_click_away(browser: Browser, job: str) -> None:
    # When a person follows the number of mistakes, then all of them are shown as they scroll
    browser.open(f"/jobs/{job}")
    wrong = browser.find("a", " wrong")
    expected = int(wrong.text.split()[0])
    assert expected > 10
    browser.click("a", " wrong")
    browser.until(lambda: "/images?mistakes=true" in browser.path, "the mistakes are shown")

    def scroll() -> bool:
        browser.script("scrollTo(0, document.body.scrollHeight)")
        return bool(browser.script("return !document.querySelector('li.more')"))

    browser.until(scroll, "all mistakes are loaded")
    assert len(shown(browser)) == expected
    assert all(", true " in each for each in shown(browser))

    # When they follow a cell of the confusion matrix, then its images are shown, and the filter says so
    browser.open(f"/jobs/{job}")
    browser.find("table.matrix")
    cell = browser.find_all("td.wrong a.cell")[0]
    count, (truth, label) = (
        int(cell.text),
        parse_qs(urlsplit(cell.get_attribute("href") or "").query).values(),
    )
    browser.click("td.wrong a.cell")
    browser.find("#images")
    assert [each.startswith(f"{label[0]}, true {truth[0]}") for each in shown(browser)] == [True] * count
    for name, value in (("truth", truth), ("label", label)):
        assert browser.find(f"select[name={name}]").get_attribute("value") == value[0]

    # When they narrow it down with the form, of which they leave fields empty, then fewer are shown
    browser.find("input[name=at_least]").send_keys("0.5")
    browser.click("button", "Filter")
    browser.until(lambda: "at_least=0.5&below=&" in browser.path, "the form is sent")
    browser.find("h1", "Images of job")
    assert all(float(each.text.split()[0]) >= 50 for each in browser.find_all("#images .share"))

    # When they drag over bars of the histogram, then the images of all of them are shown
    browser.open(f"/jobs/{job}")
    browser.drag(*(browser.find("#histogram tr", bar) for bar in ("0.8 to 0.9", "0.5 to 0.6")))
    browser.until(lambda: "/images?" in browser.path, "the images of these bars are shown")
    assert parse_qs(urlsplit(browser.path).query) == {"at_least": ["0.5"], "below": ["0.9"]}


def test_one_image_is_corrected_and_the_correction_undone(
    browser: Browser, up: tuple[Home, str], job: str
) -> None:
    browser.open(f"/jobs/{job}/images?mistakes=true")
    browser.click("#images li a")
    browser.until(lambda: browser.path.rpartition("/")[2].isdecimal(), "the image is shown")
    index = int(browser.path.rpartition("/")[2])
    assert len(browser.find_all("table.bars tbody tr")) == 3
    browser.choose("select[name=label]", "5")
    browser.click("button", "Save")
    browser.find(
        "#said", "Saved. mnist has 1 correction for its next training, which leaves out test images; with "
    )
    browser.find("tr", "correction 5, ")
    [stored] = up[0].json("correct", "--list")
    assert (stored["index"], stored["label"]) == (index, "5")
    browser.click("button", "Undo")
    browser.find("#said", "The correction is undone. mnist has 0 corrections for its next training")
    browser.until(lambda: not browser.find_all("tr", "correction"), "the correction is gone")
    assert up[0].json("correct", "--list") == []


def test_a_schedule_is_changed_and_switched_off(browser: Browser, up: tuple[Home, str]) -> None:
    def save(cron: str) -> None:
        field = browser.find("#schedule-mnist input[name=cron]")
        field.clear()
        field.send_keys(cron, "\n")

    # When a person writes down no proper times, then the page says so, and keeps what they have typed
    browser.open("/runs")
    browser.find("#schedule-mnist", "0 3 * * 0 (UTC), next in ")
    browser.click("#schedule-mnist summary")
    browser.expect_error("status of 409")
    save("0 3 * *")
    browser.find("#said", "'0 3 * *' has 4 fields, but a cron line has five")
    save("0 4 1 * *")
    browser.find("#schedule-mnist", "0 4 1 * * (UTC), next ")
    [schedule] = up[0].json("schedule")
    assert schedule["cron"] == "0 4 1 * *"

    # When they switch it off, then nothing is trained by itself
    browser.click("#schedule-mnist button", "Switch off")
    browser.answer("Switch the schedule of mnist off?")
    browser.find("#schedule-mnist", "is trained only when somebody starts it")
    [schedule] = up[0].json("schedule")
    assert (schedule["cron"], schedule["after_corrections"]) == (None, None)


def test_review_needs_only_the_keyboard(browser: Browser, up: tuple[Home, str], job: str) -> None:
    def tab_to(css: str) -> None:
        """Press Tab until this element has the focus."""
        wanted = browser.find(css)
        for _ in range(40):
            if browser.driver.switch_to.active_element == wanted:
                return
            browser.press(Keys.TAB)
        pytest.fail(f"Tab does not lead to {css}")

    def stored() -> dict[int, str]:
        return {each["index"]: each["label"] for each in up[0].json("correct", "--list")}

    def name() -> str:
        return browser.find("#name").text

    # Given a page whose address a person has typed, when they go to the queue, then the first image is shown
    browser.open("/home")
    tab_to("nav a[href='/review']")
    browser.press(Keys.ENTER)
    browser.find("#suggested", "")
    names = [name()]

    # When they accept one, correct one and skip one, then another one is shown each time
    for key in (Keys.ENTER, "7", Keys.SPACE):
        browser.press(key)
        names.append(name())
    assert len(set(names)) == 4

    # When they undo the last two, then these are shown again, and only the first answer is stored
    for place in (2, 1):
        browser.press(Keys.BACK_SPACE)
        assert name() == names[place]
    browser.find("#unsaved", "all saved. mnist has 1 correction ")
    assert len(stored()) == 1

    # When they switch shortcuts off, then the key of a class does nothing, until they are on again
    for _ in range(2):
        tab_to("#shortcuts")
        browser.press(Keys.SPACE)
        tab_to("#open")
        browser.press("7")
        is_on = browser.find("#shortcuts").is_selected()
        assert (name() == names[1]) is not is_on
    browser.press(Keys.BACK_SPACE)
    browser.find("#unsaved", "all saved. mnist has 1 correction ")

    # When they open the image and come back, then it is still to be reviewed
    tab_to("#open")
    browser.press(Keys.ENTER)
    browser.until(lambda: browser.path.startswith(f"/jobs/{job}/images/"), "the image is shown")
    assert browser.find("table.facts td").text == names[1]
    browser.driver.back()
    browser.find("#name", names[1])

    # When they mark two in the grid, and answer all of them, then all but the skipped one are stored
    tab_to("a[href$='view=grid']")
    browser.press(Keys.ENTER)
    browser.find("#accept-text", "all 20 of these are right")
    assert (
        browser.find_all("#tiles li")[0].find_element("tag name", "button").get_attribute("title") == names[1]
    )
    wrong = browser.find_all("#tiles li")[1].find_element("tag name", "b").text
    true = "7" if wrong != "7" else "1"
    browser.press(Keys.ARROW_RIGHT, true, Keys.ARROW_DOWN, Keys.SPACE)
    browser.find("#accept-text", "save: 1 corrected, 1 skipped, the rest right")
    for colours in ("dark", "light"):
        browser.show_colours(colours)
        assert browser.violations() == []
    browser.resize(360)
    assert browser.overflow() <= 0
    browser.resize(1280)
    browser.press(Keys.ENTER)
    browser.find("#accept-text", "all 20 of these are right")
    browser.find("#unsaved", "all saved")
    assert len(stored()) == 20

    # When they undo it, then the same page is shown as it was marked, and its answers are gone
    browser.press(Keys.BACK_SPACE)
    browser.find("#accept-text", "save: 1 corrected, 1 skipped, the rest right")
    browser.find("#unsaved", "all saved")
    assert len(stored()) == 1


def test_an_archive_becomes_a_dataset_and_is_trained_on(browser: Browser, tmp_path: Path) -> None:
    # When a person chooses an archive of labelled images, and names a dataset that does not exist
    folder = write_classes(tmp_path / "pets")
    archive = shutil.make_archive(str(folder), "zip", tmp_path, folder.name)
    browser.open("/datasets")
    browser.driver.find_element("id", "files").send_keys(archive)
    browser.find("#chosen", "pets.zip, ")
    browser.find("#dataset").send_keys("pets")
    browser.click("button", "Add and train")

    # Then the page of the run says that it adds them, and the dataset is there before the training ends
    browser.until(lambda: browser.path.startswith("/runs/"), "the run is shown")
    browser.find("#run", "adding images")
    browser.until(lambda: "adding images" not in browser.text, "they are added", seconds=120)
    browser.click("button", "Cancel")
    browser.answer("Cancel this training?")
    browser.find(".state", "cancelled")
    browser.open("/datasets/pets")
    browser.find("h1", "Dataset pets, version 1")
    browser.click("summary", "Add images")
    assert browser.find("#dataset").get_attribute("value") == "pets"
    assert browser.violations() == []


def test_pages_are_for_everybody(browser: Browser, up: tuple[Home, str], job: str) -> None:
    # Given every page, two models that differ, problems and sign-in included
    home, _ = up
    home.run("train", "--architecture", "mlp", "--max-minutes", "0.001")  # which the gate refuses
    models, [run, *_] = [each["id"] for each in home.json("models", "list")], home.json("runs")
    assert len(models) == 2
    paths = page_paths(job_id=job, index="3", model_id=models[0], run_id=run["id"], dataset="mnist")
    paths += [f"/models/compare?first={models[0]}&second={models[1]}", f"/models/{models[1]}"]
    paths += [f"/jobs/{job}/images?order=unsure", "/jobs?state=running", f"/review?job={job}&kind=random"]
    paths += ["/jobs/nothing", "/nothing"]
    browser.expect_error("status of 404")
    found: dict[str, list[str]] = {}
    for path in [*paths, "/sign-in"]:
        if path == "/sign-in":
            browser.driver.delete_all_cookies()
        browser.open(path)
        browser.until(
            lambda: not browser.script("return document.querySelector('.htmx-request')"), "all is loaded"
        )
        # When people see it in either colour scheme, then axe-core finds nothing that some of them cannot use
        for colours in ("light", "dark"):
            browser.show_colours(colours)
            found[f"{path} {colours}"] = browser.violations()
        # When its window is as narrow as a telephone, then nothing but a table's own frame scrolls sideways
        browser.resize(360)
        found[f"{path} narrow"] = [f"{browser.overflow()} pixels too wide"] if browser.overflow() > 0 else []
        browser.resize(1280)
    assert {path: problems for path, problems in found.items() if problems} == {}
