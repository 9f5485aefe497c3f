"""Commands that start a stack for themselves: what keeps it from starting, or ends it, is told and waits for
nobody.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from jobs.settings import ENV_PREFIX, Settings
from jobs.store import Store
from labelmill import Client
from tests.console import Home
from tests.kerasfile import keras_file
from tests.registering import register_digits


@pytest.fixture
def home(short_folder: Path) -> Home:
    """A home with a champion, which need not be a model that computes anything."""
    home = Home(short_folder / "home")
    with Client(Settings.load(home=home.path)) as client:
        register_digits(client.ledger, Store(client.settings.store), keras_file(), champion=True)
    return home


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "digit.png"
    Image.new("L", (28, 28)).save(path)
    return path


@pytest.mark.parametrize("command", [["classify", "IMAGE"], ["retrain", "--wait"], ["up"]], ids=" ".join)
def test_a_cron_line_that_is_none_is_told_before_anything_is_started(
    home: Home, image: Path, command: list[str]
) -> None:
    # given a schedule with a field too few, which every worker refuses
    home.extra = {ENV_PREFIX + "RETRAIN_CRON": "0 3 * *"}

    # when a command would start a worker, then it names the setting
    done = home.run(*[str(image) if word == "IMAGE" else word for word in command])
    assert done.returncode == 2, done.stderr
    assert "LABELMILL_RETRAIN_CRON: '0 3 * *' has 4 fields" in done.stderr
    assert not (home.path / "logs").exists()

    # and no run is left behind that nobody would train
    assert home.json("runs") == []
