"""The main path in a browser: submit digits, correct what is unsure by keys, train, promote and roll back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.browser import Browser, Keys
from tests.console import write_digits
from tests.digits import Digits

#: Images of the submitted archive.
_IMAGES: Final = 400

#: A gate that lets any model through that is better than the champion: `labelmill gate DATASET ...`.
GATE_OFF: Final = tuple(
    word
    for limit in ("min-accuracy", "min-class-recall", "max-calibration-error", "max-image-microseconds")
    for word in (f"--{limit}", "off")
)

#: Train a model that has hardly learnt anything: `labelmill train ...`.
WEAK: Final = ("--architecture", "mlp", "--max-minutes", "0.001")


def make_archive(digits: Digits, folder: Path) -> Path:
    """Return a ZIP file of training images in folders named after their classes."""
    write_digits(folder / "digits", digits.train_images[:_IMAGES], digits.train_labels[:_IMAGES])
    return Path(shutil.make_archive(str(folder / "digits"), "zip", folder / "digits"))


def walk_main_path(browser: Browser, archive: Path, corrections: Callable[[], dict[int, str]]) -> None:
    """Go the whole way from the first page, where the browser is, and check what comes of each step.

    The champion must be a weak one, and be the only model. `corrections` returns the stored labels, by index.
    """
    # When a person submits an archive, then its job is shown and lives to its end
    browser.click("a", "New job")
    browser.driver.find_element("id", "files").send_keys(str(archive))
    browser.click("button", "Classify")
    browser.until(lambda: browser.path.startswith("/jobs/"), "the job is shown")
    job = browser.path.removeprefix("/jobs/")
    browser.until(lambda: browser.find_all(".state", "done"), "the job has ended", seconds=120)
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
    assert len(corrections()) == 19
    assert list(corrections().values()).count("7") >= 9

    # When they select fifteen, then these get the class that they choose
    browser.open(f"/jobs/{job}/images?order=unsure&below=0.9")
    browser.click("#images li:nth-child(1) input")
    browser.click("#images li:nth-child(15) input", hold=Keys.SHIFT)
    assert browser.find("#picked-count").text == "15 selected"
    picked = [int(each.get_attribute("data-index") or "") for each in browser.find_all("#images .picked")]
    before = corrections()
    browser.choose("#picked-class", "3")
    browser.click("#picked button", "Correct")
    total = len(before.keys() | picked)
    browser.find("#changed", f"15 corrected to 3. mnist has {total} corrections for its next training")
    stored = corrections()
    assert [stored[index] for index in picked] == ["3"] * 15

    # When they undo it, then the images have the corrections that they had before, or none
    browser.click("#changed button", "Undo")
    browser.find("#changed", "Undone: 15 are as before.")
    assert corrections() == before

    # When they start a training, then its curves move, and its model becomes the champion
    weak = champion(browser)
    browser.open("/runs")
    browser.choose("select[name=architecture]", "mlp")
    browser.click("button", "Start a training")
    browser.until(lambda: browser.path.startswith("/runs/"), "the run is shown")
    browser.until(lambda: browser.find_all(".chart"), "the first epoch is drawn", seconds=300)
    browser.until(lambda: browser.find_all(".state", "done"), "the training has ended", seconds=300)
    browser.find("#verdict", "promoted")
    assert champion(browser) != weak

    # When they compare both models, then they see which images flip
    browser.click("button", "Compare two")
    browser.find("h2", "Images that flip")
    drawn = "return document.querySelector('#flips ~ .gallery img').naturalWidth"
    browser.until(lambda: browser.script(drawn), "such an image is shown")

    # When they roll back, then the champion is the one before
    browser.open("/models")
    browser.click("button", "Roll back")
    browser.answer(f"Make {weak} the champion of mnist again, as it was before?")
    browser.find("#said", "is the champion again")
    assert champion(browser) == weak

    # When they let the other one challenge it, and then do not, then the list says so
    browser.click("button", "Challenge")
    browser.find(".badge", "challenger")
    browser.click("button", "End comparison")
    browser.find("button", "Challenge")


def champion(browser: Browser) -> str:
    """Return the id of the champion, as the page of the models shows it."""
    browser.open("/models")
    return browser.find("tr:has(.badge.champion) th a").text
