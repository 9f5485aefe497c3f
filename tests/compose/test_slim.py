"""compose.slim.yaml with real containers: workers without TensorFlow serve a compiled MobileNetV2."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from tests.compose.deployment import BUILD_SECONDS, Deployment
from tests.compose.test_compose import BASE, size_of, wait_for
from tests.console import has_tensorflow, processes_below, rows, until
from tests.programs import run_python

#: The photographs of a job.
PHOTOS: Final = 400

#: Limits for the image, whose base is the official one, and for a process, in MB.
IMAGE_MB: Final = 500
BASE_MB: Final = 130
PROCESS_MB: Final = 250

#: Limit for the processor time of a worker's processes until the first label. It is measured on
#: machines that do other work, too.
CPU_SECONDS: Final = 6

_MAKE_PHOTOS: Final = """
import sys
import numpy as np
from PIL import Image
random = np.random.default_rng(1)
for number in range(int(sys.argv[2])):
    pixels = random.integers(0, 256, (15, 20, 3), np.uint8)
    Image.fromarray(pixels).resize((640, 480)).save(f"{sys.argv[1]}/{number:04}.jpg")
"""

_MAKE_MODEL: Final = """
import sys
from worker.predicting.tensorflow_runtime import keras
keras.utils.set_random_seed(int(sys.argv[2]))
pixels = keras.Input((224, 224, 3), dtype="uint8")
network = keras.applications.MobileNetV2(weights=None)
keras.Model(pixels, network(keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels))).save(sys.argv[1])
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    folder.chmod(0o755)
    run_python(_MAKE_PHOTOS, str(folder), str(PHOTOS))
    return folder


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory, mnist_dir: Path, photos: Path
) -> Iterator[Deployment]:
    """The deployment with slim workers, built and brought up once."""
    folder = tmp_path_factory.mktemp("slim")
    deployment = Deployment(folder, mnist=mnist_dir, images=photos, variant="compose.slim.yaml")
    deployment.clean_up()
    deployment.compose("--profile", "producer", "build", timeout=BUILD_SECONDS)
    try:
        deployment.up()
        yield deployment
    finally:
        deployment.clean_up()


@pytest.fixture(scope="module")
def models(deployment: Deployment, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two models that the trainer has registered and compiled, the second one not a champion yet."""
    folder = tmp_path_factory.mktemp("models")
    folder.chmod(0o755)
    (folder / "classes.txt").write_text("".join(f"class {number}\n" for number in range(1000)))
    found = []
    for seed in (1, 2):
        run_python(_MAKE_MODEL, str(folder / f"{seed}.keras"), str(seed))
        run = ("run", "--rm", "--no-TTY", "--volume", f"{folder}:/models:ro", "trainer", "models", "register")
        options = (f"/models/{seed}.keras", "--classes-file", "/models/classes.txt")
        found.append(deployment.compose(*run, *options).stdout.split()[-1])
    deployment.labelmill("models", "promote", found[0], "--force")
    return found


def classify(deployment: Deployment) -> str:
    """Submit all photographs, and return the job's id."""
    return deployment.labelmill("submit", "/images").stdout.split()[-1]


def check_outcomes(deployment: Deployment, job: str, model: str) -> None:
    """Each photograph has one label, from this model."""
    found = rows(deployment.labelmill("predictions", job, "--format", "csv").stdout)
    assert [int(row["index"]) for row in found] == list(range(PHOTOS))
    assert {(row["error"], row["model"]) for row in found} == {("", model)}
    assert all(row["label"] for row in found)


def workers(deployment: Deployment) -> list[int]:
    """The processes of the workers' container that run Celery, the main one first."""
    [container] = deployment.containers("worker")
    found = processes_below(container.pid)
    # With its path, as Python is given it: the container's init names the command without.
    return [
        pid for pid in found if "/labelmill\0worker" in (Path("/proc") / str(pid) / "cmdline").read_text()
    ]


def pss_mb(pid: int) -> float:
    """The memory of a process, with its share of what others map too."""
    text = (Path("/proc") / str(pid) / "smaps_rollup").read_text()
    [kib] = re.findall(r"^Pss: +(\d+) kB", text, re.MULTILINE)
    return int(kib) / 1000


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has used."""
    fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_slim_workers_serve_a_compiled_model_within_their_limits(
    deployment: Deployment, models: list[str]
) -> None:
    # When photographs are classified, then all have a label
    job = classify(deployment)
    wait_for(deployment, job)
    check_outcomes(deployment, job, models[0])

    # and image and processes are small.
    [container] = deployment.containers("worker")
    image = size_of(container.inspected["Config"]["Image"]) - size_of(BASE) + BASE_MB
    memory = [pss_mb(pid) for pid in workers(deployment)]
    print(f"\nimage {image:.0f} MB; processes {', '.join(f'{each:.0f}' for each in memory)} MB")  # noqa: T201
    assert image <= IMAGE_MB
    assert max(memory) <= PROCESS_MB
    assert not any(map(has_tensorflow, workers(deployment)))


def test_a_killed_process_loses_nothing_and_new_jobs_get_the_new_champion(
    deployment: Deployment, models: list[str]
) -> None:
    # Given a job in work, and a new champion
    first = classify(deployment)
    until(lambda: bool(deployment.ask("SELECT 1 FROM chunks WHERE state = 'claimed'")), "a chunk is claimed")
    deployment.labelmill("models", "promote", models[1], "--force")
    # when a process is killed, and another job comes
    os.kill(workers(deployment)[-1], signal.SIGKILL)
    second = classify(deployment)
    # then both have all their outcomes, each from its model.
    for job, model in zip((first, second), models, strict=True):
        wait_for(deployment, job)
        check_outcomes(deployment, job, model)


@pytest.mark.usefixtures("models")
def test_the_first_label_comes_soon_after_the_start(deployment: Deployment) -> None:
    # Given a photograph that waits, because no worker runs
    deployment.compose("stop", "worker")
    job = deployment.labelmill("submit", "/images/0000.jpg").stdout.split()[-1]
    # when a worker starts
    deployment.compose("start", "worker")
    time.sleep(5)  # asking takes a core, which the worker needs
    wait_for(deployment, job)
    # then its label comes within seconds; how many depends on what else the machine does.
    used = sum(cpu_seconds(pid) for pid in workers(deployment))
    [container] = deployment.containers("worker")
    started = datetime.fromisoformat(container.inspected["State"]["StartedAt"])
    [[seconds]] = deployment.ask(
        f"SELECT extract(epoch FROM finished_at) - {started.timestamp()} FROM chunks WHERE job_id = '{job}'"
    )
    print(f"\nfirst label after {float(seconds):.1f} s, {used:.1f} s of a core")  # noqa: T201
    assert used <= CPU_SECONDS
