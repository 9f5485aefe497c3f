"""`make screenshots`: the pictures of the pages in the documentation, made from a real stack."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Final

from PIL import Image

from jobs.settings import Settings
from tests.browser import Browser, Keys, started_browser
from tests.console import Home, wait_for_broker, write_digits
from tests.digits import read_digits

#: Pixels of a page, and maximum bytes of a picture.
_WIDTH, _HEIGHT = 1120, 700
_MAX_BYTES: Final = 80_000


def main(folder: Path) -> None:
    """Make all pictures, with the MNIST that LABELMILL_MNIST_DIR names."""
    with tempfile.TemporaryDirectory(prefix="lm-") as temporary, started_browser() as browser:
        home = Home(Path(temporary) / "home")
        digits = read_digits(Settings.load().mnist_dir or Path())
        write_digits(Path(temporary) / "digits", digits.test_images, digits.test_labels)
        home.ok("train")
        log = Path(temporary) / "up.log"
        with home.started("up", log=log):
            wait_for_broker(home)
            browser.resize(_WIDTH, _HEIGHT)
            browser.open_printed(log)
            job = home.ok("submit", Path(temporary) / "digits", "--top", "3", "--watch").split()[-1]
            # Not `ok`: on a busy machine, the gate refuses the model because it is slow.
            home.run("retrain", "--wait", "--architecture", "cnn", "--max-minutes", "1")
            take_all(browser, job, folder)


def take_all(browser: Browser, job: str, folder: Path) -> None:
    """Visit the pages, and take a picture of each."""
    browser.open(f"/jobs/{job}")
    browser.find("a", "wrong")
    take(browser, folder / "job.webp")
    browser.open(f"/jobs/{job}/images?mistakes=true")
    browser.find(".gallery li")
    take(browser, folder / "mistakes.webp")
    browser.open("/review")
    browser.find("#suggested", "")
    for key in (Keys.ENTER, Keys.ENTER, "9"):
        browser.press(key)
    browser.find("#unsaved", "all saved")
    take(browser, folder / "review.webp")
    browser.open("/models")
    browser.click("button", "Compare two")
    browser.find("h2", "Images that flip")
    take(browser, folder / "compare.webp")


def take(browser: Browser, path: Path) -> None:
    """Store a picture of what the window shows, when all images are there."""
    loaded = """return [...document.images].every(
        (each) => each.complete || each.getBoundingClientRect().top > innerHeight)"""
    browser.until(lambda: browser.script(loaded), "the images are loaded")
    picture = Image.open(io.BytesIO(browser.driver.get_screenshot_as_png())).convert("RGB")
    for quality in range(80, 20, -10):
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=6)
        if len(file.getvalue()) <= _MAX_BYTES:
            break
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(file.getvalue())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
