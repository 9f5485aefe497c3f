"""`labelmill demo`, as `make demo` runs it: from an empty folder to results, and nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from jobs.settings import ENV_PREFIX, Settings
from labelmill.stack import broker_answers
from tests.console import LABELMILL, Home, is_alive, processes_below, until


def test_with_mnist_it_classifies_all_test_digits(short_folder: Path, digits: Path, accuracy: float) -> None:
    # given an empty state folder, when the demo is run
    images = len(list(digits.rglob("*.png")))
    home = Home(short_folder / "home")
    done = home.run("demo")

    # then it ends well, with all digits classified as well as the model can
    assert done.returncode == 0, done.stderr
    assert f"of {images:,} right: accuracy {accuracy:.4f}" in done.stdout
    assert "What to type next" in done.stdout
    assert "sample" not in done.stdout
    [job] = home.json("jobs")
    assert (job["state"], job["total"], job["succeeded"]) == ("done", images, images)
    assert len(home.ok("predictions", job["id"], "--format", "csv").splitlines()) == images + 1
    assert not broker_answers(Settings(home=home.path))

    # and the second time it need not train
    again = home.run("demo")
    assert again.returncode == 0
    assert "using the champion" in again.stderr
    assert len(home.json("models", "list")) == 1


def test_without_mnist_and_network_it_takes_the_sample_and_says_so(
    short_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given no MNIST and a network that refuses every connection
    monkeypatch.delenv(ENV_PREFIX + "MNIST_DIR")
    for name in ["http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"]:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    home = Home(short_folder / "home")

    # when the demo is run
    done = home.run("demo")

    # then it ends well on the held-out part of the sample, and says that it is one
    assert done.returncode == 0, done.stderr
    assert "of 1,000 right: accuracy 0.9" in done.stdout
    assert "sample of 5,000" in done.stdout
    [job] = home.json("jobs")
    assert (job["state"], job["succeeded"]) == ("done", 1_000)
    assert "Traceback" not in done.stderr


def test_ctrl_c_is_clean(new_home: Home, few_digits: Path) -> None:  # noqa: ARG001 -- made before the clock
    # given a demo that has come as far as its workers
    demo = subprocess.Popen(
        [LABELMILL, "demo"],
        env=os.environ | new_home.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
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
