"""`labelmill demo`, as `make demo` runs it: from an empty folder to results, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from jobs.settings import ENV_PREFIX, Settings
from jobs.storage.store import Store
from labelmill import Client
from labelmill.local.stack import broker_answers
from tests.console import (
    LABELMILL,
    Home,
    is_alive,
    killed_at_the_end,
    processes_below,
    rows,
    until,
    wait_for_broker,
)
from tests.digits import Digits, read_digits
from tests.kerasfile import keras_file
from tests.registering import register_digits


def test_it_writes_its_pictures_into_a_new_folder(trained: Home, tmp_path: Path) -> None:
    done = trained.run("demo", "--pictures", tmp_path / "digits")

    assert done.returncode == 0, done.stderr
    classes = sorted(each.name for each in (tmp_path / "digits").iterdir())
    assert classes == [str(digit) for digit in range(10)]
    assert all(any((tmp_path / "digits" / name).glob("*.png")) for name in classes)
    # And never into one that exists
    again = trained.run("demo", "--pictures", tmp_path / "digits")
    assert again.returncode == 2
    assert "name a new folder" in again.stderr


def test_without_mnist_and_network_it_takes_the_sample_and_says_so(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given no MNIST and a network that refuses every connection
    monkeypatch.delenv(ENV_PREFIX + "MNIST_DIR", raising=False)
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    home = Home(short_folder / "home")

    # when the demo is run
    done = home.run("demo")

    # then it ends well on the held-out part of the sample, and says that it is one
    assert done.returncode == 0, done.stderr
    assert "of 1,000 right: accuracy 0.9" in done.stdout
    assert "What to type next" in done.stdout
    assert "using a sample of MNIST, 5,000 digits" in done.stderr
    [job] = home.json("jobs")
    assert (job["state"], job["succeeded"]) == ("done", 1_000)
    assert len(home.ok("predictions", job["id"], "--format", "csv").splitlines()) == 1_001
    assert "Traceback" not in done.stderr
    assert not broker_answers(Settings(home=home.path))

    # and the second time it need not train
    again = home.run("demo")
    assert again.returncode == 0
    assert "using the champion" in again.stderr
    assert len(home.json("models", "list")) == 1


def test_it_classifies_with_the_model_it_trained_whatever_is_champion(
    short_folder: Path, mnist_dir: Path
) -> None:
    # given a stack whose champion knows other classes, and images of eleven classes, some of whose names are
    # no names for a folder
    names = ("T-shirt/top", "..", "Ankle boot", "[red]", "été", *"56789", "blank")
    of_eleven_classes(read_digits(mnist_dir), names).write(short_folder / "idx")
    home = Home(short_folder / "home", {ENV_PREFIX + "MNIST_DIR": str(short_folder / "idx")})
    with Client(Settings.load(home=home.path)) as client:
        store = Store(client.settings.store)
        register_digits(client.ledger, store, keras_file(), champion=True, classes=("crow", "magpie", "jay"))
    with home.started("up", log=short_folder / "up.log"):
        wait_for_broker(home)

        # when the demo is run
        done = home.run("demo")

    # then it starts no workers of its own
    assert done.returncode == 0, done.stderr
    assert f"using the stack that is up in {home.path}" in done.stderr
    assert "starting the workers" not in done.stderr

    # and the gate refuses its model, and the demo's job has it all the same
    assert "cannot be compared: it has other classes" in done.stderr
    [birds] = [model["id"] for model in home.json("models", "list") if model["aliases"]]
    [digits] = [model["id"] for model in home.json("models", "list") if not model["aliases"]]
    [job] = home.json("jobs")
    assert (job["model"], birds != digits) == (digits, True)

    # and it counts what is right by the names of the classes
    found = re.search(r"of 200 right: accuracy ([0-9.]+)", done.stdout)
    assert found is not None, done.stdout
    assert float(found[1]) > 0.8
    assert all(name in done.stdout for name in names)
    assert {row["label"] for row in rows(home.ok("predictions", job["id"], "--format", "csv"))} <= {*names}


def of_eleven_classes(whole: Digits, names: tuple[str, ...]) -> Digits:
    """Return up to ten thousand digits to train with, 200 to test with, some of them blank instead."""
    images, labels = whole.train_images[:10_000].copy(), whole.train_labels[:10_000].copy()
    test_images, test_labels = whole.test_images[:200].copy(), whole.test_labels[:200].copy()
    random = np.random.default_rng(1)
    for some, of, count in ((images, labels, 500), (test_images, test_labels, 20)):
        some[:count], of[:count] = random.integers(3, size=(count, 28, 28)), 10
    return Digits(images, labels, test_images, test_labels, classes=names)


def test_ctrl_c_is_clean(new_home: Home, few_digits: Path) -> None:  # noqa: ARG001 -- made before the clock
    # given a demo that has come as far as its workers
    begun = subprocess.Popen(
        [LABELMILL, "demo"],
        env=os.environ | new_home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with killed_at_the_end(begun) as demo:
        until(lambda: broker_answers(Settings(home=new_home.path)), "the demo's broker answers")
        until(lambda: len(processes_below(demo.pid)) >= 3, "its worker has started")
        started = processes_below(demo.pid)

        # when Ctrl-C is pressed
        demo.send_signal(signal.SIGINT)
        output, _ = demo.communicate(timeout=120)

    # then it ends at once, as interrupted, without a stack trace, and so does all it started
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    until(lambda: not any(map(is_alive, started)), "all its processes have ended", seconds=10)
