"""Retraining as a person meets it: asked for, watched, refused, cancelled, and stopped with the stack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.settings import ENV_PREFIX
from tests.console import Home, until, wait_for_broker
from tests.digits import Digits


@pytest.fixture
def home(short_folder: Path, little_mnist: Digits) -> Iterator[Home]:
    """A fresh home, and a folder of IDX files with 800 digits to train with."""
    folder = little_mnist.write(short_folder / "idx")
    return Home(short_folder / "home", {ENV_PREFIX + "MNIST_DIR": str(folder)})


def show(home: Home, run_id: str) -> Any:
    return home.json("runs", "show", run_id)


@pytest.mark.fast
def test_from_nothing_to_a_champion_and_to_one_that_is_refused(home: Home) -> None:
    # given a fresh home and no stack, when somebody retrains and waits
    done = home.run("retrain", "--wait", "--seed", "7")

    # then there is a champion, and the run's id is all that stdout has
    assert done.returncode == 0, done.stderr
    [run_id] = done.stdout.split()
    [model] = home.json("models", "list")
    assert model["aliases"] == ["champion"]
    assert "training images from mnist, version 1" in done.stderr
    assert "epoch 1 of" in done.stderr
    assert "promoted: there was no champion" in done.stderr

    # and its run tells all of it
    run = show(home, run_id)
    assert (run["state"], run["model_id"], run["promoted"]) == ("done", model["id"], True)
    assert run["epochs_done"] == len(run["epochs"]) == run["recipe"]["epochs"]
    assert run["recipe"]["seed"] == 7
    shown = home.ok("runs", "show", run_id)
    assert model["id"] in shown
    assert "held-out accuracy" in shown

    # and the same training once more is no better: refused, with an exit code of its own
    again = home.run("retrain", "--wait", "--json", "--seed", "7")  # of another seed a better one may come
    assert again.returncode == 3, again.stderr
    refused = json.loads(again.stdout)
    assert refused["promoted"] is False
    assert {check["name"]: check["passed"] for check in refused["checks"]}["test set"] is False
    assert "NO " in again.stderr
    [champion] = [model["id"] for model in home.json("models", "list") if model["aliases"]]
    assert champion == model["id"]

    # but with force it goes
    forced = home.run("retrain", "--wait", "--force", "--architecture", "mlp", "--profile", "quick")
    assert forced.returncode == 0, forced.stderr
    listed = home.json("runs", "--limit", "2")
    assert [run["id"] for run in listed] == [forced.stdout.strip(), refused["id"]]
    assert show(home, forced.stdout.strip())["forced"] is True
    assert "force-promoted" in home.ok("runs")

    # and nothing of it is left running
    assert not (home.path / "broker" / "valkey.sock").exists()


def test_without_a_stack_the_run_waits_and_a_second_one_is_told_so(home: Home) -> None:
    # given no stack, when somebody asks for a run
    asked = home.run("retrain")
    assert asked.returncode == 0, asked.stderr
    assert "waits in the ledger. `labelmill up` starts it, and a trainer" in asked.stderr
    run_id = asked.stdout.strip()

    # then it waits, and another one is refused with what to do
    second = home.run("retrain", "--wait")
    assert second.returncode == 2
    assert f"labelmill runs cancel {run_id}" in second.stderr
    assert show(home, run_id)["state"] == "pending"

    # and when it is cancelled it is over
    home.ok("runs", "cancel", run_id)
    assert home.run("runs", "cancel", run_id).returncode == 2
    followed = home.run("runs", "show", run_id, "--watch")
    assert followed.returncode == 1
    assert "is cancelled" in followed.stderr
    assert home.run("runs", "show", "nobody").returncode == 2


def test_a_run_in_a_stack_can_be_cancelled_and_ends_with_the_stack(home: Home, tmp_path: Path) -> None:
    # given a stack, and a training that takes minutes
    with home.started("up", log=tmp_path / "up.log"):
        wait_for_broker(home)
        long = home.ok("retrain", "--profile", "long").strip()
        until(lambda: show(home, long)["epochs_done"] > 0, "an epoch is done")
        assert show(home, long)["state"] == "running"

        # when it is cancelled, then the trainer is free for the next one within seconds
        home.ok("runs", "cancel", long)
        quick = home.run("retrain", "--wait")
        assert quick.returncode == 0, quick.stderr
        assert show(home, long)["state"] == "cancelled"
        [model] = home.json("models", "list")

        # and when the stack is told to stop in the middle of another one
        stopped = home.ok("retrain", "--profile", "long").strip()
        until(lambda: show(home, stopped)["epochs_done"] > 0, "an epoch is done")

    # then it doesn't wait for the training, which notices, says why it ended and has changed nothing
    assert f"Training run {stopped} is interrupted: its trainer was" in (tmp_path / "up.log").read_text()
    run = show(home, stopped)
    assert (run["state"], run["error"]) == ("interrupted", "its trainer was stopped")
    assert [found["id"] for found in home.json("models", "list")] == [model["id"]]
