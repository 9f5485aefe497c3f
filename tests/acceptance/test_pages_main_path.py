"""The main path in a browser, on `labelmill up`; and what a server that dies in the middle does not lose."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from jobs.settings import ENV_PREFIX
from tests.browser import Browser, Keys, started_browser
from tests.console import Home, processes_below, until, wait_for_broker
from tests.digits import Digits
from tests.main_path import GATE_OFF, WEAK, make_archive, walk_main_path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with started_browser() as browser:
        yield browser


@pytest.fixture
def home(short_folder: Path, little_mnist: Digits) -> Home:
    """Return a home whose champion has hardly learnt anything, and whose gate asks for little."""
    folder = little_mnist.write(short_folder / "idx")
    home = Home(short_folder / "home", {ENV_PREFIX + "MNIST_DIR": str(folder)})
    trained = home.ok("train", *WEAK).split()[-1]
    home.run("models", "promote", trained, "--force")  # if it is worse than guessing
    home.ok("gate", "mnist", *GATE_OFF)
    return home


@pytest.fixture
def archive(tmp_path: Path, little_mnist: Digits) -> Path:
    return make_archive(little_mnist, tmp_path)


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


def test_from_an_archive_to_a_better_champion_and_back(
    browser: Browser, home: Home, archive: Path, tmp_path: Path
) -> None:
    with opened(browser, home, tmp_path / "up.log"):
        walk_main_path(browser, archive, lambda: corrections(home))


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
