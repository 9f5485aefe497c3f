"""The main path in a browser: submit digits, correct what is unsure by keys, train, promote and roll back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import httpx
import pytest

from jobs.settings import ENV_PREFIX
from tests.browser import Browser, Keys, started_browser
from tests.console import Home, processes_below, until, wait_for_broker, write_digits
from tests.digits import Digits

#: Images of the submitted archive.
_IMAGES: Final = 400


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def home(short_folder: Path, little_mnist: Digits) -> Home:
    """Return a home whose champion has hardly learnt anything, and whose gate asks for little."""
    folder = little_mnist.write(short_folder / "idx")
    home = Home(short_folder / "home", {ENV_PREFIX + "MNIST_DIR": str(folder)})
    home.ok("train", "--architecture", "mlp", "--max-minutes", "0.001")
    off = ("--min-accuracy", "--min-class-recall", "--max-calibration-error", "--max-image-microseconds")
    home.ok("gate", "mnist", *(word for option in off for word in (option, "off")))
    return home


@pytest.fixture
def archive(tmp_path: Path, little_mnist: Digits) -> Path:
    """Return a ZIP file of digits in folders named after their classes."""
    digits = little_mnist.train_images[:_IMAGES], little_mnist.train_labels[:_IMAGES]
    write_digits(tmp_path / "digits", *digits)
    return Path(shutil.make_archive(str(tmp_path / "digits"), "zip", tmp_path / "digits"))


@contextlib.contextmanager
def opened(browser: Browser, home: Home, log: Path) -> Iterator[int]:
    """Start the stack, and open the address that it prints. Yield its process id."""
    with home.started("up", log=log) as up, browser.test():
        wait_for_broker(home)
        browser.open_printed(log)
        yield up.pid


def corrections(home: Home) -> dict[int, str]:
    """Return the stored labels, by index."""
    return {each["index"]: each["label"] for each in home.json("correct", "--list")}


def champion(browser: Browser) -> str:
    """Return the id of the champion, as the page of the models shows it."""
    browser.open("/models")
    return browser.find("tr:has(.badge.champion) th a").text


def test_from_an_archive_to_a_better_champion_and_back(
    browser: Browser, home: Home, archive: Path, tmp_path: Path
) -> None:
    with opened(browser, home, tmp_path / "up.log"):
        # When a person submits an archive, then its job is shown and lives to its end
        browser.click("a", "New job")
        browser.driver.find_element("id", "files").send_keys(str(archive))
        browser.click("button", "Classify")
        browser.until(lambda: browser.path.startswith("/jobs/"), "the job is shown")
        job = browser.path.removeprefix("/jobs/")
        browser.find(".state", "done")
        assert browser.find("#done").text == str(_IMAGES)
        browser.find("a", "wrong")  # the names of the folders are compared

        # When they filter to what is unsure, then the least sure is first
        browser.click("a", "Least sure first")
        browser.find("#images li")
        shares = [float(each.text.split()[0]) for each in browser.find_all("#images .share")]
        assert shares == sorted(shares)
        assert len(shares) > 30

        # When they answer twenty by keys, and take the last one back, then nineteen are stored
        browser.open(f"/review?job={job}")
        browser.find("#suggested", "")
        for number in range(20):
            browser.press("7" if number % 2 else Keys.ENTER)
        browser.press(Keys.BACK_SPACE)
        browser.find("#unsaved", "all saved")
        assert browser.find("#answered").text == "19"
        assert len(corrections(home)) == 19
        assert list(corrections(home).values()).count("7") >= 9

        # When they select fifteen, then these get the class that they choose
        browser.open(f"/jobs/{job}/images?order=unsure&below=0.9")
        browser.click("#images li:nth-child(1) input")
        browser.click("#images li:nth-child(15) input", hold=Keys.SHIFT)
        assert browser.find("#picked-count").text == "15 selected"
        picked = [int(each.get_attribute("data-index") or "") for each in browser.find_all("#images .picked")]
        browser.choose("#picked-class", "3")
        browser.click("#picked button", "Correct")
        browser.find("#said", "15 corrected")
        stored = corrections(home)
        assert [stored[index] for index in picked] == ["3"] * 15

        # When they start a training, then its curves move, and its model becomes the champion
        before = champion(browser)
        browser.open("/runs")
        browser.choose("select[name=architecture]", "mlp")
        browser.click("button", "Start a training")
        browser.until(lambda: browser.path.startswith("/runs/"), "the run is shown")
        browser.find(".chart")
        browser.until(lambda: browser.find_all(".state", "done"), "the training has ended", seconds=300)
        browser.find("#verdict", "promoted")
        assert champion(browser) != before

        # When they compare both models, then they see which images flip
        browser.click("button", "Compare two")
        browser.find("h2", "Images that flip")

        # When they roll back, then the champion is the one before
        browser.open("/models")
        browser.click("button", "Roll back")
        browser.answer("Make the previous champion of mnist the champion again?")
        browser.find("#said", "is the champion again")
        assert champion(browser) == before


def test_no_answer_is_lost_when_server_and_tab_end(
    browser: Browser, home: Home, archive: Path, tmp_path: Path
) -> None:
    with opened(browser, home, tmp_path / "up.log") as up:
        browser.expect_error("/v1/")  # while nobody answers
        home.ok("submit", archive, "--watch")
        browser.open("/review")
        browser.find("#suggested", "")

        # Given fifteen answers, of which ten come while the server is dead, and a tab that is closed
        for number in range(15):
            if number == 5:
                kill_server(up)
            browser.press(Keys.ENTER)
        browser.driver.get("about:blank")

        # When the person comes back, then all are stored
        until(lambda: is_served(browser.url), "the server is back")
        browser.open("/review")
        until(lambda: len(corrections(home)) == 15, "all answers are stored")


def kill_server(up: int) -> None:
    """Kill the process that serves the pages, and those that it started."""
    [server] = [
        pid for pid in processes_below(up) if b"\0serve\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(server, signal.SIGKILL)


def is_served(url: str) -> bool:
    """Return whether the server answers."""
    try:
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    except httpx.TransportError:
        return False
