"""The tutorial on own images runs as it stands and prints what it says; so do the first one's curl lines."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from labelmill.console.terminal import ExitCode
from tests.console import Home, wait_for_broker
from tests.pages import PROGRAMS, Example, console_examples, python_blocks, run_as_typed
from tests.serving import make_key

DOCS = Path(__file__).parents[2] / "docs"
TUTORIAL = (DOCS / "tutorial-own-images.md").read_text()
FIRST_TUTORIAL = (DOCS / "tutorial.md").read_text()

CLASSES = ("circle", "square", "triangle")

#: A reader has a minute for each training, this test some seconds.
SHORTER = ("--max-minutes 1 ", "--max-minutes 0.1 ")

#: What a reader does in the browser: each image gets the class that its folder is named after.
CORRECT_ALL = """labelmill predictions $JOB --output all.csv
sed -i.bak -E 's#^([0-9]+),([^,]*)/([a-z]+)/([^,]*),[a-z]*,#\\1,\\2/\\3/\\4,\\3,#' all.csv
labelmill correct $JOB --from all.csv --confirm-unchanged"""

#: What depends on chance if the training is that short: whether the gate promotes.
VERDICT = re.compile(r" +(yes|NO) |promoted: ")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a reader of the tutorial sits: with the script that draws the images."""
    [script] = python_blocks(TUTORIAL)
    (tmp_path / "draw.py").write_text(script)
    return tmp_path


@pytest.fixture
def home(short_folder: Path) -> Iterator[Home]:
    """A fresh home, with `labelmill up`."""
    home = Home(short_folder / "home")
    with home.started("up", log=short_folder / "up.log"):
        wait_for_broker(home)
        yield home


def test_the_tutorial_runs(home: Home, folder: Path) -> None:
    before, heading, after = TUTORIAL.partition("## 5. Train again")
    assert heading
    for example in console_examples(before):
        follow(example, home, folder)
    done = run_as_typed(CORRECT_ALL, folder, home.environment | PROGRAMS)
    assert "300 corrections stored" in done.stdout
    for example in console_examples(after):
        follow(example, home, folder)

    # Then there are two versions, the models of two training runs, and a schedule.
    assert home.json("datasets", "show", "shapes")["version"] == 2
    assert len(home.json("models", "list", "--dataset", "shapes")) == 2
    [schedule] = [each for each in home.json("schedule") if each["dataset"] == "shapes"]
    assert schedule["after_corrections"] == 100


def follow(example: Example, home: Home, folder: Path) -> None:
    """Run the command of an example, and compare what it prints in form."""
    if "models rollback" in example.command:
        # If the second model was refused, there is nothing to go back from: promote it.
        latest = max(model["id"] for model in home.json("models", "list", "--dataset", "shapes"))
        home.run("models", "promote", latest, "--force")
    done = run_as_typed(example.command.replace(*SHORTER), folder, home.environment | PROGRAMS)
    refused = "labelmill retrain" in example.command and done.returncode == ExitCode.WITH_ERRORS
    assert refused or done.returncode == 0, f"{example.command}\n{done.stdout}"
    if refused and len(models := home.json("models", "list", "--dataset", "shapes")) == 1:
        # A first model that has learnt nothing in some seconds: the reader's has a minute.
        home.run("models", "promote", models[0]["id"], "--force")
    for line in example.output:
        if not (refused and VERDICT.match(line)):
            assert re.search(form(line), done.stdout), f"{example.command}\n{line}\n\n{done.stdout}"


@pytest.mark.fast
def test_the_curl_lines_of_the_first_tutorial_run(
    stack: Home, url: str, few_digits: Path, tmp_path: Path
) -> None:
    shutil.copytree(few_digits, tmp_path / "digits")
    address = {"API": f"{url}/v1", "KEY": make_key(stack)}
    for example in console_examples(FIRST_TUTORIAL.partition("## 7.")[2]):
        if example.command.startswith(("KEY=", "API=")):
            continue
        command = example.command.replace("curl ", "curl --fail --silent --show-error ")
        done = run_as_typed(command, tmp_path, stack.environment | PROGRAMS | address)
        assert done.returncode == 0, f"{example.command}\n{done.stdout}"
        if "/events" in command:
            assert "event: completed" in done.stdout
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 50


def form(line: str) -> str:
    """Return a pattern for the line with any numbers, ids and classes; `...` is anything."""
    words = []
    for word in line.split():
        bare = word.strip("();:,")
        varies = bare in (*CLASSES, "-") or any(letter.isdigit() for letter in bare)
        words.append(".*" if word == "..." else r"\S+" if varies else re.escape(word))
    return r"\s+".join(words)
