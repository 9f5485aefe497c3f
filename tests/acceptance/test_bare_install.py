"""A producer's environment: the base requirements and nothing of a worker's. It must be able to do its part.

The environment is a real one, with the packages that `pip install labelmill` brings linked into it from this
one: no network is needed, and what is not linked cannot be imported.
"""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill import Client
from tests.console import COMMAND_SECONDS, Home, rows
from tests.kerasfile import keras_file
from tests.registering import register_digits

PROJECT = Path(__file__).parents[2]
WORKERS_ONLY = ["tensorflow", "keras", "numpy", "PIL"]


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the base requirements only."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    variables = {"base": str(folder), "platbase": str(folder)}
    target = Path(sysconfig.get_path("purelib", scheme="venv", vars=variables))
    for name in _closure(_base_requirements()):
        for top in _top_level(metadata.distribution(name)):
            if not (target / top.name).exists():
                (target / top.name).symlink_to(top)
    (target / "labelmill.pth").write_text(str(PROJECT))
    return folder / "bin" / "python"


def _base_requirements() -> list[str]:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return [_name(line) for line in project["dependencies"]]


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def _closure(names: list[str]) -> set[str]:
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform or Python
        found.add(name)
        queue += [_name(line) for line in requires if "extra ==" not in line]
    return found


def _top_level(distribution: metadata.Distribution) -> Iterator[Path]:
    site = Path(str(distribution.locate_file("")))
    for name in {file.parts[0] for file in distribution.files or [] if file.parts[0] != ".."}:
        yield site / name


@pytest.mark.fast
def test_it_has_nothing_of_a_workers(bare_python: Path) -> None:
    for name in WORKERS_ONLY:
        done = subprocess.run([bare_python, "-c", f"import {name}"], capture_output=True, check=False)
        assert done.returncode == 1, name


@pytest.mark.fast
def test_the_producer_submits_follows_and_queries(bare_python: Path, stack: Home, few_digits: Path) -> None:
    # given a stack is up elsewhere
    def labelmill(*arguments: str) -> str:
        done = subprocess.run(
            [bare_python, "-m", "labelmill", *arguments],
            env=stack.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    # when images are submitted, followed and queried from here, then all of it works
    job = labelmill("submit", str(few_digits), "--watch").strip()
    assert labelmill("--help")
    assert '"state": "done"' in labelmill("status", job, "--json")
    assert len(rows(labelmill("predictions", job, "--format", "csv"))) == 50
    assert '"problems": 0' in labelmill("doctor", "--json")


@pytest.mark.parametrize("command", ["train", "worker", "up", "demo", "classify"])
def test_what_needs_a_model_says_what_to_install(bare_python: Path, tmp_path: Path, command: str) -> None:
    # given a home with a champion: nothing else is missing
    home = Home(tmp_path / "home")
    with Client(Settings.load(home=home.path)) as client:
        register_digits(client.ledger, Store(client.settings.store), keras_file(), champion=True)
    image = tmp_path / "digit.png"
    image.write_bytes(b"no worker will read it")

    # when a command is run that needs TensorFlow here
    done = subprocess.run(
        [bare_python, "-m", "labelmill", command, *([str(image)] if command == "classify" else [])],
        env=home.environment,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
        check=False,
    )

    # then it says so, and has accepted nothing
    assert done.returncode == 2
    assert "pip install '.[worker" in done.stderr
    assert "Traceback" not in done.stderr
    assert home.json("jobs") == []


@pytest.mark.fast
def test_importing_the_workers_application_brings_in_no_tensorflow() -> None:
    code = f"import worker.app, sys; assert not set({WORKERS_ONLY}) & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
