"""The README's blocks are run as they stand."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jobs.settings import ENV_PREFIX
from labelmill.console.terminal import ExitCode
from tests.console import LABELMILL, Home, until
from tests.pages import console_examples
from tests.serving import make_key, served

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text()

#: What other tests run: `make` itself, and the stack, which is up here.
ELSEWHERE = {"labelmill up"}


@pytest.fixture
def folder(few_digits: Path, tmp_path: Path) -> Path:
    """Where a reader of the README sits: with photos, digits and a digit."""
    shutil.copytree(few_digits, tmp_path / "photos")
    shutil.copytree(few_digits, tmp_path / "digits")
    shutil.copy(next((few_digits / "4").iterdir()), tmp_path / "digit.png")
    return tmp_path


def _lines() -> list[str]:
    return [example.command for example in console_examples(README)]


def test_the_console_blocks_run(stack: Home, folder: Path) -> None:
    job = stack.ok("submit", folder / "photos", "--watch").strip()
    first = _champion(stack)
    try:
        _run_lines(stack, folder, job, first)
        # and the stack is as other tests need it.
        assert _champion(stack) == first
    finally:
        if _champion(stack) != first:
            stack.ok("models", "promote", first, "--force")


def _champion(stack: Home) -> str:
    [champion] = [model["id"] for model in stack.json("models", "list") if "champion" in model["aliases"]]
    return str(champion)


def _run_lines(stack: Home, folder: Path, job: str, first: str) -> None:
    ran = 0
    for line in _lines():
        if not line.startswith("labelmill ") or line in ELSEWHERE:
            continue
        champion = _champion(stack)
        if line == "labelmill models rollback" and champion == first:
            # There is nothing to go back to where the retraining was refused: its model is forced, then.
            [other, *_] = [model["id"] for model in stack.json("models", "list") if model["id"] != first]
            stack.ok("models", "promote", other, "--force")
        command = line.replace("labelmill", LABELMILL, 1).replace("JOB", job).replace("MODEL", champion)
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=stack.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        # A retraining that is not better is no failure of the command.
        expected = (0, ExitCode.WITH_ERRORS) if line == "labelmill retrain --wait" else (0,)
        assert done.returncode in expected, f"{line}\n{done.stderr}"
        ran += 1
    assert ran >= 4


@pytest.mark.fast
def test_the_python_blocks_run(stack: Home, folder: Path) -> None:
    shutil.make_archive(str(folder / "digits"), "zip", folder / "digits")
    with served(stack, folder / "serve.log") as url:
        openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": make_key(stack)}
        printed = [
            subprocess.run(
                [sys.executable, "-c", block],
                cwd=folder,
                env=stack.environment | {ENV_PREFIX + "HOME": str(stack.path)} | openai,
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL)
        ]
    assert "50 of 50" in printed[0]
    # And the batch of the second one is a job
    until(lambda: stack.json("status", printed[1].split()[0])["succeeded"] == 50, "the batch is done")


@pytest.mark.fast
def test_the_curl_lines_run(stack: Home, folder: Path) -> None:
    shutil.make_archive(str(folder / "digits"), "zip", folder / "digits")
    answers = []
    with served(stack, folder / "serve.log") as url:
        openai = {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": make_key(stack)}
        for line in _lines():
            if not line.startswith("curl "):
                continue
            if answers:  # each line has the id of the answer before
                line = re.sub(r"FILE|BATCH", json.loads(answers[min(len(answers), 2) - 1])["id"], line)
            done = subprocess.run(
                ["bash", "-c", line.replace("curl", "curl --fail --silent --show-error", 1)],
                cwd=folder,
                env=stack.environment | openai,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{line}\n{done.stderr}"
            answers.append(done.stdout)
    _, _, events, results = answers
    assert "event: completed" in events
    assert len(results.splitlines()) == 1 + 50


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
