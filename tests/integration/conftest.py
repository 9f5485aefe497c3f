"""Fixtures for many of these tests: a client, submitted jobs, a worker's context, and a harness."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer import Typer
from typer.testing import CliRunner, Result

from jobs.ledger import Ledger
from jobs.ledger.learning.datasets import add_version
from jobs.models.dataset import MNIST
from jobs.models.model import MNIST_INPUT, Model
from jobs.network.references import Roots
from jobs.options import JobOptions
from jobs.queue import Publisher
from jobs.settings import Settings
from jobs.storage.store import Store
from labelmill.client import Client
from producer.sources import SourceImage
from producer.submit import Submitter, submit
from tests.conftest import Job
from tests.console import Home
from tests.faults import light
from tests.harness import Harness, make_harness
from tests.kerasfile import keras_file
from tests.ledger_probes import chunks_of
from tests.serving import served_here
from worker.predicting.context import WorkerContext


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a real, untrained model of the right shape; its answers differ between pictures."""
    from worker.learning.fit import save
    from worker.learning.networks import build
    from worker.predicting.tensorflow_runtime import keras

    keras.utils.set_random_seed(1)
    path: Path = tmp_path_factory.mktemp("model") / "model.keras"
    save(build("mlp", MNIST_INPUT, 10), path)
    return path.read_bytes()


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    """Return a client of the test's ledger, store and broker."""
    with Client(settings) as client:
        yield client


@pytest.fixture
def api(settings: Settings, ledger: Ledger, store: Store) -> Iterator[httpx.Client]:  # noqa: ARG001
    """Return a client of the API, which is served by a thread of this process."""
    with served_here(settings, ledger) as (_, client):
        yield client


@pytest.fixture
def home(settings: Settings) -> Home:
    """Return the console command as a process, with the test's settings."""
    return Home(settings.home, settings.environment())


@pytest.fixture
def run_command(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Return a function: `run_command(app, "status", id)` runs a command here, with the test's settings."""
    for name, value in settings.environment().items():
        monkeypatch.setenv(name, value)

    def run_command(app: Typer, *arguments: object, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)), input=stdin)

    return run_command


@pytest.fixture
def submitted(
    ledger: Ledger,
    store: Store,
    publisher: Publisher,
    champion: Model,  # noqa: ARG001 -- there has to be a model
) -> Callable[..., Job]:
    """Return a function: `submitted(7)` submits seven images (or those given) in chunks of three."""

    def submitted(
        images: int | Iterable[SourceImage],
        *,
        chunk_images: int = 3,
        by_reference: Roots | None = None,
        **options: Any,
    ) -> Job:
        if isinstance(images, int):
            images = [SourceImage(f"{n}.png", f"pixels {n}".encode(), None) for n in range(images)]
        submitter = Submitter(ledger, store, publisher, chunk_images)
        job_id = submit(submitter, images, JobOptions(**options), by_reference=by_reference).job_id
        return Job(job_id, chunks_of(ledger, job_id))

    return submitted


@pytest.fixture
def birds(ledger: Ledger) -> None:
    """Add a version of the dataset `birds`, without its images."""
    _add_version(ledger, "birds", "finch", "heron")


@pytest.fixture
def mnist(ledger: Ledger) -> None:
    """Add a version of the dataset `mnist`, without its images."""
    _add_version(ledger, MNIST, *"0123456789")


def _add_version(ledger: Ledger, dataset: str, *classes: str) -> None:
    with ledger.transaction() as connection:
        add_version(
            connection,
            dataset,
            after=None,
            fingerprint="b" * 64,
            classes=classes,
            summary={"images": 0},
            manifest=f"datasets/{dataset}/1",
            by_reference=False,
        )


@pytest.fixture
def context(settings: Settings) -> Iterator[WorkerContext]:
    """Return the resources of one worker process."""
    with WorkerContext(settings, processes=1) as context:
        yield context


@pytest.fixture
def light_model(monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Return a model file for `tests.faults.light`, which reads labels from pictures without TensorFlow."""
    monkeypatch.setitem(sys.modules, "worker.predicting.classifier", light)
    monkeypatch.setattr(light, "PACE_SECONDS", 0.0)
    return keras_file()


@pytest.fixture
def harness(ledger: Ledger, store: Store, context: WorkerContext, light_model: bytes) -> Harness:
    """Return a worker's context with the light classifier."""
    return make_harness(ledger, store, context, light_model)


@pytest.fixture
def keras_harness(ledger: Ledger, store: Store, context: WorkerContext, model_file: bytes) -> Harness:
    """Return a worker's context with a real model."""
    return make_harness(ledger, store, context, model_file)
