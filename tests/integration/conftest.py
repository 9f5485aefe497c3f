"""What tests of a worker's work share: a model of the right shape, and a bench."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator

import pytest
from worker.bench import Bench

from jobs.ledger import Ledger
from jobs.model import MNIST_INPUT
from jobs.settings import Settings
from jobs.store import Store
from tests.bench_alone import Mill, make_mill
from tests.conftest import Broker


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A model of the right shape, untrained: not what it answers matters here, but where that lands."""
    from worker.predicting.runtime import keras

    from worker.learning.training import build, save

    keras.utils.set_random_seed(1)  # whatever ran before: its answers must differ from picture to picture
    path = tmp_path_factory.mktemp("model") / "model.keras"
    save(build("mlp", MNIST_INPUT, 10), path)
    return path.read_bytes()


@pytest.fixture
def bench(settings: Settings) -> Iterator[Bench]:
    with Bench(settings, processes=1) as bench:
        yield bench


@pytest.fixture
def mill(ledger: Ledger, store: Store, bench: Bench, model_file: bytes) -> Mill:
    return make_mill(ledger, store, bench, model_file)


@pytest.fixture
def rung(broker: Broker) -> Callable[[], list[str]]:
    """The chunks whose messages wait, in the order of `Broker.messages`; after that none waits any more."""

    def rung() -> list[str]:
        messages = map(json.loads, broker.messages())
        broker.client.flushall()
        return [json.loads(base64.b64decode(message["body"]))[0][0] for message in messages]

    return rung
