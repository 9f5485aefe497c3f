"""What a classifying process has at hand, where its start goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

#: A process without a champion, whose time limit strikes when TensorFlow is imported by half.
_STRUCK: Final = '''
import os, signal, sys
from billiard.exceptions import SoftTimeLimitExceeded
from jobs.model import MNIST_INPUT
from jobs.settings import Settings
from labelmill.migrating import open_ledger
from worker.bench import Bench

def strike(*_):
    raise SoftTimeLimitExceeded

class Half:
    """Looks for no module, and strikes when a certain one is looked for: always at the same place."""

    def find_spec(self, name, *_):
        if name == "tensorflow.python.trackable.data_structures":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGUSR1)

settings = Settings.load()
open_ledger(settings).close()
signal.signal(signal.SIGUSR1, strike)
sys.meta_path.insert(0, Half())
with Bench(settings, processes=1) as bench:
    try:
        bench.warm_up()
    except SoftTimeLimitExceeded:
        print("the time limit has struck")
    try:
        bench.warm_up()
        from worker.learning.training import build
        build("mlp", MNIST_INPUT, 10)
    except Exception as error:
        print(repr(error))
    else:
        print("and TensorFlow is whole")
'''


def said_by(program: str, home: Path) -> list[str]:
    """The lines that a process of its own prints, which runs this program with an empty state folder."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LABELMILL_HOME": str(home)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_time_limit_that_strikes_in_an_import_leaves_no_half_of_tensorflow(tmp_path: Path) -> None:
    # It did: every job after that failed in this process, because its model "could not be loaded".
    assert said_by(_STRUCK, tmp_path) == ["the time limit has struck", "and TensorFlow is whole"]


#: A process that has started TensorFlow, and then does so again, for a second model.
_FROZEN: Final = """
import gc
from jobs.settings import Settings
from labelmill.migrating import open_ledger
from worker.bench import Bench

settings = Settings.load()
open_ledger(settings).close()
with Bench(settings, processes=1) as bench:
    bench.warm_up()
    print(gc.get_freeze_count() > 100_000, len(gc.get_objects()) < 20_000)
    model = bench._classifiers["a model"] = ["of many objects"]
    bench._start_tensorflow()
    print(any(each is model for each in gc.get_objects()))
"""


@pytest.mark.slow
def test_what_tensorflow_is_made_of_is_not_looked_through_for_garbage_and_a_model_is(tmp_path: Path) -> None:
    assert said_by(_FROZEN, tmp_path) == ["True True", "True"]
