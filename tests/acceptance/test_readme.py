"""The README's blocks are run as they stand."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs.settings import ENV_PREFIX
from tests.console import Home
from tests.pages import PROGRAMS, console_examples, python_blocks, run_as_typed
from tests.serving import make_key

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()

#: What other tests run: `make` itself, and the stack, which is up here.
ELSEWHERE = {"labelmill up"}


@pytest.fixture
def folder(few_digits: Path, tmp_path: Path) -> Path:
    """Where a reader of the README sits: with labelled photos, and new images as a folder and an archive."""
    shutil.copytree(few_digits, tmp_path / "new")
    shutil.make_archive(str(tmp_path / "new"), "zip", tmp_path / "new")
    return tmp_path


def _lines() -> list[str]:
    return [example.command for example in console_examples(README)]


def test_the_console_blocks_run(stack: Home, folder: Path) -> None:
    for name in ("crow", "jay"):
        _draw_photos(folder / "photos" / name, 60)
    ran = 0
    for line in _lines():
        if "labelmill " not in line or line in ELSEWHERE:
            continue
        # On a busy machine the first epoch takes most of a minute, and one epoch does not beat guessing.
        shorter = line.replace("--max-minutes 10", "--max-minutes 2")
        done = run_as_typed(shorter, folder, stack.environment | PROGRAMS)
        assert done.returncode == 0, f"{line}\n{done.stdout}"
        ran += 1
    assert ran >= 4


def _draw_photos(folder: Path, number: int) -> None:
    """Draw noise, darker for some classes than for others."""
    folder.mkdir(parents=True)
    brightest = 100 if folder.name == "crow" else 256
    chance = np.random.default_rng(brightest)
    for each in range(number):
        Image.fromarray(chance.integers(0, brightest, (16, 16, 3), np.uint8)).save(folder / f"{each}.png")


@pytest.mark.fast
def test_the_python_blocks_run(stack: Home, url: str, folder: Path) -> None:
    openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": make_key(stack)}
    printed = [
        subprocess.run(
            [sys.executable, "-c", block.replace("birds", "mnist")],  # the stack's model knows digits
            cwd=folder,
            env=stack.environment | {ENV_PREFIX + "HOME": str(stack.path)} | openai,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for block in python_blocks(README)
    ]
    assert "50 of 50" in printed[0]
    # And the second one prints what became of each image
    assert len(printed[1].strip().splitlines()) == 50


@pytest.mark.fast
def test_make_has_the_two_commands_and_pip_the_extras() -> None:
    targets = set(re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    makes = [line for line in _lines() if line.startswith("make ")]
    installs = [line for line in _lines() if line.startswith("pip install ")]
    assert makes == ["make demo", "make test"]
    assert {line.split()[1] for line in makes} <= targets
    for line in installs:
        [named] = re.findall(r"'\.\[([\w,]+)\]'", line)
        assert set(named.split(",")) <= set(extras), line
