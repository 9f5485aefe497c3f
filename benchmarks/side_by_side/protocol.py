"""The protocol of the other ways: they get their places, start, and then take orders.

A way runs in its own process and uses nothing of Labelmill but this file. Orders and answers are lines of
JSON on stdin and stdout; `benchmarks.side_by_side.others` is at the other end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, Final

COLUMNS: Final = '(job_id, "index", name, label, confidence)'
COPY: Final = f"COPY predictions {COLUMNS} FROM STDIN"

Row = tuple[str, int, str, str, float]

#: Classifies all images below a folder under a job's id, and commits a row for each. Returns how many of the
#: seconds were its start, if it starts each time.
Classify = Callable[[str, str], float]


@dataclass(frozen=True)
class Places:
    """The URLs and paths that a way needs."""

    database: str  # the URL of a PostgreSQL database with an empty table `predictions`
    broker: str  # the URL of a Valkey that is up
    model: str  # path of the .keras file
    classes: list[str]  # by the model's outputs
    processes: int  # as many as cores
    scratch: str  # a folder for its own files

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Places:
        """Return the places of a line from `to_json`."""
        return cls(**json.loads(line))


def serve(way: Callable[[Places], AbstractContextManager[Classify]]) -> None:
    """Start the way and carry out orders until there are no more."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not come between the answers
    with way(Places.from_json(sys.argv[1])) as classify:
        answers.write(json.dumps({"ready": True}) + "\n")
        for line in sys.stdin:
            order = json.loads(line)
            answers.write(json.dumps({"start": classify(order["folder"], order["job_id"])}) + "\n")


def find_files(folder: str) -> list[str]:
    """Return the paths of all files below the folder, in any order."""
    return [f"{path}/{name}" for path, _, names in os.walk(folder) for name in names]


def load_network(path: str, *, threads: int) -> Callable[[Any], Any]:
    """The model as a traced function: uint8 of (n, 28, 28) in, probabilities as float32 of (n, classes) out.

    Calling a Keras model untraced takes several times as long, and `predict` is for many batches.
    """
    os.environ |= {"KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "3"}
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
    model = keras.saving.load_model(path, compile=False)
    signature = [tf.TensorSpec((None, 28, 28), tf.uint8)]
    traced = tf.function(lambda pixels: model(pixels, training=False), input_signature=signature)

    def answer(pixels: Any) -> Any:
        return traced(pixels).numpy()

    answer(np.zeros((1, 28, 28), np.uint8))
    return answer


def decode(path: str) -> Any:
    """The picture as a grey array, by Pillow."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def rows_of(job_id: str, numbered: Iterable[tuple[int, str]], scores: Any, classes: list[str]) -> list[Row]:
    """A row for each (index, path), from the probabilities in the same order."""
    best, confidence = scores.argmax(axis=1).tolist(), scores.max(axis=1).tolist()
    return [
        (job_id, index, path, classes[label], likely)
        for (index, path), label, likely in zip(numbered, best, confidence, strict=True)
    ]


def copy_rows(connection: Any, rows: Iterable[Row]) -> None:
    """Writes them in one COPY and commits."""
    with connection.cursor() as cursor, cursor.copy(COPY) as copy:
        for row in rows:
            copy.write_row(row)
    connection.commit()
